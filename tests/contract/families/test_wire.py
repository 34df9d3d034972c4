"""The contract with every family of servers: as recorded, as faked, and with a real llama.cpp."""

from __future__ import annotations

from families.fake_worlds import WORLDS as FAKED
from families.llamacpp_world import WORLDS as REAL
from families.recorded_worlds import WORLDS as RECORDED
from families.recorded_worlds import played, recorded
from families.topics import asked_of

WORLDS = [*RECORDED, *FAKED, *REAL]
globals().update(asked_of(WORLDS))


def test_every_recorded_server_is_met() -> None:
    assert played() == recorded()
