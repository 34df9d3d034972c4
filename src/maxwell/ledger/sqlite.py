"""The ledger of one user: SQLite in `~/.maxwell/ledger.db`, shared by all processes.

`llm_usage.json` beside it is a projection for people and other programs: {"name": {"YYYY-MM-DD": tokens}}.
It is read once, where no ledger exists yet, and from then on only written.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sqlite3
import tempfile
import threading
import uuid
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import msgspec

from maxwell.clock import Clock
from maxwell.ledger import Hold, LedgerError, NoRoom, Used

PROJECTION_SECONDS = 1.0  # llm_usage.json is rewritten at most this often, and at exit
BUSY_SECONDS = 5.0

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

    def start_afresh(self) -> None:
        """Forget the connection and what is pending: a forked child does, whose parent still has both."""
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._pending: dict[tuple[str, str], tuple[int, float]] = {}
        self._flushed = self._clock.monotonic()
        self._projected = False
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
            if (most_tokens is not None and used.tokens + used.held_tokens + tokens > most_tokens) or (
                most_usd is not None and used.usd + used.held_usd + usd > most_usd
            ):
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
        self._project_soon()

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
        self._project_soon()

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
            if self._pending:
                pending = [(name, day, *amounts) for (name, day), amounts in self._pending.items()]
                with self._transaction() as db:
                    db.executemany(_ADD, pending)
                self._pending.clear()
                self._projected = False
            if not self._projected and self._connection is not None:
                self._write_projection()

    def flush_quietly(self) -> None:
        """`flush`, where an error has nobody to go to."""
        with contextlib.suppress(LedgerError):
            self.flush()

    def close(self) -> None:
        """Write everything down and close the file. The ledger can be used again."""
        with self._lock:
            self.flush()
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            _in_use.discard(self)

    def _project_soon(self) -> None:
        with self._lock:
            self._projected = False
            due = self._clock.monotonic() - self._flushed >= PROJECTION_SECONDS
        if due:
            self.flush_quietly()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._home / "ledger.db"
            is_new = not path.exists()
            db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("PRAGMA synchronous = NORMAL")
                db.executescript(_SCHEMA)
                if is_new:
                    self._import(db)
            except sqlite3.Error:
                db.close()
                raise
            self._connection = db
            _in_use.add(self)
        return self._connection

    def _import(self, db: sqlite3.Connection) -> None:
        """Take over the usage that an earlier `llm_usage.json` holds, once."""
        try:
            text = (self._home / "llm_usage.json").read_bytes()
        except FileNotFoundError:
            return
        try:
            books = msgspec.json.decode(text, type=dict[str, dict[date, int]])
        except msgspec.DecodeError as error:
            raise LedgerError(
                f"{self._home / 'llm_usage.json'} is not {{name: {{YYYY-MM-DD: tokens}}}} ({error}); "
                "mend it or move it away"
            ) from error
        rows = [(name, day.isoformat(), n, 0.0) for name, days in books.items() for day, n in days.items()]
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT OR IGNORE INTO day (name, day, tokens, usd) VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")

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
        """One writer at a time from the first statement on, so that a check and its write are one step."""
        with self._lock, self._failing_clearly():
            db = self._open()
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")

    @staticmethod
    def _used(db: sqlite3.Connection, day: date) -> dict[str, Used]:
        return {row[0]: Used(*row[1:]) for row in db.execute(_USED, {"day": day.isoformat()})}

    def _write_projection(self) -> None:
        """Rewrite `llm_usage.json` from the books, replacing it whole."""
        with self._failing_clearly():
            books: dict[str, dict[str, int]] = {}
            for name, day, tokens in self._open().execute(
                "SELECT name, day, tokens FROM day ORDER BY name, day"
            ):
                books.setdefault(name, {})[day] = tokens
            handle, temporary = tempfile.mkstemp(dir=self._home, prefix=".llm_usage.", suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(books), indent=2) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self._home / "llm_usage.json")
            self._projected = True


# Ledgers with a connection or with something not yet written: closed at exit, forgotten in a forked child.
_in_use: set[SQLiteLedger] = set()


def _at_exit() -> None:
    for ledger in list(_in_use):
        with contextlib.suppress(LedgerError):
            ledger.close()


def _in_child() -> None:
    for ledger in list(_in_use):
        ledger.start_afresh()


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
