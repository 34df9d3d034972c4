"""New books where `ledger.db` is damaged: from `llm_usage.json`, and from what of the file can still be read.

Nothing is deleted: what is replaced stays beside the new books, as `ledger.replaced-<time>.db` and so on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Struct

from maxwell.database.damage import explain, is_damage
from maxwell.database.file import BUSY_SECONDS, Database
from maxwell.errors import LedgerError
from maxwell.ledger import Used
from maxwell.ledger.projection import FILE_NAME, Projection, lock_file, read, take_over
from maxwell.ledger.tasks import add

log = logging.getLogger("maxwell")

_LEDGER = "ledger.db"
_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database; they go with it

# What a damaged page may hold is taken for a row only where every value can be one.
_Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
_Name = Annotated[str, msgspec.Meta(pattern="^[^\ufffd]*$")]
_DayRow = tuple[_Name, date, _Count, _Count, _Count, _Count]
_HoldRow = tuple[
    str, _Name, date, _Count, _Count, Literal["held", "sent", "expired"], float, int, int, str, str
]
_DAYS = "SELECT name, day, tokens, nanousd, estimated, calls FROM day"
_HOLDS = "SELECT id, name, day, tokens, nanousd, state, since, pid, started, boot, place FROM hold"

_Days = dict[tuple[str, date], Used]


class Rebuilt(Struct, frozen=True):
    """What became of the books.

    Attributes:
        moved: The replaced files, where they are now.
        projection: Whether `llm_usage.json` was used, or was missing, or could not be understood (it is among
            `moved` then).
        totals: How many sums of one entry on one day the new books begin with.
        read: How many of them were read in the damaged file; of the others only the tokens are known.
        holds: Open reservations that were read there; they go on.
    """

    moved: tuple[Path, ...]
    projection: Literal["used", "missing", "broken"]
    totals: int
    read: int
    holds: int


class _Salvage(Struct, frozen=True):
    """What could be read in the damaged file."""

    days: _Days
    holds: list[_HoldRow]


def damage(home: Path) -> str:
    """What is wrong with the ledger in `home`, or "" when it is sound or there is none.

    Raises:
        LedgerError: It cannot be looked at: locked, or not permitted.
    """
    path = home / _LEDGER
    try:
        path.stat()
        with contextlib.closing(_opened(path)) as db:
            found = db.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except FileNotFoundError:
        return ""
    except (sqlite3.Error, OSError) as error:
        if is_damage(error):
            return str(error)
        raise LedgerError(explain(path, error)) from error
    return "" if found == "ok" else " ".join(found.replace("***", "").split())


def rebuild(home: Path, now: float) -> Rebuilt:
    """Move the damaged ledger in `home` aside and begin new books.

    For each entry and day the larger one of the token counts that `llm_usage.json` and the damaged file tell
    is taken; money is known only where the file could be read.

    Args:
        home: The user's Maxwell directory.
        now: Seconds since the epoch; names the files that are moved.

    Raises:
        LedgerError: The ledger is sound, or a new one cannot be written; the old one stays where it is then.
    """
    path = home / _LEDGER
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime(now))
    try:
        with _alone(home):
            if not damage(home):
                raise LedgerError(f"the usage ledger {path} is sound; there is nothing to rebuild")
            projection, known, moved = _projected(home, stamp)
            salvage = _salvage(path, known)
            moved += _replace(home, stamp, known, salvage)
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(explain(path, error)) from error
    _project(home)
    totals = len(known.keys() | salvage.days.keys())
    open_holds = sum(state != "expired" for _, _, _, _, _, state, *_ in salvage.holds)
    return Rebuilt(tuple(moved), projection, totals, len(salvage.days), open_holds)


@contextlib.contextmanager
def _alone(home: Path) -> Iterator[None]:
    """One process at a time, and nobody writes `llm_usage.json` meanwhile: the lock is the projection's."""
    import filelock

    try:
        with filelock.FileLock(lock_file(home), timeout=BUSY_SECONDS):
            yield
    except filelock.Timeout as error:
        raise LedgerError(
            f"another process keeps {lock_file(home)}; wait for it to end, then try again"
        ) from error


def _projected(
    home: Path, stamp: str
) -> tuple[Literal["used", "missing", "broken"], dict[tuple[str, date], int], list[Path]]:
    """What `llm_usage.json` tells; one that tells nothing is moved aside."""
    try:
        known = read(home)
    except LedgerError:
        return "broken", {}, [_moved(home / FILE_NAME, _free(home, "llm_usage", stamp, ".json"))]
    return ("missing", {}, []) if known is None else ("used", known, [])


def _replace(home: Path, stamp: str, known: Mapping[tuple[str, date], int], salvage: _Salvage) -> list[Path]:
    """Put new books in the place of the damaged ones; they are complete before anything is moved."""
    path = home / _LEDGER
    with tempfile.TemporaryDirectory(prefix=".rebuild-", dir=home) as temporary:
        _write(Path(temporary), home, known, salvage)
        # The log first: no new books may stand beside an old log for a moment.
        aside = _free(home, "ledger", stamp, ".db")
        pairs = [(Path(f"{path}{end}"), Path(f"{aside}{end}")) for end in (*_BESIDE, "")]
        moved = [_moved(old, new) for old, new in pairs if old.exists()]
        try:
            path.hardlink_to(Path(temporary) / _LEDGER)  # unlike a rename it replaces nothing
        except (
            OSError
        ):  # another process was quicker and began from llm_usage.json, or there are no hard links
            _write(home, home, known, salvage)
    return sorted(moved)


def _write(place: Path, home: Path, known: Mapping[tuple[str, date], int], salvage: _Salvage) -> None:
    """Add to the books in `place`, which began with `llm_usage.json`, what was read beyond it."""
    wal = None if place == home else False  # in one file, which can be moved
    database = Database(place, begin=lambda db: take_over(db, home), wal=wal)
    try:
        with database.write() as db:
            for (name, day), used in salvage.days.items():
                missing = max(used.tokens - known.get((name, day), 0), 0)
                change = Used(missing, used.nanousd, 0, 0, used.estimated_tokens, used.calls)
                add(db, name, day.isoformat(), change)
            for id_, name, day, *rest in salvage.holds:
                db.execute(
                    "INSERT OR IGNORE INTO hold VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (id_, name, day.isoformat(), *rest),
                )
    finally:
        database.close()


def _project(home: Path) -> None:
    """Bring `llm_usage.json` up to date."""
    database = Database(home, begin=lambda db: take_over(db, home))
    projection = Projection(database)
    projection.soon()
    try:
        projection.write()
    except LedgerError as error:  # the books are what counts, and the next call writes it
        log.warning("%s", error)
    finally:
        database.close()


def _salvage(path: Path, known: Mapping[tuple[str, date], int]) -> _Salvage:
    days: _Days = {}
    holds: dict[str, _HoldRow] = {}
    with contextlib.closing(_opened(path)) as db:
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        # Without it SQLite refuses a file that is shorter than its header says.
        for _ in _rows(db, "PRAGMA writable_schema = ON"):
            pass
        # A scan ends at the first bad page. One from each end, and a search for each row that must be there,
        # get round it.
        for order in ("ASC", "DESC"):
            _keep(days, _rows(db, f"{_DAYS} ORDER BY day {order}, name {order}"))
            for row in _rows(db, f"{_HOLDS} ORDER BY id {order}"):
                with contextlib.suppress(msgspec.ValidationError):
                    hold: _HoldRow = msgspec.convert(row, type=_HoldRow)
                    holds[hold[0]] = hold
        for name, day in known:
            if (name, day) not in days:
                _keep(days, _rows(db, f"{_DAYS} WHERE name = ? AND day = ?", name, day.isoformat()))
    return _Salvage(days, list(holds.values()))


def _keep(days: _Days, rows: Iterator[Any]) -> None:
    for row in rows:
        with contextlib.suppress(msgspec.ValidationError):
            name, day, tokens, nanousd, estimated, calls = msgspec.convert(row, type=_DayRow)
            days.setdefault((name, day), Used(tokens, nanousd, 0, 0, estimated, calls))


def _rows(db: sqlite3.Connection, query: str, *parameters: str) -> Iterator[Any]:
    """The query's rows as far as they can be read."""
    try:
        yield from db.execute(query, parameters)
    except (sqlite3.Error, MemoryError):  # MemoryError: a length that is none
        return


def _opened(path: Path) -> sqlite3.Connection:
    """The database, for reading: closing it leaves the file and its log as they are."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_SECONDS)


def _free(home: Path, stem: str, stamp: str, suffix: str) -> Path:
    """A name that nothing bears yet."""
    path, count = home / f"{stem}.replaced-{stamp}{suffix}", 1
    while any(os.path.lexists(f"{path}{end}") for end in (*_BESIDE, "")):
        count += 1
        path = home / f"{stem}.replaced-{stamp}-{count}{suffix}"
    return path


def _moved(old: Path, new: Path) -> Path:
    old.rename(new)
    return new
