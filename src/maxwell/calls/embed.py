"""Embedding calls as flows: batches in order, verified dimension, exact truncation or a clear refusal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from maxwell.backends.base import Backend
from maxwell.calls.accounts import Account
from maxwell.calls.admission import Flight, admit_embedding
from maxwell.calls.attempt import limits_for, note, within
from maxwell.calls.counting import COUNT_LIMITS, text_tokens
from maxwell.calls.effects import Flow, Sleep, TransportError
from maxwell.calls.entries import Entry
from maxwell.calls.failures import refusal, transport_failure
from maxwell.calls.moment import ready_in
from maxwell.calls.probe import fetch
from maxwell.calls.retries import backoff, is_worth_waiting, may_ask_again
from maxwell.calls.state import PoolState
from maxwell.errors import (
    BackendError,
    CallTimeout,
    DecodeError,
    DimensionMismatch,
    InputTooLong,
    StatusError,
)
from maxwell.receipts.record import Record
from maxwell.registry.specs import EmbeddingSpec
from maxwell.tokens import estimate, text_upper_bound, utf8_length
from maxwell.types import Usage

BATCH_ITEMS = 256  # OpenAI takes 2048, llama.cpp and vLLM any number; small batches keep a failure cheap
BATCH_BYTES = 256 * 1024  # about 64k tokens; OpenAI takes 300k a request
MOST_REPLY = 512 * 1024 * 1024

MOST_TOKENS = 2**40  # of one text; more than there are
MOST_COUNTED = 32  # texts that a server is asked to count one by one
SPECIAL_TOKENS = 4  # more than any embedding model puts around a text

Input = str | list[int]


class _Task(NamedTuple):
    """What all batches of one call have in common."""

    truncate: bool
    deadline: float | None
    record: Record


def embed(
    state: PoolState,
    entry: Entry,
    texts: Sequence[str],
    *,
    asked: str | None = None,
    truncate: bool = False,
    seconds: float | None = None,
) -> Flow[list[list[float]]]:
    """One vector a text, in order; the call's receipt is kept.

    Args:
        state: The pool's state.
        entry: The embedding.
        texts: What to embed; none may be empty.
        asked: The name or tag it was chosen by; None = neither.
        truncate: Cut a text that is too long to the model's limit, by the server's own tokens.
        seconds: Longest the whole call may take; None = the entry's own limit an exchange.

    Raises:
        ValueError: A text is empty.
        InputTooLong: A text is too long, and may not or cannot be cut.
        DimensionMismatch: The server's vectors have another size than declared.
        BudgetExceeded: The daily budget has no room.
        BackendError: The exchange failed.
    """
    for i, text in enumerate(texts):
        if not text:
            raise ValueError(f"text {i} to embed is empty")
    deadline = None if seconds is None else state.clock.monotonic() + seconds
    vectors: list[list[float]] = []
    with state.receipts.embed(asked, texts) as record, record.attempt(entry.spec):
        task = _Task(truncate, deadline, record)
        for start, batch in _batches(texts):
            vectors += yield from _insisting(state, entry, batch, start, task)
    return vectors


def _insisting(
    state: PoolState, entry: Entry, batch: list[str], start: int, task: _Task
) -> Flow[list[list[float]]]:
    """One batch; after a failure that may pass it is sent again, lest the batches before it be lost."""
    state.retries.earn()
    asked = 0
    while True:
        asked += 1
        try:
            with Flight(state) as flight:
                yield from admit_embedding(state, flight, entry, task.deadline, task.record)
                return (yield from _embed_batch(state, entry, batch, start, task))
        except BackendError as error:
            pause = backoff(asked, state.draw())
            if not may_ask_again(error.kind, asked) or not _has_time(state, entry, pause, task.deadline):
                raise
            if not state.retries.take():
                raise
        yield Sleep(pause)


def _has_time(state: PoolState, entry: Entry, pause: float, deadline: float | None) -> bool:
    """Whether it may be asked again after `pause`, before the deadline."""
    left = math.inf if deadline is None else deadline - state.clock.monotonic()
    health = state.known(entry)
    if health is None:
        return pause < left
    return is_worth_waiting(health.state, ready_in(health, None, state.clock.time()), pause, left)


def _batches(texts: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Consecutive runs small enough for one request, each with the index of its first text."""
    batch: list[str] = []
    size = start = 0
    for i, text in enumerate(texts):
        length = utf8_length(text)
        if batch and (len(batch) >= BATCH_ITEMS or size + length > BATCH_BYTES):
            yield start, batch
            batch, size, start = [], 0, i
        batch.append(text)
        size += length
    if batch:
        yield start, batch


def _embed_batch(
    state: PoolState,
    entry: Entry,
    batch: list[str],
    start: int,
    task: _Task,
) -> Flow[list[list[float]]]:
    """One request; where one input is too long, it is cut or named."""
    spec = entry.spec
    assert isinstance(spec, EmbeddingSpec)
    if entry.key_problem is not None:
        raise StatusError(entry.key_problem, llm=spec.name, kind="auth")
    truncate, deadline, record = task
    health = state.known(entry)
    backend = entry.backend(health)
    limit = entry.context(health)
    inputs: list[Input] = list(batch)
    if truncate and not backend.truncates:
        inputs = yield from _cut(state, entry, backend, batch, limit, deadline)
        if deadline is not None and state.clock.monotonic() >= deadline:
            raise CallTimeout("the time ran out while texts were counted", llm=spec.name, kind="timeout")
    truncate_to = limit if truncate and backend.truncates else None
    most = limit if truncate else MOST_TOKENS  # of one text: what is cut off is not read
    worst = sum(min(text_upper_bound(text) + SPECIAL_TOKENS, most) for text in batch)
    account = Account(state, spec, record)
    used = Usage(sum(estimate(utf8_length(text)) for text in batch), 0, estimated=True)
    sent = False
    try:
        yield from account.open(
            worst, 0, count=lambda: _counted(state, entry, backend, batch, most, deadline)
        )
        request = backend.embed(spec, inputs, entry.endpoint.key, truncate_to=truncate_to)
        yield from account.send()
        sent = True  # from here on the server may be working for us, whatever becomes of this call
        status, headers, body = yield from fetch(request, limits_for(state, spec, deadline), MOST_REPLY)
        if status != 200:
            sent = False
            raise refusal(state, entry, backend, status, headers, body)
        try:
            reply = backend.decode_embeddings(body, len(batch))
        except ValueError as error:
            raise DecodeError(f"not an embeddings reply: {error}", llm=spec.name, kind="bad_reply") from error
        used = reply.usage or used
        account.settle(account.sure(used, cut=False))
    except TransportError as error:
        sent = error.stage not in ("refused", "connect")
        raise _broken_off(state, entry, error, task) from error
    except StatusError as error:
        note(state, entry, error, record)
        if error.kind != "context_overflow":
            raise
        raise (yield from _too_long(state, entry, batch, start, limit, deadline)) from error
    finally:
        # After a success this does nothing; any other way out books what may have been used.
        if sent:
            account.settle(account.sure(used, cut=True))
        else:
            account.release()
    state.health.note_success(entry.endpoint)
    _check_dimension(spec, reply.vectors)
    return reply.vectors


def _broken_off(state: PoolState, entry: Entry, error: TransportError, task: _Task) -> BackendError:
    """The failure, noted unless the caller's own time was over."""
    failure = transport_failure(entry.spec.name, error)
    if error.stage != "total" or task.deadline is None:
        note(state, entry, failure, task.record, at_once=error.stage in ("first_byte", "idle"))
    return failure


def _check_dimension(spec: EmbeddingSpec, vectors: list[list[float]]) -> None:
    for vector in vectors:
        if len(vector) != spec.dimension:
            raise DimensionMismatch(
                f"{spec.name}: declared dimension {spec.dimension}, but the server returned {len(vector)}; "
                f"set dimension to {len(vector)} in the registry if this is the model you mean"
            )


def _cut(
    state: PoolState, entry: Entry, backend: Backend, batch: list[str], limit: int, deadline: float | None
) -> Flow[list[Input]]:
    """The batch with every over-long text replaced by its first `limit` tokens, as the server counts them.

    The special tokens that the server puts around a text are counted and kept. Where the server has no
    tokenizer the texts stay as they are: most fit, and it says so if one does not.
    """
    inputs: list[Input] = list(batch)
    for i, text in enumerate(batch):
        if text_upper_bound(text) + SPECIAL_TOKENS <= limit:
            continue
        whole = yield from _tokens(state, entry, backend, text, deadline, special=True)
        if whole is None:
            break
        if len(whole) > limit:
            plain = yield from _tokens(state, entry, backend, text, deadline, special=False)
            inputs[i] = _shortened(whole, plain or whole, limit)
    return inputs


def _shortened(whole: list[int], plain: list[int], limit: int) -> list[int]:
    """`whole`, special tokens included, with as much taken from the end of the text as is too much."""
    extra = len(whole) - len(plain)
    for before in range(extra + 1):
        if whole[before : before + len(plain)] == plain:
            after = whole[before + len(plain) :]
            return whole[:before] + plain[: limit - extra] + after
    return whole[:limit]


def _counted(
    state: PoolState, entry: Entry, backend: Backend, batch: list[str], most: int, deadline: float | None
) -> Flow[int | None]:
    """Tokens of the whole batch as the server counts them, at most so many of each text.

    None where that is not to be had soon.
    """
    if len(batch) > MOST_COUNTED:
        return None
    total = 0
    for text in batch:
        tokens = yield from _tokens(state, entry, backend, text, deadline, special=True)
        if tokens is None:
            return None
        total += min(len(tokens), most)
    return total


def _tokens(
    state: PoolState, entry: Entry, backend: Backend, text: str, deadline: float | None, *, special: bool
) -> Flow[list[int] | None]:
    limits = within(state, COUNT_LIMITS, deadline)
    return (yield from text_tokens(entry, backend, text, limits, special=special))


def _too_long(
    state: PoolState, entry: Entry, batch: list[str], start: int, limit: int, deadline: float | None
) -> Flow[InputTooLong]:
    """Say which text is too long, counted by the server's tokenizer where it has one."""
    backend = entry.backend(state.known(entry))
    suspects = [i for i, text in enumerate(batch) if text_upper_bound(text) + SPECIAL_TOKENS > limit]
    suspects.sort(key=lambda i: -utf8_length(batch[i]))
    found = suspects[0] if suspects else 0
    size = f"{utf8_length(batch[found]):,} bytes"
    for i in suspects[:MOST_COUNTED]:
        counted = yield from _tokens(state, entry, backend, batch[i], deadline, special=True)
        if counted is None:
            break
        if len(counted) > limit:
            found, size = i, f"{len(counted)} tokens"
            break
    can_cut = backend.truncates or backend.has_tokenizer
    way = (
        "shorten it or pass truncate=True"
        if can_cut
        else "shorten it; its server has no tokenizer to cut it by"
    )
    return InputTooLong(
        f"{entry.spec.name}: text {start + found} ({size}) is longer than the model reads "
        f"(limit {limit} tokens); {way}"
    )
