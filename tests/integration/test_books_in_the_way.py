"""Books that are locked, interrupted or far from a home must not stop what need not wait for them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from calling import make_registry
from databases import locked

from maxwell.clock import SystemClock
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing.fixtures import FakeServers

DAY = date(2026, 1, 12)


def test_usage_can_be_read_while_the_books_are_locked_although_an_owner_has_died(tmp_path: Path) -> None:
    with closing(SQLiteLedger(tmp_path, SystemClock())) as ledger:
        ledger.reserve("a", DAY, Amount(5), Limit())
        with ledger.database.write() as db:
            db.execute("UPDATE hold SET started = started - 1")
        with locked(tmp_path):
            assert ledger.usage(DAY)["a"].held_tokens == 5
        assert list(ledger.holds()) == []


async def longest_pause(work: asyncio.Future[None]) -> float:
    """The longest time, in seconds, that the event loop did not come round while `work` went on."""
    longest = 0.0
    while not work.done():
        before = time.monotonic()
        await asyncio.sleep(0.01)
        longest = max(longest, time.monotonic() - before)
    work.result()
    return longest


def test_a_lock_that_is_waited_for_does_not_stop_the_event_loop(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(reply="Hi")
    fast = {"speed_tokens_per_sec": 900.0}
    paid = server.llm_entry("paid", cost_per_1k_tokens=0.01, capabilities=fast)
    registry = make_registry(server.llm_entry("free"), paid)
    with LLMPool(registry, home=tmp_path, environ={}) as pool:
        pool.get_lm("paid").generate("Hello")

    async def call() -> None:
        async with AsyncLLMPool(registry, home=tmp_path, environ={}) as pool:
            lm = await pool.get_lm()
            assert (lm.name, await lm.generate("Hello")) == ("free", "Hi")

    async def main() -> float:
        return await longest_pause(asyncio.ensure_future(call()))

    with locked(tmp_path):
        assert asyncio.run(main()) < 2.0  # a lock is waited for more than twice as long


def test_a_reservation_that_is_interrupted_as_it_is_written_leaves_no_hold(tmp_path: Path) -> None:
    class Interrupt(BaseException): ...

    def interrupt(*_: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    path = tmp_path / "ledger.db"
    with closing(SQLiteLedger(tmp_path, SystemClock(), wal=False)) as ledger:
        ledger.ready()
        # Without a log a commit waits for readers: there the signal meets it.
        reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM note").fetchall()

        def interrupt_the_commit() -> None:
            with closing(sqlite3.connect(path, timeout=0)) as other:
                while True:
                    try:
                        other.execute("SELECT * FROM day").fetchall()
                    except sqlite3.OperationalError:
                        break
            os.kill(os.getpid(), signal.SIGUSR1)
            reader.execute("COMMIT")

        thread = threading.Thread(target=interrupt_the_commit)
        thread.start()
        try:
            with pytest.raises(Interrupt):
                ledger.reserve("a", DAY, Amount(5), Limit(10))
        finally:
            thread.join()
            reader.close()
            signal.signal(signal.SIGUSR1, before)
        assert all(used.held_tokens == 0 for used in ledger.usage(DAY).values())


_HOMELESS = """
import os
from maxwell.registry.locate import maxwell_home
os.environ.pop("HOME", None)
os.setgroups([]), os.setgid(4711), os.setuid(4711)
print(maxwell_home({"MAXWELL_HOME": "/books"}))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user that nobody knows")
def test_a_user_whom_nobody_knows_may_name_the_home() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _HOMELESS], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("/books\n", "")
