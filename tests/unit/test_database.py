from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import pytest
from databases import (
    SHORT,
    SOON,
    Add,
    Run,
    add,
    assert_sound,
    locked,
    make,
    raise_,
    run,
    total,
    wait_until,
    work_at_once,
    write,
    written,
)
from processes import can_fork, on_linux

from maxwell.database.damage import SetAside
from maxwell.database.file import Database
from maxwell.database.patience import Locked
from maxwell.database.schema import LEDGER, LIVE
from maxwell.errors import LedgerError

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


# --- writing and reading


def test_what_a_transaction_writes_is_there_for_all(home: Path) -> None:
    with closing(make(home)) as first, closing(make(home)) as second:
        add(first, 5)
        assert (total(first), total(second), written(home)) == (5, 5, 5)


def test_a_transaction_that_fails_writes_nothing(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(3))
        with pytest.raises(ValueError, match="so it goes"):
            write(database, Add(5), raise_(ValueError("so it goes")))
        assert total(database) == 3
        add(database, 1)
        assert written(home) == 4


def test_a_failing_statement_is_an_error_of_the_ledger_and_writes_nothing(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(3))
        with pytest.raises(LedgerError, match="no such table: nowhere"):
            write(database, Add(5), Run(lambda db: db.execute("INSERT INTO nowhere VALUES (1)")))
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
        told = Run(lambda db: database.later("key", Text("c")))
        with pytest.raises(ValueError, match="so it goes"):
            write(database, told, raise_(ValueError("so it goes")))
        database.later("key", Text("d"))
        add(database)
        rows, waiting = database.read("SELECT value FROM note")
        assert (rows, waiting) == ([("abcd",)], [])


def test_what_several_queries_see_is_of_one_moment(home: Path) -> None:
    with closing(make(home)) as database, closing(make(home)) as other:
        add(database)

        def look(db: sqlite3.Connection, waiting: object) -> tuple[object, object]:
            first = db.execute("SELECT * FROM day").fetchall()
            add(other, 10)
            return first, db.execute("SELECT * FROM day").fetchall()

        first, second = database.look(look)
        assert first == second
        assert total(database) == 11


def test_what_a_transaction_has_written_so_far_can_be_read_in_it(home: Path) -> None:
    with closing(make(home)) as database:
        database.later("a", Add(1))
        with database.write() as db:
            Add(10).apply(db)
            assert total(database) == 11
            Add(100).apply(db)
        assert written(home) == 111


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


# --- those who may not wait


@pytest.mark.parametrize("wal", [True, False])
def test_who_may_not_wait_writes_and_reads_where_nobody_is_in_the_way(home: Path, wal: bool) -> None:
    with closing(make(home, wal=wal)) as database:
        with database.write_at_once() as db:
            Add(5).apply(db)
        assert database.read_at_once(TOTAL, ("a",)) == ([(5,)], [])
        assert database.read_at_once(TOTAL, ("b",)) == ([(0,)], [])
        database.later("a", Add(3))  # which the background writes at any moment
        wait_until(lambda: reads(database))
        wait_until(lambda: enters(database.write_at_once()))
        assert written(home) == 8


def test_what_waits_is_told_to_who_may_not_wait(home: Path) -> None:
    with closing(make(home)) as database:
        add(database)
        waiting = Add(3)
        with locked(home):
            database.later("a", waiting)
            while True:
                with suppress(Locked):  # the background tries to write it
                    assert database.read_at_once(TOTAL, ("a",)) == ([(1,)], [waiting])
                    break


@pytest.mark.parametrize("wal", [True, False])
def test_who_may_not_wait_is_told_of_every_lock(home: Path, wal: bool) -> None:
    with closing(make(home, wal=wal)) as database:
        add(database)
        with locked(home):
            with pytest.raises(Locked), database.write_at_once():
                pass
            if wal:
                assert database.read_at_once(TOTAL, ("a",))[0] == [(1,)]
            else:
                with pytest.raises(Locked):
                    database.read_at_once(TOTAL, ("a",))
        database.ready()  # others wrote, and that is all
        with database.write_at_once() as db:
            Add(1).apply(db)
            refused = in_thread(lambda: [enters(database.write_at_once()), reads(database)])
            assert refused == [False, False]
        assert in_thread(lambda: [enters(database.write_at_once()), reads(database)]) == [True, True]
        assert total(database) == 2


TOTAL = "SELECT TOTAL(tokens) FROM day WHERE name = ?"


def in_thread(work: Callable[[], list[bool]]) -> list[bool]:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.extend(work()))
    thread.start()
    thread.join(SOON)
    return found


def enters(attempt: AbstractContextManager[object]) -> bool:
    try:
        with attempt:
            return True
    except Locked:
        return False


def reads(database: Database) -> bool:
    try:
        database.read_at_once(TOTAL, ("a",))
    except Locked:
        return False
    return True


def fail(db: sqlite3.Connection) -> None:
    Add(1).apply(db)
    db.execute("INSERT INTO nowhere VALUES (1)")


def test_what_fails_for_other_reasons_is_an_error_of_the_ledger(home: Path) -> None:
    with closing(make(home)) as database:
        with pytest.raises(LedgerError, match="no such table"), database.write_at_once() as db:
            fail(db)
        with pytest.raises(LedgerError, match="no such table"):
            database.read_at_once("SELECT * FROM nowhere")
        assert total(database) == 0
    home.rename(home.with_name("away"))
    home.write_text("no directory")
    with closing(make(home)) as database:
        with pytest.raises(LedgerError, match="cannot be used"), database.write_at_once():
            pass
        with pytest.raises(LedgerError, match="cannot be used"):
            database.read_at_once(TOTAL, ("a",))


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
        with interrupts():
            database.later("a", Add(10))
            helper.start()
            with pytest.raises(Interrupt):
                add(database, 5)
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
        interrupt = Run(lambda db: signal.raise_signal(signal.SIGUSR1))
        with interrupts(), pytest.raises(Interrupt):
            write(database, Add(5), interrupt, Add(5))
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


# --- what can be seen or learned again


def test_only_the_ledger_survives_a_crash_of_the_machine(home: Path) -> None:
    for wal, durable in ((True, 1), (False, 2)):
        for schema, synchronous in ((LEDGER, durable), (LIVE, 0)):
            with closing(Database(home, schema, wal=wal)) as database:
                assert database.read("PRAGMA synchronous")[0] == [(synchronous,)]
    assert {p.name for p in home.iterdir()} == {"ledger.db", "live.db"}
    assert {p.stat().st_mode & 0o777 for p in home.iterdir()} == {0o600}


def test_an_older_file_that_was_put_aside_makes_room_for_the_next(home: Path) -> None:
    home.mkdir()
    for number in range(3):
        data = f"my diary, part {number} ".encode() * 300
        (home / "live.db").write_bytes(data)
        with closing(Database(home, LIVE)) as database:
            with pytest.raises(SetAside), database.write():
                pass
            with database.write():
                pass
        assert (home / "live.db.damaged").read_bytes() == data


def test_a_file_that_is_damaged_is_put_aside_once_by_all(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    (home / "live.db").write_bytes(b"my diary, and nothing else " * 300)
    databases = [Database(home, LIVE) for _ in range(4)]
    for database in databases:
        with suppress(SetAside), database.write() as db:
            db.execute("INSERT INTO learned VALUES (?, '', 0, '')", (str(id(database)),))
    for database in databases:
        (rows, _) = database.read("SELECT COUNT(*) FROM learned")
        assert rows == [(3,)]
        database.close()
    assert len(caplog.records) == 1


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
