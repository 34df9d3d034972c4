"""One chat call as a flow: try the chosen LLM, and the next best where another one can mend the failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import msgspec

from maxwell.calls.attempt import Task, attempt
from maxwell.calls.effects import Flow
from maxwell.calls.probe import PROBE_SECONDS
from maxwell.calls.select import learn
from maxwell.calls.state import Entry, PoolState
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    Fault,
    LedgerError,
    StreamBroken,
)
from maxwell.receipts.record import Record
from maxwell.scheduler import Decision, Request, decide
from maxwell.tokens import IMAGE_TOKENS, TEMPLATE_TOKENS_PER_MESSAGE, measure
from maxwell.types import ChatCall, Completion

MOST_ATTEMPTS = 3

# Failures that another server cannot mend: the request itself is at fault.
FINAL: frozenset[Fault] = frozenset(("bad_request", "content_policy"))

# Failures of a server, whichever of its models was asked.
OF_SERVER: frozenset[Fault] = frozenset(("refused", "timeout", "overloaded", "server_error", "bad_reply"))


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
    """Make the call and keep its receipt; on a failure that another LLM can mend, the next best takes it.

    Emits the text's pieces (`str`) when `call.stream`.

    Raises:
        BackendError: The one attempt made failed.
        AllAttemptsFailed: Several did.
        BudgetExceeded: No budget has room for it.
        LedgerError: What could answer has a budget, and the books cannot be kept.
        StreamBroken: The reply broke off after content had begun.
    """
    with state.receipts.chat(call.decision, call.chat.messages) as record:
        done = yield from _chat(state, call, record)
        record.answered(done)
        return done


def _chat(state: PoolState, call: Call, record: Record) -> Flow[Completion]:
    """One attempt after another."""
    deadline = None if call.seconds is None else state.clock.monotonic() + call.seconds
    failed: list[BackendError] = []
    refused: BudgetExceeded | LedgerError | None = None
    tried: list[str] = []
    task = Task(
        chat=call.chat,
        most=call.decision.request.needs.max_completion,
        bytes_per_token=call.decision.request.bytes_per_token,
        deadline=deadline,
        emit=call.stream,
        tried=tried,
        record=record,
    )
    entry: Entry | None = state.llm(call.decision.ranked[0].spec.name)
    while entry is not None and len(failed) < MOST_ATTEMPTS:
        tried.append(entry.spec.name)
        try:
            with record.attempt(entry.spec):
                return (yield from attempt(state, entry, task))
        except StreamBroken:
            raise
        except (BudgetExceeded, LedgerError) as error:
            refused = error
        except BackendError as error:
            failed.append(error)
            state.health.note_fault(entry.endpoint, error.kind, record.words_of(error), error.retry_after)
        if call.pinned or _is_final(failed) or _is_past(deadline, state):
            break
        entry = yield from _next(state, call, tried, failed, deadline)
    _give_up(failed, refused)


def _is_final(failed: Sequence[BackendError]) -> bool:
    return bool(failed) and failed[-1].kind in FINAL


def _is_past(deadline: float | None, state: PoolState) -> bool:
    return deadline is not None and state.clock.monotonic() >= deadline


def _give_up(failed: Sequence[BackendError], refused: BudgetExceeded | LedgerError | None) -> NoReturn:
    """The one failure as it is; several as one error that names them all."""
    if len(failed) > 1:
        raise AllAttemptsFailed(failed) from failed[-1]
    if failed:
        raise failed[0]
    assert refused is not None
    raise refused


def _next(
    state: PoolState,
    call: Call,
    tried: Sequence[str],
    failed: Sequence[BackendError],
    deadline: float | None,
) -> Flow[Entry | None]:
    """The best LLM not tried yet, by every rule again and by what is known now; asks who was never asked.

    A server that has just failed is left alone as long as there is another one.
    """
    untried = [e for e in state.llms if e.spec.name not in tried]
    request = _request(call)
    left = PROBE_SECONDS if deadline is None else deadline - state.clock.monotonic()
    yield from learn(state, untried, request, seconds=max(0.0, min(left, PROBE_SECONDS)))
    candidates = state.candidates(untried)
    overflowed = [state.llm(f.llm) for f in failed if f.kind == "context_overflow"]
    if overflowed:
        least = max(state.candidate(entry).context for entry in overflowed)
        candidates = [c for c in candidates if c.context > least]
    # Where an estimate excludes everybody, the servers say themselves what fits; a refusal costs nothing.
    unsized = msgspec.structs.replace(request, prompt_bytes=None)
    ranked = decide(candidates, request).ranked or decide(candidates, unsized).ranked
    ranking = [state.llm(s.spec.name) for s in ranked]
    used = {state.llm(f.llm).endpoint.root for f in failed if f.kind in OF_SERVER}
    fresh = [entry for entry in ranking if entry.endpoint.root not in used]
    return next(iter(fresh or ranking), None)


def _request(call: Call) -> Request:
    """What the choice was made for, and what the call is known to need by now."""
    chosen_for, chat = call.decision.request, call.chat
    needs = chosen_for.needs
    size = measure(chat.messages, chat.tools)
    if chat.tools and needs.tools is None:
        needs = msgspec.structs.replace(needs, tools=True)
    if size.images and needs.vision is None:
        needs = msgspec.structs.replace(needs, vision=True)
    if chat.max_tokens is not None:
        needs = msgspec.structs.replace(needs, max_completion=chat.max_tokens)
    return msgspec.structs.replace(
        chosen_for,
        needs=needs,
        prompt_bytes=size.text_bytes,
        prompt_tokens={},
        extra_tokens=size.messages * TEMPLATE_TOKENS_PER_MESSAGE + size.images * IMAGE_TOKENS,
        by_speed=call.decision.by == "speed",
        grammar=chat.grammar is not None,
    )
