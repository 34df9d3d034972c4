from __future__ import annotations

import logging
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import SOON, wait_until
from ledgers import ended_process, warnings_of
from live import A, B, Programs, at_most, counts, give, in_file, locked, place, runs, waits
from processes import can_fork, ended, fork

from maxwell.clock import SystemClock
from maxwell.database.owners import Owner, this_process
from maxwell.errors import LedgerError
from maxwell.flights import Busy, Flights, Load, Plan
from maxwell.flights.memory import MemoryFlights
from maxwell.flights.sqlite import LEASE_SECONDS, LOOK_SECONDS, RETRY_SECONDS, SEEN_SECONDS
from maxwell.testing.clock import FakeClock

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


@pytest.fixture
def open_flights(home: Path) -> Iterator[Programs]:
    with closing(Programs(home)) as several:
        yield several


@pytest.fixture
def clock(open_flights: Programs) -> FakeClock:
    return open_flights.clock


@pytest.fixture(params=["memory", "file", "file without log"])
def flights(request: pytest.FixtureRequest, open_flights: Programs) -> Flights:
    if request.param == "memory":
        return MemoryFlights(open_flights.clock)
    return open_flights(wal=request.param == "file")


# --- what every store does


def test_nobody_is_under_way_at_first(flights: Flights) -> None:
    assert flights.loads() == {}
    assert place(flights, "x", None) == {}
    assert flights.loads() == {}


def test_who_asks_sees_all_others_and_not_itself(flights: Flights) -> None:
    assert place(flights, "x", runs()) == {}
    assert place(flights, "y", runs(B)) == {A: Load(1)}
    assert place(flights, "x", runs()) == {B: Load(1)}
    assert flights.loads() == {A: Load(1), B: Load(1)}


def test_who_leaves_is_gone_at_once(flights: Flights) -> None:
    for id in "xyz":
        place(flights, id, runs())
    flights.leave("x")
    assert flights.loads() == {A: Load(2)}
    flights.leave("y")
    flights.leave("x")
    flights.leave("nobody")
    assert place(flights, "w", None) == {A: Load(1)}


def test_a_flight_may_go_elsewhere_or_nowhere(flights: Flights) -> None:
    place(flights, "x", runs(A))
    place(flights, "x", runs(B))
    assert flights.loads() == {B: Load(1)}
    place(flights, "x", None)
    assert flights.loads() == {}


def test_those_that_wait_keep_their_order_however_often_they_ask(flights: Flights) -> None:
    assert place(flights, "first", waits()) == {}
    assert place(flights, "second", waits()) == {A: Load(0, 1)}
    assert place(flights, "third", waits()) == {A: Load(0, 2)}
    assert place(flights, "first", waits()) == {}
    assert place(flights, "third", waits()) == {A: Load(0, 2)}
    assert place(flights, "second", waits()) == {A: Load(0, 1)}
    flights.leave("first")
    assert place(flights, "second", waits()) == {}
    assert place(flights, "third", waits()) == {A: Load(0, 1)}
    assert flights.loads() == {A: Load(0, 2)}


def test_a_flight_that_has_to_wait_again_stands_where_it_stood(flights: Flights) -> None:
    place(flights, "first", runs())
    place(flights, "second", waits())
    assert place(flights, "first", waits(B)) == {}
    assert place(flights, "second", waits(B)) == {B: Load(0, 1)}


def test_who_was_nowhere_stands_at_the_end(flights: Flights) -> None:
    for id in ("first", "second"):
        place(flights, id, waits())
    place(flights, "first", None)
    assert place(flights, "first", waits()) == {A: Load(0, 1)}
    assert place(flights, "second", waits()) == {}


def test_trials_are_counted_among_those_that_run(flights: Flights) -> None:
    place(flights, "x", runs(trial=True))
    place(flights, "y", runs())
    assert flights.loads() == {A: Load(2, 0, 1)}
    place(flights, "x", runs())
    assert flights.loads() == {A: Load(2)}


def test_overrun_is_the_median_of_elapsed_by_expected(flights: Flights, clock: FakeClock) -> None:
    place(flights, "x", runs(seconds=10))
    place(flights, "y", runs(seconds=20))
    clock.advance(10)
    place(flights, "z", runs(seconds=10))
    place(flights, "never", waits(seconds=0.1))
    assert flights.loads()[A].overrun == 0.5
    clock.advance(10)
    assert flights.loads()[A].overrun == 1.0
    flights.leave("z")
    assert flights.loads()[A].overrun == 1.5
    assert place(flights, "x", runs())[A].overrun == 1.0


def test_a_flight_is_counted_from_when_it_began_to_run_there(flights: Flights, clock: FakeClock) -> None:
    place(flights, "x", waits())
    clock.advance(10)
    place(flights, "x", runs(A))
    clock.advance(1)
    place(flights, "x", runs(A))
    assert flights.loads() == {A: Load(1, 0, 0, 0.1)}
    place(flights, "x", runs(B))
    clock.advance(2)
    assert flights.loads() == {B: Load(1, 0, 0, 0.2)}
    place(flights, "x", runs(B, name="another"))
    assert flights.loads() == {B: Load(1)}


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan])
def test_a_flight_of_which_nothing_is_expected_says_nothing_of_the_server(
    flights: Flights, clock: FakeClock, seconds: float
) -> None:
    place(flights, "x", runs(seconds=seconds))
    clock.advance(60)
    assert flights.loads() == {A: Load(1)}
    place(flights, "y", runs(seconds=10))
    clock.advance(5)
    assert flights.loads() == {A: Load(2, 0, 0, 0.5)}


def test_a_clock_that_is_set_back_makes_nothing_negative(flights: Flights, clock: FakeClock) -> None:
    place(flights, "x", runs())
    clock.now -= 3600
    assert flights.loads() == {A: Load(1)}


@pytest.mark.parametrize("error", [ValueError("so it goes"), LedgerError("no"), OSError(28, "full"), Busy()])
def test_what_a_plan_raises_is_raised_and_changes_nothing(
    flights: Flights, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    place(flights, "x", runs())

    def fail(loads: Mapping[str, Load]) -> Plan:
        raise error

    for id in ("x", "y"):
        with pytest.raises(type(error)) as raised:
            flights.place(id, fail)
        assert raised.value is error
    assert place(flights, "z", None) == {A: Load(1)}
    assert warnings_of(caplog) == []


def test_a_finalizer_may_leave_while_its_own_thread_decides(flights: Flights) -> None:
    place(flights, "x", runs())

    def planner(loads: Mapping[str, Load]) -> Plan:
        flights.leave("x")
        flights.loads()
        return runs(B)

    flights.place("y", planner)
    assert flights.loads() == {B: Load(1)}
    assert place(flights, "z", None) == {B: Load(1)}


def test_who_is_left_while_another_thread_decides_for_it_is_gone(flights: Flights) -> None:
    def planner(loads: Mapping[str, Load]) -> Plan:
        leaving = threading.Thread(target=flights.leave, args=("x",))
        leaving.start()
        leaving.join(SOON)
        return runs()

    flights.place("x", planner)
    assert flights.loads() == {}
    assert place(flights, "y", None) == {}


def test_who_may_not_wait_is_told_so_while_another_thread_decides(flights: Flights) -> None:
    refused = []

    def try_it() -> None:
        with pytest.raises(Busy):
            flights.place("y", at_most(9), wait=False)
        refused.append("y")

    def planner(loads: Mapping[str, Load]) -> Plan:
        trying = threading.Thread(target=try_it)
        trying.start()
        trying.join(SOON)
        return runs()

    flights.place("x", planner)
    assert refused == ["y"]
    assert place(flights, "y", runs(), wait=False) == {A: Load(1)}


def test_threads_never_take_the_same_slot(flights: Flights) -> None:
    running: list[str] = []
    most = []

    def work(number: int) -> None:
        for n in range(15):
            id = f"{number}-{n}"
            while True:
                decided = flights.place(id, at_most(2))
                if decided is not None and not decided.waiting:
                    break
            running.append(id)
            most.append(len(running))
            running.remove(id)
            flights.leave(id)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    assert len(most) == 6 * 15
    assert max(most) <= 2
    assert flights.loads() == {}


# --- several programs


def test_programs_see_each_other(open_flights: Programs, clock: FakeClock) -> None:
    one, two = open_flights(), open_flights()
    place(one, "x", runs())
    place(one, "w", waits())
    assert place(two, "y", runs()) == {A: Load(1, 1)}
    assert two.loads() == {A: Load(2, 1)}
    assert place(one, "w", waits()) == {A: Load(2)}
    two.leave("y")
    open_flights.write()
    assert place(one, "w", waits()) == {A: Load(1)}


def test_what_others_do_is_looked_at_again_soon(open_flights: Programs, clock: FakeClock) -> None:
    one, two = open_flights(), open_flights()
    assert two.loads() == {}
    place(one, "x", runs())
    assert two.loads() == {}
    place(two, "y", runs(B))
    assert two.loads() == {B: Load(1)}
    clock.advance(SEEN_SECONDS)
    assert two.loads() == {A: Load(1, 0, 0, SEEN_SECONDS / 10), B: Load(1, 0, 0, SEEN_SECONDS / 10)}


def test_what_is_left_is_soon_gone_for_others(home: Path, open_flights: Programs) -> None:
    one = open_flights(SystemClock())
    place(one, "x", runs())
    assert in_file(home) == ["x"]
    one.leave("x")
    wait_until(lambda: in_file(home) == [])


def test_what_is_left_is_gone_when_the_process_ends_at_once(home: Path) -> None:
    script = """
import sys
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.database.file import Database
from maxwell.database.schema import LIVE
from maxwell.flights import Plan
from maxwell.flights.sqlite import SQLiteFlights

flights = SQLiteFlights(Database(Path(sys.argv[1]), LIVE), SystemClock())
for id in "xyz":
    flights.place(id, lambda loads: Plan("http://a", "one", 1.0))
flights.leave("x")
flights.leave("z")
"""
    subprocess.run([sys.executable, "-c", script, str(home)], check=True, timeout=60)
    assert in_file(home) == ["y"]


def test_flights_of_a_dead_process_are_removed(home: Path, open_flights: Programs, clock: FakeClock) -> None:
    one, two = open_flights(), open_flights()
    for id in "xyz":
        place(one, id, runs())
    assert place(two, "w", None) == {A: Load(3)}
    give(home, ended_process(), "x", "y")
    clock.advance(LOOK_SECONDS)
    assert set(two.loads()) == {A}
    assert two.loads()[A].running == 1
    assert place(two, "w", None)[A].running == 1
    assert in_file(home) == ["z"]


@pytest.mark.parametrize(("seconds", "lease"), [(10.0, LEASE_SECONDS), (1000.0, 3000.0)])
def test_an_owner_that_cannot_be_seen_has_its_time(
    home: Path, open_flights: Programs, clock: FakeClock, seconds: float, lease: float
) -> None:
    flights = open_flights()
    place(flights, "x", runs(seconds=seconds))
    give(home, Owner(1, 1, this_process().boot, "another machine/"), "x")
    other = open_flights()
    clock.advance(lease)
    assert set(other.loads()) == set(place(other, "y", None)) == {A}
    clock.advance(LOOK_SECONDS)
    assert other.loads() == place(other, "y", None) == {}
    assert in_file(home) == []


# --- forks


@can_fork
def test_a_forked_child_neither_has_nor_removes_its_parents_flights(
    home: Path, open_flights: Programs
) -> None:
    flights = open_flights(SystemClock())
    place(flights, "x", runs())
    place(flights, "y", runs())
    flights.leave("y")  # which waits to be written when the child is made

    def child() -> None:
        assert flights.loads()[A].running in (1, 2)  # whether the parent has written it by now
        flights.leave("x")
        assert place(flights, "z", runs(B))[A].running in (1, 2)
        assert flights.loads()[B].running == 1
        flights.leave("z")
        open_flights.close()

    assert ended(fork(child)) == 0
    assert counts(place(flights, "w", None)) == counts(flights.loads()) == {A: (1, 0)}
    assert in_file(home) == ["x"]


@can_fork
def test_flights_in_memory_stay_with_their_process() -> None:
    flights = MemoryFlights(FakeClock())
    place(flights, "x", runs())

    def child() -> None:
        assert flights.loads() == {}
        place(flights, "y", runs())

    assert ended(fork(child)) == 0
    assert flights.loads() == {A: Load(1)}


@can_fork
def test_flights_of_a_killed_child_are_removed(home: Path, open_flights: Programs, clock: FakeClock) -> None:
    flights = open_flights()

    def child() -> None:
        place(flights, "x", runs())
        os._exit(0)

    assert ended(fork(child)) == 0
    assert in_file(home) == ["x"]
    clock.advance(LOOK_SECONDS)
    assert place(flights, "y", None) == {}


# --- trouble with the file


def test_who_may_not_wait_does_not_wait_for_another_process(home: Path, open_flights: Programs) -> None:
    flights, other = open_flights(), open_flights()
    place(other, "x", runs())
    place(flights, "y", runs())
    with locked(home):
        with pytest.raises(Busy):
            place(flights, "z", runs(), wait=False)
        assert flights.loads()[A].running == 2
        waiting = threading.Thread(target=place, args=(flights, "z", runs()))
        waiting.start()
        assert in_file(home) == ["x", "y"]
    waiting.join(SOON)
    assert in_file(home) == ["x", "y", "z"]


def test_without_a_log_too_nobody_waits_who_may_not(home: Path, open_flights: Programs) -> None:
    flights = open_flights(wal=False)
    place(flights, "x", runs())
    with locked(home):  # there not even readers get in
        with pytest.raises(Busy):
            place(flights, "y", runs(), wait=False)
        open_flights.clock.advance(SEEN_SECONDS)
        assert set(flights.loads()) == {A}
    place(flights, "y", runs(), wait=False)
    with closing(sqlite3.connect(home / "live.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM flight").fetchall()  # and commits have to wait for readers
        with pytest.raises(Busy):
            place(flights, "z", runs(), wait=False)
    assert place(flights, "z", runs(), wait=False)[A].running == 2


def a_file_in_the_place_of_the_home(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.write_text("not a directory")


def a_directory_in_the_place_of_the_file(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    (home / "live.db").mkdir(parents=True)


def read_only(home: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    home.mkdir(exist_ok=True)
    for file in home.iterdir():
        file.chmod(0o400)
    home.chmod(0o500)


def writable_again(home: Path) -> None:
    if home.is_file():
        home.unlink()
    else:
        home.chmod(0o700)
        shutil.rmtree(home)


HARMS = [a_file_in_the_place_of_the_home, a_directory_in_the_place_of_the_file, read_only]


@pytest.mark.parametrize("harm", HARMS)
def test_where_the_file_cannot_be_used_a_process_counts_its_own(
    home: Path, open_flights: Programs, caplog: pytest.LogCaptureFixture, harm: object
) -> None:
    assert callable(harm)
    harm(home)
    caplog.set_level(logging.INFO, "maxwell")
    flights = open_flights()
    assert flights.loads() == {}
    for wait in (True, False):
        assert place(flights, "x", runs(), wait=wait) == {}
        assert counts(place(flights, "y", runs(B), wait=wait)) == {A: (1, 0)}
        flights.leave("y")
        assert counts(flights.loads()) == {A: (1, 0)}
        open_flights.clock.advance(RETRY_SECONDS)
        assert counts(flights.loads()) == {A: (1, 0)}
    # The books say so aloud where they cannot be kept, too: one warning is enough.
    assert warnings_of(caplog) == []
    assert len(caplog.records) == 1
    assert "the file of running calls" in caplog.text
    assert "each program sees its own calls only" in caplog.text
    writable_again(home)
    assert counts(place(flights, "x", runs())) == {}
    assert not home.exists()  # it is not tried all the time
    open_flights.clock.advance(RETRY_SECONDS)
    other = open_flights()
    place(flights, "z", runs())
    assert place(other, "w", None)[A].running == 2
    assert in_file(home) == ["x", "z"]
    flights.leave("x")
    flights.leave("z")
    assert flights.loads() == {}
    open_flights.write()
    assert in_file(home) == []


def test_what_changes_while_the_file_cannot_be_used_is_in_it_afterwards(
    home: Path, open_flights: Programs
) -> None:
    flights, other = open_flights(), open_flights()
    place(flights, "x", runs(A))
    place(other, "other", runs(B))
    place(flights, "w", waits(A))
    (home / "live.db").rename(home / "away")
    (home / "live.db").mkdir()
    assert place(flights, "w", runs(A)) == {A: Load(1)}
    place(flights, "x", runs(B))
    (home / "live.db").rmdir()
    (home / "away").rename(home / "live.db")
    open_flights.clock.advance(RETRY_SECONDS)
    assert counts(place(flights, "y", None)) == {A: (1, 0), B: (2, 0)}
    assert in_file(home) == ["x", "other", "w"]


def test_a_plan_that_fails_does_not_keep_what_is_known_here_from_a_new_file(
    home: Path, open_flights: Programs
) -> None:
    flights, other = open_flights(), open_flights()
    place(flights, "x", runs())
    shutil.rmtree(home)
    with pytest.raises(ZeroDivisionError):
        flights.place("y", lambda loads: 1 // 0)  # type: ignore[arg-type, return-value]
    place(flights, "y", runs())
    assert place(other, "z", None) == {A: Load(2)}


def test_a_file_that_was_removed_is_made_anew_with_what_is_known_here(
    home: Path, open_flights: Programs
) -> None:
    flights, other = open_flights(), open_flights()
    place(flights, "x", runs())
    place(flights, "y", waits())
    place(other, "z", runs(B))
    shutil.rmtree(home)
    assert place(flights, "w", None) == {A: Load(1, 1)}
    assert place(other, "z", runs(B)) == {A: Load(1, 1)}
    assert in_file(home) == ["x", "y", "z"]


def garbage(file: Path) -> None:
    file.write_bytes(b"my diary, and nothing else " * 400)


def another_program(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("CREATE TABLE bookmarks (url)")


def another_version(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.executescript("CREATE TABLE flight (id); CREATE TABLE learned (key); PRAGMA user_version = 99")


@pytest.mark.parametrize("make", [garbage, another_program, another_version])
def test_a_file_that_cannot_be_understood_is_put_aside(
    home: Path, open_flights: Programs, caplog: pytest.LogCaptureFixture, make: object
) -> None:
    home.mkdir()
    assert callable(make)
    make(home / "live.db")
    data = (home / "live.db").read_bytes()
    one, two = open_flights(), open_flights()
    assert place(one, "x", runs(), wait=False) == {}
    assert place(two, "y", runs()) == {A: Load(1)}
    assert two.loads() == {A: Load(2)}
    assert (home / "live.db.damaged").read_bytes() == data
    (warning,) = warnings_of(caplog)
    assert "live.db is damaged" in warning
    assert "kept as live.db.damaged" in warning


def test_a_file_that_is_damaged_while_it_is_used_is_put_aside(home: Path, open_flights: Programs) -> None:
    one, two = open_flights(wal=False), open_flights(wal=False)
    place(one, "x", runs())
    place(two, "y", runs())
    with (home / "live.db").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(file.seek(0, 2)))
        file.seek(4096)
        file.write(os.urandom(8192))
    assert place(one, "x", runs()) == {}
    assert place(two, "z", runs())[A].running == 2
    assert in_file(home) == ["x", "y", "z"]
    assert (home / "live.db.damaged").exists()


def test_nothing_is_said_at_the_end_of_a_process_that_was_never_harmed(home: Path) -> None:
    script = """
import sys
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.database.file import Database
from maxwell.database.schema import LIVE
from maxwell.flights.sqlite import SQLiteFlights

print(dict(SQLiteFlights(Database(Path(sys.argv[1]), LIVE), SystemClock()).loads()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(home)], check=True, timeout=60, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("{}\n", "")


def test_values_are_plain_data() -> None:
    plan = Plan(A, "one", 1.5, waiting=True)
    assert msgspec.json.decode(msgspec.json.encode(plan), type=Plan) == plan
