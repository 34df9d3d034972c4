"""Calls whose reply comes whole: admitted, booked, and made again where a failure may pass.

Embeddings and rerankers share it. What differs is what is sent and how the reply is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import msgspec

from maxwell.backends.base import Backend
from maxwell.calls.accounts import Account
from maxwell.calls.admission import Flight, admit_embedding
from maxwell.calls.attempt import limits_for, note, within
from maxwell.calls.counting import COUNT_LIMITS, text_tokens
from maxwell.calls.effects import Flow, Limits, Sleep, TransportError
from maxwell.calls.entries import Entry
from maxwell.calls.failures import refusal, transport_failure
from maxwell.calls.moment import ready_in
from maxwell.calls.probe import fetch
from maxwell.calls.retries import backoff, is_worth_waiting, may_ask_again
from maxwell.calls.state import PoolState
from maxwell.errors import BackendError, DecodeError, StatusError
from maxwell.receipts.record import Record
from maxwell.types import HTTPRequest, Usage

T = TypeVar("T")

MOST_REPLY = 512 * 1024 * 1024
MOST_COUNTED = 32  # texts that a server is asked to count one by one
# text-embeddings-inference, which takes 32 unless it is started otherwise.
_TOO_MANY = re.compile(r"batch size \d+ > maximum allowed batch size (\d{1,9})\b")
PATIENT = 5.0  # seconds; a caller who does not wait so long learns nothing of a server that is silent


class Task(NamedTuple):
    """What all exchanges of one call have in common.

    Attributes:
        record: The call's receipt.
        deadline: When the call must be over, on the monotonic clock; None = never.
        patience: Seconds until the reply must begin because somebody else could answer, too; None = nobody.
    """

    record: Record
    deadline: float | None = None
    patience: float | None = None


class Post(NamedTuple, Generic[T]):
    """One request, and how to read what comes.

    Attributes:
        request: Makes it. May raise ValueError.
        decode: Reads the body of a 200, with the usage that the server reported. Raises ValueError.
        what: What that body is, for messages: "an embeddings reply".
        worst: Most tokens that it can use.
        likely: Tokens that it probably uses.
        exactly: Has the server count them; None where it cannot tell soon.
    """

    request: Callable[[], HTTPRequest]
    decode: Callable[[bytes], tuple[T, Usage | None]]
    what: str
    worst: int
    likely: int
    exactly: Callable[[], Flow[int | None]] | None = None


def post(state: PoolState, entry: Entry, backend: Backend, asked: Post[T], task: Task) -> Flow[T]:
    """Send it and read the reply; what it used is booked however it ends.

    Raises:
        BudgetExceeded: The entry's budget has no room for it.
        LedgerError: The entry has a price or a budget, and the books cannot be kept.
        BackendError: The exchange failed.
    """
    spec = entry.spec
    if entry.key_problem is not None:
        raise StatusError(entry.key_problem, llm=spec.name, kind="auth")
    account = Account(state, spec, task.record)
    used = Usage(asked.likely, 0, estimated=True)
    sent = False
    try:
        yield from account.open(asked.worst, 0, count=asked.exactly)
        request = asked.request()
        yield from account.send()
        sent = True  # from here on the server may be working for us, whatever becomes of this call
        status, headers, body = yield from fetch(request, _limits(state, entry, task), MOST_REPLY)
        if status != 200:
            sent = False
            raise refusal(state, entry, backend, status, headers, body)
        try:
            found, reported = asked.decode(body)
        except ValueError as error:
            raise DecodeError(f"not {asked.what}: {error}", llm=spec.name, kind="bad_reply") from error
        used = reported or used
        account.settle(account.sure(used, cut=False))
    except TransportError as error:
        sent = error.stage not in ("refused", "connect")
        raise _broken_off(state, entry, error, task) from error
    except StatusError as error:
        note(state, entry, error, task.record)
        raise
    finally:
        # After a success this does nothing; any other way out books what may have been used.
        if sent:
            account.settle(account.sure(used, cut=True))
        else:
            account.release()
    state.health.note_success(entry.endpoint)
    return found


def _limits(state: PoolState, entry: Entry, task: Task) -> Limits:
    limits = limits_for(state, entry.spec, task.deadline)
    if task.patience is None:
        return limits
    return msgspec.structs.replace(limits, first_byte=min(limits.first_byte or math.inf, task.patience))


def _broken_off(state: PoolState, entry: Entry, error: TransportError, task: Task) -> BackendError:
    """The failure, noted unless the caller's own time was over."""
    failure = transport_failure(entry.spec.name, error)
    is_silent = error.stage in ("first_byte", "idle")
    if is_silent and task.patience is not None and task.patience < PATIENT:
        return failure
    if error.stage != "total" or task.deadline is None:
        note(state, entry, failure, task.record, at_once=is_silent)
    return failure


def insisting(
    state: PoolState, entry: Entry, task: Task, once: Callable[[], Flow[T]], *, again: bool = True
) -> Flow[T]:
    """What `once` gives, when the server has a place for it.

    After a failure that may pass it is made again, unless not `again`: what other exchanges of the call
    have brought would be lost.
    """
    state.retries.earn()
    asked = 0
    while True:
        asked += 1
        try:
            with Flight(state) as flight:
                yield from admit_embedding(state, flight, entry, task.deadline, task.record)
                return (yield from once())
        except BackendError as error:
            pause = backoff(asked, state.draw())
            may = again and may_ask_again(error.kind, asked) and _has_time(state, entry, pause, task.deadline)
            if not may or not state.retries.take():
                raise
        yield Sleep(pause)


def item_cap(error: StatusError, sent: int) -> int:
    """How many texts the server takes at once, where that is why it refused; else its error is raised."""
    told = _TOO_MANY.search(error.message)
    if told is None or not 0 < int(told[1]) < sent:
        raise error
    return int(told[1])


def _has_time(state: PoolState, entry: Entry, pause: float, deadline: float | None) -> bool:
    """Whether it may be asked again after `pause`, before the deadline."""
    left = math.inf if deadline is None else deadline - state.clock.monotonic()
    health = state.known(entry)
    if health is None:
        return pause < left
    return is_worth_waiting(health.state, ready_in(health, None, state.clock.time()), pause, left)


def tokens_of(
    state: PoolState, entry: Entry, backend: Backend, text: str, deadline: float | None, *, special: bool
) -> Flow[list[int] | None]:
    """Token ids of a text by the entry's server, special ones included when `special`; None = not told."""
    limits = within(state, COUNT_LIMITS, deadline)
    return (yield from text_tokens(entry, backend, text, limits, special=special))
