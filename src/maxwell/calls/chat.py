"""One chat call as a flow: try the chosen LLM, and the next best where another one can mend the failure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

import msgspec

from maxwell.calls.admission import Flight, Place, Wish, admit, has_other
from maxwell.calls.attempt import Task, attempt
from maxwell.calls.effects import Flow, Sleep
from maxwell.calls.entries import Entry
from maxwell.calls.retries import backoff, is_worth_waiting, may_ask_again
from maxwell.calls.state import PoolState, task_of
from maxwell.decision import Decision, Request
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    CallTimeout,
    ConstraintBroken,
    Fault,
    LedgerError,
    StreamBroken,
)
from maxwell.prefixes import blocks, text_of
from maxwell.receipts.record import Record
from maxwell.requirements import chat_request
from maxwell.tokens import PromptSize, measure
from maxwell.types import ChatCall, Completion

MOST_ATTEMPTS = 3

# Failures that another server cannot mend: the request itself is at fault.
FINAL: frozenset[Fault] = frozenset(("bad_request", "content_policy"))

# Failures of a server, whichever of its models was asked.
OF_SERVER: frozenset[Fault] = frozenset(
    ("refused", "timeout", "overloaded", "server_error", "bad_reply", "broken_stream")
)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One chat call with everything around it.

    Attributes:
        chat: What is asked.
        decision: Who was chosen, and who else could answer.
        pinned: Whether only the chosen one may answer.
        stream: Whether text is to be emitted as it comes.
        repair: Whether a reply that breaks its constraint is sent back, so that nobody else is asked.
        measuring: Whether its size was chosen to measure, and says nothing of usual calls.
        seconds: Longest the call may take in all, attempts together; None = no limit.
    """

    chat: ChatCall
    decision: Decision
    pinned: bool = False
    stream: bool = False
    repair: bool = False
    measuring: bool = False
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
        ConstraintBroken: The reply does not obey its constraint.
        ReplyCutOff: The tokens ran out before a constrained reply was complete.
    """
    with state.receipts.chat(call.decision, call.chat.messages) as record:
        done = yield from _chat(state, call, record)
        record.answered(done)
        return done


def _chat(state: PoolState, call: Call, record: Record) -> Flow[Completion]:
    """One attempt after another."""
    course = _Course(state, call)
    state.retries.earn()
    first = state.llm(call.decision.ranked[0].spec.name)
    wish: Wish | None = course.wish([[first]] if call.pinned else [state.llms], bound=first)
    while wish is not None:
        with Flight(state) as flight:
            try:
                place = yield from admit(state, flight, wish, record)
            except CallTimeout as error:  # it was held until its time was over
                course.failed.append(error)
                break
            if place is None:
                wish = yield from course.again()
                continue
            task = course.task(place, wish, record)
            try:
                with record.attempt(place.entry.spec):
                    return (yield from attempt(state, place, task))
            except (StreamBroken, ConstraintBroken) as error:
                # What was shown cannot be taken back.
                if call.stream or (call.repair and isinstance(error, ConstraintBroken)):
                    raise
                course.failed.append(error)
            except (BudgetExceeded, LedgerError) as error:
                course.refused = error
            except BackendError as error:
                course.failed.append(error)
        wish = course.next() if course.may_go_on() else None
    course.give_up()


class _Course:
    """What has come of a call so far, and who may be asked next.

    Attributes:
        failed: The failures, in order.
        refused: Why the books did not allow it, the last time.
        tried: Names of those asked, in order.
    """

    def __init__(self, state: PoolState, call: Call) -> None:
        self._state = state
        self._call = call
        self._size = measure(call.chat.messages, call.chat.tools)
        self._request = _request(call, self._size)
        self._deadline = None if call.seconds is None else state.clock.monotonic() + call.seconds
        self.failed: list[BackendError] = []
        self.refused: BudgetExceeded | LedgerError | None = None
        self.tried: list[str] = []

    def wish(
        self, tiers: Sequence[Sequence[Entry]], *, bound: Entry | None = None, thrifty: bool = False
    ) -> Wish:
        """What the next attempt may be given."""
        return Wish(
            request=self._request,
            bound=bound,
            tiers=tiers,
            more_than=self._too_little_context(),
            deadline=self._deadline,
            thrifty=thrifty,
        )

    def task(self, place: Place, wish: Wish, record: Record) -> Task:
        """What is asked of the one who takes the call."""
        self.tried.append(place.entry.spec.name)
        asked_for = self._call.decision.request
        may_share = self._deadline is not None and len(self.failed) + 1 < MOST_ATTEMPTS
        return Task(
            chat=self._call.chat,
            size=self._size,
            features=self._request.features,
            key=task_of(self._request),
            prefix=self._request.prefix,
            most=asked_for.needs.max_completion,
            bytes_per_token=asked_for.bytes_per_token,
            deadline=self._deadline,
            shares_time=may_share and has_other(self._state, wish, place.entry),
            emit=self._call.stream,
            measuring=self._call.measuring,
            tried=self.tried,
            record=record,
        )

    def may_go_on(self) -> bool:
        """Whether another attempt could mend it, and there is time for one."""
        if len(self.failed) >= MOST_ATTEMPTS or (self.failed and self.failed[-1].kind in FINAL):
            return False
        return self._deadline is None or self._state.clock.monotonic() < self._deadline

    def next(self) -> Wish:
        """Those not asked yet, by every rule again; on servers that have not failed, if there is one."""
        untried = [] if self._call.pinned else [e for e in self._state.llms if e.spec.name not in self.tried]
        used = {self._state.llm(f.llm).endpoint.root for f in self.failed if f.kind in OF_SERVER}
        fresh = [e for e in untried if e.endpoint.root not in used]
        rest = [e for e in untried if e.endpoint.root in used]
        tiers = [tier for tier in (fresh, rest) if tier]
        # Only a real retry takes one from the bucket: a budget's refusal has cost nobody anything.
        thrifty = bool(tiers and self.failed) and self.refused is None and not self._state.retries.take()
        return self.wish(tiers, thrifty=thrifty)

    def again(self) -> Flow[Wish | None]:
        """Nobody else may take it: after a while the last one asked once more, if that may help."""
        if not self.failed:
            return None
        error = self.failed[-1]
        entry = self._state.llm(error.llm)
        asked = self.tried.count(error.llm)
        if not may_ask_again(error.kind, asked):
            return None
        candidate = self._state.candidates([entry])[0]
        pause = backoff(asked, self._state.draw())
        left = math.inf if self._deadline is None else self._deadline - self._state.clock.monotonic()
        is_worth = is_worth_waiting(candidate.state, candidate.ready_in, pause, left)
        if not is_worth or not self._state.retries.take():
            return None
        yield Sleep(pause)
        return self.wish([], bound=entry)

    def give_up(self) -> NoReturn:
        """The one failure as it is; those of several servers as one error that names them all."""
        if len({error.llm for error in self.failed}) > 1:
            raise AllAttemptsFailed(self.failed) from self.failed[-1]
        if self.failed:
            # That the time ran out for a last try tells less than what went wrong before it.
            telling = [error for error in self.failed if not isinstance(error, CallTimeout)]
            raise (telling or self.failed)[-1]
        assert self.refused is not None
        raise self.refused

    def _too_little_context(self) -> int:
        """The largest context that has proved too small."""
        overflowed = [self._state.llm(f.llm) for f in self.failed if f.kind == "context_overflow"]
        return max([self._state.candidate(entry).context for entry in overflowed], default=0)


def _request(call: Call, size: PromptSize) -> Request:
    """What the choice was made for, and what the call is known to need by now."""
    chosen_for = call.decision.request
    return msgspec.structs.replace(
        chat_request(call.chat, chosen_for.needs, size),
        bytes_per_token=chosen_for.bytes_per_token,
        backlog=chosen_for.backlog,
        by_speed=call.decision.by == "speed",
        prefix=blocks(text_of(call.chat.messages)),
    )
