"""`llm_usage.json`: the books as people and other programs read them, {"name": {"YYYY-MM-DD": tokens}}.

It is read once, where there is no ledger yet, and from then on only written: at most once a second, and at
exit.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec

from maxwell.database.background import background
from maxwell.database.file import Database
from maxwell.errors import LedgerError
from maxwell.registry.files import write_atomically

log = logging.getLogger("maxwell")

FILE_NAME = "llm_usage.json"
INTERVAL_SECONDS = 1.0
_LOCK_SECONDS = 5.0

_NOTED = "SELECT value FROM note WHERE key IN ('projection', 'earlier projection')"

_Books = dict[str, dict[date, Annotated[int, msgspec.Meta(ge=0, le=2**53)]]]


def read(home: Path) -> dict[tuple[str, date], int] | None:
    """The tokens of each name and day that `llm_usage.json` in `home` tells; None = there is none.

    Raises `LedgerError` when it cannot be read or understood.
    """
    file = home / FILE_NAME
    try:
        books = msgspec.json.decode(file.read_bytes(), type=_Books)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"{file} cannot be read: {error.strerror}; mend it or move it away") from error
    except (msgspec.MsgspecError, ValueError) as error:
        raise LedgerError(
            f"{file} is not {{name: {{YYYY-MM-DD: tokens}}}} ({error}); mend it or move it away"
        ) from error
    return {(name, day): tokens for name, days in books.items() for day, tokens in days.items()}


def take_over(db: sqlite3.Connection, home: Path) -> None:
    """Begin new books with what an earlier `llm_usage.json` in `home` holds. Raises `LedgerError`."""
    rows = [(name, day.isoformat(), tokens) for (name, day), tokens in (read(home) or {}).items()]
    db.executemany("INSERT INTO day VALUES (?, ?, ?, 0, 0, 0)", rows)


def lock_file(home: Path) -> Path:
    """What who writes or reads `llm_usage.json` for the books holds a lock on, so that one does at a time."""
    return home / f".{FILE_NAME}.lock"


class Projection:
    """Keeps `llm_usage.json` like the books."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._file = database.home / FILE_NAME
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._is_due = False
        self._writing = threading.Lock()  # who ends the process waits for the thread that is about it

    def _here(self) -> None:
        """In a forked child neither what was due nor the thread that was about it are this process's."""
        if self._pid != os.getpid():
            self._start_afresh()

    def soon(self) -> None:
        """The books change; write the file within a second or so."""
        self._here()
        if not self._is_due:
            self._is_due = True
            background.soon(self._in_background, INTERVAL_SECONDS)

    def _in_background(self) -> None:
        try:
            age = time.time() - self._file.stat().st_mtime
        except OSError:
            age = INTERVAL_SECONDS
        if 0 <= age < INTERVAL_SECONDS:  # another process has just written it
            background.soon(self._in_background, INTERVAL_SECONDS - age)
            return
        with contextlib.suppress(LedgerError):  # whoever writes the books says so
            self.write()

    def write(self) -> None:
        """Write the file now, if this process changed the books since the last time. Raises `LedgerError`."""
        self._here()
        with self._writing:
            if not self._is_due:
                return
            self._is_due = False
            try:
                self._database.flush()
                with self._alone():
                    self._write()
            except BaseException:
                self._is_due = True
                background.soon(self._in_background, INTERVAL_SECONDS)
                raise

    def _write(self) -> None:
        """Under the lock, so that an older state of the books never replaces a newer one."""
        rows, _ = self._database.read("SELECT name, day, tokens FROM day ORDER BY name, day")
        books: dict[str, dict[str, int]] = {}
        for name, day, tokens in rows:
            books.setdefault(name, {})[day] = tokens
        data = msgspec.json.format(msgspec.json.encode(books), indent=2) + b"\n"
        try:
            there = self._file.read_bytes()
        except FileNotFoundError:
            there = None
        if there == data:
            return
        noted, _ = self._database.read(_NOTED)
        digest = "" if there is None else _digest(there)
        # Where nothing is noted yet, an older Maxwell may have written it.
        if there is not None and noted and (digest,) not in noted:
            log.warning(
                "%s was changed by hand; that has no effect, because it is only a copy of the ledger. "
                "`maxwell usage reset NAME` lets an entry begin at zero",
                self._file,
            )
        with self._database.write() as db:  # first, so that a crash in between does not look like a hand
            _note(db, _digest(data), digest)
        write_atomically(self._file, data)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time; the lock dies with its holder."""
        import filelock

        lock = filelock.FileLock(lock_file(self._database.home), timeout=_LOCK_SECONDS)
        try:
            with lock:
                yield
        except (filelock.Timeout, OSError) as error:
            raise LedgerError(f"{self._file} cannot be written: {error}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _note(db: sqlite3.Connection, digest: str, there: str) -> None:
    """Remember what the file holds from now on; what is there until then is no hand's work either."""
    db.execute("INSERT OR REPLACE INTO note VALUES ('projection', ?)", (digest,))
    db.execute("INSERT OR REPLACE INTO note VALUES ('earlier projection', ?)", (there,))
