"""The contract: what Maxwell makes of a server, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from families import about_constraints, about_errors, about_numbers, about_replies, about_servers
from families.meeting import World

MODULES = (about_constraints, about_errors, about_numbers, about_replies, about_servers)
TESTS = {name: test for module in MODULES for name, test in vars(module).items() if name.startswith("test_")}
TOPICS = {name.removeprefix("test_") for name in TESTS}


def asked_of(worlds: Sequence[World]) -> dict[str, Any]:
    """The tests that some of these worlds have something to be asked for, and the one of what they lack."""
    asked = {topic for world in worlds for topic in world.expects}
    here = {name: test for name, test in TESTS.items() if name.removeprefix("test_") in asked}
    return {**here, "test_every_topic_is_asked_or_has_a_reason": every_topic_is_asked_or_has_a_reason}


def every_topic_is_asked_or_has_a_reason(request: pytest.FixtureRequest) -> None:
    worlds: list[World] = request.module.WORLDS
    assert len({world.name for world in worlds}) == len(worlds)
    for world in worlds:
        assert world.expects.keys() & world.lacks.keys() == set(), world.name
        assert world.expects.keys() | world.lacks.keys() == TOPICS, world.name
        assert all(len(reason.split()) > 1 for reason in world.lacks.values()), world.name
