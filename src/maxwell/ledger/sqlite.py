"""The ledger of one user: SQLite in `~/.maxwell/ledger.db`, shared by all processes.

`llm_usage.json` beside it is a projection for people and other programs: {"name": {"YYYY-MM-DD": tokens}}.
It is read once, where the ledger is empty yet, and from then on only written.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing.util
import os
import sqlite3
import threading
import time
import uuid
import weakref
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Annotated

import msgspec

from maxwell.clock import Clock
from maxwell.ledger import Hold, LedgerError, NoRoom, Used, has_room
from maxwell.registry.files import write_atomically

log = logging.getLogger("maxwell")

PROJECTION_SECONDS = 1.0  # llm_usage.json is rewritten at most this often, and at exit
BUSY_SECONDS = 5.0
RETRY_SECONDS = 0.02
_VERSION = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS day (
    name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (name, day)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hold (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL,
    pid INTEGER NOT NULL
) WITHOUT ROWID;
"""

_USED = """
SELECT name, SUM(tokens), SUM(usd), SUM(held_tokens), SUM(held_usd) FROM (
    SELECT name, tokens, usd, 0 AS held_tokens, 0.0 AS held_usd FROM day WHERE day = :day
    UNION ALL SELECT name, 0, 0.0, tokens, usd FROM hold WHERE day = :day
) GROUP BY name
"""

_ADD = """
INSERT INTO day (name, day, tokens, usd) VALUES (?, ?, ?, ?)
ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + excluded.tokens, usd = usd + excluded.usd
"""

_Books = dict[str, dict[date, Annotated[int, msgspec.Meta(ge=0)]]]


class SQLiteLedger:
    """Books in `home`. Safe from any thread and across forks; opens its file at first use.

    Args:
        home: The user's Maxwell directory.
        clock: Times the projection.
    """

    def __init__(self, home: Path, clock: Clock) -> None:
        self._home = home
        self._clock = clock
        self.start_afresh()
        _all.add(self)

    def before_fork(self) -> None:
        """Close the file while no thread uses it.

        SQLite must not be carried across a fork: a child would share the parent's locks in memory but not in
        the kernel, and the parent's last close would take the child's log away.
        """
        if self._lock.acquire(timeout=2 * BUSY_SECONDS):
            self._let_go()

    def after_fork(self) -> None:
        """Go on in the parent; the file is opened anew at the next use."""
        with contextlib.suppress(RuntimeError):  # it was never got
            self._lock.release()

    def start_afresh(self) -> None:
        """Begin as a forked child: what is pending is the parent's to write."""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pending: dict[tuple[str, str], tuple[int, float]] = {}
        self._flushed = self._clock.monotonic()
        self._changed = False
        _in_use.discard(self)

    def reserve(
        self,
        name: str,
        day: date,
        tokens: int,
        usd: float,
        *,
        most_tokens: int | None,
        most_usd: float | None,
    ) -> Hold:
        """See `Ledger.reserve`."""
        hold = Hold(uuid.uuid4().hex, name, day)
        with self._transaction() as db:
            used = self._used(db, day).get(name, Used())
            if not has_room(used, tokens, usd, most_tokens, most_usd):
                raise NoRoom(used)
            db.execute(
                "INSERT INTO hold (id, name, day, tokens, usd, pid) VALUES (?, ?, ?, ?, ?, ?)",
                (hold.id, name, day.isoformat(), tokens, usd, os.getpid()),
            )
        return hold

    def settle(self, hold: Hold, tokens: int, usd: float) -> None:
        """See `Ledger.settle`."""
        with self._transaction() as db:
            if db.execute("DELETE FROM hold WHERE id = ?", (hold.id,)).rowcount:
                db.execute(_ADD, (hold.name, hold.day.isoformat(), tokens, usd))
                self._changed = True
        self._flush_if_due()

    def release(self, hold: Hold) -> None:
        """See `Ledger.release`."""
        with self._transaction() as db:
            db.execute("DELETE FROM hold WHERE id = ?", (hold.id,))

    def book(self, name: str, day: date, tokens: int, usd: float) -> None:
        """See `Ledger.book`: kept in memory, written at most once a second and at exit."""
        key = (name, day.isoformat())
        with self._lock:
            old_tokens, old_usd = self._pending.get(key, (0, 0.0))
            self._pending[key] = (old_tokens + tokens, old_usd + usd)
            _in_use.add(self)
        self._flush_if_due()

    def used(self, day: date) -> dict[str, Used]:
        """See `Ledger.used`."""
        with self._lock, self._failing_clearly():
            books = self._used(self._open(), day)
            for (name, on), (tokens, usd) in self._pending.items():
                if on == day.isoformat():
                    old = books.get(name, Used())
                    books[name] = msgspec.structs.replace(old, tokens=old.tokens + tokens, usd=old.usd + usd)
        return books

    def flush(self) -> None:
        """See `Ledger.flush`."""
        with self._lock:
            self._flushed = self._clock.monotonic()
            if self._pending or self._changed:
                # In one transaction with its reading, so that an older projection never replaces a newer one.
                with self._transaction() as db:
                    self._write_projection(db)
                self._changed = False

    def close(self) -> None:
        """Write everything down and close the file. The ledger can be used again."""
        with self._lock:
            try:
                self.flush()
            finally:
                self._let_go()
                if not self._pending:
                    _in_use.discard(self)

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _flush_if_due(self) -> None:
        if self._clock.monotonic() - self._flushed < PROJECTION_SECONDS:
            return
        try:
            self.flush()
        except LedgerError as error:  # the books keep it; whoever needs them to be right is told by them
            log.warning("usage could not be written down yet: %s", error)

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._home / "ledger.db"
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                _use_wal(db)
                db.execute("PRAGMA synchronous = NORMAL")
                if db.execute("PRAGMA user_version").fetchone()[0] < _VERSION:
                    self._begin_books(db)
            except BaseException:
                db.close()
                raise
            self._connection = db
            _in_use.add(self)
        return self._connection

    def _begin_books(self, db: sqlite3.Connection) -> None:
        """Make the tables and take over what an earlier `llm_usage.json` holds: once, all or nothing."""
        db.execute("BEGIN IMMEDIATE")
        try:
            if db.execute("PRAGMA user_version").fetchone()[0] < _VERSION:  # nobody else was first
                for statement in _SCHEMA.split(";"):
                    db.execute(statement)
                rows = [
                    (name, day.isoformat(), tokens, 0.0)
                    for name, days in self._earlier_usage().items()
                    for day, tokens in days.items()
                ]
                db.executemany(_ADD, rows)
                db.execute(f"PRAGMA user_version = {_VERSION}")
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def _earlier_usage(self) -> _Books:
        file = self._home / "llm_usage.json"
        try:
            return msgspec.json.decode(file.read_bytes(), type=_Books)
        except FileNotFoundError:
            return {}
        except (msgspec.MsgspecError, ValueError) as error:
            raise LedgerError(
                f"{file} is not {{name: {{YYYY-MM-DD: tokens}}}} ({error}); mend it or move it away"
            ) from error

    @contextlib.contextmanager
    def _failing_clearly(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise LedgerError(
                f"the usage ledger {self._home / 'ledger.db'} cannot be used: {error}"
            ) from error

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """One writer at a time from the first statement on, so that a check and its write are one step.

        What is pending is written first: it counts.
        """
        with self._lock, self._failing_clearly():
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            pending = [(name, day, *amounts) for (name, day), amounts in self._pending.items()]
            try:
                db.executemany(_ADD, pending)
                yield db
                db.execute("COMMIT")
            except BaseException:
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise
            if pending:
                self._pending.clear()
                self._changed = True

    @staticmethod
    def _used(db: sqlite3.Connection, day: date) -> dict[str, Used]:
        return {row[0]: Used(*row[1:]) for row in db.execute(_USED, {"day": day.isoformat()})}

    def _write_projection(self, db: sqlite3.Connection) -> None:
        """Rewrite `llm_usage.json` from the books."""
        books: dict[str, dict[str, int]] = {}
        for name, day, tokens in db.execute("SELECT name, day, tokens FROM day ORDER BY name, day"):
            books.setdefault(name, {})[day] = tokens
        data = msgspec.json.format(msgspec.json.encode(books), indent=2) + b"\n"
        write_atomically(self._home / "llm_usage.json", data)


def _use_wal(db: sqlite3.Connection) -> None:
    """Switch to write-ahead logging; of several that do so at once SQLite refuses some without waiting."""
    tries = int(BUSY_SECONDS / RETRY_SECONDS)
    for left in reversed(range(tries)):
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if not left or error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            time.sleep(RETRY_SECONDS)
        else:
            return


# Every ledger, for a forked child to begin afresh; and those with something to close or write at exit.
_all: weakref.WeakSet[SQLiteLedger] = weakref.WeakSet()
_in_use: set[SQLiteLedger] = set()


def _at_exit() -> None:
    for ledger in list(_in_use):
        try:
            ledger.close()
        except LedgerError as error:
            log.warning("usage could not be written down: %s", error)


def _before_fork() -> None:
    for ledger in sorted(
        _all, key=id
    ):  # in one order, so that two threads that fork never wait for each other
        ledger.before_fork()


def _in_parent() -> None:
    for ledger in list(_all):
        ledger.after_fork()


def _in_child() -> None:
    for ledger in list(_all):
        ledger.start_afresh()


def _in_worker(_: object) -> None:
    # multiprocessing's children end without atexit.
    multiprocessing.util.Finalize(None, _at_exit, exitpriority=1)


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
multiprocessing.util.register_after_fork(_in_worker, _in_worker)
