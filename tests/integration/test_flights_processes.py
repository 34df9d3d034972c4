"""Real processes that share one server, some of which are killed."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from databases import SOON, wait_until
from flight_worker import SLOTS, worker
from live import FILE, Programs, in_file, place

from maxwell.clock import SystemClock

WORKERS, TIMES, FOREVER = 8, 40, 10**9

Line = tuple[int, str, str]  # when, "+" or "-", flight


class Crew:
    """Workers, and what they tell."""

    def __init__(self, home: Path, times: int, number: int = WORKERS) -> None:
        self._all = [worker(home, seed, times) for seed in range(number)]
        self.lines: list[Line] = []
        self._readers = [threading.Thread(target=self._read, args=(one,)) for one in self._all]
        for one in self._all:
            assert one.stdout is not None
            assert one.stdout.readline() == "ready\n"

    def _read(self, one: subprocess.Popen[str]) -> None:
        assert one.stdout is not None
        for line in one.stdout:
            sign, when, id = line.split()
            self.lines.append((int(when), sign, id))

    @property
    def told(self) -> int:
        """How many flights have ended."""
        return sum(sign == "-" for _, sign, _ in self.lines)

    def start(self) -> None:
        for one, reader in zip(self._all, self._readers, strict=True):
            reader.start()
            assert one.stdin is not None
            one.stdin.close()

    def kill(self, number: int) -> str:
        """SIGKILL for one; returns its process id."""
        self._all[number].send_signal(signal.SIGKILL)
        self._all[number].wait()
        return str(self._all[number].pid)

    def end(self) -> list[int]:
        """Wait for all; returns how they ended."""
        for reader in self._readers:
            reader.join(SOON)
        return [one.wait(SOON) for one in self._all]

    def close(self) -> None:
        for one in self._all:
            one.kill()
            one.wait()
        for one, reader in zip(self._all, self._readers, strict=True):
            if reader.ident is not None:
                reader.join(SOON)
            for stream in (one.stdin, one.stdout):
                assert stream is not None
                stream.close()


def most_at_once(lines: list[Line]) -> int:
    running: set[str] = set()
    most = 0
    for _, sign, id in sorted(lines):
        (running.add if sign == "+" else running.discard)(id)
        most = max(most, len(running))
    return most


class Watch:
    """Looks again and again, as another program, how many run."""

    def __init__(self, home: Path) -> None:
        self._file = home / FILE
        self.most = self.times = 0

    def look(self) -> None:
        with closing(sqlite3.connect(self._file, timeout=SOON)) as db:
            (running,) = db.execute("SELECT COUNT(*) FROM flight WHERE NOT waiting").fetchone()
        self.most = max(self.most, running)
        self.times += 1

    def until(self, holds: Callable[[], bool]) -> None:
        def look() -> bool:
            self.look()
            return holds()

        wait_until(look)


@pytest.fixture
def crew_home(home: Path) -> Path:
    """A home in which flights were kept before."""
    with closing(Programs(home)) as programs:
        place(programs(SystemClock()), "x", None)
    return home


def test_processes_never_take_more_slots_than_there_are(crew_home: Path) -> None:
    watch = Watch(crew_home)
    with closing(Crew(crew_home, TIMES)) as crew:
        crew.start()
        watch.until(lambda: crew.told == WORKERS * TIMES)
        assert crew.end() == [0] * WORKERS
    assert most_at_once(crew.lines) == SLOTS
    assert watch.most == SLOTS
    assert in_file(crew_home) == []


def test_what_killed_processes_had_under_way_is_free_again(crew_home: Path) -> None:
    watch = Watch(crew_home)
    with closing(Crew(crew_home, FOREVER)) as crew:
        crew.start()
        watch.until(lambda: crew.told >= 20)
        killed = {crew.kill(number) for number in range(WORKERS - 2)}
        seen = crew.told
        watch.until(lambda: crew.told >= seen + 50)  # the others go on, even if all slots were taken
        watch.until(lambda: not any(id.partition("-")[0] in killed for id in in_file(crew_home)))
    assert watch.most == SLOTS
    # The end of what was killed is not told.
    told = [line for line in crew.lines if line[2].partition("-")[0] not in killed]
    assert most_at_once(told) <= SLOTS
    with closing(Programs(crew_home)) as programs:
        flights = programs(SystemClock())
        assert place(flights, "x", None) == {}
        assert flights.loads() == {}
    assert in_file(crew_home) == []
