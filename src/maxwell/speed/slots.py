"""How many requests a server works at, learned from when its first tokens come late.

Beside so many others a call either begins at once or waits for one of them to end. Where the one turns into
the other, there the slots end.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from msgspec import Meta, Struct

from maxwell.speed.filters import Amount

MOST_RUNNING = 64  # who runs beside more others than this, counts as beside so many
LATE = 2.0  # times the expected time, and
LEAST_LATE = 0.1  # seconds too late: it waited
EARLY = 0.5  # times the expected time, or
MOST_EARLY = 0.05  # seconds too late: it did not; in between nobody knows
ENOUGH = 2.5  # observations below, and as many above, before a number is believed; three lately are enough
AGREED = 0.7  # and such a share of them must fit to it
LATELY = 0.5  # of an observation's weight is left
LATEST = 10.0  # observations beside one number of others that count; the older ones are forgotten
KEPT = 1.0 - 1.0 / LATEST
FADE_SECONDS = 60.0  # how often time takes its share
HALF_LIFE = 6 * 3600.0  # seconds in which an observation loses half its weight: servers are set up anew

Beside = Annotated[int, Meta(ge=0, le=MOST_RUNNING)]
Number = Annotated[int, Meta(ge=1, le=MOST_RUNNING)]


class Slots(Struct, frozen=True, omit_defaults=True):
    """What was seen, by the number of other requests that ran.

    Attributes:
        at_once: Calls that began at once.
        late: Calls that waited.
        at: Until when time has taken its share of them, in seconds since the epoch.
        number: The slots that follow from it; None until calls were seen to begin at once beside fewer, and
            to wait beside as many.
    """

    at_once: dict[Beside, Amount] = {}
    late: dict[Beside, Amount] = {}
    at: Amount = 0.0
    number: Number | None = None

    def has_begun_below(self, running: int) -> bool:
        """Whether a call was lately seen to begin at once beside fewer others than this."""
        return sum(w for n, w in self.at_once.items() if n < running) >= LATELY

    def plus(self, running: int, late: bool, now: float) -> Slots:
        """With one more call, that began beside `running` others."""
        at_once, waited, at = self._faded(now)
        beside = min(running, MOST_RUNNING)
        for seen, hit in ((at_once, not late), (waited, late)):
            weight = seen.get(beside, 0.0) * KEPT + hit
            if weight:
                seen[beside] = weight
        return Slots(at_once, waited, at, _number(at_once, waited))

    def _faded(self, now: float) -> tuple[dict[int, float], dict[int, float], float]:
        """Copies of both, with what time took of them, and the time up to which it did."""
        elapsed = max(now - self.at, 0.0)
        if elapsed < FADE_SECONDS:
            return dict(self.at_once), dict(self.late), self.at
        share = 0.5 ** (elapsed / HALF_LIFE)
        at_once, late = (
            {n: w * share for n, w in seen.items() if w * share > 0.01} for seen in (self.at_once, self.late)
        )
        return at_once, late, now


def is_late(seconds: float, expected: float) -> bool | None:
    """Whether a first token that came after `seconds` had to wait; None = cannot be told."""
    off = seconds - expected
    if off > max(LATE * expected, LEAST_LATE):
        return True
    return False if off <= max(EARLY * expected, MOST_EARLY) else None


def _number(at_once: dict[int, float], late: dict[int, float]) -> int | None:
    """The slots. Where several numbers fit, the largest: using it shows whether it is too large."""
    above_fit, above_fail = sum(late.values()), sum(at_once.values())
    below_fit = below_fail = 0.0
    if min(above_fit, above_fail) < ENOUGH:
        return None
    best, least = None, float("inf")
    seen = sorted({**at_once, **late})
    for highest, number in pairwise(seen):  # so many calls begin at once beside up to `highest` others
        begun, waited = at_once.get(highest, 0.0), late.get(highest, 0.0)
        below_fit, below_fail = below_fit + begun, below_fail + waited
        above_fit, above_fail = above_fit - waited, above_fail - begun
        wrong = below_fail + above_fail
        if wrong <= least and _is_sure(below_fit, below_fail) and _is_sure(above_fit, above_fail):
            best, least = number, wrong
    return best


def _is_sure(fit: float, fail: float) -> bool:
    return fit >= ENOUGH and fit >= AGREED * (fit + fail)
