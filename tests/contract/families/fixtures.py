"""What makes a test of `topics` run in every world: import all of it into the module that collects them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from families.meeting import Meeting, World

__all__ = ["meeting", "pytest_generate_tests"]

TOPIC = "test_"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that wants a `meeting` runs in every world of its module's `WORLDS` that expects its topic."""
    if "meeting" not in metafunc.fixturenames:
        return
    worlds: Sequence[World] = metafunc.module.WORLDS
    topic = metafunc.function.__name__.removeprefix(TOPIC)
    here = [pytest.param((w, topic), id=w.name, marks=w.marks) for w in worlds if topic in w.expects]
    metafunc.parametrize("meeting", here, indirect=True)


@pytest.fixture
def meeting(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Meeting]:
    world, topic = request.param
    expected: Any = world.expects[topic]
    with world.open(expected.get("server", "chat"), expected, request) as server:
        yield Meeting(server, expected, tmp_path / "maxwell")
