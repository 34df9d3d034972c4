"""Fixtures of the tests of ledger and database."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from ledgers import Programs


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A user's Maxwell directory, not made yet."""
    return tmp_path / "maxwell"


@pytest.fixture
def programs(home: Path) -> Iterator[Programs]:
    """Several programs of one user."""
    with closing(Programs(home)) as several:
        yield several
