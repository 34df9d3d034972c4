"""What keeping the books costs: reserving and settling by 1, 4 and 16 processes, booking, reading usage.

Goals, for a process that is alone: reserve + settle within 300 us by the median, both on disk; booking for an
entry without a budget within 20 us, also while others write. The peer keeps the same books in a JSON file
that is locked, read, changed and replaced at each step, with fsync and without. Like the file without it, the
ledger's transactions outlive a killed process, and the last ones may be missing after a power cut.

Run: python benchmarks/bench_ledger.py
"""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import date, timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import msgspec

from maxwell.clock import SystemClock
from maxwell.ledger import Amount, Hold, Limit
from maxwell.ledger.sqlite import SQLiteLedger
from tables import options, ratio, show, spread

PROCESSES = (1, 4, 16)
MANY = 1000  # open reservations
TODAY = date(2026, 1, 31)
DAYS, NAMES = 30, [f"llm-{i}" for i in range(10)]
NAME = NAMES[0]
WORST, REAL = Amount(2000, 4_000_000), Amount(600, 1_200_000)
LIMIT = Limit(tokens=10**12)
GOAL, BOOKING_GOAL = 300, 20  # us


class Books(Protocol):
    """What is compared. Each step is on disk when it returns."""

    def fill(self) -> object: ...
    def reserve(self) -> Any: ...
    def send(self, hold: Any) -> object: ...
    def settle(self, hold: Any) -> object: ...
    def usage(self) -> object: ...
    def close(self) -> object: ...


class LedgerBooks:
    def __init__(self, home: Path) -> None:
        self.ledger = SQLiteLedger(home, SystemClock())

    def fill(self) -> None:
        for name in NAMES:
            for back in range(DAYS):
                self.ledger.book(name, TODAY - timedelta(back), REAL)
        self.ledger.flush()

    def reserve(self) -> Hold:
        return self.ledger.reserve(NAME, TODAY, WORST, LIMIT)

    def send(self, hold: Hold) -> None:
        assert self.ledger.send(hold)

    def settle(self, hold: Hold) -> None:
        self.ledger.settle(hold, REAL)
        self.ledger.database.flush()

    def usage(self) -> object:
        self.ledger.ready()
        return self.ledger.usage(TODAY)

    def close(self) -> None:
        self.ledger.close()


class JSONBooks:
    """The same in one JSON file, under a lock."""

    def __init__(self, home: Path, *, fsync: bool) -> None:
        self._path = home / "books.json"
        self._new = home / f"books.{os.getpid()}.tmp"
        self._lock = os.open(home / "books.lock", os.O_RDWR | os.O_CREAT)
        self._directory = os.open(home, os.O_RDONLY)
        self._fsync = fsync
        self._owner = {"pid": os.getpid(), "started": 1, "boot": uuid.uuid4().hex, "place": "here"}

    def fill(self) -> None:
        used = {"tokens": REAL.tokens, "nanousd": REAL.nanousd, "estimated": 0, "calls": 1}
        days = {str(TODAY - timedelta(back)): dict(used) for back in range(DAYS)}
        self._write({"days": dict.fromkeys(NAMES, days), "holds": {}})

    def reserve(self) -> str:
        id_ = uuid.uuid4().hex
        hold = {"name": NAME, "day": str(TODAY), "tokens": WORST.tokens, "nanousd": WORST.nanousd}

        def change(books: Any) -> None:
            held = sum(h["tokens"] for h in books["holds"].values() if h["name"] == NAME)
            used = books["days"][NAME][str(TODAY)]["tokens"]
            assert LIMIT.tokens is not None
            assert used + held + WORST.tokens <= LIMIT.tokens
            books["holds"][id_] = {**hold, "state": "held", "since": time.time(), **self._owner}

        self._change(change)
        return id_

    def send(self, hold: str) -> None:
        def change(books: Any) -> None:
            books["holds"][hold]["state"] = "sent"

        self._change(change)

    def settle(self, hold: str) -> None:
        def change(books: Any) -> None:
            del books["holds"][hold]
            used = books["days"][NAME][str(TODAY)]
            used["tokens"] += REAL.tokens
            used["nanousd"] += REAL.nanousd
            used["calls"] += 1

        self._change(change)

    def usage(self) -> object:
        return self._read()["days"]

    def close(self) -> None:
        os.close(self._lock)
        os.close(self._directory)

    def _change(self, change: Callable[[Any], None]) -> None:
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            books = self._read()
            change(books)
            self._write(books)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _read(self) -> Any:
        return msgspec.json.decode(self._path.read_bytes())

    def _write(self, books: Any) -> None:
        with self._new.open("wb") as file:
            file.write(msgspec.json.encode(books))
            if self._fsync:
                file.flush()
                os.fsync(file.fileno())
        self._new.replace(self._path)
        if self._fsync:
            os.fsync(self._directory)


PEER = "flock + JSON"
CONTENDERS: dict[str, Callable[[Path], Books]] = {
    "ledger": LedgerBooks,
    PEER: partial(JSONBooks, fsync=False),
    "flock + JSON, fsync": partial(JSONBooks, fsync=True),
}


def reserve_settle(books: Books) -> None:
    books.settle(books.reserve())


def reserve_send_settle(books: Books) -> None:
    hold = books.reserve()
    books.send(hold)
    books.settle(hold)


WORKS = {"reserve + settle": reserve_settle, "reserve + send + settle": reserve_send_settle}


# --- many processes


class Job(msgspec.Struct):
    contender: str
    home: Path
    work: str
    times: int


class Times(msgspec.Struct):
    """What one process measured: when it began and ended, in seconds, and each call's microseconds."""

    began: float
    ended: float
    us: list[float]


def timed(work: Callable[[], object], times: int) -> Times:
    us = []
    began = time.monotonic()
    for _ in range(times):
        before = time.perf_counter()
        work()
        us.append((time.perf_counter() - before) * 1e6)
    return Times(began, time.monotonic(), us)


class Crew:
    """Processes that do the same at the same time."""

    def __init__(self, number: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._barrier = context.Barrier(number)
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(number):
            ours, theirs = context.Pipe()
            process = context.Process(target=_member, args=(theirs, self._barrier))
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def do(self, job: Job) -> list[Times]:
        for pipe in self._pipes:
            pipe.send(job)
        return [pipe.recv() for pipe in self._pipes]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exc: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join()


def _member(pipe: Connection, barrier: Any) -> None:
    while (job := pipe.recv()) is not None:
        books = CONTENDERS[job.contender](job.home)
        work = partial(WORKS[job.work], books)
        work()
        barrier.wait()
        pipe.send(timed(work, job.times))
        books.close()


@contextlib.contextmanager
def busy_process(home: Path) -> Iterator[None]:
    """Another process that reserves and settles without a pause."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_write_until_told, args=(theirs, home))
    process.start()
    ours.recv()
    try:
        yield
    finally:
        ours.send(None)
        process.join()


def _write_until_told(pipe: Connection, home: Path) -> None:
    books = LedgerBooks(home)
    pipe.send(None)
    while not pipe.poll():
        reserve_send_settle(books)
    books.close()


@contextlib.contextmanager
def busy_thread(books: LedgerBooks) -> Iterator[None]:
    """Another thread that does, with the same ledger."""
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            reserve_send_settle(books)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# --- the tables


def disk_rows(homes: dict[str, Path], rounds: int, calls: int) -> list[list[object]]:
    rows: list[list[object]] = []
    for number in PROCESSES:
        with Crew(number) as crew:
            for work in WORKS:
                rows += _compared(crew, f"{number} at once: {work}", work, homes, rounds, calls // number)
    for name, home in homes.items():
        books = CONTENDERS[name](home)
        for _ in range(MANY):
            books.reserve()
        books.close()
    with Crew(1) as crew:
        title = f"1 at once, {MANY} open: reserve + settle"
        rows += _compared(crew, title, "reserve + settle", homes, rounds, calls // 4)
    return rows


def _compared(
    crew: Crew, title: str, work: str, homes: dict[str, Path], rounds: int, times: int
) -> list[list[object]]:
    """The contenders take turns, so that a machine that changes its speed treats all alike."""
    us: dict[str, list[float]] = {name: [] for name in homes}
    rates: dict[str, list[float]] = {name: [] for name in homes}
    for _ in range(rounds):
        for name, home in homes.items():
            done = crew.do(Job(name, home, work, times))
            us[name] += [one for member in done for one in member.us]
            seconds = max(member.ended for member in done) - min(member.began for member in done)
            rates[name].append(sum(len(member.us) for member in done) / seconds)
    rate = {name: statistics.median(found) for name, found in rates.items()}
    goals = {"ledger": GOAL} if title == "1 at once: reserve + settle" else {}
    return [
        [
            f"{title}: {name}",
            spread(us[name]),
            _p99(us[name]),
            goals.get(name, ""),
            f"{rate[name]:,.0f}",
            ratio(rate[name], rate[PEER]),
        ]
        for name in homes
    ]


def path_rows(home: Path, times: int) -> list[list[object]]:
    books = LedgerBooks(home)
    ledger = books.ledger

    def call() -> None:
        hold = books.reserve()
        books.send(hold)
        ledger.settle(hold, REAL)  # written a moment later, or by the next reservation

    works: list[tuple[str, Callable[[], object], int, object]] = [
        ("booking without a budget", lambda: ledger.book("free", TODAY, REAL), 10 * times, BOOKING_GOAL),
        ("reserve + send + settle, as a call does", call, times, ""),
        ("usage, as a selection reads it", books.usage, times, ""),
    ]
    others: dict[str, contextlib.AbstractContextManager[None]] = {
        "alone": contextlib.nullcontext(),
        "while a thread writes": busy_thread(books),
        "while a process writes": busy_process(home),
    }
    rows: list[list[object]] = []
    for words, other in others.items():
        with other:
            for name, work, number, goal in works:
                us = timed(work, number).us
                rows.append([f"{name}: {words}", spread(us), _p99(us), goal])
    books.close()
    return rows


def _p99(us: Sequence[float]) -> str:
    value = statistics.quantiles(us, n=100)[98]
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def file_system(path: Path) -> str:
    """The type of the file system `path` is on, where the system tells."""
    found, longest = "unknown", -1
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, point, kind, *_ = line.split()
            if path.is_relative_to(point) and len(point) >= longest:
                found, longest = kind, len(point)
    return found


def main() -> None:
    given = options(__doc__)
    rounds, calls = (2, 64) if given.quick else (3, 240)
    with tempfile.TemporaryDirectory() as directory:
        homes = {name: Path(directory, str(i)) for i, name in enumerate(CONTENDERS)}
        for name, home in homes.items():
            home.mkdir()
            books = CONTENDERS[name](home)
            books.fill()
            books.close()
        on = f"file system {file_system(Path(directory).resolve())}, {os.cpu_count()} cores"
        own = path_rows(homes["ledger"], calls)
        disk = disk_rows(homes, rounds, calls)
    show(
        f"Every step on disk when it returns; {on}",
        ["what", "us", "p99", "goal us", "a second", f"of {PEER}"],
        disk,
        as_json=given.json,
    )
    show(f"On a call's own path; {on}", ["what", "us", "p99", "goal us"], own, as_json=given.json)


if __name__ == "__main__":
    main()
