"""Every fault, several calls at once in every manner there is, with one healthy alternative and with none.

What one call meets, word by word, is in test_fault_matrix.py. Here calls come together, the first server
goes on misbehaving, and what counts is that nothing is lost while the other one is well, and nothing is left.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from calling import Calls, assert_idle, assert_no_threads, chats, entry

from maxwell.errors import (
    BackendError,
    CallTimeout,
    ConnectError,
    DecodeError,
    NoEligibleLM,
    StatusError,
    StreamBroken,
)
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers

NEVER = float("inf")
TEXT = "One two three four five six seven eight nine ten."
OTHER = "From the second one."
PARTIAL = TEXT[:12]  # what has come of it after three tokens
AT_ONCE = 4  # calls
PATIENCE = 0.2  # seconds that an entry whose server falls silent may take
DEADLINE = 3.0  # seconds that each call may take in all
SHORT = 0.8  # the same where nobody else can take it
GRACE = 2.0  # seconds more, on a busy machine

WAITED_FOR = ("loading", "rate_limited", "overloaded")
STREAMS = ("stream", "async stream")
MAPS = ("map", "async map")
MODES = ("generate", "async generate", *STREAMS, *MAPS)


class Cell(NamedTuple):
    """A fault, and what one call meets that nobody else can take.

    Attributes:
        fault: How the server misbehaves.
        error: What is raised; None = nothing, the reply is as it should be.
        kinds: The kinds it may have.
    """

    fault: faults.Fault
    error: type[BackendError] | None
    kinds: tuple[str, ...] = ()


# Nothing of a reply has come when these act.
BEFORE = {
    "loading": Cell(faults.Loading(), StatusError, ("loading",)),
    "rate limited": Cell(faults.RateLimited(retry_after=0.05), StatusError, ("rate_limited",)),
    "quota": Cell(faults.QuotaExhausted(), StatusError, ("quota",)),
    "unauthorized": Cell(faults.Unauthorized(), StatusError, ("auth",)),
    "model missing": Cell(faults.ModelMissing(), StatusError, ("model_missing",)),
    "status 500": Cell(faults.ServerError(500), StatusError, ("server_error",)),
    "status 503": Cell(faults.ServerError(503), StatusError, ("overloaded",)),
    "status 504": Cell(faults.ServerError(504), StatusError, ("timeout",)),
    "context overflow": Cell(faults.ContextOverflow(), StatusError, ("context_overflow",)),
    "reset": Cell(faults.Reset(), ConnectError, ("server_error",)),
    "no head": Cell(faults.SlowFirstByte(NEVER), CallTimeout, ("timeout",)),
    "empty body": Cell(faults.EmptyBody(), DecodeError, ("bad_reply",)),
    "web page": Cell(faults.Garbage(), DecodeError, ("bad_reply",)),
    "cut at once": Cell(faults.Cut(), ConnectError, ("server_error",)),
    "silent at once": Cell(faults.Silence(), CallTimeout, ("timeout",)),
    "bad chunk first": Cell(faults.BadChunk(), DecodeError, ("bad_reply",)),
    "error frame first": Cell(faults.ErrorFrame(), StatusError, ("server_error",)),
    "closed at once": Cell(faults.CloseEarly(), DecodeError, ("bad_reply",)),
}
# Three tokens have come when these act.
AFTER = {
    "cut": Cell(faults.Cut(3), StreamBroken, ("broken_stream",)),
    "silence": Cell(faults.Silence(3), StreamBroken, ("broken_stream",)),
    "bad chunk": Cell(faults.BadChunk(3), StreamBroken, ("broken_stream",)),
    "error frame": Cell(faults.ErrorFrame(3), StreamBroken, ("broken_stream",)),
    "closed early": Cell(faults.CloseEarly(3, done=True), StreamBroken, ("broken_stream",)),
}
# The request is at fault, wherever it is sent.
FINAL = {
    "status 400": Cell(faults.Status(400), StatusError, ("bad_request",)),
    "status 422": Cell(faults.Status(422), StatusError, ("bad_request",)),
}
BENIGN = {
    "crlf": Cell(faults.CRLF(), None),
    "keep-alive comments": Cell(faults.KeepAliveComments(), None),
    "no done": Cell(faults.NoDone(), None),
    "no usage": Cell(faults.NoUsage(), None),
    "slow tokens": Cell(faults.SlowTokens(0.002), None),
    "ignored constraints": Cell(faults.IgnoreConstraints(), None),
}
ALL = BEFORE | AFTER | FINAL | BENIGN

Outcome = str | Exception


class World:
    """Two servers, the quicker one misbehaving, and a pool over both or over that one alone."""

    def __init__(self, servers: FakeServers, home: Path, fault: faults.Fault, *, alone: bool) -> None:
        self.first = servers(reply=TEXT)
        self.second = servers(reply=OTHER, context=8192)
        silent = isinstance(fault, faults.Silence) or fault == faults.SlowFirstByte(NEVER)
        patience = {"timeout_seconds": PATIENCE} if silent else {}
        entries = [entry(self.first, "first", 500, **patience), entry(self.second, "second")]
        self.calls = Calls(home, *entries[: 1 if alone else 2])
        self.calls.warm()
        self.first.fail(fault, times=None)
        self.pieces: list[list[str]] = [[] for _ in range(AT_ONCE)]
        self._seconds = SHORT if alone else DEADLINE

    def ask(self, mode: str) -> list[Outcome]:
        """The texts or errors of calls made at once; nothing of them is left when this returns."""
        began = time.monotonic()
        outcomes = asyncio.run(self._ask_async(mode)) if mode.startswith("async") else self._ask(mode)
        assert time.monotonic() - began < self._seconds + GRACE
        assert len(outcomes) == AT_ONCE
        return outcomes

    def _ask(self, mode: str) -> list[Outcome]:
        outcomes: list[Outcome]
        with self.calls.pool() as pool:
            if mode == "map":
                outcomes = [r.error or r.text for r in pool.map(PROMPTS, timeout=self._seconds)]
            else:
                lms = [pool.get_lm() for _ in range(AT_ONCE)]  # before anything is known
                with ThreadPoolExecutor(AT_ONCE) as threads:
                    outcomes = list(threads.map(lambda i: self._one(mode, lms[i], i), range(AT_ONCE)))
            self._assert_landed(pool)
        self._assert_clean()
        return outcomes

    def _one(self, mode: str, lm: Any, number: int) -> Outcome:
        try:
            if mode == "generate":
                text: str = lm.generate("Hello", timeout=self._seconds)
                return text
            with lm.stream("Hello", timeout=self._seconds) as stream:
                for piece in stream:
                    self.pieces[number].append(piece)
            return "".join(self.pieces[number])
        except Exception as error:
            return error

    async def _ask_async(self, mode: str) -> list[Outcome]:
        async with self.calls.async_pool() as pool:
            outcomes: list[Outcome]
            if mode == "async map":
                outcomes = [r.error or r.text async for r in pool.map(PROMPTS, timeout=self._seconds)]
            else:
                lms = [await pool.get_lm() for _ in range(AT_ONCE)]
                outcomes = list(
                    await asyncio.gather(*(self._one_async(mode, lms[i], i) for i in range(AT_ONCE)))
                )
            self._assert_landed(pool)
        self._assert_clean()
        return outcomes

    async def _one_async(self, mode: str, lm: Any, number: int) -> Outcome:
        try:
            if mode == "async generate":
                text: str = await lm.generate("Hello", timeout=self._seconds)
                return text
            async with lm.stream("Hello", timeout=self._seconds) as stream:
                async for piece in stream:
                    self.pieces[number].append(piece)
            return "".join(self.pieces[number])
        except Exception as error:
            return error

    def _assert_landed(self, pool: LLMPool | AsyncLLMPool) -> None:
        """No call of this pool is counted as under way, and nothing is reserved for one."""
        assert dict(pool._state.flights.loads()) == {}
        assert list(pool.ledger.holds()) == []

    def _assert_clean(self) -> None:
        """Nobody is left at the servers, and no connection, once the pool is closed."""
        assert_idle(self.first, self.second)
        assert_no_threads()
        for server in (self.first, self.second):
            assert eventually(partial(is_left_alone, server)), server


PROMPTS = [f"Hello {i}" for i in range(AT_ONCE)]


def is_left_alone(server: FakeServer) -> bool:
    return server.open_connections == 0


def eventually(true: Callable[[], bool]) -> bool:
    """Whether it becomes true within a second; a server hears of a closed connection a moment later."""
    tick, until = threading.Event(), time.monotonic() + 1.0
    while not true():
        if time.monotonic() > until:
            return False
        tick.wait(0.005)
    return True


@pytest.fixture
def world(fake_server: FakeServers, tmp_path: Path) -> Callable[..., World]:
    return lambda cell, alone=False: World(fake_server, tmp_path, cell.fault, alone=alone)


def assert_typed(outcome: Outcome, cell: Cell) -> None:
    assert cell.error is not None
    assert isinstance(outcome, cell.error), repr(outcome)
    assert isinstance(outcome, StreamBroken) == (cell.error is StreamBroken)
    assert outcome.llm == "first"
    assert outcome.kind in cell.kinds
    if isinstance(outcome, StreamBroken):
        assert outcome.partial.text == PARTIAL
        assert outcome.partial.usage.completion_tokens >= 3
        assert outcome.partial.usage.prompt_tokens > 0


def test_every_fault_is_in_the_matrix() -> None:
    tried = {type(cell.fault) for cell in ALL.values()}
    bases = {faults.Fault, faults.Answer}
    known = {k for k in vars(faults).values() if isinstance(k, type) and issubclass(k, faults.Fault)} - bases
    assert tried == known


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", BEFORE)
def test_nothing_is_lost_before_content_while_another_one_is_well(
    world: Callable[..., World], mode: str, fault: str
) -> None:
    there = world(BEFORE[fault])
    assert there.ask(mode) == [OTHER] * AT_ONCE
    assert chats(there.first), "the first one was never asked, so nothing was tried"


@pytest.mark.parametrize("mode", [m for m in MODES if m not in STREAMS])
@pytest.mark.parametrize("fault", AFTER)
def test_nothing_is_lost_after_content_that_nobody_was_shown(
    world: Callable[..., World], mode: str, fault: str
) -> None:
    there = world(AFTER[fault])
    assert there.ask(mode) == [OTHER] * AT_ONCE
    assert chats(there.first)


@pytest.mark.parametrize("mode", STREAMS)
@pytest.mark.parametrize("fault", AFTER)
def test_what_was_shown_is_never_begun_anew(world: Callable[..., World], mode: str, fault: str) -> None:
    there = world(AFTER[fault])
    outcomes = there.ask(mode)
    for outcome, pieces in zip(outcomes, there.pieces, strict=True):
        if outcome != OTHER:  # whoever came when the first one had been given up
            assert_typed(outcome, AFTER[fault])
            assert "".join(pieces) == PARTIAL
    assert any(outcome != OTHER for outcome in outcomes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("fault", BEFORE | AFTER)
def test_without_an_alternative_each_call_ends_in_its_own_error(
    world: Callable[..., World], mode: str, fault: str
) -> None:
    cell = (BEFORE | AFTER)[fault]
    there = world(cell, alone=True)
    for outcome in there.ask(mode):
        if mode in MAPS and isinstance(outcome, NoEligibleLM):
            continue  # a map chooses for each item, and who is known to be of no use is not chosen
        if (mode in MAPS or cell.kinds[0] in WAITED_FOR) and isinstance(outcome, CallTimeout):
            continue  # what may pass is waited for and tried again, until the time is over
        assert_typed(outcome, cell)
    assert chats(there.second) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alone", [False, True], ids=["alternative", "alone"])
@pytest.mark.parametrize("fault", FINAL)
def test_a_wrong_request_is_wrong_everywhere(
    world: Callable[..., World], mode: str, alone: bool, fault: str
) -> None:
    there = world(FINAL[fault], alone=alone)
    outcomes: Sequence[Outcome] = there.ask(mode)
    for outcome in outcomes:
        if outcome != OTHER:  # whoever found the first one busy
            assert_typed(outcome, FINAL[fault])
    asked = len(chats(there.first))
    assert asked == sum(outcome != OTHER for outcome in outcomes) > 0  # once each, and nowhere else


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("alone", [False, True], ids=["alternative", "alone"])
@pytest.mark.parametrize("fault", BENIGN)
def test_an_oddity_harms_nobody(world: Callable[..., World], mode: str, alone: bool, fault: str) -> None:
    outcomes = world(BENIGN[fault], alone=alone).ask(mode)
    assert set(outcomes) <= ({TEXT} if alone else {TEXT, OTHER})
    assert TEXT in outcomes
