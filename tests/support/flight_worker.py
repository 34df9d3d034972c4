"""Processes that share a server of few slots: each asks for a place until it may run, runs, and leaves.

Run as a program, this file is one of them. It writes a line when a flight begins to run and when it ends.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

SLOTS = 2
PAUSE_SECONDS = 0.002  # between a refusal and the next question
RUN_SECONDS = 0.004


def worker(home: Path, seed: int, times: int) -> subprocess.Popen[str]:
    """Start one that runs so many times; it begins when its input is closed."""
    command = [sys.executable, __file__, str(home), str(seed), str(times)]
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ, cwd=home.parent
    )


def main(home: Path, seed: int, times: int) -> None:
    """Take a slot again and again."""
    from live import at_most

    from maxwell.clock import SystemClock
    from maxwell.database.file import Database
    from maxwell.database.schema import LIVE
    from maxwell.flights import Busy
    from maxwell.flights.sqlite import SQLiteFlights

    database = Database(home, LIVE)
    flights = SQLiteFlights(database, SystemClock())
    rng = random.Random(seed)
    print("ready", flush=True)
    sys.stdin.read()
    for n in range(times):
        id = f"{os.getpid()}-{n}"
        while True:
            try:
                plan = flights.place(id, at_most(SLOTS), wait=rng.random() < 0.5)
            except Busy:
                continue
            if plan is not None and not plan.waiting:
                break
            time.sleep(PAUSE_SECONDS * rng.random())
        tell("+", id)
        time.sleep(RUN_SECONDS * rng.random())
        tell("-", id)
        flights.leave(id)


def tell(sign: str, id: str) -> None:
    """One write at a time, so that the lines of several processes do not mix."""
    os.write(1, f"{sign} {time.monotonic_ns()} {id}\n".encode())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
