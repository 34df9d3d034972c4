"""The contract with every family of servers: as recorded, as faked, and with a real llama.cpp."""

from __future__ import annotations

from wire.topics import asked_of

from wire import fake_worlds, llamacpp_world, recorded_worlds

WORLDS = [*recorded_worlds.WORLDS, *fake_worlds.WORLDS, *llamacpp_world.WORLDS]
globals().update(asked_of(WORLDS))


def test_every_recorded_server_is_met() -> None:
    assert played() == recorded()
