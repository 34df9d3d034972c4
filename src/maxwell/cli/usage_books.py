"""The books as `maxwell usage` opens them, and the names in them."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path

from maxwell.clock import SystemClock
from maxwell.errors import UnknownName
from maxwell.ledger import Ledger
from maxwell.ledger.days import budget_day, zone
from maxwell.ledger.memory import MemoryLedger
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.registry import Registry, maxwell_home
from maxwell.registry.specs import Spec
from maxwell.registry.wording import near


@contextmanager
def opened() -> Iterator[Ledger]:
    """The user's ledger. Where there is none yet, looking at it makes none."""
    home = maxwell_home(os.environ)
    ledger: Ledger = SQLiteLedger(home, SystemClock()) if has_books(home) else MemoryLedger()
    with closing(ledger):
        yield ledger


def has_books(home: Path) -> bool:
    """Whether anything was ever booked in `home`."""
    for name in ("ledger.db", "llm_usage.json"):
        try:
            (home / name).lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:  # it may be there: whoever opens it says what is wrong
            return True
        return True
    return False


def today(registry: Registry) -> date:
    """The budget day it is."""
    return budget_day(time.time(), zone(registry.budget_timezone))


def specs(registry: Registry) -> dict[str, Spec]:
    """Every declared entry by name, in registry order."""
    declared: list[Spec] = [*registry.llms, *registry.embeddings, *registry.rerankers]
    return {spec.name: spec for spec in declared}


def check_name(name: str, registry: Registry, ledger: Ledger) -> None:
    """Raise `UnknownName` for a name that is neither declared nor in the books."""
    declared = list(specs(registry))
    if name in declared:
        return
    booked = {booked for used in ledger.history(date.min).values() for booked in used}
    booked |= {found.hold.name for found in ledger.holds()}
    if name in booked:
        return
    names = [*declared, *sorted(booked.difference(declared))]
    meant = near(name, names, cutoff=0.5)
    words = f"did you mean {meant}?" if meant else f"there is {', '.join(names[:8])}"
    raise UnknownName(f"no entry {name!r} in the registry or in the books; {words}")
