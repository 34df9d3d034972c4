from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import weakref
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from databases import (
    BEGIN,
    SOON,
    Add,
    Run,
    add,
    assert_sound,
    locked,
    make,
    run,
    total,
    wait_until,
    work_at_once,
    write,
    written,
)
from processes import can_fork, ended, fork, on_linux

from maxwell.clock import SystemClock
from maxwell.database.file import BUSY_SECONDS, Database
from maxwell.database.schema import LEDGER, LIVE, Schema
from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger

MONDAY = date(2026, 1, 12)

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


# --- forks


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
        forking = Run(lambda db: statuses.append(ended(fork(lambda: make(home).ready()))))
        statuses: list[int] = []
        with pytest.raises(LedgerError):
            write(database, Add(10), forking, Add(10))
        assert statuses == [0]
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
        ("signal.signal(signal.SIGINT, signal.default_int_handler)\nsignal.raise_signal(signal.SIGINT)", -2),
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


@can_fork
@pytest.mark.parametrize("order", [(LEDGER, LIVE), (LIVE, LEDGER)])
def test_a_fork_does_not_wait_for_who_uses_two_files(home: Path, order: tuple[Schema, Schema]) -> None:
    """Who decides by what is under way may look at the books meanwhile."""
    files = {schema.file: Database(home, schema) for schema in order}
    ledger, live = files["ledger.db"], files["live.db"]
    add(ledger)
    deciding, is_over = threading.Event(), threading.Event()

    def decide() -> None:
        while not is_over.is_set():
            with live.write():
                deciding.set()
                for _ in range(20):
                    assert total(ledger) == 1

    thread = threading.Thread(target=decide)
    thread.start()
    assert deciding.wait(SOON)
    began = time.monotonic()
    for _ in range(20):
        assert ended(fork(lambda: None)) == 0
    took = time.monotonic() - began
    is_over.set()
    thread.join(SOON)
    for database in (ledger, live):
        database.close()
    assert took < 2 * BUSY_SECONDS  # so long a fork would wait for a lock at most


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
    wait_until(lambda: gc.collect() >= 0 and not any(reference() for reference in gone))
    wait_until(lambda: gc.collect() >= 0 and open_files_under(tmp_path) == [])
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
    wait_until(lambda: gc.collect() >= 0 and gone() is None)
