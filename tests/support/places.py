"""Slots that are taken, calls that are held back, and what must be left of them: nothing."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from calling import Calls

from maxwell.clock import Clock
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing import FakeServer

SOON = 10.0  # seconds; how long something that must happen may take before a test gives up
LONG = "Tell me a long story."


class OwnClock:
    """The machine's time; a pool with a clock of its own has a retry budget of its own, too."""

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def calls_to(home: Path, *entries: dict[str, Any], clock: Clock | None = None) -> Calls:
    """`Calls` with a retry budget of its own: no other test has spent it."""
    return Calls(home, *entries, clock=clock or OwnClock())


def until(true: Callable[[], bool], what: str, seconds: float = SOON) -> None:
    """Wait until it becomes true; `what` says what is wrong if it does not."""
    tick, end = threading.Event(), time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, what
        tick.wait(0.005)


def count(pool: LLMPool | AsyncLLMPool) -> tuple[int, int]:
    """Calls of this user that run, and that are held back."""
    loads = pool._state.flights.loads().values()
    return sum(load.running for load in loads), sum(load.waiting for load in loads)


def is_held(pool: LLMPool | AsyncLLMPool) -> bool:
    """Whether a call of this user is held back."""
    return count(pool)[1] > 0


def assert_landed(pool: LLMPool | AsyncLLMPool) -> None:
    """Nothing is under way, and nothing reserved."""
    until(lambda: count(pool) == (0, 0), "a call is still counted as under way")
    assert list(pool.ledger.holds()) == []


@contextlib.contextmanager
def occupied(pool: LLMPool, name: str, server: FakeServer, times: int = 1) -> Iterator[None]:
    """Streams that hold so many slots of `name` until the block is left. A long story must take long."""
    with contextlib.ExitStack() as streams:
        before = server.in_flight
        for _ in range(times):
            next(streams.enter_context(pool.get_lm(name).stream(LONG)))
        assert server.in_flight == before + times
        yield


class Worker:
    """A process that runs a script: it may say "ready" and wait for a line on stdin; see `go`."""

    def __init__(self, script: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def ready(self) -> None:
        """Wait until it says so."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line == "ready\n", (line, self._process.stderr and self._process.stderr.read())

    def go(self) -> None:
        """Let it go on."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()

    def result(self) -> str:
        """What it said last, once it has ended well."""
        out, err = self._process.communicate(timeout=30)
        assert self._process.returncode == 0, err
        return out.strip()

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._process.kill()
        self._process.wait()
