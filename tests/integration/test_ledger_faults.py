"""When the books cannot be kept, what costs or has a budget is refused, and the rest goes on."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from calling import chats
from databases import locked

from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers

PRICED = {"cost_per_1k_tokens": 0.01}
BUDGET = {"daily_budget_tokens": 1_000_000}
NEED_BOOKS = ("budget", "priced", "both")
NOBODY = 65534

# What both programs begin with: they end up as an ordinary user.
BEGIN = """
import asyncio, contextlib, logging, os, pwd, resource, sys, time
from pathlib import Path
from maxwell.errors import LedgerError, NoEligibleLM
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.load import decode
from maxwell.registry.specs import Registry

home, file = Path(sys.argv[1]), decode(sys.argv[2].encode(), "test")
registry = Registry(llms=file.llms, embeddings=file.embeddings)
books = ("budget", "priced", "both")

def make(kind=LLMPool, where=home):
    return kind(registry, home=where, environ={})

async def ask_async(name=None, where=home):
    pool = make(AsyncLLMPool, where)
    try:
        lm = await pool.get_lm(name)
        assert await lm.generate("Hello")
        return lm.spec.name
    finally:
        with contextlib.suppress(LedgerError):
            await pool.close()

def refusal(attempt):
    try:
        attempt()
    except LedgerError as error:
        return str(error)
    raise AssertionError("was not refused")

def turn(said):
    print(said, flush=True)
    while limit := sys.stdin.readline().strip():
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), resource.RLIM_INFINITY))

# Once as root, so that everything is imported.
warm = Path(sys.argv[3])
with make(where=warm) as pool:
    for name in ("free", *books):
        pool.get_lm(name).generate("Hello")
    pool.usage()
    pool.explain()
asyncio.run(ask_async("both", warm))
import maxwell.database.damage
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
"""

# Calls before, during and after a fault; its parent breaks the home and mends it again.
PROGRAM = """
warnings = {"ledger.db": [], "live.db": []}
class Keep(logging.Handler):
    def emit(self, record):
        for file, said in warnings.items():
            if str(home / file) in record.getMessage():
                said.append(f"{record.levelname}: {record.getMessage()}")
logging.getLogger("maxwell").addHandler(Keep())
logging.getLogger("maxwell").setLevel(logging.INFO)

pool = make()
for name in ("free", *books):
    assert pool.get_lm(name).generate("Hello")
before = pool.get_lm("both")
assert pool.get_lm().spec.name == "both"
pool.ledger.close()
turn("sound")

expected = sys.argv[4]
# By selection: the slow free one is all that is left.
for needs in ({}, {"prompt": "Hello"}, {"tags": ["all"]}, {"min_speed": 1}):
    lm = pool.get_lm(**needs)
    assert lm.spec.name == "free", lm.decision
rejected = {no.spec.name: no for no in pool.get_lm().decision.rejected}
assert sorted(rejected) == sorted(books), rejected
for no in rejected.values():
    assert no.reason == "budget_unknown", no
    assert expected in no.detail and str(home) in no.detail, no.detail
try:
    pool.get_lm(min_speed=150)
except NoEligibleLM as error:
    assert expected in str(error), error
else:
    raise AssertionError("chose one that costs")
# By name, and with a handle from before.
for name in books:
    message = refusal(lambda: pool.get_lm(name).generate("Hello"))
    assert name in message and expected in message and str(home) in message, message
message = refusal(lambda: before.generate("Hello"))
assert expected in message and str(home) in message, message
message = refusal(lambda: asyncio.run(ask_async("both")))
assert expected in message, message
# What is free goes on.
for _ in range(3):
    assert pool.get_lm().generate("Hello")
assert asyncio.run(ask_async()) == "free"
assert pool.get_lm("free").generate("Hello")
deadline = time.monotonic() + 20
while not warnings["ledger.db"]:
    assert time.monotonic() < deadline
    time.sleep(0.01)
turn("broken")

deadline = time.monotonic() + 20
while pool.get_lm().spec.name != "both":
    assert time.monotonic() < deadline
    time.sleep(0.05)
for name in ("free", *books):
    assert pool.get_lm(name).generate("Hello")
assert before.generate("Hello")
used = pool.usage()
assert used["free"].calls >= 6, used
assert [used[name].held_tokens for name in books] == [0, 0, 0], used
pool.close()
# Each is said once, and only that of money aloud.
(kept,) = warnings["ledger.db"]
assert kept.startswith("WARNING"), kept
assert "is kept in memory until it can be written down" in kept
assert len(warnings["live.db"]) <= 1, warnings
for said in warnings["live.db"]:
    assert said.startswith("INFO") and "each program sees its own calls only" in said, said
"""

Break = Callable[[Path, subprocess.Popen[str], ExitStack], Callable[[], object]]


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    made = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(made, NOBODY, NOBODY)
    made.chmod(0o755)
    yield made
    made.chmod(0o755)
    shutil.rmtree(made)


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply="Hi", context=32768)


def fill_the_disk(_: Path, program: subprocess.Popen[str], *__: object) -> Callable[[], object]:
    say(program, "0")
    return lambda: say(program, "-1")


def make_it_read_only(home: Path, *_: object) -> Callable[[], object]:
    home.chmod(0o500)
    return lambda: home.chmod(0o700)


def take_it_away(home: Path, *_: object) -> Callable[[], object]:
    shutil.rmtree(home)
    home.parent.chmod(0o500)
    return lambda: home.parent.chmod(0o755)


def lock_it(home: Path, _: object, stack: ExitStack) -> Callable[[], object]:
    stack.enter_context(locked(home))
    until = time.monotonic() + 10

    def let_go() -> None:
        time.sleep(max(until - time.monotonic(), 0))  # twice as long as anybody waits for it
        stack.close()

    return let_go


def damage_it(home: Path, *_: object) -> Callable[[], object]:
    file = home / "ledger.db"
    aside = home / "aside"
    shutil.copy2(file, aside)
    give(aside, file.stat().st_uid)
    file.write_bytes(b"my diary " * 500)
    for end in ("-wal", "-shm"):
        Path(f"{file}{end}").unlink(missing_ok=True)
    return lambda: aside.replace(file)


def give_it_to_root(home: Path, *_: object) -> Callable[[], object]:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    for found in (home, *home.iterdir()):
        give(found, 0)

    def give_back() -> None:
        for found in (home, *home.iterdir()):
            give(found, NOBODY)

    return give_back


def give(path: Path, uid: int) -> None:
    if os.geteuid() == 0:
        os.chown(path, uid, uid)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX system")
@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (fill_the_disk, "the disk is full"),
        (make_it_read_only, "set MAXWELL_HOME to a directory of your own"),
        (take_it_away, "it cannot be written"),
        (lock_it, "another process keeps it locked; wait for it to end"),
        (damage_it, "is damaged"),
        (give_it_to_root, "belongs to root"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_without_books_only_what_is_free_goes_on_until_they_can_be_kept_again(
    place: Path, tmp_path: Path, server: FakeServer, break_it: Break, expected: str
) -> None:
    home = place / "maxwell"
    command = [
        sys.executable,
        "-c",
        BEGIN + PROGRAM,
        str(home),
        registry(server),
        str(tmp_path / "warm"),
        expected,
    ]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program,
        ExitStack() as stack,
    ):
        assert program.stdout is not None
        assert program.stdout.readline() == "sound\n"
        mend = break_it(home, program, stack)
        asked = len(chats(server))
        say(program, "")
        assert program.stdout.readline() == "broken\n"
        assert len(chats(server)) == asked + 5  # nothing was sent for those that were refused
        mend()
        say(program, "")
        assert program.wait(60) == 0
    assert_booked(home)


HOMELESS = """
os.environ.pop("HOME", None)
pool = LLMPool(registry)
assert pool.get_lm().spec.name == "free"
assert pool.get_lm().generate("Hello")
for name in books:
    message = refusal(lambda: pool.get_lm(name).generate("Hello"))
    assert "set MAXWELL_HOME to a directory of your own" in message, message
"""


def test_without_a_home_only_what_is_free_goes_on(place: Path, tmp_path: Path, server: FakeServer) -> None:
    home = pwd.getpwuid(NOBODY).pw_dir
    if os.geteuid() != 0 or Path(home).exists():
        pytest.skip("only root may become another user, and that one has a home here")
    command = [sys.executable, "-c", BEGIN + HOMELESS, str(place), registry(server), str(tmp_path / "warm")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"the usage ledger {home}/.maxwell/ledger.db cannot be used: it cannot be written" in done.stderr


def registry(server: FakeServer) -> str:
    def llm(name: str, speed: float, **fields: Any) -> dict[str, Any]:
        return server.llm_entry(name, capabilities={"speed_tokens_per_sec": speed}, tags=["all"], **fields)

    llms = [
        llm("free", 100.0),
        llm("budget", 200.0, **BUDGET),
        llm("priced", 300.0, **PRICED),
        llm("both", 400.0, **BUDGET, **PRICED),
    ]
    return json.dumps({"llms": llms, "embeddings": []})


def say(program: subprocess.Popen[str], words: str) -> None:
    """Set the largest size of a file in bytes, or let it go on with no words."""
    assert program.stdin is not None
    program.stdin.write(f"{words}\n")
    program.stdin.flush()


def assert_booked(home: Path) -> None:
    """The books are whole, hold nothing back, and `llm_usage.json` tells the same."""
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT COUNT(*) FROM hold WHERE state != 'expired'").fetchone() == (0,)
        books = dict(db.execute("SELECT name, SUM(tokens) FROM day GROUP BY name"))
    assert sorted(books) == sorted(("free", *NEED_BOOKS))
    told = json.loads((home / "llm_usage.json").read_text(encoding="utf-8"))
    assert {name: sum(days.values()) for name, days in told.items()} == books
