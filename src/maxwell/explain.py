"""A decision in words: where it would flip, what would help when nothing is eligible. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.amounts import duration, money
from maxwell.scheduler import (
    LEAST_COMPLETION,
    MAX_WEIGHT,
    Candidate,
    Decision,
    Rejected,
    Request,
    Scored,
    decide,
)


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
    several that cross at one weight, the steepest wins beyond it.
    """
    best = decision.chosen
    if best is None or decision.by == "speed":
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


def _fixed(scored: Scored) -> float:
    """The part of the score that does not depend on the weight."""
    return scored.utilization_bonus - scored.mills


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
    if no.reason == "loading":
        return 2, 0, f"wait for {name}, it is loading"
    if no.reason == "rate_limited":
        return 2, 1, f"wait for {name}, it is rate limited"
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
        if value == anything:
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
