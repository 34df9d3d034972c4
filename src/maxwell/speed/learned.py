"""What calls teach about one entry, and what to expect of it therefore."""

from __future__ import annotations

import math

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from maxwell.registry.specs import PREFILL_FACTOR, LLMSpec
from maxwell.speed.filters import (
    JITTER,
    NOISE,
    Arrivals,
    Mean,
    Rate,
    arrived,
    assumed,
    observed,
)
from maxwell.speed.sample import (
    LEAST_READ,
    LEAST_SECONDS,
    LEAST_SPEED,
    LEAST_WRITING,
    MOST_SPEED,
    Sample,
    came_whole,
    first_seconds,
    fresh_tokens,
    pace,
    seconds,
    seen_writing,
    silent_seconds,
    tokens,
    told_reading,
    told_writing,
)
from maxwell.speed.sizes import (
    USUAL_CALLS,
    Text,
    assumed_length,
    length_of,
    likely_length,
    possible_length,
    with_prompt,
    with_reply,
)
from maxwell.speed.slots import Slots, is_late
from maxwell.tokens import USUAL_PROMPT

# What is assumed of an entry before anything was observed.
LIKELY_OVERHEAD = 0.1  # seconds; only where learning begins: unobserved, none is predicted
LIKELY_LOAD = 30.0  # seconds from loading to ready
LIKELY_WAKE = 5.0  # seconds that a sleeping server needs more than an awake one

COLD_NOISE = 0.4**2  # a model loads from the disk or from the system's cache
COUNT_NOISE = 0.3**2  # of tokens that we counted, and of replies that came in one piece


class Learned(Struct, frozen=True, omit_defaults=True):
    """All that calls taught about one entry. Plain data: JSON keeps it as it is.

    Attributes:
        generation: Generation speed in tokens per second.
        prefill: Prefill speed in tokens per second, as the server measured it.
        overhead: Seconds to the first token besides the reading that the server measured.
        arrivals: Both of these, of a server that does not measure.
        load: Seconds from loading to ready.
        wake: Seconds that a sleeping server needs more than an awake one.
        text: Bytes per token.
        lengths: Tokens of replies that came to their own end, by task; "" is all of them.
        prompts: Prompt tokens that had to be read.
        replies: Tokens of replies, however they ended.
        slots: How many requests the server works at.
    """

    generation: Rate | None = None
    prefill: Rate | None = None
    overhead: Rate | None = None
    arrivals: Arrivals | None = None
    load: Rate | None = None
    wake: Rate | None = None
    text: Text = Text()
    lengths: dict[str, Mean] = {}
    prompts: Mean = Mean()
    replies: Mean = Mean()
    slots: Slots = Slots()


class Seen(Struct, frozen=True):
    """How many observations each of `Speeds` rests on; 0 = it is declared or assumed."""

    speed: int = 0
    prefill: int = 0
    overhead: int = 0
    service: int = 0
    completion: int = 0
    bytes_per_token: int = 0
    load: int = 0
    wake: int = 0


class Speeds(Struct, frozen=True, kw_only=True):
    """What to expect of an entry.

    Attributes:
        speed: Generation speed in tokens per second.
        prefill: Prefill speed in tokens per second.
        overhead: Seconds to the first token besides reading the prompt; 0 until observed.
        service: Seconds that a usual request occupies a slot, waiting not included.
        completion: Likely tokens of a reply, no more than the entry's cap.
        bytes_per_token: UTF-8 bytes of text that make one token.
        load: Seconds from loading to ready.
        wake: Seconds that a sleeping server needs more than an awake one.
        slots: Requests its server works at, by when calls had to wait; None = not known.
        seen: How many observations each rests on.
    """

    speed: float
    prefill: float
    overhead: float
    service: float
    completion: float
    bytes_per_token: float
    load: float
    wake: float
    slots: int | None = None
    seen: Seen


def speeds_of(
    learned: Learned,
    spec: LLMSpec,
    key: str = "",
    usual: Learned | None = None,
    now: float | None = None,
) -> Speeds:
    """What to expect of `spec`: as observed, where it was, else as declared or assumed.

    Args:
        learned: What calls taught about it.
        spec: The entry.
        key: What kind of task the length of a reply is wanted for; "" = any.
        usual: What calls of all entries together taught of sizes; None = not known.
        now: For when, in seconds since the epoch: what is worse than usual is believed for some minutes only;
            None = for when it was last observed.
    """
    speed, prefill = _speed(learned, spec, now), _prefill(learned, spec, now)
    overhead = _overhead(learned, now) or 0.0
    prompt, reply = _usual_sizes(learned, spec, usual)
    return Speeds(
        speed=speed,
        prefill=prefill,
        overhead=overhead,
        service=overhead + prompt / prefill + reply / speed,
        completion=likely_length(learned.lengths, spec, key, None if usual is None else usual.lengths),
        bytes_per_token=learned.text.bytes_per_token,
        load=LIKELY_LOAD if learned.load is None else learned.load.value,
        wake=LIKELY_WAKE if learned.wake is None else learned.wake.value,
        slots=learned.slots.number,
        seen=_seen(learned, key, usual or learned),
    )


def _usual_sizes(learned: Learned, spec: LLMSpec, usual: Learned | None) -> tuple[float, float]:
    """Tokens that have to be read, and tokens of a reply, of a request as others make it."""
    prompt, reply = float(USUAL_PROMPT), assumed_length(spec)
    if usual is None:
        return learned.prompts.shrunk(prompt), learned.replies.shrunk(reply)
    return (
        learned.prompts.shrunk(usual.prompts.shrunk(prompt), USUAL_CALLS),
        learned.replies.shrunk(usual.replies.shrunk(reply), USUAL_CALLS),
    )


def _seen(learned: Learned, key: str, usual: Learned) -> Seen:
    by_clock, arrivals = _is_told(learned), learned.arrivals
    return Seen(
        speed=_times(learned.generation),
        prefill=_times(learned.prefill) if by_clock or arrivals is None else arrivals.read,
        overhead=_times(learned.overhead) if by_clock else _times(arrivals),
        service=learned.replies.seen or usual.replies.seen,
        completion=_times(length_of(learned.lengths, key) or length_of(usual.lengths, key)),
        bytes_per_token=learned.text.seen,
        load=_times(learned.load),
        wake=_times(learned.wake),
    )


def _times(quantity: Rate | Arrivals | Mean | None) -> int:
    return 0 if quantity is None else quantity.seen


def learn(learned: Learned, sample: Sample, spec: LLMSpec, now: float) -> Learned:
    """`learned`, and what one more call teaches. A plain fold; the order of calls matters little.

    Args:
        learned: What earlier calls taught.
        sample: How the call went.
        spec: The entry; what it declares is where learning begins.
        now: When the call ended, in seconds since the epoch.
    """
    now = now if 0.0 <= now <= 1e11 else 0.0
    text = with_prompt(learned.text, sample)
    reply = None if sample.unusual else possible_length(sample, spec)
    lengths = learned.lengths if reply is None else with_reply(learned.lengths, sample, spec, reply)
    if sample.load_seconds is not None or sample.asleep:
        # A server that has just begun is slow in every way, which tells nothing about later calls.
        load, wake = _load(learned, sample, now), _wake(learned, sample, spec, now)
        return replace(learned, load=load, wake=wake, text=text, lengths=lengths)
    fresh, slots, running = fresh_tokens(sample), learned.slots, sample.running
    whole = came_whole(sample, _speed(learned, spec))
    if running is not None and running >= 0 and not whole:
        late = _late(learned, sample, spec)
        if late is not False and slots.has_begun_below(running):
            sample = replace(
                sample, queued=True
            )  # perhaps; a queue that grows slowly must not pass for a start
        if late is not None:
            slots = slots.plus(running, late, now)
    generation = _generation(learned, sample, spec, now, whole=whole)
    learned = replace(learned, generation=generation)
    prefill, overhead, arrivals = learned.prefill, learned.overhead, learned.arrivals
    reading = told_reading(sample)
    if reading is not None:
        prefill = _told_prefill(learned, reading, spec, now)
        overhead = _told_overhead(learned, reading, sample, now)
    elif not (whole or sample.queued or sample.hidden_tokens or (sample.cut and _is_told(learned))):
        # A server that measures tells nothing when a reply is cut; its earlier figures are still the best.
        arrivals = _arrivals(learned, sample, spec, now)
    return Learned(
        generation=generation,
        prefill=prefill,
        overhead=overhead,
        arrivals=arrivals,
        load=learned.load,
        wake=learned.wake,
        text=text,
        lengths=lengths,
        prompts=learned.prompts if fresh is None or sample.unusual else learned.prompts.plus(fresh),
        replies=learned.replies if reply is None else learned.replies.plus(reply),
        slots=slots,
    )


def to_json(learned: Learned) -> bytes:
    """The form in which it is kept."""
    return msgspec.json.encode(learned)


def from_json(data: bytes | str) -> Learned:
    """What `to_json` made. Fields it does not know are passed over; nonsense is as good as nothing."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeError):
        return Learned()


_decode = msgspec.json.Decoder(Learned).decode


# --- what is believed at present


def _speed(learned: Learned, spec: LLMSpec, now: float | None = None) -> float:
    if learned.generation is None:
        return spec.capabilities.speed_tokens_per_sec
    return learned.generation.believed(now, high_is_good=True)


def _is_told(learned: Learned) -> bool:
    """Whether the server's own figures are the latest there are: another server may stand there by now."""
    arrivals = learned.arrivals
    told = [rate.at for rate in (learned.prefill, learned.overhead) if rate is not None]
    return bool(told) and (arrivals is None or arrivals.at <= max(told))


def _prefill(learned: Learned, spec: LLMSpec, now: float | None = None) -> float:
    if learned.prefill is not None and _is_told(learned):
        return learned.prefill.believed(now, high_is_good=True)
    if learned.arrivals is not None:
        return 1.0 / learned.arrivals.believed(now)[1]
    return spec.capabilities.prefill_tokens_per_sec or PREFILL_FACTOR * _speed(learned, spec, now)


def _overhead(learned: Learned, now: float | None = None) -> float | None:
    if _is_told(learned):
        return None if learned.overhead is None else learned.overhead.believed(now, high_is_good=False)
    return None if learned.arrivals is None else learned.arrivals.believed(now)[0]


def _first_token(learned: Learned, spec: LLMSpec, fresh: float) -> float:
    """Expected seconds to the first token."""
    overhead = _overhead(learned)
    return (LIKELY_OVERHEAD if overhead is None else overhead) + fresh / _prefill(learned, spec)


def _sane(speed: float) -> float:
    """A declared speed may be any number; learning begins at one that can be true."""
    return max(LEAST_SPEED, min(speed, MOST_SPEED))


# --- generation


def _generation(learned: Learned, sample: Sample, spec: LLMSpec, now: float, *, whole: bool) -> Rate | None:
    """The generation speed by the server's clock, else by how the tokens arrived."""
    by_clock = told_writing(sample)
    if by_clock is not None:
        value, noise = by_clock[1], NOISE
    else:
        found = _by_remainder(learned, sample, spec) if whole else _by_arrival(sample)
        if found is None:
            return learned.generation
        value, noise = found
    before = learned.generation or Rate(math.log(_sane(_speed(learned, spec))))
    if sample.estimated:
        noise += COUNT_NOISE
    after = observed(before, value, noise, now, at_most=sample.cut)
    return learned.generation if after is before else after


def _by_arrival(sample: Sample) -> tuple[float, float] | None:
    """Generation speed, and how noisy it is, by the time from the first token to the last."""
    writing = seen_writing(sample)
    if writing is None or writing[1] < LEAST_WRITING:
        return None
    count, spent = writing
    value = pace(count / spent)
    # The first piece of a reply may hold a few tokens.
    return None if value is None else (value, NOISE + (2.0 / count) ** 2 + (JITTER / spent) ** 2)


def _by_remainder(learned: Learned, sample: Sample, spec: LLMSpec) -> tuple[float, float] | None:
    """The same for a reply that came in one piece: what reading is not expected to have taken."""
    fresh, total = fresh_tokens(sample), seconds(sample.total_seconds)
    count = tokens(sample.completion_tokens)
    if fresh is None or total is None or count is None or sample.queued:
        return None
    left = total - _first_token(learned, spec, fresh)
    value = pace(count / left) if left > max(total / 2, LEAST_WRITING) else None
    return None if value is None else (value, NOISE + COUNT_NOISE)


# --- reading and beginning


def _told_prefill(learned: Learned, reading: tuple[float, float], spec: LLMSpec, now: float) -> Rate | None:
    """The prefill speed by the server's clock. Short prompts tell less: they cost one pass of the model."""
    count, speed = reading
    if count < LEAST_READ:
        return learned.prefill
    before = learned.prefill or Rate(math.log(_sane(_prefill(learned, spec))))
    return observed(before, speed, NOISE + (LEAST_READ / count) ** 2, now)


def _told_overhead(learned: Learned, reading: tuple[float, float], sample: Sample, now: float) -> Rate | None:
    """What the first token took besides the reading that the server measured."""
    first = first_seconds(sample)
    left = None if first is None else seconds(first - reading[0] / reading[1])
    if left is None or sample.queued or sample.hidden_tokens:
        return learned.overhead
    before = learned.overhead or Rate(math.log(max(_overhead(learned) or LIKELY_OVERHEAD, LEAST_SECONDS)))
    return observed(before, left, NOISE + (JITTER / left) ** 2, now)


def _arrivals(learned: Learned, sample: Sample, spec: LLMSpec, now: float) -> Arrivals | None:
    """Overhead and prefill speed by when the first token arrived, or was still not there."""
    fresh, first, silent = fresh_tokens(sample), first_seconds(sample), silent_seconds(sample)
    if fresh is None:
        return learned.arrivals
    before = learned.arrivals or assumed(LIKELY_OVERHEAD, 1.0 / _sane(_prefill(learned, spec)))
    if first is None and silent is not None and silent > before.seconds(fresh):
        first = silent
    if first is None or fresh > MOST_SPEED * first:
        return learned.arrivals
    return arrived(before, fresh, first, now)


def _late(learned: Learned, sample: Sample, spec: LLMSpec) -> bool | None:
    """Whether the first token had to wait for other requests to end; None = cannot be told."""
    first, fresh, overhead = first_seconds(sample), fresh_tokens(sample), _overhead(learned)
    if first is None or fresh is None or sample.hidden_tokens:
        return None
    if overhead is None:
        return None if sample.running else False  # the first one seen; where nobody else was, it had its slot
    reading = told_reading(sample)
    if reading is None:
        return is_late(first, _first_token(learned, spec, fresh))
    return is_late(first, overhead + reading[0] / reading[1])


# --- cold starts


def _load(learned: Learned, sample: Sample, now: float) -> Rate | None:
    """Time to ready."""
    return _cold(learned.load, LIKELY_LOAD, sample.load_seconds, now)


def _wake(learned: Learned, sample: Sample, spec: LLMSpec, now: float) -> Rate | None:
    """Time to wake: what the first token took longer than from a server awake."""
    fresh, first = fresh_tokens(sample), first_seconds(sample)
    if not sample.asleep or fresh is None or first is None or sample.queued or sample.hidden_tokens:
        return learned.wake
    return _cold(learned.wake, LIKELY_WAKE, first - _first_token(learned, spec, fresh), now)


def _cold(rate: Rate | None, likely: float, value: float | None, now: float) -> Rate | None:
    took = seconds(value)
    return rate if took is None else observed(rate or Rate(math.log(likely)), took, COLD_NOISE, now)
