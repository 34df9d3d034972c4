"""One chat call as a flow: try the chosen LLM, and the next best where another one can mend the failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import msgspec

from maxwell.calls.attempt import attempt
from maxwell.calls.effects import Flow
from maxwell.calls.select import learn
from maxwell.calls.state import Entry, PoolState
from maxwell.errors import AllAttemptsFailed, BackendError, BudgetExceeded, Fault, StreamBroken
from maxwell.scheduler import Decision, Request, decide
from maxwell.types import ChatCall, Completion

MOST_ATTEMPTS = 3

# Failures that another server cannot mend: the request itself is at fault.
FINAL: frozenset[Fault] = frozenset(("bad_request", "content_policy"))


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One chat call with everything around it.

    Attributes:
        chat: What is asked.
        decision: Who was chosen, and who else could answer.
        pinned: Whether only the chosen one may answer.
        stream: Whether text is to be emitted as it comes.
        seconds: Longest the call may take in all, attempts together; None = no limit.
    """

    chat: ChatCall
    decision: Decision
    pinned: bool = False
    stream: bool = False
    seconds: float | None = None


def chat(state: PoolState, call: Call) -> Flow[Completion]:
    """Make the call; on a failure that another LLM can mend, the next best takes it.

    Emits the text's pieces (`str`) when `call.stream`.

    Raises:
        BackendError: The one attempt made failed.
        AllAttemptsFailed: Several did.
        BudgetExceeded: No budget has room for it.
        StreamBroken: The reply broke off after content had begun.
    """
    deadline = None if call.seconds is None else state.clock.monotonic() + call.seconds
    most = call.decision.request.needs.max_completion
    failed: list[BackendError] = []
    refused: BudgetExceeded | None = None
    tried: list[str] = []
    entry: Entry | None = state.llm(call.decision.ranked[0].spec.name)
    while entry is not None and len(failed) < MOST_ATTEMPTS:
        tried.append(entry.spec.name)
        try:
            reply = yield from attempt(state, entry, call.chat, most, deadline, emit=call.stream)
            return reply.completion(state.clock.monotonic(), tried)
        except StreamBroken:
            raise
        except BudgetExceeded as error:
            refused = error
        except BackendError as error:
            failed.append(error)
            state.health.note_fault(entry.endpoint, error.kind, error.message, error.retry_after)
        if call.pinned or _is_final(failed) or _is_past(deadline, state):
            break
        entry = yield from _next(state, call, tried, failed)
    _give_up(failed, refused)


def _is_final(failed: Sequence[BackendError]) -> bool:
    return bool(failed) and failed[-1].kind in FINAL


def _is_past(deadline: float | None, state: PoolState) -> bool:
    return deadline is not None and state.clock.monotonic() >= deadline


def _give_up(failed: Sequence[BackendError], refused: BudgetExceeded | None) -> NoReturn:
    """The one failure as it is; several as one error that names them all."""
    if len(failed) > 1:
        raise AllAttemptsFailed(failed) from failed[-1]
    if failed:
        raise failed[0]
    assert refused is not None
    raise refused


def _next(
    state: PoolState, call: Call, tried: Sequence[str], failed: Sequence[BackendError]
) -> Flow[Entry | None]:
    """The best LLM not tried yet, by every rule again and by what is known now; asks who was never asked."""
    untried = [e for e in state.llms if e.spec.name not in tried]
    request = _request(call)
    yield from learn(state, untried, request)
    candidates = state.candidates(untried)
    if failed and failed[-1].kind == "context_overflow":
        least = state.candidate(state.llm(failed[-1].llm)).context
        candidates = [c for c in candidates if c.context > least]
    best = decide(candidates, request).chosen
    return None if best is None else state.llm(best.spec.name)


def _request(call: Call) -> Request:
    """What the choice was made for, and what the call adds to it."""
    needs = call.decision.request.needs
    if call.chat.tools and needs.tools is None:
        needs = msgspec.structs.replace(needs, tools=True)
    return msgspec.structs.replace(call.decision.request, needs=needs, grammar=call.chat.grammar is not None)
