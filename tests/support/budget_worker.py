"""Processes that use up a budget: each has a pool of its own and calls one LLM until nothing is left.

`Nursery` is the tests' side. Run as a program, this file is the process that forks the workers: sixteen start
as fast as one.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import random
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Literal

import msgspec

from maxwell.errors import BudgetExceeded, NoEligibleLM
from maxwell.lm_pool import LLMPool
from maxwell.registry.load import load
from maxwell.registry.locate import find

NAME = "paid"
PAUSE_SECONDS = 0.01  # between a refusal and the next try
NEEDED = ("maxwell.calls.urllib3_transport", "maxwell.ledger.sqlite", "filelock", "encodings.idna")
_TIME = struct.Struct("d")


class Start(msgspec.Struct, tag=True, frozen=True):
    """Order: one more worker.

    Attributes:
        home: Its `MAXWELL_HOME`.
        seed: Decides what it asks.
        manner: How it calls: "half" leaves most streams before their end.
        clock: File that tells what time it is; None = the machine's time.
        until: First day whose budget's end is the end of the work.
    """

    home: str = ""
    seed: int = 0
    manner: Literal["chat", "half"] = "chat"
    clock: str | None = None
    until: date = date.min


class Kill(msgspec.Struct, tag=True, frozen=True):
    """Order: SIGKILL for one worker."""

    pid: int


class Gather(msgspec.Struct, tag=True, frozen=True):
    """Order: wait for the end of every worker."""


class Event(msgspec.Struct, frozen=True):
    """What happened.

    Attributes:
        kind: Of a worker: "started"; "called" after a call; "idle" when it was refused although nobody else
            was under way; "spent" when it ends for that; "failed". "killed" and "gathered" answer orders.
        pid: Whose.
        tokens: What the call used; 0 where the caller cannot know.
        days: The budget days before and after.
        words: What failed.
    """

    kind: Literal["started", "killed", "gathered", "called", "idle", "spent", "failed"]
    pid: int = 0
    tokens: int = 0
    days: tuple[date, date] = (date.min, date.min)
    words: str = ""


_ORDER: msgspec.json.Decoder[Start | Kill | Gather] = msgspec.json.Decoder(Start | Kill | Gather)


class Nursery:
    """Starts, kills and gathers workers; what they report comes out of `events`.

    Use it as a context manager: in the end no worker is left.
    """

    def __init__(self, home: Path) -> None:
        environ = {"PATH": os.environ["PATH"], "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, cwd=home
        )

    def order(self, order: Start | Kill | Gather) -> None:
        """Give an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(msgspec.json.encode(order) + b"\n")
        self._process.stdin.flush()

    def events(self) -> Iterator[Event]:
        """What happens, as it happens; ends after "gathered"."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = msgspec.json.decode(line, type=Event)
            assert event.kind != "failed", event.words
            yield event
            if event.kind == "gathered":
                return
        raise AssertionError("the nursery has ended")

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, *exc: object) -> None:
        with self._process as process:  # its input ends, and so do it and its children
            assert process.stdin is not None
            process.stdin.close()
            process.wait()


def set_time(file: Path, now: float) -> None:
    """Let it be `now` for every worker with that clock."""
    with file.open("r+b" if file.exists() else "wb", buffering=0) as opened:
        opened.write(_TIME.pack(now))


class FileClock:
    """A wall clock that stands where `set_time` has put it."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDONLY)

    def time(self) -> float:
        now: float = _TIME.unpack(os.pread(self._file, _TIME.size, 0))[0]
        return now

    def monotonic(self) -> float:
        return time.monotonic()


def tell(event: Event) -> None:
    """One write, so that the reports of several processes do not mix."""
    os.write(1, msgspec.json.encode(event) + b"\n")


# --- the worker


def work(start: Start) -> None:
    """Call until the budget is used up, in a process of its own."""
    os.environ["MAXWELL_HOME"] = start.home
    clock = None if start.clock is None else FileClock(Path(start.clock))
    pool = LLMPool(load(find()), clock=clock)
    rng = random.Random(start.seed)
    pid = os.getpid()
    tell(Event("started", pid))
    while True:
        day = pool.today()
        before = pool.ledger.usage(day).get(NAME)
        try:
            tokens = call(pool, start.manner, rng)
        except (BudgetExceeded, NoEligibleLM):
            if before is not None and not before.held_tokens and pool.ledger.usage(day).get(NAME) == before:
                if start.until <= day == pool.today():
                    return tell(Event("spent", pid))
                tell(Event("idle", pid, days=(day, day)))
            time.sleep(PAUSE_SECONDS)
        else:
            tell(Event("called", pid, tokens, (day, pool.today())))


def call(pool: LLMPool, manner: str, rng: random.Random) -> int:
    """One call, its size left to chance; returns the tokens it used, or 0 when it is left half-way."""
    prompt = "x" * rng.randint(1, 60)
    options: dict[str, Any] = rng.choice([{}, {"max_tokens": rng.randint(16, 64)}])
    lm = pool.get_lm(NAME)
    if manner == "chat":
        return lm.chat([{"role": "user", "content": prompt}], **options).usage.total_tokens
    with lm.stream(prompt, **options) as stream:
        for _ in zip(range(rng.randint(1, 8)), stream, strict=False):
            pass
    with contextlib.suppress(RuntimeError):  # it was left before its end
        return stream.completion.usage.total_tokens
    return 0


# --- the process that forks them


def main() -> None:
    """Obey orders until there are no more."""
    for module in NEEDED:
        importlib.import_module(module)  # once, for all workers
    gc.freeze()
    children: set[int] = set()
    for line in sys.stdin.buffer:
        order = _ORDER.decode(line)
        if isinstance(order, Start):
            pid = os.fork()
            if pid == 0:
                in_child(order)
                return
            children.add(pid)
        elif isinstance(order, Kill):
            end(order.pid)
            children.remove(order.pid)
            tell(Event("killed", order.pid))
        else:
            while children:
                os.waitpid(children.pop(), 0)
            tell(Event("gathered"))
    for pid in children:
        end(pid)


def in_child(order: Start) -> None:
    """Returns when the worker has done its work; the interpreter then ends as every program's does."""
    try:
        work(order)
    except BaseException:
        tell(Event("failed", os.getpid(), words=traceback.format_exc()[-3000:]))


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
