"""One exchange with one LLM, fully accounted for however it ends."""

from __future__ import annotations

import msgspec

from maxwell.backends.base import Backend
from maxwell.calls.accounts import Account
from maxwell.calls.effects import Exchange, Flow, Limits, Send, TransportError
from maxwell.calls.failures import broken, error_body, refusal, transport_failure
from maxwell.calls.reading import read
from maxwell.calls.reply import Reply
from maxwell.calls.state import Entry, PoolState
from maxwell.errors import BackendError, StatusError
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.scheduler import Candidate
from maxwell.tokens import measure, upper_bound
from maxwell.types import ChatCall, HTTPRequest


def attempt(
    state: PoolState,
    entry: Entry,
    chat: ChatCall,
    most: int | None,
    deadline: float | None,
    *,
    emit: bool,
) -> Flow[Reply]:
    """Ask `entry`'s server; the reply is complete and booked when this returns.

    Args:
        state: The pool's state.
        entry: Whom to ask.
        chat: What to ask.
        most: Completion tokens that were asked for when choosing, or None.
        deadline: When the whole call must be over, on the monotonic clock, or None.
        emit: Whether text is to be emitted as it comes.

    Raises:
        BackendError: It failed; `StreamBroken` once content had begun.
        BudgetExceeded: The entry's budget has no room for it.
    """
    spec = entry.spec
    assert isinstance(spec, LLMSpec)
    backend = entry.backend()
    _check_possible(entry, backend, chat)
    likely = measure(chat.messages, chat.tools).estimate()
    cap = _completion_cap(state.candidate(entry), chat.max_tokens or most, likely)
    prompt = upper_bound(chat.messages, chat.tools)
    account = Account.open(state, entry, prompt, cap, may_shrink=chat.max_tokens is None)
    reply = Reply(spec, likely, state.clock.monotonic())
    sent = False
    try:
        capped = msgspec.structs.replace(chat, max_tokens=account.max_tokens)
        request = backend.chat(spec, capped, entry.endpoint.key)
        sent = True  # from here on the server may be working for us, whatever becomes of this call
        exchange = yield from _open(state, entry, backend, request, limits_for(state, spec, deadline))
        yield from read(
            exchange, backend, reply, state.clock.monotonic, emit=emit, secrets=entry.endpoint.secrets
        )
        account.settle(reply.usage)
    except TransportError as error:
        sent = error.stage not in ("refused", "connect")
        raise broken(transport_failure(spec.name, error), reply, state.clock.monotonic()) from error
    except BackendError as error:
        sent = reply.has_content
        raise broken(error, reply, state.clock.monotonic()) from error
    finally:
        # After a success this does nothing. Every other way out, cancelled and abandoned calls included,
        # books what was seen, or gives the money back where nothing was sent.
        if sent:
            account.settle(reply.usage)
        else:
            account.release()
    state.health.note_success(entry.endpoint)
    return reply


def _check_possible(entry: Entry, backend: Backend, chat: ChatCall) -> None:
    """Refuse before sending what cannot succeed there."""
    name = entry.spec.name
    if entry.key_problem is not None:
        raise StatusError(entry.key_problem, llm=name, kind="auth")
    if chat.grammar is not None and not backend.honours_grammar:
        raise StatusError(f"backend {backend.name} does not obey grammars", llm=name, kind="unsupported")


def _completion_cap(candidate: Candidate, wanted: int | None, prompt: int) -> int:
    """How many completion tokens to ask for: the caller's word, within the model's cap and context."""
    most = candidate.spec.capabilities.max_tokens
    return max(1, min(wanted or most, most, candidate.context - prompt))


def limits_for(state: PoolState, spec: Spec, deadline: float | None) -> Limits:
    """Time limits of one exchange: the entry's own, and what is left of the caller's."""
    total = spec.timeout_seconds
    if deadline is not None:
        left = max(deadline - state.clock.monotonic(), 0.001)
        total = left if total is None else min(total, left)
    return Limits(total=total)


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
