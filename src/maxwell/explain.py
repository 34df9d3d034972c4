"""A decision in words: where it would flip, what would help when nothing is eligible. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from maxwell.amounts import duration, money
from maxwell.decision import Candidate, Decision, Rejected, Request, Scored
from maxwell.scheduler import LEAST_COMPLETION, MAX_WEIGHT, PASSING, decide

LEAST_TOLD = 0.05  # of the seconds saved: less of them saved to others is not worth words


class Flip(Struct, frozen=True):
    """A weight at which another LLM would be chosen.

    Attributes:
        weight: The `time_cost_weight`, 0 to 10.
        name: Who would be chosen beyond it.
    """

    weight: float
    name: str


def flips(decision: Decision) -> list[Flip]:
    """The nearest weights below and above the one used at which the choice would change, lower one first.

    A score is a straight line in the weight, so two candidates change places where their lines cross. Of
    several that cross at one weight, the steepest wins beyond it. Where chance has decided between servers
    whose load is not known, no weight would change the choice.
    """
    best = decision.chosen
    if best is None or decision.by != "score" or is_by_lot(decision.ranked):
        return []
    used = decision.request.needs.time_cost_weight
    below: list[tuple[float, float, str]] = []
    above: list[tuple[float, float, str]] = []
    for other in decision.ranked[1:]:
        gain = best.seconds - other.seconds
        if gain == 0:
            continue
        weight = (_fixed(best) - _fixed(other)) / gain
        if gain > 0:
            above.append((max(weight, used), -gain, other.spec.name))
        else:
            below.append((-min(weight, used), gain, other.spec.name))
    found = [Flip(-weight, name) for weight, _, name in sorted(below)[:1] if -weight > 0]
    return found + [Flip(weight, name) for weight, _, name in sorted(above)[:1] if weight < MAX_WEIGHT]


class _WithScore(Protocol):
    @property
    def score(self) -> float: ...


def is_by_lot(ranked: Sequence[_WithScore]) -> bool:
    """Whether chance has put the first of them, ranked by score, before better ones."""
    return any(s.score > ranked[0].score for s in ranked[1:2])


def _fixed(scored: Scored) -> float:
    """The part of the score that does not depend on the weight."""
    return scored.utilization_bonus - scored.mills


class _Standing(Protocol):
    """How a candidate's server stood: of a decision (`Scored`) or of a receipt."""

    @property
    def state(self) -> str: ...
    @property
    def failing(self) -> bool: ...
    @property
    def queue_wait(self) -> float: ...
    @property
    def ready_in(self) -> float: ...
    @property
    def slowdown(self) -> float: ...
    @property
    def in_flight(self) -> float: ...
    @property
    def slots(self) -> int | None: ...


def delay(s: _Standing) -> float:
    """Seconds until its server would begin."""
    return s.slowdown * (s.queue_wait + s.ready_in)


def standing(s: _Standing) -> str:
    """What is special about its server now: "busy (2 of 2 slots; about 14 s)"; "" where nothing is."""
    facts = ["failing"] if s.failing else []
    if s.ready_in:
        facts.append(_passing(s.state, duration(s.slowdown * s.ready_in)))
    if s.queue_wait:
        facts.append(f"busy ({_slots(s)}about {duration(s.slowdown * s.queue_wait)})")
    elif s.in_flight and s.slots is not None:
        facts.append(f"{math.ceil(s.in_flight):,} of {_plural(s.slots)} busy")
    if s.slowdown != 1:
        facts.append(f"{s.slowdown:.2g} times slower than usual")
    return ", ".join(facts)


def _passing(state: str, when: str) -> str:
    if state == "rate_limited":
        return f"rate-limited (for about {when})"
    return f"{state} ({'awake' if state == 'asleep' else 'ready'} in about {when})"


def _slots(s: _Standing) -> str:
    if s.slots is None or not s.in_flight:
        return ""
    behind = math.ceil(s.in_flight) - s.slots
    return f"{s.slots:,} of {_plural(s.slots)}{f', {behind:,} waiting' if behind > 0 else ''}; "


def _plural(slots: int) -> str:
    return f"{slots:,} slot{'' if slots == 1 else 's'}"


def wait_or_spend(decision: Decision) -> str | None:
    """One sentence on why to wait for the best one, or to pay for it rather than to wait for a cheaper one.

    None where neither has to be done. The seconds compared are those of the score: until the last token, with
    what a slot costs those that come after.
    """
    best = decision.chosen
    if best is None:
        return None
    if not delay(best):
        passed = _rather_waited_for(decision, best)
        return None if passed is None else _spending(decision, best, passed)
    lead = f"{best.spec.name} is {standing(best)}:"
    if decision.by == "name":
        return f"{lead} waiting, because it is the one you named."
    sooner = next((s for s in decision.ranked[1:] if delay(s) < delay(best)), None)
    if sooner is None:
        return f"{lead} waiting, because nobody else can begin sooner."
    return f"{lead} {_worth_waiting(decision, best, sooner)}: waiting."


def _rather_waited_for(decision: Decision, best: Scored) -> Scored | None:
    """The best of those that cost less than `best` and would be chosen if they had not to be waited for."""
    weight = decision.request.needs.time_cost_weight
    for s in decision.ranked[1:]:
        if not delay(s):
            continue
        if decision.by == "speed":
            if s.spec.is_free and not best.spec.is_free and s.speed > best.speed:
                return s
        elif s.mills < best.mills and s.score + weight * (delay(s) + s.occupancy) > best.score:
            return s
    return None


def _spending(decision: Decision, best: Scored, passed: Scored) -> str | None:
    lead = f"{passed.spec.name} is {standing(passed)}:"
    if decision.by == "speed":
        return f"{lead} {best.spec.name} can begin at once, and costs money: spending."
    weight = decision.request.needs.time_cost_weight
    if weight * (passed.seconds - best.seconds) < best.mills - passed.mills:
        return None  # the bonus has decided
    gain = f"{best.spec.name} saves {_saved(passed, best, weight)}"
    return f"{lead} {gain}, and costs {_more(best, passed)}: spending."


def _worth_waiting(decision: Decision, best: Scored, sooner: Scored) -> str:
    """What would be had instead of `best`, which must be waited for."""
    name, weight = sooner.spec.name, decision.request.needs.time_cost_weight
    lost = best.seconds - sooner.seconds
    if lost > 0 and sooner.mills > best.mills:
        return f"{name} would save {_saved(best, sooner, weight)}, but costs {_more(sooner, best)}"
    if lost >= 0:
        why = "was drawn by lot" if sooner.score > best.score else "fills its context better"
        return f"{name} would save {_figure(lost)} s, but {best.spec.name} {why}"
    dearer = f", which costs {_more(sooner, best)}" if sooner.mills > best.mills else ""
    earlier = _own(sooner) - _own(best)
    if earlier > 0:
        return f"even so it is done {_figure(earlier)} s before {name}{dearer}"
    spared = _figure(sooner.occupancy - best.occupancy)
    return f"even so it costs other calls {spared} s less than {name}{dearer}"


def _own(s: Scored) -> float:
    """Seconds until the last token, without what it costs others."""
    return s.seconds - s.occupancy


def _saved(later: Scored, sooner: Scored, weight: float) -> str:
    """What is saved by the sooner one, in seconds and in mills; how much of it is saved to others."""
    seconds, others = later.seconds - sooner.seconds, later.occupancy - sooner.occupancy
    shared = f" ({_figure(others)} s of them to other calls)" if others >= LEAST_TOLD * seconds else ""
    return f"{_figure(seconds)} s{shared}, worth {_mills(weight * seconds)} at weight {weight:g}"


def _more(one: Scored, other: Scored) -> str:
    return f"{_mills(one.mills - other.mills)}{' more' if other.mills else ''}"


def _mills(value: float) -> str:
    figure = _figure(value)
    return f"{figure} mill{'' if figure == '1' else 's'}"


def _figure(value: float) -> str:
    """Three digits are enough, and 1e+03 is none that people read."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{float(f'{value:.3g}'):.10f}".rstrip("0").rstrip(".")


def ways_out(candidates: Sequence[Candidate], decision: Decision) -> list[str]:
    """What would make something eligible, nearest first. Empty when something is."""
    if decision.ranked:
        return []
    asked = decision.request.needs.max_completion
    found = [way for no in decision.rejected if (way := _way(no, asked)) is not None]
    return _relaxed(candidates, decision.request) + [text for _, _, text in sorted(found)]


def _way(no: Rejected, asked: int | None) -> tuple[int, float, str] | None:
    """What would make one LLM eligible, with how near that is: its kind, then its amount."""
    name = no.spec.name
    completion = asked or min(LEAST_COMPLETION, no.spec.capabilities.max_tokens)
    if no.reason == "context":
        excess, prompt = no.need - no.have, no.need - completion
        if excess < prompt:
            return 1, excess, f"trim {excess:,.0f} tokens to fit {name}"
        return 1, excess, f"ask {name} for at most {no.have - prompt:,.0f} tokens"
    if no.reason == "max_completion":
        return 1, no.need - no.have, f"ask {name} for at most {no.have:,.0f} tokens"
    if no.reason in PASSING:
        is_, then = (
            ("loading", "ready in about") if no.reason == "loading" else ("rate-limited", "ask again in")
        )
        if no.resets_in:
            return 2, no.resets_in, f"{name} is {is_}: {then} {duration(no.resets_in)}"
        return 2, math.inf, f"wait for {name}, it is {is_}"
    if no.reason == "budget":
        return 3, no.resets_in, f"{name}: budget resets in {duration(no.resets_in)}"
    if no.reason == "down":
        return 4, 0, f"start {name} at {no.spec.api_base}"
    return None


_RELAXABLE: tuple[tuple[str, Any], ...] = (
    ("min_speed", None),
    ("min_context", None),
    ("tier", None),
    ("tags", ()),
    ("code_specialized", None),
    ("reasoning", None),
    ("tools", None),
    ("vision", None),
)


def _relaxed(candidates: Sequence[Candidate], request: Request) -> list[str]:
    """For each single requirement: what could be chosen without it."""
    out = []
    for field, anything in _RELAXABLE:
        value = getattr(request.needs, field)
        demanded = {"vision": request.features.images, "tools": request.features.tools}  # by the call itself
        if value == anything or demanded.get(field):
            continue
        needs = msgspec.structs.replace(request.needs, **{field: anything})
        best = decide(candidates, msgspec.structs.replace(request, needs=needs)).chosen
        if best is not None:
            price = f" for {money(best.mills / 1000)}" if best.mills else ""
            out.append(f"without {field}={_shown(value)}: fits {best.spec.name}{price}")
    return out


def _shown(value: Any) -> str:
    return ",".join(value) if isinstance(value, tuple) else str(value)


def refusal(candidates: Sequence[Candidate], decision: Decision, *, most: int = 12) -> str:
    """One sentence: every entry with its reason, then the ways out. At most `most` entries are spelt out."""
    if not candidates:
        return "no LLM can be chosen: the registry declares none"
    reasons = [f"{no.spec.name}: {no.detail}" for no in decision.rejected[:most]]
    more = len(decision.rejected) - most
    if more > 0:
        reasons.append(f"and {more} more (see `maxwell explain`)")
    text = "no LLM can be chosen: " + "; ".join(reasons)
    out = ways_out(candidates, decision)
    return text + (". Ways out: " + "; ".join(out[:4]) if out else "")
