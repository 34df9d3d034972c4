"""Measuring an LLM on purpose: a few calls that show how soon it begins, how fast it reads and writes."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence

from msgspec import Struct

from maxwell.calls.chat import Call, chat
from maxwell.calls.effects import First, Flow, Handle, Start
from maxwell.calls.entries import Entry
from maxwell.calls.select import choose, insist
from maxwell.calls.state import PoolState
from maxwell.decision import Decision, Request
from maxwell.registry.specs import LLMSpec
from maxwell.speed.sample import LEAST_READ, LEAST_WRITTEN, pace
from maxwell.tokens import BYTES_PER_TOKEN, upper_bound
from maxwell.types import ChatCall, Completion, Message, Requirements

ROUNDS = 3
LONG_PROMPT = 2000  # tokens to read, where the context has room for them
LONG_REPLY = 192  # tokens to write
LEAST_READING = 0.005  # seconds; what takes less cannot be told from the rest of a call
# A model that ends its reply early would be measured on a few tokens; these servers let it be told not to.
ENDLESS = {"llamacpp": {"ignore_eos": True}, "vllm": {"ignore_eos": True}}

_SHORT = "Say yes."
_LONG = "Read this list of words, then say yes.\n"
_WRITE = "Write a long story about a lighthouse keeper. Do not stop before a thousand words."
_WORDS = ("river", "stone", "amber", "quiet", "window", "market", "seven", "garden", "copper", "letter")


class Figure(Struct, frozen=True):
    """A quantity that was measured several times.

    Attributes:
        middle: Median.
        low: Least.
        high: Most.
        count: How many times.
    """

    middle: float
    low: float
    high: float
    count: int


class Bench(Struct, frozen=True, kw_only=True):
    """What was measured of one LLM. None = it could not be.

    Attributes:
        llm: Its name.
        speed: Generation speed in tokens per second.
        prefill: Prefill speed in tokens per second.
        overhead: Seconds to the first token besides reading the prompt.
        at_once: Generation speed of each of so many replies that were written at once.
        calls: How many calls were made.
        tokens: What they used.
        cost_usd: What that cost by the registry's prices.
    """

    llm: str
    speed: Figure | None = None
    prefill: Figure | None = None
    overhead: Figure | None = None
    at_once: dict[int, Figure] = {}
    calls: int = 0
    tokens: int = 0
    cost_usd: float = 0.0


class Progress(Struct, frozen=True):
    """How far measuring has come.

    Attributes:
        done: Steps that are done.
        steps: All there are.
        doing: What comes next, in words; "" = nothing.
        so_far: What was measured.
    """

    done: int
    steps: int
    doing: str
    so_far: Bench


class Step(Struct, frozen=True):
    """Calls that are made at once.

    Attributes:
        doing: What they measure, in words.
        kind: "warm" measures nothing.
        prompt: What is asked; begins unlike any before, so that no server has it in a cache.
        most: Tokens of the reply, at most.
        at_once: How many.
    """

    doing: str
    kind: str
    prompt: str
    most: int
    at_once: int = 1

    @property
    def messages(self) -> list[Message]:
        """The conversation."""
        return [{"role": "user", "content": self.prompt}]


def steps(
    spec: LLMSpec, context: int, at_once: Sequence[int] = (), draw: Callable[[], float] = random.random
) -> list[Step]:
    """What is done to measure an LLM.

    Args:
        spec: The entry.
        context: Tokens that one request may hold.
        at_once: Numbers of replies to be written at once, besides one.
        draw: Gives random numbers in [0, 1).
    """
    reply = max(1, min(LONG_REPLY, spec.capabilities.max_tokens, context // 2))
    long = max(1, min(LONG_PROMPT, context // 3))  # in a small context it fits even if it is more tokens
    found = [Step("waking it", "warm", _opened(_SHORT, draw), 1)]
    for _ in range(ROUNDS):
        found.append(Step("short prompt", "short", _opened(_SHORT, draw), 1))
        found.append(Step("long prompt", "read", _opened(_LONG + _text(long, draw), draw), 1))
        found.append(Step("long reply", "write", _opened(_WRITE, draw), reply))
    for number in at_once:
        doing = f"{number} replies at once"
        found.append(Step(doing, "at_once", _opened(_WRITE, draw), reply, number))
    return found


def most_used(spec: LLMSpec, context: int, at_once: Sequence[int] = ()) -> tuple[int, float]:
    """The most that measuring can use: tokens, and US dollars by the registry's prices."""
    tokens, usd = 0, 0.0
    for step in steps(spec, context, at_once):
        read, written = step.at_once * upper_bound(step.messages), step.at_once * step.most
        tokens += read + written
        usd += (read * max(spec.price_prompt, spec.price_cached) + written * spec.price_completion) / 1000
    return tokens, usd


def _opened(text: str, draw: Callable[[], float]) -> str:
    return f"{int(draw() * 1e9):09d}. {text}"


def _text(tokens: int, draw: Callable[[], float]) -> str:
    """Words, as many as are likely to make so many tokens."""
    size = int(tokens * BYTES_PER_TOKEN)
    words: list[str] = []
    while size > 0:
        words.append(_WORDS[int(draw() * len(_WORDS))])
        size -= len(words[-1]) + 1
    return " ".join(words)


def bench(
    state: PoolState,
    name: str,
    *,
    at_once: Sequence[int] = (),
    progress: Callable[[Progress], None] | None = None,
    draw: Callable[[], float] = random.random,
) -> Flow[Bench]:
    """Measure the LLM of that name. What its calls teach is learned as from any other.

    Args:
        state: The pool's state.
        name: Whom to measure.
        at_once: Numbers of replies to be written at once, besides one.
        progress: Is told before each step, and at the end, how far it is.
        draw: Gives random numbers in [0, 1).

    Raises:
        UnknownName: There is no such LLM.
        NoEligibleLM: It cannot be used now.
        BudgetExceeded: Its budget has no room for it.
        BackendError: A call failed.
    """
    decision = insist(state, (yield from choose(state, Request(needs=Requirements()), name=name)))
    entry = state.llm(name)
    spec = entry.spec
    assert isinstance(spec, LLMSpec)
    plan = steps(spec, entry.context(state.known(entry)), at_once, draw)
    seen: list[tuple[Step, Completion]] = []
    for done, step in enumerate(plan):
        if progress is not None:
            progress(Progress(done, len(plan), step.doing, measured(name, seen)))
        replies = yield from _replies(state, entry, decision, step)
        seen += [(step, reply) for reply in replies]
    found = measured(name, seen)
    if progress is not None:
        progress(Progress(len(plan), len(plan), "", found))
    return found


def _replies(state: PoolState, entry: Entry, decision: Decision, step: Step) -> Flow[list[Completion]]:
    """Make the calls of one step, all at once."""
    backend = entry.backend(state.known(entry)).name
    asked = ChatCall(
        messages=step.messages,
        max_tokens=step.most,
        extra=ENDLESS.get(backend) if step.most > 1 else None,
    )
    call = Call(chat=asked, decision=decision, pinned=True, measuring=True)
    if step.at_once == 1:
        return [(yield from chat(state, call))]
    handles: list[Handle] = []
    while len(handles) < step.at_once:
        handles.append((yield Start(chat(state, call))))
    waiting = handles
    while waiting:
        yield First(waiting)
        failed = next((handle.error for handle in waiting if handle.error is not None), None)
        if failed is not None:
            raise failed
        waiting = [handle for handle in waiting if not handle.done]
    return [handle.result for handle in handles]


def measured(name: str, seen: Sequence[tuple[Step, Completion]]) -> Bench:
    """What these replies show."""
    prefill = _figure(_reading_speeds(seen))
    return Bench(
        llm=name,
        speed=_figure(_writing_speeds(seen, 1)),
        prefill=prefill,
        overhead=_figure(_overheads(seen, prefill)),
        at_once={
            number: figure
            for number in dict.fromkeys(step.at_once for step, _ in seen if step.at_once > 1)
            if (figure := _figure(_writing_speeds(seen, number))) is not None
        },
        calls=len(seen),
        tokens=sum(done.usage.total_tokens for _, done in seen),
        cost_usd=sum(done.cost_usd for _, done in seen),
    )


def _figure(values: Iterator[float | None]) -> Figure | None:
    found = sorted(value for value in values if value is not None)
    return Figure(statistics.median(found), found[0], found[-1], len(found)) if found else None


def _fresh(done: Completion) -> int:
    """Prompt tokens that were read."""
    return done.usage.prompt_tokens - (done.usage.cached_tokens or 0)


def _firsts(seen: Sequence[tuple[Step, Completion]], kind: str) -> list[tuple[int, float]]:
    """(tokens read, seconds to the first token) of each reply to prompts of that kind."""
    return [
        (_fresh(done), done.timings.first_token_seconds)
        for step, done in seen
        if step.kind == kind and done.timings.first_token_seconds is not None
    ]


def _reading_speeds(seen: Sequence[tuple[Step, Completion]]) -> Iterator[float | None]:
    """As the server measured it, else by how much later the first token came after a long prompt."""
    short = _firsts(seen, "short")
    for step, done in seen:
        told, first = done.timings.prompt_tokens_per_sec, done.timings.first_token_seconds
        if step.kind != "read" or _fresh(done) < LEAST_READ:
            continue
        if told:
            yield pace(told)
        elif short and first is not None:
            longer = first - statistics.median(seconds for _, seconds in short)
            more = _fresh(done) - statistics.median(read for read, _ in short)
            if longer >= LEAST_READING and more > 0:
                yield pace(more / longer)


def _overheads(seen: Sequence[tuple[Step, Completion]], prefill: Figure | None) -> Iterator[float]:
    """What the first token after a short prompt took besides reading; a short one is read at its own pace."""
    usual = prefill.middle if prefill else None
    for step, done in seen:
        first = done.timings.first_token_seconds
        if step.kind == "short" and first is not None:
            speed = pace(done.timings.prompt_tokens_per_sec) or usual
            yield max(first - (_fresh(done) / speed if speed else 0.0), 0.0)


def _writing_speeds(seen: Sequence[tuple[Step, Completion]], at_once: int) -> Iterator[float | None]:
    """As the server measured it, else from the first token to the end."""
    for step, done in seen:
        if step.kind not in ("write", "at_once") or step.at_once != at_once:
            continue
        timings, usage = done.timings, done.usage
        count = usage.completion_tokens - (0 if done.reasoning else usage.reasoning_tokens or 0)
        if timings.first_token_seconds is None or count < LEAST_WRITTEN:
            continue
        writing = timings.total_seconds - timings.first_token_seconds
        if timings.completion_tokens_per_sec:
            yield pace(timings.completion_tokens_per_sec)
        elif writing > 0:
            yield pace((count - 1) / writing)
