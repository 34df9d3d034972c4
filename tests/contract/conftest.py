from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from transport_harness import KINDS, Caller, Certificate, make_certificate


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Name of a transport; every test that uses it runs for each."""
    return str(request.param)


@pytest.fixture
def calling(kind: str) -> Iterator[Callable[..., Caller]]:
    """Makes callers with an environment."""
    made: list[Caller] = []

    def make(**environ: str) -> Caller:
        made.append(KINDS[kind](environ))
        return made[-1]

    yield make
    for caller in made:
        caller.leave()


@pytest.fixture
def caller(calling: Callable[..., Caller]) -> Caller:
    """A caller with an empty environment."""
    return calling()


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """A certificate for 127.0.0.1."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))
