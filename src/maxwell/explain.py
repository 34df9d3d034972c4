"""A decision in words: where it would flip, what would help when nothing is eligible. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import Struct

from maxwell.scheduler import MAX_WEIGHT, Candidate, Decision, Request, Scored, decide, duration


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

    A score is a straight line in the weight, so two candidates change places where their lines cross.
    """
    best = decision.chosen
    if best is None or decision.by == "speed":
        return []
    used = decision.request.needs.time_cost_weight
    below: Flip | None = None
    above: Flip | None = None
    for other in decision.ranked[1:]:
        slope = best.seconds - other.seconds
        if slope == 0:
            continue
        weight = (_fixed(best) - _fixed(other)) / slope
        if used < weight < MAX_WEIGHT and (above is None or weight < above.weight):
            above = Flip(weight, other.spec.name)
        elif 0 < weight < used and (below is None or weight > below.weight):
            below = Flip(weight, other.spec.name)
    return [f for f in (below, above) if f is not None]


def _fixed(scored: Scored) -> float:
    """The part of the score that does not depend on the weight."""
    return scored.utilization_bonus - scored.mills


def ways_out(candidates: Sequence[Candidate], decision: Decision) -> list[str]:
    """What would make something eligible, nearest first. Empty when something is."""
    if decision.ranked:
        return []
    out = _relaxed(candidates, decision.request)
    for no in decision.rejected:
        name = no.spec.name
        if no.reason == "context":
            out.append(f"trim {no.need - no.have:,.0f} tokens to fit {name}")
        elif no.reason == "budget":
            out.append(f"{name}: budget resets in {duration(no.resets_in)}")
        elif no.reason == "loading":
            out.append(f"wait for {name}, it is loading")
        elif no.reason == "down":
            out.append(f"start {name} at {no.spec.api_base}")
        elif no.reason == "max_completion":
            out.append(f"ask {name} for at most {no.have:,.0f} tokens")
    return out


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
            price = f" for ${best.mills / 1000:.4f}" if best.mills else ""
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
