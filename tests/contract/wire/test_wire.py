"""The contract with every family of servers: as recorded, as faked, and with a real llama.cpp."""

from __future__ import annotations

from wire.fake_worlds import WORLDS as FAKED
from wire.llamacpp_world import WORLDS as REAL
from wire.recorded_worlds import WORLDS as RECORDED
from wire.recorded_worlds import played, recorded
from wire.topics import asked_of

WORLDS = [*RECORDED, *FAKED, *REAL]
globals().update(asked_of(WORLDS))


def test_every_recorded_server_is_met() -> None:
    assert played() == recorded()
