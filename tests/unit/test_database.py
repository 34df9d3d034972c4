from __future__ import annotations

import errno
import gc
import logging
import multiprocessing
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from maxwell.clock import SystemClock
from maxwell.database.file import BUSY_SECONDS, MOST_WAITING, Database
from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger

SOON = 30.0  # seconds; a test gives up then
SHORT = 0.1  # seconds; patience of those who are to lose it
MONDAY = date(2026, 1, 12)

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

# What the programs below begin with.
BEGIN = """
import atexit, logging, os, pwd, resource, sys, threading, time
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.database.file import Database
from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger

home, day, no_limit = Path(sys.argv[1]), date(2026, 1, 12), Limit()

class Add:
    def __init__(self, tokens):
        self.tokens = tokens
    def apply(self, db):
        db.execute(
            "INSERT INTO day VALUES ('a', '2026-01-12', ?, 0, 0, 0) "
            "ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + excluded.tokens",
            (self.tokens,),
        )
    def merged(self, later):
        return Add(self.tokens + later.tokens)

def make(**options):
    return Database(home, begin=lambda db: None, **options)

def fails(attempt):
    try:
        attempt()
    except LedgerError as error:
        return str(error)
    raise AssertionError("no LedgerError")

def is_ready(database):
    try:
        database.ready()
    except LedgerError:
        return False
    return True

def wait_until(holds):
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)

def become_nobody():
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
"""


class Add(NamedTuple):
    """Tokens for entry "a"."""

    tokens: int

    def apply(self, db: sqlite3.Connection) -> None:
        db.execute(
            "INSERT INTO day VALUES ('a', '2026-01-12', ?, 0, 0, 0) "
            "ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + excluded.tokens",
            (self.tokens,),
        )

    def merged(self, later: Add) -> Add:
        return Add(self.tokens + later.tokens)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "maxwell"


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


def make(home: Path, **options: Any) -> Database:
    return Database(home, begin=lambda db: None, **options)


def add(database: Database, tokens: int = 1) -> None:
    with database.write() as db:
        Add(tokens).apply(db)


def total(database: Database) -> int:
    rows, waiting = database.read("SELECT TOTAL(tokens) FROM day")
    return int(rows[0][0]) + sum(task.tokens for task in waiting if isinstance(task, Add))


def written(home: Path) -> int:
    """What another program sees."""
    with closing(sqlite3.connect(home / "ledger.db", timeout=SOON)) as db:
        return int(db.execute("SELECT TOTAL(tokens) FROM day").fetchone()[0])


def assert_sound(home: Path) -> None:
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def run(script: str, *arguments: object, code: int = 0) -> str:
    """Run a program to its end; returns what it wrote to stderr."""
    command = [sys.executable, "-c", BEGIN + script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code, done.stderr
    return done.stderr


# --- writing and reading


def test_what_a_transaction_writes_is_there_for_all(home: Path) -> None:
    with closing(make(home)) as first, closing(make(home)) as second:
        add(first, 5)
        assert (total(first), total(second), written(home)) == (5, 5, 5)


def test_a_transaction_that_fails_writes_nothing(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(3))
        with pytest.raises(ValueError, match="so it goes"), database.write() as db:
            Add(5).apply(db)
            raise ValueError("so it goes")
        assert total(database) == 3
        add(database, 1)
        assert written(home) == 4


def test_a_failing_statement_is_an_error_of_the_ledger_and_writes_nothing(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(3))
        with pytest.raises(LedgerError, match=r"no such table: nowhere"), database.write() as db:
            Add(5).apply(db)
            db.execute("INSERT INTO nowhere VALUES (1)")
        add(database, 1)
        assert written(home) == 4


def test_a_transaction_inside_another_is_refused_and_does_not_harm_it(home: Path) -> None:
    with closing(make(home)) as database:
        with database.write() as db:
            Add(5).apply(db)
            with pytest.raises(LedgerError, match="within a transaction"), database.write():
                pass
            Add(2).apply(db)
        assert written(home) == 7


def test_what_is_told_for_later_counts_at_once_and_is_written_soon(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(3))
        database.later("b", Add(4))
        database.later("a", Add(5))
        assert total(database) == 12
        wait_until(lambda: (home / "ledger.db").exists() and total(database) == written(home))
        assert written(home) == 12


def test_tasks_of_one_key_are_merged_in_their_order(home: Path) -> None:
    class Text(NamedTuple):
        text: str

        def apply(self, db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO note VALUES ('text', ?)", (self.text,))

        def merged(self, later: Text) -> Text:
            return Text(self.text + later.text)

    with closing(make(home)) as database:
        database.later("key", Text("a"))
        database.later("key", Text("b"))
        with pytest.raises(ValueError, match="so it goes"), database.write():
            database.later("key", Text("c"))
            raise ValueError("so it goes")
        database.later("key", Text("d"))
        add(database)
        rows, waiting = database.read("SELECT value FROM note")
        assert (rows, waiting) == ([("abcd",)], [])


def test_flush_writes_what_waits(home: Path) -> None:
    with closing(make(home)) as database:
        database.flush()
        assert not home.exists()
        database.later("a", Add(3))
        database.flush()
        assert written(home) == 3


def test_a_closed_database_can_be_used_again(home: Path) -> None:
    database = make(home)
    with closing(database):
        add(database)
        database.close()
        database.close()
        database.later("a", Add(1))
        assert total(database) == 2
    assert written(home) == 2


def test_too_much_that_waits_is_told(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    database = make(home)
    assert not database.is_backed_up
    for key in range(MOST_WAITING):
        database.later(key, Add(0))
    assert database.is_backed_up
    (home / "ledger.db").rmdir()
    database.close()
    assert not database.is_backed_up


def test_a_finalizer_may_book_while_its_own_thread_is_booking(home: Path) -> None:
    """Garbage collection runs finalizers at any moment, in whatever thread is running."""

    class Collected(Add):
        def merged(self, later: Add) -> Add:
            if sys.getrefcount(later) and len(booked) < 3:
                booked.append(1)
                database.later("a", Add(100))
            return Add(self.tokens + later.tokens)

        def apply(self, db: sqlite3.Connection) -> None:
            database.later("a", Add(1000))
            super().apply(db)

    booked: list[int] = []
    with closing(make(home)) as database:

        def book() -> None:
            database.later("a", Collected(1))
            database.later("a", Collected(10))
            total(database)
            database.flush()

        booking = threading.Thread(target=book, daemon=True)
        booking.start()
        booking.join(SOON)
        assert not booking.is_alive()
        database.later("b", Collected(5))
        database.flush()
        database.flush()
        assert total(database) == 1 + 10 + 100 * len(booked) + 5 + 1000
    assert len(booked) >= 1


def test_no_update_of_many_threads_is_lost(home: Path) -> None:
    with closing(make(home)) as database:

        def work() -> None:
            for n in range(50):
                database.later(("a", n % 3), Add(1))
                if n % 10 == 0:
                    add(database, 1)
                    total(database)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert total(database) == 8 * 55
    assert written(home) == 8 * 55


# --- signals: their handlers raise anywhere, Ctrl-C first of all


class Interrupt(Exception):
    pass


@contextmanager
def interrupts() -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


@on_linux
def test_an_interrupt_during_the_commit_books_nothing_twice(home: Path) -> None:
    with closing(make(home, wal=False)) as database, closing(reading(home, database)) as reader:

        def interrupt() -> None:
            with closing(sqlite3.connect(home / "ledger.db", timeout=0)) as other:
                wait_until(lambda: is_locked(other, "SELECT * FROM note"))  # it is committing
            os.kill(os.getpid(), signal.SIGUSR1)
            reader.execute("COMMIT")  # and may now

        helper = threading.Thread(target=interrupt)
        with interrupts(), pytest.raises(Interrupt):
            database.later("a", Add(10))
            helper.start()
            add(database, 5)
            pytest.fail("was not interrupted")
        helper.join()
        add(database, 100)
        assert total(database) == 1 + 10 + 5 + 100
    assert written(home) == 116


def reading(home: Path, database: Database) -> sqlite3.Connection:
    """A connection that keeps commits waiting."""
    add(database)
    db = sqlite3.connect(home / "ledger.db", isolation_level=None, check_same_thread=False)
    db.execute("BEGIN")
    db.execute("SELECT * FROM day").fetchall()
    return db


def is_locked(db: sqlite3.Connection, query: str) -> bool:
    try:
        db.execute(query).fetchall()
    except sqlite3.OperationalError:
        return True
    return False


def test_an_interrupt_while_waiting_for_a_lock_loses_nothing(home: Path) -> None:
    with closing(make(home)) as database:
        add(database)
        with locked(home), interrupts():
            database.later("a", Add(10))
            timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1))
            timer.start()
            with pytest.raises(Interrupt):
                add(database, 5)
            timer.join()
        assert total(database) == 11
        in_thread = threading.Thread(target=add, args=(database, 100), daemon=True)
        in_thread.start()
        in_thread.join(SOON)
        assert not in_thread.is_alive()
    assert written(home) == 111


def test_an_interrupt_inside_a_transaction_undoes_it(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(10))
        with interrupts(), pytest.raises(Interrupt), database.write() as db:
            Add(5).apply(db)
            os.kill(os.getpid(), signal.SIGUSR1)
            wait_until(lambda: False)
        with closing(make(home, patience=SHORT)) as other:
            add(other, 1)
        assert total(database) == 11


# --- the file


def test_the_files_are_for_their_owner_alone_whatever_the_umask(home: Path) -> None:
    before = os.umask(0)
    try:
        with closing(make(home)) as database:
            add(database)
            modes = {p.name: p.stat().st_mode & 0o777 for p in home.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"ledger.db": 0o600, "ledger.db-wal": 0o600, "ledger.db-shm": 0o600}
    assert home.stat().st_mode & 0o777 == 0o700


def test_a_file_that_was_removed_is_begun_anew(home: Path) -> None:
    with closing(make(home)) as database:
        add(database, 5)
        shutil.rmtree(home)
        add(database, 1)
        assert (total(database), written(home)) == (1, 1)


def test_a_file_that_was_replaced_is_read_anew(home: Path, tmp_path: Path) -> None:
    with closing(make(tmp_path / "other", wal=False)) as other:
        add(other, 7)
    with closing(make(home)) as database:
        add(database, 5)
        (tmp_path / "other" / "ledger.db").replace(home / "ledger.db")
        for end in ("-wal", "-shm"):
            Path(f"{home}/ledger.db{end}").unlink(missing_ok=True)
        assert total(database) == 7
        add(database, 1)
    assert written(home) == 8
    assert_sound(home)


def test_a_removed_file_takes_nothing_of_the_new_one_away(home: Path) -> None:
    """Who lets go of the old file must not take the log of the new one, which has the old one's name."""
    with closing(make(home)) as first, closing(make(home)) as second:
        add(first, 5)
        add(second, 5)
        for file in home.iterdir():
            file.unlink()
        add(second, 1)
        add(first, 1)
        add(second, 1)
        assert (total(first), total(second), written(home)) == (3, 3, 3)
    assert written(home) == 3
    assert_sound(home)


def test_opening_it_a_second_time_takes_no_lock_away(home: Path) -> None:
    """Closing any descriptor of a file takes away all locks that this process has on it, SQLite's too.

    Without them another program takes itself for the last one when it ends, and removes the log that is
    written here.
    """
    with closing(make(home)) as first:
        add(first)
        with closing(make(home)) as second:
            add(second)
            run("db = make()\nwith db.write(): pass\ndb.close()", home)
            add(first)
            add(second)
            assert (home / "ledger.db-wal").exists()
            assert written(home) == 4
    assert written(home) == 4


def test_the_database_of_another_program_is_left_alone(home: Path) -> None:
    home.mkdir()
    for statement in ("CREATE TABLE bookmarks (url)", "CREATE TABLE day (d)", "PRAGMA user_version = 3"):
        with closing(sqlite3.connect(home / "ledger.db")) as db:
            db.execute(statement)
        data = (home / "ledger.db").read_bytes()
        with closing(make(home)) as database:
            with pytest.raises(LedgerError, match=r"ledger\.db is another program's database; move it away"):
                database.ready()
            with pytest.raises(LedgerError, match="another program's"):
                total(database)
        assert [p.name for p in home.iterdir()] == ["ledger.db"]
        assert (home / "ledger.db").read_bytes() == data
        (home / "ledger.db").unlink()


def test_the_database_of_a_newer_maxwell_is_left_alone(home: Path) -> None:
    with closing(make(home, wal=False)) as database:
        add(database)
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        db.execute("PRAGMA user_version = 99")
    data = (home / "ledger.db").read_bytes()
    with closing(make(home)) as database, pytest.raises(LedgerError, match="a newer Maxwell; use that one"):
        database.ready()
    assert (home / "ledger.db").read_bytes() == data


VERSION_1 = """
CREATE TABLE day (name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL,
    PRIMARY KEY (name, day));
CREATE TABLE hold (id TEXT PRIMARY KEY, name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL,
    usd REAL NOT NULL);
INSERT INTO day VALUES ('a', '2026-01-12', 7, 0.1 + 0.2), ('b', '2026-01-12', 0, 0.0);
INSERT INTO hold VALUES ('x', 'a', '2026-01-12', 5, 0.5);
PRAGMA user_version = 1;
"""


def test_the_books_of_version_1_go_on(home: Path) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        db.executescript(VERSION_1)
    with closing(Database(home, begin=lambda db: pytest.fail("not new"))) as database:
        rows, _ = database.read("SELECT * FROM day ORDER BY name")
        assert rows == [("a", "2026-01-12", 7, 300_000_000, 0, 0), ("b", "2026-01-12", 0, 0, 0, 0)]
        assert database.read("SELECT * FROM hold") == ([], [])


def test_what_a_new_file_begins_with_is_written_once(home: Path) -> None:
    begun: list[int] = []

    def begin(db: sqlite3.Connection) -> None:
        begun.append(1)
        Add(7).apply(db)
        if len(begun) == 1:
            raise LedgerError("llm_usage.json is wrong")

    with closing(Database(home, begin=begin)) as database:
        with pytest.raises(LedgerError, match=r"llm_usage\.json is wrong"):
            database.ready()
        assert total(database) == 7
        database.close()
        assert (total(database), len(begun)) == (7, 2)


# --- without the write-ahead log


def test_without_a_log_nothing_lies_beside_the_file(home: Path) -> None:
    with closing(make(home, wal=False)) as database:
        add(database)
        database.later("a", Add(1))
        database.flush()
        assert total(database) == 2
        assert [p.name for p in home.iterdir()] == ["ledger.db"]


@can_fork
def test_without_a_log_several_processes_lose_nothing(home: Path) -> None:
    with closing(make(home, wal=False)) as database:
        work_at_once(database, processes=6, times=15)
        assert total(database) == 6 * 15 * 2
        assert [p.name for p in home.iterdir()] == ["ledger.db"]
    assert_sound(home)


def test_a_database_can_go_from_a_log_to_none_and_back(home: Path) -> None:
    # As a killed program leaves it: everything stands in the log.
    run("db = make()\nfor _ in range(5):\n    with db.write() as c: Add(1).apply(c)\nos._exit(0)", home)
    assert (home / "ledger.db-wal").stat().st_size > 0
    for count, wal in enumerate((False, True, False), start=6):
        with closing(make(home, wal=wal)) as database:
            add(database)
            assert total(database) == count
            assert (home / "ledger.db-wal").exists() is wal
    assert_sound(home)


def test_a_log_that_another_program_uses_is_not_taken_away(home: Path) -> None:
    """Two machines may see one directory differently: one as its own disk, one as a share."""
    with closing(make(home)) as database:
        add(database)
        run("assert 'keeps it locked' in fails(make(wal=False, patience=0.2).ready)", home)
        add(database)
        assert (home / "ledger.db-wal").exists()
    run("db = make(wal=False); db.ready(); db.close()", home)
    assert written(home) == 2


# --- locked by another process

LOCKER = """
import sqlite3, sys

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("COMMIT")
db.close()
"""


@contextmanager
def locked(home: Path) -> Iterator[None]:
    command = [sys.executable, "-c", LOCKER, str(home / "ledger.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            locker.communicate("go\n")


def test_a_lock_that_lasts_is_an_error_to_writers_alone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(make(home, patience=SHORT)) as database, caplog.at_level(logging.WARNING, "maxwell"):
        add(database, 1)
        with locked(home):
            for _ in range(2):
                with pytest.raises(LedgerError, match="another process keeps it locked; wait for it to end"):
                    add(database, 50)
            for _ in range(100):
                database.later("a", Add(1))
            assert total(database) == 101
            with pytest.raises(LedgerError, match="keeps it locked"):
                database.ready()
            wait_until(lambda: bool(caplog.records))
            with pytest.raises(LedgerError, match="keeps it locked"):
                database.flush()
            assert total(database) == 101
        wait_until(lambda: written(home) == 101)
        database.ready()
        add(database, 1)
        assert [record.message for record in caplog.records] == [
            f"the usage ledger {database.path} cannot be used: another process keeps it locked; wait for it to "
            "end; usage is kept in memory until it can be written down"
        ]


def test_a_lock_that_is_released_in_time_is_waited_for(home: Path) -> None:
    with closing(make(home, patience=SOON)) as database:
        add(database)
        with locked(home):
            writing = threading.Thread(target=add, args=(database, 10))
            writing.start()
            assert total(database) == 1  # nobody who reads waits for it
            writing.join(SHORT)
            assert writing.is_alive()
        writing.join(SOON)
        assert total(database) == 11


def test_a_lock_on_a_file_that_is_not_open_yet(home: Path) -> None:
    home.mkdir()
    (home / "ledger.db").touch()
    with closing(make(home, patience=SHORT)) as database:
        with locked(home):
            for attempt in (database.ready, lambda: total(database), lambda: add(database)):
                with pytest.raises(LedgerError, match="keeps it locked"):
                    attempt()
        add(database)
        assert total(database) == 1


def test_a_database_is_patient_for_some_seconds() -> None:
    assert 2 <= BUSY_SECONDS <= 10


def test_it_is_ready_again_as_soon_as_nothing_is_in_the_way(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    with closing(make(home)) as database:
        with pytest.raises(LedgerError, match="it is a directory"):
            database.ready()
        (home / "ledger.db").rmdir()
        with pytest.raises(LedgerError, match="it is a directory"):
            database.ready()  # it is not tried at every call
        wait_until(lambda: is_ready(database))
        assert written(home) == 0


def is_ready(database: Database) -> bool:
    try:
        database.ready()
    except LedgerError:
        return False
    return True


def test_who_is_ready_has_written_something(home: Path) -> None:
    """A full disk shows only then."""
    with closing(make(home, wal=False)) as database:
        database.ready()
        database.close()
        before = (home / "ledger.db").read_bytes()
        database.ready()
        assert (home / "ledger.db").read_bytes() != before


# --- full disks


def test_a_full_disk_is_said_and_what_was_booked_is_written_later(home: Path) -> None:
    script = """
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
logging.basicConfig(format="%(message)s")
ledger = SQLiteLedger(home, SystemClock())
reserve = lambda: ledger.reserve("paid", day, Amount(10, 0), no_limit)
hold = reserve()
limit(0)
for _ in range(3):
    message = fails(reserve)
    assert "the disk is full" in message and str(home / "ledger.db") in message, message
for _ in range(100):
    ledger.book("free", day, Amount(1, 0))
ledger.settle(hold, Amount(7, 0))
assert "the disk is full" in fails(ledger.ready)
assert "the disk is full" in fails(ledger.flush)
time.sleep(2.5)  # a failing attempt or two of the background
used = ledger.usage(day)
assert (used["free"].tokens, used["paid"].tokens, used["paid"].held_tokens) == (100, 7, 0), used
limit(resource.RLIM_INFINITY)
wait_until(lambda: not ledger.database._has_waiting())
ledger.ready()
reserve()
"""
    warned = run(script, home)
    assert warned.count("usage is kept in memory until it can be written down") == 1
    assert "Traceback" not in warned
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("SELECT name, tokens FROM day ORDER BY name").fetchall() == [
            ("free", 100),
            ("paid", 7),
        ]
        assert db.execute("SELECT tokens, state FROM hold").fetchall() == [(10, "held")]
    assert_sound(home)


def test_a_disk_that_is_full_from_the_beginning(home: Path) -> None:
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
database = make()
assert "the disk is full" in fails(database.ready)
database.later("a", Add(3))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
wait_until(lambda: is_ready(database))
"""
    run(script, home)
    assert written(home) == 3


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """A file system of 512 kB of its own."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=512k", *options)), "none", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_runs_full_and_gets_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, closing(make(disk / "maxwell")) as database:
        add(database, 1)
        (disk / "other").write_bytes(b"")
        with pytest.raises(OSError, match="No space left"), (disk / "other").open("ab", buffering=0) as other:
            while True:
                other.write(bytes(1024))
        done = 0
        with pytest.raises(LedgerError, match="the disk is full"):
            for done in range(1000):  # the log may have some room left
                with database.write() as db:
                    db.execute("INSERT INTO note VALUES (?, ?)", (done, "x" * 4000))
        database.later("a", Add(10))
        assert total(database) == 11
        with pytest.raises(LedgerError, match="the disk is full"):
            database.ready()
        (disk / "other").unlink()
        wait_until(lambda: is_ready(database) and written(disk / "maxwell") == 11)
        assert database.read("SELECT COUNT(*) FROM note WHERE key != 'touched'")[0] == [(done,)]
        assert_sound(disk / "maxwell")


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, closing(make(disk / "maxwell")) as database:
        add(database, 1)
        database.close()
        remount(disk, "ro")
        database.later("a", Add(10))
        for attempt in (database.ready, lambda: add(database)):
            with pytest.raises(LedgerError, match=r"cannot be (opened|written); set MAXWELL_HOME"):
                attempt()
        remount(disk, "rw")
        wait_until(lambda: is_ready(database))
        assert total(database) == 11


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_too_many_open_files_are_said_to_be_that(home: Path) -> None:
    script = """
database = make()
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, 4096))
message = fails(database.ready)
assert "too many files are open" in message, message
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
wait_until(lambda: is_ready(database))
"""
    if sys.platform != "linux":
        pytest.skip("needs Linux's /proc")
    run(script, home)


# --- homes that cannot be used


@pytest.mark.parametrize(
    "place", ["/proc/maxwell", "/sys/maxwell", "/dev/null/maxwell", "/proc/1/x/y/maxwell"]
)
def test_a_home_that_cannot_be_made_is_said(place: str) -> None:
    if not Path(place).parents[-2].exists():
        pytest.skip(f"no {place} here")
    with closing(make(Path(place))) as database:
        for attempt in (database.ready, lambda: add(database), lambda: total(database)):
            with pytest.raises(
                LedgerError, match=rf"the usage ledger {place}/ledger\.db cannot be used: .+; set"
            ):
                attempt()


def test_a_missing_home_is_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "c"
    with closing(make(home)) as database:
        add(database)
    assert written(home) == 1


def user(place: Path) -> None:
    """Give a directory to whoever the programs below run as."""
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)


@pytest.mark.parametrize("wal", [True, False])
def test_a_home_that_cannot_be_written_is_said(open_home: Path, wal: bool) -> None:
    script = f"""
become_nobody()
home.chmod(0o500)
new = make(wal={wal})
for attempt in (new.ready, lambda: new.read("SELECT 1")):
    message = fails(attempt)
    assert "it cannot be written; set MAXWELL_HOME to a directory of your own" in message, message
home.chmod(0o700)
database = make(wal={wal})
database.ready()
database.close()
home.chmod(0o500)
message = fails(database.ready)
assert "set MAXWELL_HOME to a directory of your own" in message, message
database.later("a", Add(3))
home.chmod(0o700)
(home / "ledger.db").chmod(0o400)
message = fails(make(wal={wal}).ready)
assert "it cannot be written; set MAXWELL_HOME" in message, message
for file in home.iterdir():
    file.chmod(0o600)
wait_until(lambda: is_ready(database))
database.close()
"""
    user(open_home)
    run(script, open_home)
    assert written(open_home) == 3


def test_the_ledger_of_one_user_is_closed_to_another(open_home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    script = """
become_nobody()
for place in (home / "private", home / "open"):
    database = Database(place, begin=lambda db: None)
    for attempt in (database.ready, lambda: database.read("SELECT 1")):
        message = fails(attempt)
        assert f"cannot be used: it cannot be" in message, message
        assert f"belongs to {sys.argv[2]}); set MAXWELL_HOME to a directory of your own" in message, message
for file in (home / "open").iterdir():
    try:
        file.read_bytes()
    except PermissionError:
        continue
    raise AssertionError(file)
"""
    with closing(make(open_home / "private")) as private, closing(make(open_home / "open")) as public:
        add(private)
        add(public)
        public.home.chmod(0o777)  # as when MAXWELL_HOME is a directory that all may use
        assert {p.name for p in public.home.iterdir()} == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
        run(script, open_home, pwd.getpwuid(0).pw_name)
        add(private)
        add(public)


def test_what_another_user_left_in_ones_home_is_said(open_home: Path) -> None:
    """As after `sudo`."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with closing(make(open_home)) as database:
        add(database)
    open_home.chmod(0o700)
    user(open_home)
    script = """
become_nobody()
message = fails(make().ready)
assert f"({home / 'ledger.db'} belongs to {sys.argv[2]})" in message, message
"""
    run(script, open_home, pwd.getpwuid(0).pw_name)


# --- forks


def fork(work: Callable[[], object]) -> int:
    """Run `work` in a forked child and return its process id; it is killed when it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, SOON)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def work_at_once(database: Database, processes: int, times: int) -> None:
    """Let forked children add twice as many tokens each, one half at once, one half later."""

    def work() -> None:
        for _ in range(times):
            add(database)
            database.later("a", Add(1))
        database.close()

    add(database, 0)
    children = [fork(work) for _ in range(processes)]
    assert [ended(child) for child in children] == [0] * processes


@can_fork
def test_sixteen_processes_at_once_lose_nothing_and_all_get_their_turn(home: Path) -> None:
    with closing(make(home)) as database:
        work_at_once(database, processes=16, times=40)
        assert total(database) == 16 * 40 * 2
    assert_sound(home)


@can_fork
def test_sixteen_processes_may_begin_at_once(home: Path) -> None:
    read, write = os.pipe()

    def work() -> None:
        os.close(write)
        os.read(read, 1)  # until the parent closes its end
        database = make(home)
        add(database)
        database.close()

    children = [fork(work) for _ in range(16)]
    os.close(write)
    assert [ended(child) for child in children] == [0] * 16
    os.close(read)
    assert written(home) == 16


@can_fork
def test_forks_while_the_background_writes(home: Path) -> None:
    with closing(make(home)) as database:

        def child() -> None:
            add(database, 1)
            assert total(database) >= 1
            database.later("a", Add(1))
            database.close()

        children = []
        for n in range(20):
            for _ in range(5):
                database.later(n, Add(10))
            if n % 3 == 0:
                time.sleep(0.02)  # so that some of the forks meet the writing thread
            children.append(fork(child))
        assert [ended(pid) for pid in children] == [0] * 20
        database.flush()
        assert total(database) == written(home) == 20 * 50 + 20 * 2
    assert_sound(home)


@can_fork
def test_a_fork_while_another_thread_is_inside_a_transaction(home: Path) -> None:
    is_inside, may_go = threading.Event(), threading.Event()
    with closing(make(home)) as database:
        add(database)

        def work() -> None:
            with database.write() as db:
                Add(10).apply(db)
                is_inside.set()
                may_go.wait(SOON)
                Add(10).apply(db)

        thread = threading.Thread(target=work)
        thread.start()
        assert is_inside.wait(SOON)
        threading.Timer(0.2, may_go.set).start()
        database.later("a", Add(100))
        assert ended(fork(lambda: add(database, 1000))) == 0
        thread.join()
        database.flush()
        assert total(database) == written(home) == 1121


@can_fork
def test_a_fork_while_another_process_keeps_the_file_locked(home: Path) -> None:
    with closing(make(home, patience=SOON)) as database:
        add(database)
        with locked(home):
            writing = threading.Thread(target=add, args=(database, 10))
            writing.start()
            wait_until(lambda: is_waiting(writing))
            pid = fork(lambda: add(database, 100))
        assert ended(pid) == 0
        writing.join()
        assert total(database) == 111


def is_waiting(thread: threading.Thread) -> bool:
    frame = sys._current_frames().get(thread.ident or 0)
    return frame is not None and frame.f_code.co_name == "rest"


@can_fork
def test_a_fork_inside_ones_own_transaction_undoes_it_and_harms_nothing_else(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(1))
        with pytest.raises(LedgerError), database.write() as db:
            Add(10).apply(db)
            assert ended(fork(lambda: make(home).ready())) == 0
            Add(10).apply(db)
        add(database, 100)
        assert total(database) == written(home) == 101


@can_fork
def test_a_child_may_end_before_or_after_its_parent(home: Path) -> None:
    script = """
database = make()
with database.write() as db:
    Add(1).apply(db)
database.later("a", Add(10))
read, write = os.pipe()
if os.fork() == 0:
    os.close(write)
    os.read(read, 1)  # until the parent has ended
    with database.write() as db:
        Add(100).apply(db)
    database.later("a", Add(1000))
    sys.exit(0)
os.close(read)
"""
    run(script, home)
    wait_until(lambda: written(home) == 1111)


# --- the end of a program


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("raise ValueError('so it goes')", 1),
        ("del database", 0),
        ("signal.raise_signal(signal.SIGINT)", -2),
        ("threading.Timer(0.2, database.later, ('a', Add(0))).start()", 0),
    ],
)
def test_what_waits_is_written_when_a_program_ends(home: Path, end: str, code: int) -> None:
    run(f"import signal\ndatabase = make()\ndatabase.later('a', Add(7))\n{end}", home, code=code)
    assert written(home) == 7


def test_what_is_booked_while_a_program_ends_is_written(home: Path) -> None:
    """Nobody writes for others then, and no thread can be had any more."""
    script = """
import atexit

atexit.register(lambda: database.later("a", Add(10)))  # runs after what is imported below has ended
{begin}
database = make()
database.later("a", Add(1))
"""
    command = [sys.executable, "-c", script.format(begin=BEGIN), str(home)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert written(home) == 11


def test_a_program_that_cannot_write_when_it_ends_says_so(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    warned = run("logging.basicConfig()\nmake().later('a', Add(7))", home)
    assert "usage could not be written down: the usage ledger" in warned
    assert "Traceback" not in warned


WORKER = """
import multiprocessing, sys, threading, time
from pathlib import Path

class Add:
    def apply(self, db):
        db.execute(
            "INSERT INTO day VALUES ('a', '2026-01-12', 1, 0, 0, 0) "
            "ON CONFLICT (name, day) DO UPDATE SET tokens = tokens + 1"
        )

def work(home):
    from maxwell.database.file import Database

    database = Database(Path(home), begin=lambda db: None)
    database.later(1, Add())
    def late():
        time.sleep(0.3)
        database.later(2, Add())
    threading.Thread(target=late).start()

if __name__ == "__main__":
    if sys.argv[3] == "before":
        import maxwell.database.file
    context = multiprocessing.get_context(sys.argv[2])
    processes = [context.Process(target=work, args=(sys.argv[1],)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
"""


@pytest.mark.parametrize("imported", ["before", "in the child"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_process_writes_what_waits_when_it_ends(
    home: Path, tmp_path: Path, method: str, imported: str
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    (tmp_path / "program.py").write_text(WORKER, encoding="utf-8")
    command = [sys.executable, str(tmp_path / "program.py"), str(home), method, imported]
    subprocess.run(command, check=True, timeout=60)
    assert written(home) == 4


# --- nothing is left behind


@on_linux
def test_databases_that_are_dropped_leave_nothing_behind(tmp_path: Path) -> None:
    threads = threading.active_count()
    gone: list[weakref.ref[Database]] = []
    for n in range(50):
        database = make(tmp_path / str(n))
        add(database)
        if n % 2:
            database.later("a", Add(1))
        gone.append(weakref.ref(database))
    del database
    wait_until(lambda: not any(reference() for reference in gone))
    assert open_files_under(tmp_path) == []
    assert threading.active_count() <= threads + 1
    assert [written(tmp_path / str(n)) for n in range(50)] == [1, 2] * 25


@on_linux
def test_ledgers_that_are_dropped_leave_nothing_behind(tmp_path: Path) -> None:
    gone: list[weakref.ref[SQLiteLedger]] = []
    for n in range(10):
        ledger = SQLiteLedger(tmp_path / str(n), SystemClock())
        ledger.settle(ledger.reserve("a", MONDAY, Amount(1, 0), Limit()), Amount(1, 0))
        gone.append(weakref.ref(ledger))
    del ledger
    wait_until(lambda: not gc.collect() and not any(reference() for reference in gone))
    wait_until(lambda: bool(gc.collect() or True) and open_files_under(tmp_path) == [])
    assert [written(tmp_path / str(n)) for n in range(10)] == [1] * 10


def open_files_under(place: Path) -> list[str]:
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = str(link.readlink())
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            continue
        if target.startswith(str(place)):
            found.append(target)
    return found


@on_linux
def test_attempts_that_fail_leave_nothing_behind(home: Path) -> None:
    home.mkdir()
    (home / "ledger.db").write_bytes(b"my diary " * 500)
    with closing(make(home)) as database:
        for _ in range(20):
            with pytest.raises(LedgerError):
                add(database)
    # One descriptor stays open while a damaged file is there: to close it would take locks away.
    assert len(open_files_under(home)) <= 1
    gone = weakref.ref(database)
    del database
    assert gone() is None
