"""One queue of prompts over the whole pool, as a flow: whoever has a free slot takes the next one.

Each item is an ordinary call, started beside the flow and booked as any other, so it is decided at that very
moment who takes it. What this module decides is how many calls there are at once, which of them are worth
another try, and which are doubled at the end, when slots are idle and somebody slow is still at work.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from maxwell.calls.chat import Call
from maxwell.calls.effects import Emit, First, Flow, Handle, Send, Sleep, Start, Stop
from maxwell.calls.map_rules import (
    AHEAD,
    free_slots,
    is_free,
    may_pass,
    may_return,
    may_take,
    of_the_moment,
    room,
    spare,
    work_seconds,
)
from maxwell.calls.mapped import Asked, ItemError, Mapped, Plan, Results
from maxwell.calls.obeying import obeying
from maxwell.calls.probe import ask_all
from maxwell.calls.select import choose, insist, learn
from maxwell.calls.state import PoolState
from maxwell.decision import Decision, Request, Scored
from maxwell.queueing import remaining
from maxwell.registry.endpoints import root
from maxwell.registry.specs import LLMSpec
from maxwell.types import Completion

MOST_ROUNDS = 3  # calls made for one item, each with its own attempts
LOOK_AGAIN = 0.25  # seconds between two looks at who has a free slot
ASK_AGAIN = 1.0  # seconds between two rounds of asking everybody, while nobody can be chosen


def mapping(state: PoolState, plan: Plan) -> Flow[None]:
    """Do all items; emits a `Mapped` for each.

    Raises whatever `plan.items` and `plan.progress` raise.
    """
    yield from learn(state, state.llms, _common(plan))
    course = _Course(state, plan)
    while True:
        patience = 0.0 if course.results.has_next() else LOOK_AGAIN
        for handle in (yield First(course.handles(), patience)):
            yield from course.ended(handle)
        yield from course.start()
        if course.results.has_next():
            yield Emit(course.results.next())
        elif not course.runs:
            if not course.waits():
                return
            yield Sleep(ASK_AGAIN)


# --- the course of a map


class _Job:
    """One item on its way to a result.

    Attributes:
        runs: Its calls under way: one, and at the end perhaps its double.
        rounds: Calls made for it, doubles left aside.
        deadline: When it must be over, on the monotonic clock; None = never, or not begun.
        is_doubled: Whether it has ever had a double.
    """

    __slots__ = ("asked", "deadline", "index", "is_doubled", "item", "request", "rounds", "runs")

    def __init__(self, index: int, item: Any, asked: Asked) -> None:
        self.index = index
        self.item = item
        self.asked = asked
        self.request = asked.request()
        self.runs: list[_Run] = []
        self.rounds = 0
        self.deadline: float | None = None
        self.is_doubled = False


class _Run:
    """One call under way.

    Attributes:
        only: The entry that has to take it; None = whoever is best.
        at: Root URL of the server that has it; "" until it was sent.
        since: When it was sent, on the monotonic clock.
        expected: How long it was expected to take there, in seconds.
    """

    __slots__ = ("at", "decision", "expected", "handle", "job", "only", "request", "since")

    handle: Handle
    decision: Decision
    request: Request

    def __init__(self, job: _Job, only: Scored | None = None) -> None:
        self.job = job
        self.only = only
        self.at = ""
        self.since = 0.0
        self.expected = 0.0

    def sent(self, url: str, now: float) -> None:
        """It goes to that server now."""
        scored = {root(s.spec.api_base): s for s in reversed(self.decision.ranked)}
        known = [where for where in scored if url.startswith(where + "/")]
        where = max(known, key=len, default=url)
        self.since = now
        self.expected = work_seconds(scored.get(where, self.decision.ranked[0]))
        self.at = where  # last: it says that the others are known


class _Course:
    """A map under way.

    Attributes:
        runs: The calls under way.
        results: What has come of it so far.
    """

    def __init__(self, state: PoolState, plan: Plan) -> None:
        self.runs: list[_Run] = []
        self.results = Results(ordered=plan.ordered)
        self._state = state
        self._plan = plan
        self._again: deque[_Job] = deque()
        self._aside: deque[_Job] = deque()  # what they need all who could do it are busy with
        self._taken = 0
        self._is_empty = False
        self._asked_at = -math.inf
        self._away_since: float | None = None  # when nobody could be chosen any more
        servers: dict[str, bool] = {}
        for entry in state.llms:
            assert isinstance(entry.spec, LLMSpec)
            servers[entry.endpoint.root] = servers.get(entry.endpoint.root, True) and is_free(entry.spec)
        self._free = {where for where, free in servers.items() if free}

    def handles(self) -> list[Handle]:
        """Those of the calls under way."""
        return [run.handle for run in self.runs]

    def start(self) -> Flow[None]:
        """Start as many calls as there is room for; where there are no more items, doubles of slow ones."""
        ranked = yield from self._anybody()
        if not ranked and self.waits():
            return
        most = room(ranked, len(self.runs), self._plan.at_most)
        while len(self.runs) < most:
            job = self._startable(most)
            if job is not None:
                job.rounds += 1
                yield from self._begin(_Run(job))
            elif self._is_empty and not self._aside and (double := self._double()) is not None:
                double.job.is_doubled = True
                yield from self._begin(double)
            else:
                return

    def waits(self) -> bool:
        """Whether items are left, nobody can be chosen for them, and somebody may soon come back."""
        if self._away_since is None or not (self._again or self._aside or not self._is_empty):
            return False
        return self._state.clock.monotonic() - self._away_since < self._plan.patience

    def _anybody(self) -> Flow[Sequence[Scored]]:
        """Who can be chosen at all. Servers that were well may be started again: nobody gives up at once."""
        decision = self._state.decide(_common(self._plan))
        has_gone_well = self.results.done > self.results.failed
        if decision.ranked or not has_gone_well or not of_the_moment(decision):
            self._away_since = None
            return decision.ranked
        now = self._state.clock.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        yield from self._ask_everybody()
        return self._state.decide(_common(self._plan)).ranked

    def ended(self, handle: Handle) -> Flow[None]:
        """A call has ended."""
        run = next((run for run in self.runs if run.handle is handle), None)
        if run is None:  # stopped meanwhile, because its double was first
            return
        job, error = run.job, handle.error
        self._drop(run)
        if error is None:
            for loser in list(job.runs):
                self._drop(loser)
                yield Stop(loser.handle)
            self._finish(job.index, job.item, completion=handle.result)
        elif not isinstance(error, ItemError):
            raise error
        elif not job.runs:
            if (yield from self._is_worth_another(job, error)):
                self._again.append(job)
            else:
                # Its frames would keep everything alive that the call had in hand.
                self._finish(job.index, job.item, error=error.with_traceback(None))

    def _startable(self, most: int) -> _Job | None:
        """The next that somebody can take. Items that ask for what few can do must not queue for these few
        while others are free for the rest.
        """
        for waiting in self._aside:
            if not self.runs or self._has_room(waiting):
                self._aside.remove(waiting)
                return waiting
        while len(self._aside) < AHEAD and (job := self._next_job(most)) is not None:
            if not self.runs or self._has_room(job):
                return job
            self._aside.append(job)
        return None

    def _has_room(self, job: _Job) -> bool:
        """Whether a server that can do it has a free slot, where it asks for other things than most do."""
        if not self._is_special(job):
            return True
        ranked = self._state.decide(job.request).ranked
        on_their_way = sum(not run.at and self._is_special(run.job) for run in self.runs)
        return not ranked or free_slots(ranked) > on_their_way

    def _is_special(self, job: _Job) -> bool:
        usual = self._plan.usual
        return (job.request.needs, job.request.features) != (usual.needs, usual.features)

    def _next_job(self, most: int) -> _Job | None:
        """The next to be called for; items that are wrong have their result at once."""
        if self._again:
            return self._again.popleft()
        while not self._is_empty and may_take(self.results.ready(), self._taken - self.results.given, most):
            try:
                item = next(self._plan.items)
            except StopIteration:
                self._is_empty = True
                break
            index, self._taken = self._taken, self._taken + 1
            try:
                return _Job(index, item, self._plan.read(item))
            except (TypeError, ValueError, OSError) as error:
                self._finish(index, item, error=error.with_traceback(None))
        return None

    def _begin(self, run: _Run) -> Flow[None]:
        job, now = run.job, self._state.clock.monotonic()
        total = self._plan.total
        backlog = 0 if total is None else total - self._taken + len(self._again) + len(self._aside)
        run.request = msgspec.structs.replace(job.request, backlog=backlog)
        if job.deadline is None and job.asked.seconds is not None:
            job.deadline = now + job.asked.seconds
        run.handle = yield Start(_call(self._state, run))
        self.runs.append(run)
        job.runs.append(run)

    def _drop(self, run: _Run) -> None:
        self.runs.remove(run)
        run.job.runs.remove(run)

    def _finish(
        self,
        index: int,
        item: Any,
        *,
        completion: Completion | None = None,
        error: ItemError | None = None,
    ) -> None:
        self.results.add(Mapped(index=index, item=item, completion=completion, error=error))
        if self._plan.progress is not None:
            self._plan.progress(self.results.done, self.results.failed, self._plan.total)

    def _is_worth_another(self, job: _Job, error: ItemError) -> Flow[bool]:
        """Whether another call for it may succeed, and somebody is left to be called."""
        state = self._state
        if may_return(error) and self.runs:
            job.rounds -= 1  # no call was made, and those under way may yet show that somebody is well
        elif job.rounds >= MOST_ROUNDS or not (may_pass(error) or may_return(error)):
            return False
        if job.deadline is not None and state.clock.monotonic() >= job.deadline:
            return False
        if not state.decide(job.request).ranked:
            yield from self._ask_everybody()
        return bool(self.runs or (yield from self._anybody()) or self.waits())

    def _ask_everybody(self) -> Flow[None]:
        """A server that was down a moment ago may have been started again."""
        state, now = self._state, self._state.clock.monotonic()
        if now - self._asked_at >= ASK_AGAIN:
            self._asked_at = now
            yield from ask_all([e.endpoint for e in state.llms], state.health, state.clock, anew=True)

    def _double(self) -> _Run | None:
        """A second call for the item that takes longest; an idle server must be sooner done with it."""
        now = self._state.clock.monotonic()
        promised = Counter(root(run.only.spec.api_base) for run in self.runs if run.only and not run.at)
        single = [run for run in self.runs if run.at in self._free and not run.job.is_doubled]
        lefts = [(remaining(run.expected, now - run.since), run.job.index, run) for run in single]
        for left, _, run in sorted(lefts, reverse=True):
            found = spare(self._state.decide(run.job.request).ranked, run.at, left, promised)
            if found is not None:
                return _Run(run.job, found)
        return None


def _common(plan: Plan) -> Request:
    """What all items have in common, to know whose slots count."""
    return Request(needs=plan.needs, features=plan.usual.features)


def _call(state: PoolState, run: _Run) -> Flow[Completion]:
    """Choose, and call; see `get_lm` and `LLM.chat`."""
    job, now = run.job, state.clock.monotonic
    name = None if run.only is None else run.only.spec.name
    decision = yield from choose(state, run.request, name=name, prompt=job.asked.prompt)
    run.decision = insist(state, decision)
    call = Call(
        chat=job.asked.chat,
        decision=run.decision,
        pinned=name is not None,
        repair=job.asked.repair,
        seconds=None if job.deadline is None else max(job.deadline - now(), 0.001),
    )
    return (yield from _watched(obeying(state, call), lambda url: run.sent(url, now())))


def _watched(flow: Flow[Completion], sent: Callable[[str], None]) -> Flow[Completion]:
    """`flow`, where `sent` is told each address that it sends to."""
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                done: Completion = stop.value
                return done
            if type(effect) is Send:
                sent(effect.request.url)
            value = error = None
            try:
                value = yield effect
            except Exception as caught:
                error = caught
    finally:
        flow.close()
