"""Quantities that are followed through noise and drift. Numbers only: what they mean stands elsewhere."""

from __future__ import annotations

import math
from typing import Annotated

from msgspec import Meta, Struct

PRIOR = math.log(4.0) ** 2  # variance of a log: what is assumed may be wrong by a factor of 4
NOISE = 0.15**2  # one call's speed differs from the next by 15%
JITTER = 0.02  # seconds; networks and event loops move an arrival by so much
DRIFT_A_CALL = 0.0005
DRIFT_AN_HOUR = 0.3**2  # another job on the GPU, another model in the server
MOST_SIGMAS = 2.5  # an observation counts as no further away than this
STRANGE_SIGMAS = 2.0
STRANGE_IN_A_ROW = 3  # are news, not noise: what was believed counts as little as at the beginning
MOST_NEWS = 2.0  # but the last of them, which may be an outlier, as no further off than twice the nearest

PRIOR_OVERHEAD = 1.0  # standard deviation in seconds, at the least: networks, proxies, templates
PRIOR_FACTOR = 4.0  # standard deviation of the seconds a token, in what is assumed of them
LEAST_OVERHEAD = 0.01  # seconds; drift is a share of at least this
LEAST_SHARE = 0.02  # of the time to a first token is spent reading, however short the prompt

USUAL_GAIN = 0.03  # of each observation, in what is usual
FADE_SECONDS = 300.0  # in which what is worse than usual has come two thirds of the way back, unobserved

MEMORY = 0.98  # what an earlier observation of a mean counts, one call later
PRIOR_CALLS = 8.0  # what is assumed of a mean counts as so many observations

Log = Annotated[float, Meta(ge=-50.0, le=50.0)]
Variance = Annotated[float, Meta(gt=0.0, le=1e12)]
Positive = Annotated[float, Meta(gt=0.0, le=1e12)]
Amount = Annotated[float, Meta(ge=0.0, le=1e12)]
Count = Annotated[int, Meta(ge=0)]


class Rate(Struct, frozen=True, gc=False):
    """A positive quantity, followed on its logarithm by a Kalman filter.

    Attributes:
        log: Its natural logarithm.
        variance: How uncertain that is.
        at: When it was last observed, in seconds since the epoch.
        strange: How many observations in a row were far off; negative where they were lower.
        nearest: How far off the nearest of these was.
        seen: Number of observations.
        usual: What the logarithm has been for long; None = not observed.
    """

    log: Log
    variance: Variance = PRIOR
    at: Amount = 0.0
    strange: int = 0
    nearest: Amount = 0.0
    seen: Count = 0
    usual: Log | None = None

    @property
    def value(self) -> float:
        """The quantity, when it was last observed."""
        return math.exp(self.log)

    def believed(self, now: float | None, *, high_is_good: bool) -> float:
        """The quantity at `now`; None = when it was last observed.

        Nobody asks a server that became slow, so nobody would learn that it is well again: what is worse than
        usual fades to what is usual while nothing is observed.
        """
        if now is None or self.usual is None:
            return self.value
        worse = self.usual - self.log if high_is_good else self.log - self.usual
        if worse <= 0.0:
            return self.value
        better = worse * _faded(self.at, now)
        return math.exp(self.log + better if high_is_good else self.log - better)


def observed(rate: Rate, value: float, noise: float, now: float, *, at_most: bool = False) -> Rate:
    """`rate` after an observation.

    Args:
        rate: What is believed.
        value: What was observed, > 0.
        noise: Variance of its logarithm.
        now: When, in seconds since the epoch.
        at_most: The true value is `value` or less: nothing is learned where less is believed already.
    """
    off = math.log(value) - rate.log
    if at_most and off >= 0.0:
        return rate
    variance = min(rate.variance + _drift(rate.at, now), PRIOR)
    strange, nearest = _strange(rate, off, math.sqrt(variance + noise))
    if abs(strange) >= STRANGE_IN_A_ROW:
        variance, strange, off = PRIOR, 0, _between(off, MOST_NEWS * nearest)
    sigma, gain = math.sqrt(variance + noise), variance / (variance + noise)
    log = rate.log + gain * _between(off, MOST_SIGMAS * sigma)
    usual = _usual(rate.log if rate.usual is None else rate.usual, log, rate.seen)
    return Rate(log, (1.0 - gain) * variance, max(now, rate.at), strange, nearest, rate.seen + 1, usual)


class Arrivals(Struct, frozen=True, gc=False):
    """What first tokens tell about a server, which is only a sum:

        seconds to the first token = overhead + tokens to read * seconds a token

    Followed by a Kalman filter with these two states. Not on logarithms: where one part is much larger
    than the other, those would give the error to the wrong one and be certain of it.

    Attributes:
        overhead: Seconds.
        per_token: Seconds.
        overhead_variance: Uncertainty of the one.
        per_token_variance: Uncertainty of the other.
        covariance: How far they may be wrong together.
        at: When last observed, in seconds since the epoch.
        strange: How many in a row were far off; negative where they came sooner.
        nearest: How far off the nearest of these was, as a logarithm.
        seen: Number of observations.
        read: How many of them were spent mostly reading.
        usual_overhead: What the overhead has been for long; None = not observed.
        usual_per_token: The same of the seconds a token.
    """

    overhead: Amount
    per_token: Positive
    overhead_variance: Variance
    per_token_variance: Variance
    covariance: float = 0.0
    at: Amount = 0.0
    strange: int = 0
    nearest: Amount = 0.0
    seen: Count = 0
    read: Count = 0
    usual_overhead: Amount | None = None
    usual_per_token: Positive | None = None

    def believed(self, now: float | None) -> tuple[float, float]:
        """Overhead and seconds a token at `now`, as `Rate.believed` has it; None = when last observed."""
        if now is None or self.usual_overhead is None or self.usual_per_token is None:
            return self.overhead, self.per_token
        faded = _faded(self.at, now)
        return (
            self.overhead - faded * max(self.overhead - self.usual_overhead, 0.0),
            self.per_token - faded * max(self.per_token - self.usual_per_token, 0.0),
        )

    def seconds(self, tokens: float) -> float:
        """Expected time to the first token after so many tokens to read."""
        return self.overhead + tokens * self.per_token


def assumed(overhead: float, per_token: float) -> Arrivals:
    """What is believed before any first token arrived."""
    return Arrivals(overhead, per_token, *_prior(overhead, per_token))


def arrived(before: Arrivals, tokens: float, seconds: float, now: float) -> Arrivals:
    """After a first token that came `seconds` after a prompt with so many tokens to read."""
    o, x = before.overhead, before.per_token
    expected = max(o + tokens * x, 1e-6)
    # Noise is a share of the expected time. But where it took far longer, that was too short a time.
    noise = NOISE * max(expected, seconds / 3) ** 2 + JITTER**2
    vo, vx, c = _grown(before, now)
    sigma = math.sqrt(vo + 2 * c * tokens + vx * tokens**2 + noise)
    strange, nearest = _strange(before, seconds - expected, sigma, math.log(seconds / expected))
    if abs(strange) >= STRANGE_IN_A_ROW:
        seconds = expected * math.exp(_between(math.log(seconds / expected), MOST_NEWS * nearest))
        vo, vx = _prior(max(o, seconds), max(x, seconds / (PRIOR_FACTOR * max(tokens, 1.0))))
        c, strange = 0.0, 0
    to, tx = vo + c * tokens, c + vx * tokens
    spread = to + tokens * tx + noise
    off = _between(seconds - expected, MOST_SIGMAS * math.sqrt(spread))
    o, x = o + to / spread * off, x + tx / spread * off
    vo, vx = max(vo - to * to / spread, 1e-10), max(vx - tx * tx / spread, 1e-20)
    c -= to * tx / spread
    o, x = _possible(before, tokens, seconds, (o, x), (c / vo, c / vx))
    read = before.read + (2.0 * tokens * x > seconds)
    before_o = before.overhead if before.usual_overhead is None else before.usual_overhead
    before_x = before.per_token if before.usual_per_token is None else before.usual_per_token
    usual = _usual(before_o, o, before.seen), _usual(before_x, x, before.seen)
    return Arrivals(o, x, vo, vx, c, max(now, before.at), strange, nearest, before.seen + 1, read, *usual)


def _prior(overhead: float, per_token: float) -> tuple[float, float]:
    return max(PRIOR_OVERHEAD, overhead) ** 2, (PRIOR_FACTOR * per_token) ** 2


def _grown(a: Arrivals, now: float) -> tuple[float, float, float]:
    """Both variances and the covariance: nothing is as certain as it was at the last call."""
    drift = _drift(a.at, now)
    most_o, most_x = _prior(a.overhead, a.per_token)
    vo, vx = a.overhead_variance, a.per_token_variance
    vo = max(vo, min(vo + drift * max(a.overhead, LEAST_OVERHEAD) ** 2, most_o))
    vx = max(vx, min(vx + drift * a.per_token**2, most_x))
    most = 0.9999 * math.sqrt(vo * vx)
    return vo, vx, max(-most, min(a.covariance, most))


def _possible(
    before: Arrivals, tokens: float, seconds: float, after: tuple[float, float], ties: tuple[float, float]
) -> tuple[float, float]:
    """`after`, but neither part below nothing or above the whole, if it was not before; the other follows.

    Args:
        before: What was believed.
        tokens: Tokens that were read.
        seconds: The whole.
        after: Overhead and seconds a token, as the filter has them.
        ties: How much the seconds a token follow the overhead, and the overhead them.
    """
    overhead, per_token = after
    most = max(before.overhead, seconds)
    bounded = max(0.0, min(overhead, most))
    per_token += ties[0] * (bounded - overhead)
    if tokens < 1.0:
        return bounded, before.per_token
    whole = seconds / tokens
    possible = max(min(before.per_token, LEAST_SHARE * whole), min(per_token, max(before.per_token, whole)))
    return max(0.0, min(bounded + ties[1] * (possible - per_token), most)), possible


class Mean(Struct, frozen=True, gc=False):
    """A mean that forgets.

    Attributes:
        mean: Of what was observed.
        weight: How many observations it still stands for.
        seen: Number of observations.
    """

    mean: Amount = 0.0
    weight: Amount = 0.0
    seen: Count = 0

    def plus(self, value: float) -> Mean:
        """The mean with one more observation."""
        weight = self.weight * MEMORY + 1.0
        return Mean(self.mean + (value - self.mean) / weight, weight, self.seen + 1)

    def shrunk(self, assumed: float, calls: float = PRIOR_CALLS) -> float:
        """The mean, drawn to what was assumed, as long as few observations stand against so many `calls`."""
        return (calls * assumed + self.seen * self.mean) / (calls + self.seen)


def _usual(usual: float, value: float, seen: int) -> float:
    """A slow mean: of few observations the plain one, later one of some thirty."""
    return usual + max(USUAL_GAIN, 1.0 / (seen + 1)) * (value - usual)


def _faded(at: float, now: float) -> float:
    """How much of the way back to what is usual, since the last observation; 0 to 1."""
    return 1.0 - math.exp(-max(now - at, 0.0) / FADE_SECONDS)


def _drift(at: float, now: float) -> float:
    """Variance that a log gains from one observation to the next."""
    return DRIFT_A_CALL + (DRIFT_AN_HOUR * max(now - at, 0.0) / 3600.0 if at else 0.0)


def _strange(
    before: Rate | Arrivals, off: float, sigma: float, log: float | None = None
) -> tuple[int, float]:
    """How many observations in a row were far off on the same side, and the nearest of them, with this one.

    Args:
        before: What is believed.
        off: How far off this one is.
        sigma: How far off one usually is, in the same unit.
        log: `off` as a logarithm, where it is none.
    """
    if abs(off) <= STRANGE_SIGMAS * sigma:
        return 0, 0.0
    far, side = abs(off if log is None else log), 1 if off > 0 else -1
    return (before.strange + side, min(before.nearest, far)) if before.strange * side > 0 else (side, far)


def _between(value: float, most: float) -> float:
    """`value`, but no further from 0 than `most`."""
    return max(-most, min(value, most))
