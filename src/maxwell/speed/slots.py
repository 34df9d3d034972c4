"""How many requests a server works at, learned from when its first tokens come late.

Beside so many others a call either begins at once or waits for one of them to end. Where the one turns into
the other, there the slots end.
"""

from __future__ import annotations

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
HALF_LIFE = 6 * 3600.0  # seconds in which an observation loses half its weight: servers are set up anew

Beside = Annotated[int, Meta(ge=0, le=MOST_RUNNING)]
Number = Annotated[int, Meta(ge=1, le=MOST_RUNNING)]


class Slots(Struct, frozen=True, omit_defaults=True):
    """What was seen, by the number of other requests that ran.

    Attributes:
        at_once: Calls that began at once.
        late: Calls that waited.
        at: When the latest was observed, in seconds since the epoch.
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
        faded = 0.5 ** (max(now - self.at, 0.0) / HALF_LIFE)
        at_once = {n: w * faded for n, w in self.at_once.items() if w * faded > 0.01}
        waited = {n: w * faded for n, w in self.late.items() if w * faded > 0.01}
        beside = min(running, MOST_RUNNING)
        kept = 1.0 - 1.0 / LATEST
        for seen, hit in ((at_once, not late), (waited, late)):
            weight = seen.get(beside, 0.0) * kept + hit
            if weight:
                seen[beside] = weight
        return Slots(at_once, waited, max(now, self.at), _number(at_once, waited))


def is_late(seconds: float, expected: float) -> bool | None:
    """Whether a first token that came after `seconds` had to wait; None = cannot be told."""
    off = seconds - expected
    if off > max(LATE * expected, LEAST_LATE):
        return True
    return False if off <= max(EARLY * expected, MOST_EARLY) else None


def _number(at_once: dict[int, float], late: dict[int, float]) -> int | None:
    """The slots. Where several numbers fit, the largest: using it shows whether it is too large."""
    best, least = None, float("inf")
    for number in range(1, max((*at_once, *late), default=0) + 1):
        below = _share(at_once, late, range(number))
        above = _share(late, at_once, range(number, MOST_RUNNING + 1))
        is_sure = all(fit >= ENOUGH and fit >= AGREED * (fit + fail) for fit, fail in (below, above))
        if is_sure and below[1] + above[1] <= least:
            best, least = number, below[1] + above[1]
    return best


def _share(fits: dict[int, float], fails: dict[int, float], where: range) -> tuple[float, float]:
    """Weight of the observations there that fit, and of those that do not."""
    return (
        sum(w for n, w in fits.items() if n in where),
        sum(w for n, w in fails.items() if n in where),
    )
