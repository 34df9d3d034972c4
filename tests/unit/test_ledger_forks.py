"""The ledger among real processes: forks, workers, exits and kills."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ledgers import (
    MONDAY,
    NAME,
    Programs,
    allow_writing,
    held,
    opened,
    program,
    projection,
    refuse_writing,
    run,
    running,
    settled,
    take,
    use,
    used,
)
from processes import can_fork, ended, fork

from maxwell.clock import SystemClock
from maxwell.ledger import Amount, NoRoom, Used
from maxwell.ledger.sqlite import SQLiteLedger

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def assert_whole(home: Path) -> None:
    with opened(home) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# --- at the same time

HAMMER = """
from maxwell.ledger import NoRoom
used(ledger)
print("ready", flush=True)
sys.stdin.readline()
admitted = 0
for i in range(50):
    try:
        hold = take(ledger, 10, 250, most=1000, most_nanousd=20_000)
    except NoRoom as full:
        assert not full.used.has_room(Amount(10, 250), Limit(1000, 20_000))
        continue
    assert ledger.send(hold)
    seen = used(ledger)
    assert seen.tokens + seen.held_tokens <= 1000 and seen.nanousd + seen.held_nanousd <= 20_000, seen
    if i % 5:
        ledger.settle(hold, hold.amount)
        admitted += 1
    else:
        ledger.release(hold)
print(admitted)
"""


def test_processes_never_pass_a_budget(home: Path, programs: Programs) -> None:
    with running(HAMMER, home) as a, running(HAMMER, home) as b, running(HAMMER, home) as c:
        for worker in (a, b, c):
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        admitted = [int(worker.communicate(timeout=60)[0]) for worker in (a, b, c)]
        assert [worker.returncode for worker in (a, b, c)] == [0] * 3
    # The money admits 80 calls at most, and one is refused only while all of it is used or held.
    assert 78 <= sum(admitted) <= 80
    assert used(programs()) == settled(10 * sum(admitted), 250 * sum(admitted), calls=sum(admitted))
    assert projection(home) == {NAME: {"2026-01-12": 10 * sum(admitted)}}


def test_a_program_that_ends_takes_nothing_from_another_with_two_ledgers(
    home: Path, programs: Programs
) -> None:
    """A process that closes the file in any way lets go of all its locks on it, whoever holds them."""
    one, other = programs(), programs()
    take(one, 1, most=100)
    take(other, 1, most=100)
    for ended_before in range(3):
        run("use(ledger, 30)", home)
        assert used(one) == used(other)
        assert used(one).tokens == 30 * (ended_before + 1)
    with pytest.raises(NoRoom):
        take(one, 9, most=100)
    assert used(programs()).tokens == 90


# --- the end of a process


def test_a_killed_program_never_makes_room(home: Path, programs: Programs) -> None:
    script = """
use(ledger, 30)
take(ledger, 20, most=100)
ledger.send(take(ledger, 50, most=100))
ledger.flush()
print("ready", flush=True)
sys.stdin.read()
"""
    ledger = programs()
    with running(script, home) as worker:
        assert used(ledger) == Used(30, 0, 70, 0, 0, 1)
        with pytest.raises(NoRoom):
            take(ledger, 1, most=100)
        worker.kill()
        worker.wait()
        take(ledger, 20, most=100)  # what it had not sent
    assert used(ledger) == Used(80, 0, 20, 0, 50, 2)
    with pytest.raises(NoRoom):
        take(ledger, 1, most=100)


def test_a_kill_loses_no_more_than_the_last_moments(home: Path, programs: Programs) -> None:
    script = """
print("ready", flush=True)
for i in range(100_000):
    ledger.book("free", MONDAY, Amount(1))
    use(ledger, 3)
    if i % 10 == 0:
        ledger.flush()
        print(i + 1, flush=True)
"""
    with running(script, home) as worker:
        assert worker.stdout is not None
        for _ in range(8):
            worker.stdout.readline()
        worker.kill()
        written = max([70, *(int(line) for line in worker.stdout.read().split("\n")[:-1])])
    ledger = programs()
    assert_whole(home)
    there = ledger.usage(MONDAY)
    assert there["free"].tokens >= written
    assert there[NAME].tokens >= 3 * written
    assert (there[NAME].held_tokens, list(ledger.holds())) == (0, [])
    ledger.flush()
    assert all(set(days) == {"2026-01-12"} for days in projection(home).values())


ENDS = {
    "it ends": "ledger.book(NAME, MONDAY, Amount(10))",
    "it fails": "ledger.book(NAME, MONDAY, Amount(10)); raise KeyboardInterrupt",
    "its threads end later": """
import threading
def work():
    threading.main_thread().join()
    ledger.book(NAME, MONDAY, Amount(10))
threading.Thread(target=work).start()
""",
    "a hook books": "import atexit; atexit.register(ledger.book, NAME, MONDAY, Amount(10))",
}


@pytest.mark.parametrize("script", ENDS.values(), ids=ENDS)
def test_a_program_writes_its_books_when_it_ends(home: Path, programs: Programs, script: str) -> None:
    done = subprocess.run(program(script, home), capture_output=True, text=True, timeout=60, check=False)
    assert "maxwell" not in done.stderr
    assert projection(home) == {NAME: {"2026-01-12": 10}}
    assert used(programs()) == settled(10)


def test_a_program_that_cannot_write_its_books_when_it_ends_says_so(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    done = run("import logging; logging.basicConfig(); ledger.book(NAME, MONDAY, Amount(10))", home)
    assert "ledger.db cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def book_in_worker(home: Path) -> None:
    SQLiteLedger(home, SystemClock()).book(NAME, MONDAY, Amount(10))


EARLY_IMPORT = """
import multiprocessing
from test_ledger_forks import book_in_worker
worker = multiprocessing.get_context(sys.argv[2]).Process(target=book_in_worker, args=(home,))
worker.start()
worker.join()
sys.exit(worker.exitcode)
"""
LATE_IMPORT = """
import multiprocessing, sys
def work(home):
    from datetime import date
    from pathlib import Path
    from maxwell.clock import SystemClock
    from maxwell.ledger import Amount
    from maxwell.ledger.sqlite import SQLiteLedger
    SQLiteLedger(Path(home), SystemClock()).book("gpt-4o", date(2026, 1, 12), Amount(10))
if __name__ == "__main__":
    worker = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(sys.argv[1],))
    worker.start()
    worker.join()
    sys.exit(worker.exitcode)
"""


@pytest.mark.parametrize("imports", ["before", "in the worker"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_a_worker_process_writes_its_books_when_it_ends(
    method: str, imports: str, home: Path, programs: Programs, tmp_path: Path
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    if imports == "before":
        script = "import test_ledger_forks as t, multiprocessing; "
        script += (
            "w = multiprocessing.get_context(sys.argv[2]).Process(target=t.book_in_worker, args=(home,)); "
        )
        script += "w.start(); w.join(); sys.exit(w.exitcode)"
        script = f"sys.path.insert(0, {str(Path(__file__).parent)!r}); {script}"
        run(script, home, method)
    else:
        late = tmp_path / "late.py"
        late.write_text(LATE_IMPORT)
        subprocess.run([sys.executable, late, home, method], check=True, timeout=60)
    assert used(programs()) == settled(10)
    assert projection(home) == {NAME: {"2026-01-12": 10}}


# --- forks


@can_fork
def test_a_forked_child_books_and_its_parent_goes_on(home: Path, programs: Programs) -> None:
    ledger = programs()
    hold = take(ledger, 10)
    ledger.book("free", MONDAY, Amount(7))

    def child() -> None:
        use(ledger, 5)
        ledger.book("free", MONDAY, Amount(1))
        ledger.close()

    assert ended(fork(child)) == 0
    ledger.settle(hold, Amount(10))
    assert used(ledger) == settled(15, calls=2)
    ledger.close()
    # What waited in the parent is written once.
    assert programs().usage(MONDAY) == {NAME: settled(15, calls=2), "free": settled(8, calls=2)}
    assert_whole(home)


@can_fork
def test_a_forked_child_shows_what_it_booked(home: Path, programs: Programs) -> None:
    ledger = programs()
    use(ledger, 1)
    ledger.flush()

    def child() -> None:
        use(ledger, 5)
        ledger.close()

    assert ended(fork(child)) == 0
    assert projection(home) == {NAME: {"2026-01-12": 6}}


@can_fork
def test_what_waits_is_the_parents_to_write(home: Path, programs: Programs) -> None:
    ledger = programs()
    hold = take(ledger, 10)
    refuse_writing(home)
    ledger.settle(hold, Amount(9))
    ledger.book("free", MONDAY, Amount(7))

    assert ledger.usage(MONDAY) == {NAME: settled(9), "free": settled(7)}

    def child() -> None:
        assert ledger.usage(MONDAY) == {NAME: held(10)}
        ledger.flush()  # it has nothing to write, or this would fail
        ledger.close()

    assert ended(fork(child)) == 0
    assert ledger.usage(MONDAY) == {NAME: settled(9), "free": settled(7)}
    allow_writing(home)
    ledger.flush()
    assert programs().usage(MONDAY) == {NAME: settled(9), "free": settled(7)}


@can_fork
def test_a_child_that_does_nothing_harms_nothing(home: Path, programs: Programs) -> None:
    ledger, other = programs(), programs()
    hold = take(ledger, 10)
    assert ended(fork(lambda: None)) == 0
    ledger.settle(hold, Amount(10))
    assert used(ledger) == settled(10)
    ledger.flush()
    take(other, 1)
    assert used(ledger) == used(other) == Used(10, 0, 1, 0, 0, 1)


@can_fork
def test_what_a_child_books_outlives_its_parents_ledger(programs: Programs) -> None:
    """As when a program goes into the background: the child goes on and its parent leaves."""
    ledger = programs()
    use(ledger, 1)
    has_reserved, may_settle = os.pipe(), os.pipe()

    def child() -> None:
        hold = take(ledger, 5)
        os.write(has_reserved[1], b"x")
        os.read(may_settle[0], 1)
        ledger.settle(hold, Amount(5))
        use(ledger, 7)
        ledger.close()

    pid = fork(child)
    os.read(has_reserved[0], 1)
    ledger.close()
    os.write(may_settle[1], b"x")
    status = ended(pid)
    for end in (*has_reserved, *may_settle):
        os.close(end)
    assert (status, used(programs())) == (0, settled(13, calls=3))


@can_fork
def test_a_child_that_was_killed_loses_its_holds_and_not_its_parents(programs: Programs) -> None:
    ledger = programs()
    mine = take(ledger, 10, most=100)

    def child() -> None:
        ledger.send(take(ledger, 20, most=100))
        take(ledger, 70, most=100)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(fork(child)) == -signal.SIGKILL
    assert used(ledger) == Used(20, 0, 10, 0, 20, 1)
    assert [found.hold for found in ledger.holds()] == [mine]


LOCKER = """
used(ledger)
with opened(home) as db:
    db.execute("BEGIN IMMEDIATE")
    print("ready", flush=True)
    sys.stdin.readline()
    db.execute("COMMIT")
"""


@can_fork
@pytest.mark.parametrize("is_open", [False, True], ids=["while it opens the file", "while it waits to write"])
def test_a_fork_in_the_middle_of_a_reservation(home: Path, programs: Programs, is_open: bool) -> None:
    ledger = programs(SystemClock())
    if is_open:
        assert ledger.usage(MONDAY) == {}
    with running(LOCKER, home) as locker, ThreadPoolExecutor(1) as threads:
        reserving = threads.submit(take, ledger, 10)

        def child() -> None:
            use(ledger, 1)  # waits for the lock as well
            ledger.close()

        children = [fork(child) for _ in range(4)]
        assert not reserving.done()
        locker.communicate("go\n", timeout=60)
        assert [ended(pid) for pid in children] == [0] * 4
        hold = reserving.result(20)
    assert used(ledger) == Used(4, 0, 10, 0, 0, 4)
    assert [found.hold for found in ledger.holds()] == [hold]
    assert_whole(home)


@can_fork
def test_forks_while_threads_reserve(home: Path, programs: Programs) -> None:
    ledger = programs(SystemClock())
    stop = threading.Event()
    calls = [0, 0, 0]

    def work(number: int) -> None:
        while not stop.is_set():
            use(ledger, 1)
            calls[number] += 1

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()

    def child() -> None:
        use(ledger, 1000)
        ledger.close()

    assert [ended(fork(child)) for _ in range(10)] == [0] * 10
    stop.set()
    for thread in threads:
        thread.join()
    total = sum(calls)
    assert used(ledger) == settled(10_000 + total, calls=10 + total)
    ledger.close()
    assert used(programs()) == settled(10_000 + total, calls=10 + total)
    assert_whole(home)
