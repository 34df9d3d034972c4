"""One exchange with one LLM, fully accounted for however it ends."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from maxwell.backends.base import Backend
from maxwell.calls.accounts import Account
from maxwell.calls.counting import COUNT_LIMITS, chat_tokens
from maxwell.calls.effects import Close, Exchange, Flow, Limits, Send, TransportError
from maxwell.calls.failures import broken, error_body, refusal, transport_failure
from maxwell.calls.reading import read
from maxwell.calls.reply import Reply
from maxwell.calls.state import Entry, PoolState, has_budget
from maxwell.errors import BackendError, StatusError
from maxwell.receipts.record import Record
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.scheduler import LEAST_COMPLETION
from maxwell.tokens import BYTES_PER_TOKEN, measure, upper_bound
from maxwell.types import ChatCall, Completion, HTTPRequest


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """What every attempt of one call has in common.

    Attributes:
        chat: What to ask.
        most: Completion tokens that were asked for when choosing; None = not said.
        bytes_per_token: What the prompt's counting came to when choosing; None = it was not counted.
        deadline: When the whole call must be over, on the monotonic clock; None = never.
        emit: Whether text is to be emitted as it comes.
        tried: Entries asked so far, the present one last.
        record: The call's receipt.
    """

    chat: ChatCall
    most: int | None
    bytes_per_token: float | None
    deadline: float | None
    emit: bool
    tried: Sequence[str]
    record: Record


def attempt(state: PoolState, entry: Entry, task: Task) -> Flow[Completion]:
    """Ask `entry`'s server; the reply is complete and booked when this returns.

    Raises:
        BackendError: It failed; `StreamBroken` once content had begun.
        BudgetExceeded: The entry's budget has no room for it.
        LedgerError: The entry has a budget and the books cannot be kept.
    """
    spec, chat = entry.spec, task.chat
    assert isinstance(spec, LLMSpec)
    backend = entry.backend()
    _check_possible(entry, backend, chat)
    likely, cap = yield from _sizes(state, entry, backend, task)
    account = Account(state, spec, task.record)
    now = state.clock.monotonic
    reply = Reply(spec, likely, now(), task.record.id)
    exchange: Exchange | None = None
    used = False
    try:
        yield from _reserve(state, entry, backend, task, account, cap)
        capped = msgspec.structs.replace(chat, max_tokens=account.max_tokens)
        request = backend.chat(spec, capped, entry.endpoint.key)
        yield from account.send()
        used = True  # from here on the server may be working for us, whatever becomes of this call
        exchange = yield from _open(state, entry, backend, request, limits_for(state, spec, task.deadline))
        yield from read(exchange, backend, reply, now, emit=task.emit, secrets=entry.endpoint.secrets)
        usage = account.sure(reply.usage, cut=False)
        usd = account.settle(usage)
        used = False  # and booked
    except TransportError as error:
        used = error.stage not in ("refused", "connect")
        failure = transport_failure(spec.name, error)
        raise broken(failure, reply, account.sure(reply.usage, cut=True), now(), task.tried) from error
    except BackendError as error:
        used = exchange is not None  # a server that refuses has not worked
        if exchange is not None:
            yield Close(exchange)  # it may still be generating
        failure = broken(error, reply, account.sure(reply.usage, cut=True), now(), task.tried)
        if failure is error:
            raise
        raise failure from error
    finally:
        # Every way out but success, cancelled and abandoned calls included, books what was seen here, or
        # gives the money back where nothing was used.
        if used:
            account.settle(account.sure(reply.usage, cut=True))
        else:
            account.release()
    state.health.note_success(entry.endpoint)
    return reply.completion(now(), list(task.tried), usage, usd)


def _reserve(
    state: PoolState, entry: Entry, backend: Backend, task: Task, account: Account, completion: int
) -> Flow[None]:
    """Open the account for the worst case; an entry without a budget needs none."""
    chat = task.chat
    prompt = upper_bound(chat.messages, chat.tools) if has_budget(entry.spec) else 0
    limits = within(state, COUNT_LIMITS, task.deadline)
    yield from account.open(
        prompt,
        completion,
        may_shrink=chat.max_tokens is None,
        count=lambda: chat_tokens(entry, backend, chat, limits),
    )


def _check_possible(entry: Entry, backend: Backend, chat: ChatCall) -> None:
    """Refuse before sending what cannot succeed there."""
    name = entry.spec.name
    if entry.key_problem is not None:
        raise StatusError(entry.key_problem, llm=name, kind="auth")
    if chat.grammar is not None and not backend.honours_grammar:
        raise StatusError(f"backend {backend.name} does not obey grammars", llm=name, kind="unsupported")


def _sizes(state: PoolState, entry: Entry, backend: Backend, task: Task) -> Flow[tuple[int, int]]:
    """Likely prompt tokens, and how many completion tokens to ask for.

    The caller's word counts, within the model's cap and context. Where the context leaves less than that,
    the server is asked to count the prompt: an estimate must not cut a reply short.
    """
    candidate = state.candidate(entry)
    most = candidate.spec.capabilities.max_tokens
    wanted = min(task.chat.max_tokens or task.most or most, most)
    likely = measure(task.chat.messages, task.chat.tools).estimate(task.bytes_per_token or BYTES_PER_TOKEN)
    if likely + wanted > candidate.context:
        limits = within(state, COUNT_LIMITS, task.deadline)
        counted = yield from chat_tokens(entry, backend, task.chat, limits)
        likely = likely if counted is None else counted
    return likely, min(wanted, max(candidate.context - likely, LEAST_COMPLETION))


def limits_for(state: PoolState, spec: Spec, deadline: float | None) -> Limits:
    """Time limits of one exchange: the entry's own, and what is left of the caller's."""
    return within(state, Limits(total=spec.timeout_seconds), deadline)


def within(state: PoolState, limits: Limits, deadline: float | None) -> Limits:
    """`limits`, kept to what is left until `deadline`."""
    if deadline is None:
        return limits
    left = max(deadline - state.clock.monotonic(), 0.001)
    total = left if limits.total is None else min(limits.total, left)
    return msgspec.structs.replace(limits, total=total)


def _open(
    state: PoolState, entry: Entry, backend: Backend, request: HTTPRequest, limits: Limits
) -> Flow[Exchange]:
    """Send; a parameter the server refuses by name is dropped or renamed and the request sent once more."""
    for last in (False, True):
        exchange: Exchange = yield Send(request, limits)
        if exchange.status == 200:
            return exchange
        body = yield from error_body(exchange)
        mended = None
        if exchange.status in (400, 422) and not last:
            mended = backend.without_refused(request, body)
        if mended is None:
            raise refusal(state, entry, backend, exchange.status, exchange.headers, body)
        request = mended
    raise AssertionError("the second round returns or raises")
