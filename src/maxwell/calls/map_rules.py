"""What is decided in a map, from values alone: how many calls at once, which again, which doubled."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from maxwell.calls.chat import FINAL
from maxwell.calls.state import has_budget
from maxwell.decision import Decision, Reason, Scored
from maxwell.errors import AllAttemptsFailed, BackendError, Fault, NoEligibleLM
from maxwell.registry.endpoints import root
from maxwell.registry.specs import LLMSpec

ANY_NUMBER = 16  # calls at once at a server that takes any number of them
AHEAD = 32  # items a slot that may be taken before their turn to be handed out

# Failures that may pass, or that another server does not have.
PASSING: frozenset[Fault] = frozenset(
    ("refused", "server_error", "timeout", "overloaded", "loading", "rate_limited", "broken_stream")
)
# Reasons that a server which was started again no longer has.
OF_THE_MOMENT: frozenset[Reason] = frozenset(("down", "failing", "loading", "rate_limited"))


def room(ranked: Sequence[Scored], running: int, at_most: int | None) -> int:
    """How many calls there may be at once: one for each slot that others leave; never none.

    Args:
        ranked: Who could be called.
        running: Calls of this map that are under way; they are among those that the servers have.
        at_most: The caller's own limit; None = none.
    """
    slots = busy = 0.0
    for scored in {root(s.spec.api_base): s for s in reversed(ranked)}.values():
        if scored.slots is None:
            slots += ANY_NUMBER
        else:
            slots += scored.slots
            busy += scored.in_flight
    others = max(busy - running, 0.0)
    most = max(1, math.floor(slots - others))
    return most if at_most is None else min(most, at_most)


def may_take(ready: int, ahead: int, most: int) -> bool:
    """Whether another item is to be taken while results lie ready and `ahead` items are not handed out yet.

    Whoever reads slowly need not be worked for in advance, and one slow item must not let all slots idle.
    """
    return ready <= most and ahead < AHEAD * most


def may_pass(error: BaseException) -> bool:
    """Whether it is the servers' fault, so that another call may succeed."""
    attempts = error.attempts if isinstance(error, AllAttemptsFailed) else [error]
    kinds = [attempt.kind for attempt in attempts if isinstance(attempt, BackendError)]
    return not PASSING.isdisjoint(kinds) and FINAL.isdisjoint(kinds)


def may_return(error: BaseException) -> bool:
    """Whether nobody could be chosen, and for somebody that may be out of date."""
    return isinstance(error, NoEligibleLM) and error.decision is not None and of_the_moment(error.decision)


def of_the_moment(decision: Decision) -> bool:
    """Whether somebody is left out for a reason that may soon be none."""
    return any(no.reason in OF_THE_MOMENT for no in decision.rejected)


def work_seconds(scored: Scored) -> float:
    """How long it is expected to work on the request, waiting left aside."""
    waits = scored.slowdown * (scored.queue_wait + scored.ready_in)
    return max(scored.seconds - scored.occupancy - waits, 0.0)


def is_free(spec: LLMSpec) -> bool:
    """Whether it may be asked twice for the same: it costs nothing and has no budget."""
    return spec.is_free and not has_budget(spec)


def spare(ranked: Sequence[Scored], at: str, left: float, promised: Mapping[str, int]) -> Scored | None:
    """Who would be done with a request before the one that has it; the soonest of several.

    Args:
        ranked: Who could be called for it.
        at: Root URL of the server that has it.
        left: Seconds that it will probably still take there.
        promised: Calls on their way to servers that do not count them yet, by root URL.
    """
    found = None
    for s in ranked:
        where = root(s.spec.api_base)
        slots = ANY_NUMBER if s.slots is None else s.slots
        idle = s.in_flight + promised.get(where, 0) < slots and not s.queue_wait and not s.ready_in
        if where == at or not idle or not is_free(s.spec) or work_seconds(s) >= left:
            continue
        if found is None or work_seconds(s) < work_seconds(found):
            found = s
    return found


def free_slots(ranked: Sequence[Scored]) -> float:
    """How many more requests the servers of these can begin now."""
    free = 0.0
    for scored in {root(s.spec.api_base): s for s in reversed(ranked)}.values():
        free += ANY_NUMBER if scored.slots is None else max(scored.slots - scored.in_flight, 0.0)
    return free
