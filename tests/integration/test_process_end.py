"""A process that ends, or forks, with calls under way leaves no reservation behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from calling import AT_ONCE, BUDGET, wait_chats, wait_tokens

from maxwell.clock import SystemClock
from maxwell.ledger import Used
from maxwell.ledger.days import budget_day
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

PROMPT = "A prompt of some length, so that its tokens count. " * 4

_OPEN = """
import sys
from maxwell.lm_pool import get_lm
stream = get_lm().stream(sys.argv[1])
next(stream), next(stream)
"""

_OPEN_IN_A_COROUTINE = """
import asyncio, sys
from maxwell.lm_pool import get_async_lm

async def main():
    global stream
    stream = (await get_async_lm()).stream(sys.argv[1])
    await anext(stream)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())  # and nobody shuts the loop down
"""

_OPEN_IN_A_CHILD = """
import multiprocessing, sys

def work(prompt):
    global stream
    from maxwell.lm_pool import get_lm
    stream = get_lm().stream(prompt)
    next(stream)

if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[2]).Process(target=work, args=(sys.argv[1],))
    child.start()
    child.join()
"""

_FORKED = """
import gc, os, sys
from maxwell.lm_pool import get_lm
stream = get_lm().stream(sys.argv[1])
first = next(stream)
child = os.fork()
if not child:
    stream = None
    gc.collect()
    sys.exit(0)
os.waitpid(child, 0)
print(len(first + "".join(stream)), stream.completion.usage.total_tokens)
"""


@pytest.fixture
def server(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """Generates for 20 s unless it is stopped."""
    server = fake_server(reply=["word "] * 1000, tokens_per_sec=50)
    write_registry(server.llm_entry("one", daily_budget_tokens=BUDGET))
    return server


def used(home: Path) -> Used:
    """What stands in the books on disk; a process that ended without settling shows as charged in full."""
    ledger = SQLiteLedger(home / ".maxwell", SystemClock())
    held, _ = ledger.database.read("SELECT * FROM hold")
    assert held == []
    try:
        return ledger.usage(budget_day(SystemClock().time(), None))["one"]
    finally:
        ledger.close()


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        (_OPEN, []),
        (_OPEN_IN_A_COROUTINE, []),
        (_OPEN_IN_A_CHILD, ["fork"]),
        (_OPEN_IN_A_CHILD, ["spawn"]),
        (_OPEN_IN_A_CHILD, ["forkserver"]),
    ],
    ids=["stream", "coroutine", "forked child", "spawned child", "forkserver's child"],
)
def test_a_stream_left_open_is_settled_when_its_process_ends(
    server: FakeServer, maxwell_home: Path, tmp_path: Path, script: str, arguments: list[str]
) -> None:
    file = tmp_path / "script.py"
    file.write_text(script)
    ended = subprocess.run(
        [sys.executable, file, PROMPT, *arguments], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 0
    assert "Traceback" not in ended.stderr
    assert server.wait_aborted(AT_ONCE)
    books = used(maxwell_home)
    assert (books.calls, books.estimated_tokens) == (1, books.tokens)
    assert 0 < books.tokens < 1000  # what was seen, on the safe side; not the worst case


def test_a_child_neither_settles_nor_cuts_its_parents_call(
    fake_server: FakeServers, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    server = fake_server(reply=["word "] * 20, tokens_per_sec=50)
    write_registry(server.llm_entry("one", daily_budget_tokens=BUDGET))
    ended = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKED, PROMPT],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    letters, tokens = map(int, ended.stdout.split())
    assert letters == 20 * len("word ")
    assert used(maxwell_home) == Used(tokens=tokens, calls=1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_settles(
    server: FakeServer, maxwell_home: Path, number: signal.Signals
) -> None:
    command = subprocess.Popen(
        [sys.executable, "-m", "maxwell", "ask", PROMPT],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests may ignore it, and that is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    with command:
        wait_chats(server)
        wait_tokens(server, 5)
        command.send_signal(number)
        _, said = command.communicate(timeout=30)
    assert (command.returncode, said) == (128 + number, "")
    assert server.wait_aborted(AT_ONCE)
    assert 0 < used(maxwell_home).tokens < 1000


def test_a_killed_process_is_charged_in_full(server: FakeServer, maxwell_home: Path) -> None:
    command = subprocess.Popen([sys.executable, "-c", _OPEN + "input()", PROMPT], stdin=subprocess.PIPE)
    with command:
        wait_chats(server)
        wait_tokens(server, 5)
        command.kill()
        os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOWAIT)
    ledger = SQLiteLedger(maxwell_home / ".maxwell", SystemClock())
    books = ledger.usage(budget_day(SystemClock().time(), None))["one"]
    ledger.close()
    assert books.held_tokens == 0
    assert books.tokens == books.estimated_tokens > 1000
