from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from maxwell.clock import SystemClock
from maxwell.ledger import Hold, Ledger, LedgerError, NoRoom, Used
from maxwell.ledger import sqlite as sqlite_module
from maxwell.ledger.memory import MemoryLedger
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing.clock import FakeClock

MONDAY, TUESDAY = date(2026, 1, 12), date(2026, 1, 13)
NAME = "gpt-4o"

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def take(
    ledger: Ledger,
    tokens: int,
    *,
    usd: float = 0.0,
    name: str = NAME,
    day: date = MONDAY,
    most: int | None = None,
    most_usd: float | None = None,
) -> Hold:
    return ledger.reserve(name, day, tokens, usd, most_tokens=most, most_usd=most_usd)


def used(ledger: Ledger, name: str = NAME, day: date = MONDAY) -> Used:
    return ledger.used(day).get(name, Used())


@pytest.fixture(params=["memory", "sqlite"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    store: Ledger = MemoryLedger() if request.param == "memory" else SQLiteLedger(tmp_path, FakeClock())
    with closing(store):
        yield store


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "maxwell"


@pytest.fixture
def open_ledger(home: Path) -> Iterator[Callable[[], SQLiteLedger]]:
    """Opens ledgers in one home, as as many programs would; all are closed when the test ends."""
    opened: list[SQLiteLedger] = []

    def open_one() -> SQLiteLedger:
        opened.append(SQLiteLedger(home, FakeClock()))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def projection(home: Path) -> Any:
    return json.loads((home / "llm_usage.json").read_text(encoding="utf-8"))


# --- what every store does


def test_a_new_ledger_is_empty(ledger: Ledger) -> None:
    assert ledger.used(MONDAY) == {}


def test_a_reservation_is_held_until_it_is_settled(ledger: Ledger) -> None:
    hold = take(ledger, 100, usd=0.5)
    assert (hold.name, hold.day) == (NAME, MONDAY)
    assert used(ledger) == Used(0, 0.0, 100, 0.5)
    ledger.settle(hold, 60, 0.25)
    assert used(ledger) == Used(60, 0.25)


def test_a_released_reservation_leaves_nothing(ledger: Ledger) -> None:
    ledger.release(take(ledger, 100, usd=0.5))
    assert used(ledger) == Used()


def test_settling_twice_changes_nothing(ledger: Ledger) -> None:
    hold = take(ledger, 100)
    ledger.settle(hold, 60, 0.25)
    ledger.settle(hold, 60, 0.25)
    ledger.release(hold)
    assert used(ledger) == Used(60, 0.25)


def test_a_released_reservation_cannot_be_settled(ledger: Ledger) -> None:
    hold = take(ledger, 100)
    ledger.release(hold)
    ledger.release(hold)
    ledger.settle(hold, 60, 0.25)
    assert used(ledger) == Used()


def test_a_hold_that_never_was_settles_nothing(ledger: Ledger) -> None:
    ledger.settle(Hold("nobody", NAME, MONDAY), 60, 0.25)
    assert used(ledger) == Used()


def test_more_may_be_settled_than_was_held(ledger: Ledger) -> None:
    ledger.settle(take(ledger, 10, most=10), 25, 0.0)
    assert used(ledger) == Used(25)
    with pytest.raises(NoRoom):
        take(ledger, 1, most=10)


def test_holds_count_towards_the_token_budget(ledger: Ledger) -> None:
    first = take(ledger, 60, most=100)
    with pytest.raises(NoRoom) as full:
        take(ledger, 41, most=100)
    assert full.value.used == Used(0, 0.0, 60, 0.0)
    assert used(ledger) == Used(0, 0.0, 60, 0.0)
    take(ledger, 40, most=100)
    ledger.settle(first, 10, 0.0)
    take(ledger, 50, most=100)
    with pytest.raises(NoRoom):
        take(ledger, 1, most=100)


def test_holds_count_towards_the_money_budget(ledger: Ledger) -> None:
    first = take(ledger, 1, usd=0.5, most_usd=1.0)
    take(ledger, 1, usd=0.5, most_usd=1.0)
    with pytest.raises(NoRoom):
        take(ledger, 1, usd=0.25, most_usd=1.0)
    ledger.settle(first, 1, 0.25)
    take(ledger, 1, usd=0.25, most_usd=1.0)


def test_each_budget_refuses_on_its_own(ledger: Ledger) -> None:
    with pytest.raises(NoRoom):
        take(ledger, 11, usd=0.5, most=10, most_usd=1.0)
    with pytest.raises(NoRoom):
        take(ledger, 10, usd=1.5, most=10, most_usd=1.0)
    take(ledger, 10, usd=1.0, most=10, most_usd=1.0)


def test_a_budget_of_nothing_admits_nothing(ledger: Ledger) -> None:
    with pytest.raises(NoRoom):
        take(ledger, 1, most=0)
    with pytest.raises(NoRoom):
        take(ledger, 1, usd=0.001, most_usd=0.0)


def test_days_have_books_of_their_own(ledger: Ledger) -> None:
    late = take(ledger, 80, most=100, day=MONDAY)
    take(ledger, 80, most=100, day=TUESDAY)
    ledger.settle(late, 70, 0.0)  # a call that ended after midnight counts on the day it began
    assert used(ledger, day=MONDAY) == Used(70)
    assert used(ledger, day=TUESDAY) == Used(0, 0.0, 80)


def test_names_have_books_of_their_own(ledger: Ledger) -> None:
    take(ledger, 100, most=100, name="a")
    take(ledger, 100, most=100, name="b")
    assert used(ledger, "a") == used(ledger, "b") == Used(0, 0.0, 100)


@pytest.mark.parametrize("name", ["C:\\models\\a", "it's", 'say "hi"', "名前", "%s;--", " "])
def test_any_name_is_kept(ledger: Ledger, name: str) -> None:
    ledger.settle(take(ledger, 5, name=name), 4, 0.5)
    ledger.book(name, MONDAY, 1, 0.0)
    ledger.flush()
    assert ledger.used(MONDAY) == {name: Used(5, 0.5)}


def test_unlimited_use_is_visible_at_once(ledger: Ledger) -> None:
    ledger.book(NAME, MONDAY, 10, 0.25)
    ledger.book(NAME, MONDAY, 5, 0.25)
    assert used(ledger) == Used(15, 0.5)
    assert used(ledger, day=TUESDAY) == Used()
    ledger.flush()
    assert used(ledger) == Used(15, 0.5)
    ledger.book(NAME, MONDAY, 1, 0.0)
    assert used(ledger) == Used(16, 0.5)


def test_use_without_reservation_counts_towards_a_budget(ledger: Ledger) -> None:
    # As when a budget is declared in the middle of the day.
    ledger.book(NAME, MONDAY, 90, 0.0)
    with pytest.raises(NoRoom):
        take(ledger, 20, most=100)


def test_a_closed_ledger_can_be_used_again(ledger: Ledger) -> None:
    ledger.book(NAME, MONDAY, 10, 0.0)
    hold = take(ledger, 5)
    ledger.close()
    ledger.close()
    ledger.settle(hold, 4, 0.0)
    assert used(ledger) == Used(14)


def test_threads_never_pass_a_budget(ledger: Ledger) -> None:
    def one(_: int) -> int:
        try:
            hold = take(ledger, 7, most=100)
        except NoRoom:
            return 0
        ledger.settle(hold, 5, 0.0)
        return 5

    with ThreadPoolExecutor(8) as threads:
        admitted = sum(threads.map(one, range(60)))
    assert used(ledger) == Used(admitted)
    assert 0 < admitted <= 100  # how many are turned away depends on who holds at the moment


# --- a machine that reserves, settles and releases in any order

BUDGETS = {"a": (100, 1.0), "b": (40, None), "c": (None, 0.5), "free": (None, None)}
DOLLARS = st.sampled_from((0.0, 0.125, 0.25, 0.5))  # exact in binary, so that sums are exact in any order


class Books(RuleBasedStateMachine):
    holds = Bundle("holds")
    gone = Bundle("gone")

    def open(self) -> Ledger:
        return MemoryLedger()

    @initialize()
    def start(self) -> None:
        self.ledger: Ledger = self.open()
        self.settled: dict[tuple[str, date], tuple[int, float]] = {}
        self.held: dict[str, tuple[Hold, int, float]] = {}

    def expected(self, name: str, day: date) -> Used:
        mine = [h for h in self.held.values() if (h[0].name, h[0].day) == (name, day)]
        tokens, usd = self.settled.get((name, day), (0, 0.0))
        return Used(tokens, usd, sum(h[1] for h in mine), sum(h[2] for h in mine))

    def add(self, name: str, day: date, tokens: int, usd: float) -> None:
        old = self.settled.get((name, day), (0, 0.0))
        self.settled[name, day] = (old[0] + tokens, old[1] + usd)

    @rule(
        target=holds,
        name=st.sampled_from(sorted(BUDGETS)),
        day=st.sampled_from((MONDAY, TUESDAY)),
        tokens=st.integers(0, 60),
        usd=DOLLARS,
    )
    def reserve(self, name: str, day: date, tokens: int, usd: float) -> Any:
        most, most_usd = BUDGETS[name]
        before = self.expected(name, day)
        fits = (most is None or before.tokens + before.held_tokens + tokens <= most) and (
            most_usd is None or before.usd + before.held_usd + usd <= most_usd
        )
        if not fits:
            with pytest.raises(NoRoom) as full:
                self.ledger.reserve(name, day, tokens, usd, most_tokens=most, most_usd=most_usd)
            assert full.value.used == before
            return Hold("refused", name, day)
        hold = self.ledger.reserve(name, day, tokens, usd, most_tokens=most, most_usd=most_usd)
        self.held[hold.id] = (hold, tokens, usd)
        return hold

    @rule(target=gone, hold=consumes(holds), part=st.sampled_from((0, 1, 2)))
    def settle(self, hold: Hold, part: int) -> Hold:
        _, tokens, usd = self.held.get(hold.id, (hold, 0, 0.0))
        tokens, usd = tokens * part // 2, usd * part / 2
        self.ledger.settle(hold, tokens, usd)
        if self.held.pop(hold.id, None) is not None:
            self.add(hold.name, hold.day, tokens, usd)
        return hold

    @rule(target=gone, hold=consumes(holds))
    def release(self, hold: Hold) -> Hold:
        self.ledger.release(hold)
        self.held.pop(hold.id, None)
        return hold

    @rule(hold=gone, settle=st.booleans())
    def end_again(self, hold: Hold, settle: bool) -> None:
        if settle:
            self.ledger.settle(hold, 50, 0.5)
        else:
            self.ledger.release(hold)

    @rule(day=st.sampled_from((MONDAY, TUESDAY)), tokens=st.integers(0, 9), usd=DOLLARS)
    def book(self, day: date, tokens: int, usd: float) -> None:
        self.ledger.book("free", day, tokens, usd)
        self.add("free", day, tokens, usd)

    @rule()
    def write_down(self) -> None:
        self.ledger.flush()

    @invariant()
    def the_books_are_right(self) -> None:
        if not hasattr(self, "ledger"):
            return
        for day in (MONDAY, TUESDAY):
            books = self.ledger.used(day)
            for name, (most, most_usd) in BUDGETS.items():
                have = books.get(name, Used())
                assert have == self.expected(name, day)
                assert most is None or have.tokens + have.held_tokens <= most
                assert most_usd is None or have.usd + have.held_usd <= most_usd


class SQLiteBooks(Books):
    @initialize()
    def start(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.home = Path(self.directory.name)
        super().start()

    def open(self) -> SQLiteLedger:
        self.clock = FakeClock()
        return SQLiteLedger(self.home, self.clock)

    @rule()
    def restart(self) -> None:
        self.ledger.close()
        self.ledger = self.open()

    @rule(seconds=st.sampled_from((0.4, 1.1)))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def the_projection_parses(self) -> None:
        if hasattr(self, "home") and (self.home / "llm_usage.json").exists():
            for name, days in projection(self.home).items():
                assert all(n <= self.settled[name, date.fromisoformat(day)][0] for day, n in days.items())

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.directory.cleanup()


TestMemoryBooks = Books.TestCase
TestMemoryBooks.settings = settings(deadline=None, max_examples=25, stateful_step_count=20)
TestSQLiteBooks = SQLiteBooks.TestCase
TestSQLiteBooks.settings = settings(deadline=None, max_examples=12, stateful_step_count=15)


# --- one file, several programs


def test_ledgers_of_one_home_see_each_other(open_ledger: Callable[[], SQLiteLedger]) -> None:
    one, other = open_ledger(), open_ledger()
    hold = take(one, 60, usd=0.5, most=100)
    assert used(other) == Used(0, 0.0, 60, 0.5)
    with pytest.raises(NoRoom):
        take(other, 60, most=100)
    other.settle(hold, 50, 0.25)
    assert used(one) == Used(50, 0.25)


def test_unlimited_use_is_seen_by_others_once_written(open_ledger: Callable[[], SQLiteLedger]) -> None:
    one, other = open_ledger(), open_ledger()
    one.book(NAME, MONDAY, 10, 0.0)
    one.flush()
    assert used(other) == Used(10)


def test_closing_writes_unlimited_use(open_ledger: Callable[[], SQLiteLedger], home: Path) -> None:
    one = open_ledger()
    one.book(NAME, MONDAY, 10, 0.0)
    one.close()
    assert used(open_ledger()) == Used(10)
    assert projection(home) == {NAME: {"2026-01-12": 10}}


HAMMER = """
import sys
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.ledger import NoRoom
from maxwell.ledger.sqlite import SQLiteLedger

ledger = SQLiteLedger(Path(sys.argv[1]), SystemClock())
sys.stdin.readline()
admitted = refused = 0
for i in range(50):
    try:
        hold = ledger.reserve("gpt-4o", date(2026, 1, 12), 10, 0.25, most_tokens=1000, most_usd=20.0)
    except NoRoom as full:
        refused += 1
        held = full.used
        assert held.tokens + held.held_tokens + 10 > 1000 or held.usd + held.held_usd + 0.25 > 20, held
        continue
    seen = ledger.used(date(2026, 1, 12))["gpt-4o"]
    assert seen.tokens + seen.held_tokens <= 1000, seen
    assert seen.usd + seen.held_usd <= 20.0, seen
    if i % 5:
        ledger.settle(hold, 10, 0.25)
        admitted += 1
    else:
        ledger.release(hold)
print(admitted, refused)
"""


def test_processes_never_pass_a_budget(home: Path, open_ledger: Callable[[], SQLiteLedger]) -> None:
    command = [sys.executable, "-c", HAMMER, str(home)]
    workers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    outputs = [worker.communicate(timeout=60)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4
    admitted = sum(int(o[0]) for o in outputs)
    # Each budget admits 80 calls at most (20 dollars); a call is refused only when it is full.
    assert admitted == 80
    assert used(open_ledger()) == Used(800, 20.0)
    assert projection(home) == {NAME: {"2026-01-12": 800}}


def test_many_programs_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    def first_use(home: Path, together: threading.Barrier) -> None:
        with closing(SQLiteLedger(home, SystemClock())) as ledger:
            together.wait()
            ledger.settle(take(ledger, 1), 1, 0.0)

    with ThreadPoolExecutor(8) as threads:
        for i in range(40):
            home, together = tmp_path / str(i), threading.Barrier(8, timeout=20)
            for done in [threads.submit(first_use, home, together) for _ in range(8)]:
                done.result()
            with closing(SQLiteLedger(home, SystemClock())) as ledger:
                assert used(ledger) == Used(8)


def test_the_projection_is_right_when_all_have_closed(tmp_path: Path) -> None:
    def work(ledger: SQLiteLedger, together: threading.Barrier) -> None:
        ledger.settle(take(ledger, 1), 1, 0.0)
        together.wait()
        ledger.settle(take(ledger, 1), 1, 0.0)
        ledger.close()

    with ThreadPoolExecutor(4) as threads:
        for i in range(25):
            home, together = tmp_path / str(i), threading.Barrier(4, timeout=20)
            ledgers = [SQLiteLedger(home, SystemClock()) for _ in range(4)]
            for done in [threads.submit(work, ledger, together) for ledger in ledgers]:
                done.result()
            assert projection(home) == {NAME: {"2026-01-12": 8}}


KILLED = """
import sys
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.ledger.sqlite import SQLiteLedger

ledger = SQLiteLedger(Path(sys.argv[1]), SystemClock())
ledger.settle(ledger.reserve("gpt-4o", date(2026, 1, 12), 30, 0.0, most_tokens=100, most_usd=None), 30, 0.0)
ledger.reserve("gpt-4o", date(2026, 1, 12), 50, 0.0, most_tokens=100, most_usd=None)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_program_never_makes_room(home: Path, open_ledger: Callable[[], SQLiteLedger]) -> None:
    command = [sys.executable, "-c", KILLED, str(home)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "held\n"
        worker.kill()
    ledger = open_ledger()
    assert used(ledger).tokens == 30
    with pytest.raises(NoRoom):
        take(ledger, 30, most=100)
    take(ledger, 20, most=100)


# --- forks


def fork(work: Callable[[], object], seconds: float = 20.0) -> int:
    """Run `work` in a forked child and return its process id; it is killed when it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_books_and_its_parent_goes_on(
    home: Path, open_ledger: Callable[[], SQLiteLedger]
) -> None:
    ledger = open_ledger()
    hold = take(ledger, 10)
    ledger.book("free", MONDAY, 7, 0.0)

    def child() -> None:
        ledger.settle(take(ledger, 5), 5, 0.0)
        ledger.book("free", MONDAY, 1, 0.0)
        ledger.close()

    assert ended(fork(child)) == 0
    ledger.settle(hold, 10, 0.0)
    assert used(ledger) == Used(15)
    ledger.close()
    assert open_ledger().used(MONDAY) == {NAME: Used(15), "free": Used(8)}  # what was pending is written once
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_does_nothing_harms_nothing(open_ledger: Callable[[], SQLiteLedger]) -> None:
    ledger, other = open_ledger(), open_ledger()
    hold = take(ledger, 10)
    assert ended(fork(lambda: None)) == 0
    ledger.settle(hold, 10, 0.0)
    assert used(other) == Used(10)
    take(other, 1)
    assert used(ledger) == Used(10, 0.0, 1)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_what_a_child_books_outlives_its_parents_ledger(
    home: Path, open_ledger: Callable[[], SQLiteLedger]
) -> None:
    """As when a program goes into the background: the child goes on and its parent leaves."""
    ledger = open_ledger()
    ledger.settle(take(ledger, 1), 1, 0.0)
    has_reserved, may_settle = os.pipe(), os.pipe()

    def child() -> None:
        hold = take(ledger, 5)
        os.write(has_reserved[1], b"x")
        os.read(may_settle[0], 1)
        ledger.settle(hold, 5, 0.0)
        ledger.settle(take(ledger, 7), 7, 0.0)

    pid = fork(child)
    os.read(has_reserved[0], 1)
    ledger.close()
    os.write(may_settle[1], b"x")
    status = ended(pid)
    for end in (*has_reserved, *may_settle):
        os.close(end)
    assert (status, used(open_ledger())) == (0, Used(13))


LOCKER = """
import sqlite3, sys

db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("CREATE TABLE other (x)")
db.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
db.execute("COMMIT")
db.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_while_another_thread_opens_the_ledger_does_not_hang_the_child(
    home: Path, open_ledger: Callable[[], SQLiteLedger]
) -> None:
    ledger = open_ledger()
    home.mkdir()
    command = [sys.executable, "-c", LOCKER, str(home / "ledger.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as locker:
        assert locker.stdin is not None
        assert locker.stdout is not None
        assert locker.stdout.readline() == "locked\n"
        opening = threading.Thread(target=lambda: ledger.used(MONDAY))
        opening.start()
        wait_until(lambda: is_inside_sqlite(opening))
        unlock = threading.Timer(0.2, locker.communicate, ["go\n"])
        unlock.start()
        status = ended(fork(lambda: ledger.used(MONDAY), seconds=4.0))
        opening.join()
        unlock.join()
    assert status == 0


def is_inside_sqlite(thread: threading.Thread) -> bool:
    """Whether `thread` is in the ledger's module, and stays there for a moment: the file is locked."""
    frame = sys._current_frames().get(thread.ident or 0)
    thread.join(0.05)
    return (
        frame is not None
        and sys._current_frames().get(thread.ident or 0) is frame
        and (frame.f_code.co_filename == sqlite_module.__file__)
    )


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def book_in_worker(home: str) -> None:
    SQLiteLedger(Path(home), SystemClock()).book(NAME, MONDAY, 10, 0.0)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_worker_process_writes_its_books_when_it_ends(
    method: str, home: Path, open_ledger: Callable[[], SQLiteLedger]
) -> None:
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context: Any = multiprocessing.get_context(method)
    worker = context.Process(target=book_in_worker, args=(str(home),))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0
    assert used(open_ledger()) == Used(10)


def test_a_program_writes_its_books_when_it_ends(home: Path, open_ledger: Callable[[], SQLiteLedger]) -> None:
    script = (
        "import sys; from datetime import date; from pathlib import Path; "
        "from maxwell.clock import SystemClock; "
        "from maxwell.ledger.sqlite import SQLiteLedger; "
        "SQLiteLedger(Path(sys.argv[1]), SystemClock()).book('gpt-4o', date(2026, 1, 12), 10, 0.0)"
    )
    subprocess.run([sys.executable, "-c", script, str(home)], check=True, timeout=30)
    assert used(open_ledger()) == Used(10)
    assert projection(home) == {NAME: {"2026-01-12": 10}}


def test_a_program_that_cannot_write_its_books_when_it_ends_says_so(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    script = (
        "import logging, sys; from datetime import date; from pathlib import Path; "
        "from maxwell.clock import SystemClock; from maxwell.ledger.sqlite import SQLiteLedger; "
        "logging.basicConfig(); "
        "SQLiteLedger(Path(sys.argv[1]), SystemClock()).book('gpt-4o', date(2026, 1, 12), 10, 0.0)"
    )
    command = [sys.executable, "-c", script, str(home)]
    done = subprocess.run(command, check=True, timeout=30, capture_output=True, text=True)
    assert "ledger.db" in done.stderr


# --- the projection


def test_the_projection_shows_tokens_by_name_and_day(home: Path) -> None:
    with closing(SQLiteLedger(home, FakeClock())) as ledger:
        ledger.settle(take(ledger, 10, usd=0.5), 8, 0.25)
        ledger.settle(take(ledger, 10, day=TUESDAY), 9, 0.0)
        ledger.book("box", TUESDAY, 3, 0.0)
        take(ledger, 1000)  # a hold is not usage
    assert projection(home) == {NAME: {"2026-01-12": 8, "2026-01-13": 9}, "box": {"2026-01-13": 3}}
    assert not [p.name for p in home.iterdir() if p.suffix == ".tmp"]


def test_the_projection_is_written_after_a_second(home: Path) -> None:
    clock = FakeClock()
    with closing(SQLiteLedger(home, clock)) as ledger:
        ledger.settle(take(ledger, 10), 10, 0.0)
        assert not (home / "llm_usage.json").exists()
        clock.advance(1.0)
        ledger.settle(take(ledger, 10), 10, 0.0)
        assert projection(home) == {NAME: {"2026-01-12": 20}}


def test_the_projection_always_parses(home: Path) -> None:
    clock = FakeClock()
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            if (home / "llm_usage.json").exists():
                seen.append(projection(home)[NAME]["2026-01-12"])

    with closing(SQLiteLedger(home, clock)) as ledger, ThreadPoolExecutor(1) as threads:
        reading = threads.submit(read)
        for _ in range(40):
            ledger.settle(take(ledger, 1), 1, 0.0)
            clock.advance(1.1)
        ledger.flush()
        wait_until(lambda: bool(seen))
        stop.set()
        reading.result()
    assert seen == sorted(seen)


def test_only_looking_writes_no_projection(home: Path, open_ledger: Callable[[], SQLiteLedger]) -> None:
    ledger = open_ledger()
    ledger.used(MONDAY)
    ledger.close()
    assert not (home / "llm_usage.json").exists()


# --- usage from before there was a ledger


def test_earlier_usage_is_taken_over_once(home: Path, open_ledger: Callable[[], SQLiteLedger]) -> None:
    home.mkdir()
    (home / "llm_usage.json").write_text('{"gpt-4o": {"2026-01-12": 90, "2026-01-11": 5}, "box": {}}')
    ledger = open_ledger()
    with pytest.raises(NoRoom):
        take(ledger, 11, most=100)
    assert used(ledger) == Used(90)
    ledger.close()
    (home / "llm_usage.json").write_text('{"gpt-4o": {"2026-01-12": 1}}')
    assert used(open_ledger()) == Used(90)


def test_earlier_usage_is_taken_over_where_an_opening_was_cut_off(
    home: Path, open_ledger: Callable[[], SQLiteLedger]
) -> None:
    # A program killed in its first moments leaves an empty file behind.
    home.mkdir()
    (home / "llm_usage.json").write_text('{"gpt-4o": {"2026-01-12": 90}}')
    (home / "ledger.db").touch()
    with pytest.raises(NoRoom):
        take(open_ledger(), 11, most=100)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b'{"gpt-4o": 5}',
        b'{"gpt-4o": {"yesterday": 5}}',
        b'{"gpt-4o": {"2026-01-12": "5"}}',
        b'{"gpt-4o": {"2026-01-12": -5}}',
        b'{"gpt-4o\xff": {"2026-01-12": 5}}',
        '{"gpt-4o": {"2026-01-12": 5}}'.encode("utf-16"),
    ],
    ids=["empty", "cut", "list", "number", "no-date", "text", "negative", "latin-1", "utf-16"],
)
def test_malformed_usage_stops_everything_until_it_is_mended(
    home: Path, open_ledger: Callable[[], SQLiteLedger], text: bytes
) -> None:
    home.mkdir()
    file = home / "llm_usage.json"
    file.write_bytes(text)
    ledger = open_ledger()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"llm_usage\.json.*mend it or move it away"):
            take(ledger, 1, most=100)
        with pytest.raises(LedgerError):
            open_ledger().used(MONDAY)
    assert file.read_bytes() == text
    file.write_text('{"gpt-4o": {"2026-01-12": 90}}')
    assert used(ledger) == Used(90)


# --- a home that cannot be used


def test_a_directory_in_the_place_of_the_file_is_an_error(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    ledger = SQLiteLedger(home, FakeClock())
    with pytest.raises(LedgerError, match=r"the usage ledger .*ledger\.db cannot be used: "):
        take(ledger, 1)
    with pytest.raises(LedgerError):
        ledger.used(MONDAY)


def test_a_file_in_the_place_of_the_home_is_an_error(home: Path) -> None:
    home.write_text("not a directory")
    with pytest.raises(LedgerError, match="cannot be used"):
        SQLiteLedger(home, FakeClock()).used(MONDAY)


def test_a_file_that_is_no_database_is_an_error_and_stays(home: Path) -> None:
    home.mkdir()
    (home / "ledger.db").write_bytes(b"my diary " * 500)
    with pytest.raises(LedgerError, match="cannot be used"):
        take(SQLiteLedger(home, FakeClock()), 1)
    assert (home / "ledger.db").read_bytes() == b"my diary " * 500


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_home_that_cannot_be_written_is_an_error(home: Path) -> None:
    home.mkdir(mode=0o500)
    with pytest.raises(LedgerError, match="cannot be used"):
        take(SQLiteLedger(home, FakeClock()), 1)


def test_a_ledger_that_failed_works_once_its_place_is_free(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    ledger = SQLiteLedger(home, FakeClock())
    with pytest.raises(LedgerError):
        take(ledger, 1)
    (home / "ledger.db").rmdir()
    with closing(ledger):
        assert take(ledger, 1).name == NAME


def test_a_projection_that_cannot_be_written_leaves_no_litter(home: Path) -> None:
    clock = FakeClock()
    ledger = SQLiteLedger(home, clock)
    ledger.settle(take(ledger, 10), 10, 0.0)
    (home / "llm_usage.json").mkdir()
    with pytest.raises(LedgerError):
        ledger.flush()
    assert not [p.name for p in home.iterdir() if p.suffix == ".tmp"]
    (home / "llm_usage.json").rmdir()
    ledger.close()
    assert projection(home) == {NAME: {"2026-01-12": 10}}


FULL_DISK = """
import os, resource, sys
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.errors import LedgerError
from maxwell.ledger.sqlite import SQLiteLedger

home, day = Path(sys.argv[1]), date(2026, 1, 12)
ledger = SQLiteLedger(home, SystemClock())
take = lambda: ledger.reserve("gpt-4o", day, 10, 0.0, most_tokens=100000, most_usd=None)
take()
size = os.path.getsize(home / "ledger.db-wal")
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
for _ in range(3):
    try:
        take()
    except LedgerError as error:
        assert "cannot rollback" not in str(error), error
        assert "within a transaction" not in str(error), error
    else:
        raise AssertionError("wrote to a full disk")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
take()
assert ledger.used(day)["gpt-4o"].held_tokens == 20, ledger.used(day)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits here")
def test_a_full_disk_is_said_and_survived(home: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(home)], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_files_are_for_their_owner_alone(home: Path) -> None:
    with closing(SQLiteLedger(home, FakeClock())) as ledger:
        ledger.settle(take(ledger, 10), 10, 0.0)
    assert home.stat().st_mode & 0o077 == 0
