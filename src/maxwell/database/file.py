"""A SQLite file in `~/.maxwell/` that is shared by all of the user's processes.

One connection, safe from any thread and across forks. What need not be on disk before a call goes on is given
to `later` and written by a background thread, or by the next transaction, whichever comes first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from maxwell.database.background import background
from maxwell.database.damage import SetAside, check, explain, is_busy, is_damage, is_lasting, set_aside
from maxwell.database.filesystems import network_type
from maxwell.database.lifetime import is_ending, watch
from maxwell.database.patience import Locked, Patience
from maxwell.database.schema import LEDGER, Schema, look, prepare, touch
from maxwell.database.waiting import Task, Waiting
from maxwell.errors import LedgerError

log = logging.getLogger("maxwell")

T = TypeVar("T")

BUSY_SECONDS = 5.0  # how long a lock of another process is waited for
RETRY_SECONDS = 1.0  # what waits is tried again this often while the file cannot be written
MOMENT_SECONDS = 0.003  # how long who may not wait waits for another thread of the same process
HASTY_SECONDS = 0.2  # how long a lock is waited for by those who come after one who has waited in vain


class Database:
    """The file, its one connection and what waits to be written to it.

    Args:
        home: The user's Maxwell directory; made when it is missing.
        schema: Which of the user's files it is.
        begin: What to write into a new one; runs in the transaction that makes its tables. None = nothing.
        wal: Whether to use a write-ahead log; None = unless `home` is on a network file system, where SQLite
            cannot share one.
        patience: How long a lock of another process is waited for, in seconds.

    Attributes:
        before_close: Called before the file is closed, at exit too.
        opened: How often it was opened so far; each time it may be another one.
    """

    _connection: sqlite3.Connection | None = None

    def __init__(
        self,
        home: Path,
        schema: Schema = LEDGER,
        *,
        begin: Callable[[sqlite3.Connection], None] | None = None,
        wal: bool | None = None,
        patience: float = BUSY_SECONDS,
    ) -> None:
        self.home = home
        self.path = home / schema.file
        self.schema = schema
        self._begin = begin
        self._wal = wal
        self._seconds = patience
        self.before_close: list[Callable[[], None]] = []
        self.opened = 0
        self.start_afresh()
        watch(self, first=schema.disposable)  # who decides by evidence may look at the books meanwhile

    def start_afresh(self) -> None:
        """Begin with nothing open, as a forked child does: what waits is the parent's to write."""
        self._lock = threading.RLock()  # of the connection
        self._connection = None
        self._file = (0, 0)
        self._commit_patience = 0  # milliseconds
        self._damaged = (0, 0)  # the file that was seen to be damaged
        self._waiting = Waiting()
        self._problem = ""
        self._failed_at = 0.0
        self._has_warned = False

    def __del__(self) -> None:
        self._let_go()  # nothing waits, or the background's job would keep this alive

    def ready(self) -> None:
        """Raise `LedgerError` when the file cannot be written at present; looks at nothing when it could."""
        if self._problem and (self._waiting or time.monotonic() - self._failed_at < RETRY_SECONDS):
            raise LedgerError(self._problem)
        if self._problem or self._connection is None:
            with self.write() as db:
                touch(db, time.time())

    def later(self, key: object, task: Task) -> None:
        """Have `task` written soon; one of the same key that still waits is merged with it."""
        self._waiting.tell(key, task)
        if is_ending():
            self._write_waiting()
        else:
            background.soon(self._write_waiting, RETRY_SECONDS if self._problem else self.schema.seconds)

    @property
    def is_open(self) -> bool:
        """Whether `ready` has nothing to wait for."""
        return self._connection is not None and not self._problem

    @contextlib.contextmanager
    def write(self, patience: float | None = None) -> Iterator[sqlite3.Connection]:
        """A transaction in which nobody else writes, from its first statement on: what it checks stays true.

        What waits is written first, because it counts. Raises `LedgerError`, also when another process keeps
        the file locked for longer than `patience` seconds; None = what the database was made with. Who has
        less patience than that learns nothing of the file: others write, and that is all.
        """
        with self._noting() if patience is None else contextlib.nullcontext(), self._telling():
            longest = self._seconds if patience is None else patience
            waits = Patience(min(longest, HASTY_SECONDS) if self._problem else longest)
            while True:
                try:
                    # Let go of between attempts: who only reads must not wait while another process writes.
                    with self._lock, self._transaction() as db:
                        yield db
                        return
                except Locked as locked:
                    waits.rest(locked.error)

    @contextlib.contextmanager
    def write_at_once(self) -> Iterator[sqlite3.Connection]:
        """`write` for those who may not wait: raises `Locked` while another process or thread is at it."""
        with self._noting(), self._telling(), self._at_once(), self._transaction(at_once=True) as db:
            yield db

    def read(self, query: str, parameters: Sequence[Any] = ()) -> tuple[list[Any], list[Task]]:
        """A query's rows, and what waits and therefore is not in them. Raises `LedgerError`."""
        return self.look(lambda db, waiting: (db.execute(query, parameters).fetchall(), waiting))

    def look(self, work: Callable[[sqlite3.Connection, list[Task]], T]) -> T:
        """What `work` makes of the file, as it is at one moment, and of what waits and is not in it yet.

        It may be called again, and only reads.

        Raises `LedgerError`.
        """
        with self._telling():
            patience = Patience(self._seconds)
            while True:
                try:
                    with self._lock, self._snapshot() as db:
                        return work(db, self._waiting.tasks())
                except sqlite3.OperationalError as error:
                    patience.rest(error)

    def read_at_once(self, query: str, parameters: Sequence[Any] = ()) -> tuple[list[Any], list[Task]]:
        """`read` for those who may not wait: raises `Locked` while another process or thread is at it."""
        with self._telling(), self._at_once(), self._snapshot(at_once=True) as db:
            return db.execute(query, parameters).fetchall(), self._waiting.tasks()

    def flush(self) -> None:
        """Write down what waits. Raises `LedgerError`."""
        if self._waiting:
            with self.write():
                pass

    def close(self) -> None:
        """`flush`, do what is asked for in `before_close`, and close the file. It can be used again.

        Raises `LedgerError`.
        """
        try:
            self.flush()
            for work in self.before_close:
                work()
            self.flush()
        except LedgerError as error:
            if not self.schema.disposable:
                raise
            self.warn(error)
        finally:
            with self._lock:
                self._let_go()

    def _write_waiting(self) -> None:
        """The background's turn."""
        try:
            self.flush()
        except LedgerError as error:
            self.warn(error)

    def warn(self, error: LedgerError) -> None:
        """Say that the file cannot be used, once until it can."""
        if not (self._has_warned or isinstance(error, SetAside)):  # of that one it is said already
            # Where the books cannot be kept either, one warning is enough.
            level = logging.INFO if self.schema.disposable else logging.WARNING
            log.log(level, "%s; %s", error, self.schema.meanwhile)
            self._has_warned = True

    # --- transactions

    @contextlib.contextmanager
    def _transaction(self, *, at_once: bool = False) -> Iterator[sqlite3.Connection]:
        """What `write` does once nobody else writes. Raises `Locked` before anything is done."""
        db = self._begun()
        before = db.total_changes
        try:
            for task in self._waiting.take():
                task.apply(db)
            yield db
            self._commit(db, at_once)
        except BaseException as error:
            # What a signal's handler raises may come after the commit, and then nothing is to be undone.
            if isinstance(error, sqlite3.Error) or db is not self._connection or db.in_transaction:
                self._waiting.put_back()
                self._roll_back(db)
            else:
                self._waiting.done()
            raise
        self._waiting.done()
        self._problem = ""
        if db.total_changes != before:  # where there is nothing to write, a full disk does no harm
            self._has_warned = False

    @contextlib.contextmanager
    def _snapshot(self, *, at_once: bool = False) -> Iterator[sqlite3.Connection]:
        """What several queries see is of one moment."""
        db = self._connected()
        if at_once and self._commit_patience:
            db.execute("PRAGMA busy_timeout = 0")
        if db.in_transaction:  # of this very thread, which has the lock
            yield db
            return
        try:
            db.execute("BEGIN")
            yield db
        finally:
            self._roll_back(db)

    def _commit(self, db: sqlite3.Connection, at_once: bool) -> None:
        if self._commit_patience and not at_once:  # without a log it has to wait for readers
            db.execute(f"PRAGMA busy_timeout = {self._commit_patience}")
        db.execute("COMMIT")

    def _begun(self) -> sqlite3.Connection:
        try:
            db = self._connected()
        except sqlite3.OperationalError as error:
            raise Locked(error) from error
        try:
            if self._commit_patience:
                db.execute("PRAGMA busy_timeout = 0")
            db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise Locked(error) from error
        except BaseException:  # a signal's handler
            self._roll_back(db)
            raise
        return db

    def _roll_back(self, db: sqlite3.Connection) -> None:
        try:
            if db.in_transaction:  # SQLite may have done so itself
                db.execute("ROLLBACK")
        except sqlite3.Error:
            self._let_go()

    @contextlib.contextmanager
    def _at_once(self) -> Iterator[None]:
        """Wait for a thread no longer than a statement takes; say `Locked` of every lock, of nothing else.

        Without that moment one who goes to a thread makes all others of an event loop go there, too.
        """
        if not self._lock.acquire(timeout=MOMENT_SECONDS):
            raise Locked(sqlite3.OperationalError("another thread uses it"))
        try:
            yield
        except (Locked, sqlite3.OperationalError) as error:
            found = error.error if isinstance(error, Locked) else error
            if is_busy(found):
                raise Locked(found) from error
            raise found from error
        finally:
            self._lock.release()

    @contextlib.contextmanager
    def _noting(self) -> Iterator[None]:
        """Remember that writing failed, and try again while something waits."""
        try:
            yield
        except LedgerError as error:
            self._problem = str(error)
            self._failed_at = time.monotonic()
            if self._waiting:
                background.soon(self._write_waiting, RETRY_SECONDS)
            raise

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Turn what goes wrong with the file into a `LedgerError` that says what to do."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            if is_lasting(error):
                with self._lock:
                    self._let_go()
                    if is_damage(error):
                        self._damaged = self._file
            if is_damage(error) and self.schema.disposable and set_aside(self.path, self._damaged, error):
                raise SetAside(f"{self.path} is begun anew") from error
            raise LedgerError(explain(self.path, error, self.schema.called)) from error

    # --- the connection

    def _connected(self) -> sqlite3.Connection:
        """The connection; a file that was replaced or removed meanwhile is opened anew."""
        if self._connection is not None:
            if self._identity() == self._file:
                return self._connection
            self._let_go()
        self._connection = self._open()
        self.opened += 1
        return self._connection

    def _identity(self) -> tuple[int, int]:
        try:
            found = self.path.stat()
        except OSError:
            return 0, 0
        return found.st_dev, found.st_ino

    def _open(self) -> sqlite3.Connection:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_file()
        self._file = self._identity()
        db = sqlite3.connect(self.path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            look(db, self.path, self.schema)
            wal = "WAL" if self._use_wal() else "DELETE"
            mode = db.execute(f"PRAGMA journal_mode = {wal}").fetchone()[0]
            self._commit_patience = 0 if mode == "wal" else round(self._seconds * 1000)
            durable = "NORMAL" if mode == "wal" else "FULL"
            db.execute(f"PRAGMA synchronous = {'OFF' if self.schema.disposable else durable}")
            prepare(db, self.schema, self._begin)
            if self._damaged == self._file:
                check(db)
                self._damaged = (0, 0)
        except BaseException:
            db.close()
            raise
        return db

    def _make_file(self) -> None:
        """Make the file if there is none, for its owner's eyes only; so SQLite makes its further files then.

        One that is there must not be opened here: closing it would take away the locks that SQLite holds on
        it for other connections of this process.
        """
        with _making, contextlib.suppress(FileExistsError):
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))

    def _use_wal(self) -> bool:
        if self._wal is None:
            network = network_type(self.path)
            self._wal = network is None
            if network is not None and self.schema.without_log:
                words = "%s is on a network file system (%s): %s"
                log.warning(words, self.home, network, self.schema.without_log)
        return self._wal

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # --- forks

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


_making = threading.Lock()


def _in_child() -> None:
    global _making
    _making = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
