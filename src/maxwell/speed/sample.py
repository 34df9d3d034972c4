"""One finished call as it went, and which of its figures can be believed."""

from __future__ import annotations

from msgspec import Struct

LEAST_SPEED, MOST_SPEED = 0.01, 1e6  # tokens per second; what lies outside is nonsense
LEAST_SECONDS, MOST_SECONDS = 0.0001, 86_400.0
MOST_TOKENS = 100_000_000

LEAST_WRITTEN = 8  # tokens of a reply from which its speed is measured
LEAST_WRITING = 0.05  # seconds of it
LEAST_READ = 32  # tokens of a prompt from which its speed is measured; fewer cost one pass of the model
# So many times faster than believed, and in that share of the call: a reply was held back on its way.
WHOLE, WHOLE_SHARE = 16.0, 0.1
HELD_SHARE = 0.1  # of the writing; where a reader held it up for longer, its pace is the reader's


class Sample(Struct, frozen=True, kw_only=True):
    """One call as it went. What is not known is None; nonsense is left out when learning, field by field.

    Attributes:
        total_seconds: From sending to the last byte, or to the cut.
        first_token_seconds: From sending to the first token of the reply, reasoning included.
        prompt_tokens: Tokens of the prompt, cached ones included.
        cached_tokens: How many of them came from the server's cache.
        completion_tokens: Tokens of the reply, reasoning included.
        hidden_tokens: How many of those were generated out of sight, before the first that was seen.
        estimated: The server counted nothing; the token counts are our own.
        server_prompt_tokens: Prompt tokens that the server's own prefill speed is about.
        server_prompt_speed: That speed, in tokens per second.
        server_completion_tokens: Tokens that the server's own generation speed is about.
        server_completion_speed: That speed, in tokens per second.
        held_seconds: How long of the writing the server's words waited for whoever reads them.
        prompt_bytes: UTF-8 bytes of the prompt's text; None where it held more than text (images, tools).
        messages: Number of its messages.
        key: What kind of task it was; lengths are learned for each kind, too. "" = not said.
        running: Other requests that ran at the server when it began; None = not known.
        queued: More requests than the server has slots were running when it began.
        cut: It did not come to its end: cancelled, timed out, broken off.
        capped: The reply ended because its tokens ran out.
        asleep: The server was asleep when it began.
        unusual: Its size was chosen to measure, and says nothing of what is usually asked and answered.
        load_seconds: How long a loading server took to be ready; may be all that a sample holds.
    """

    total_seconds: float | None = None
    first_token_seconds: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    hidden_tokens: int = 0
    estimated: bool = False
    server_prompt_tokens: int | None = None
    server_prompt_speed: float | None = None
    server_completion_tokens: int | None = None
    server_completion_speed: float | None = None
    held_seconds: float = 0.0
    prompt_bytes: int | None = None
    messages: int = 1
    key: str = ""
    running: int | None = None
    queued: bool = False
    cut: bool = False
    capped: bool = False
    asleep: bool = False
    unusual: bool = False
    load_seconds: float | None = None


def sizes_of(sample: Sample) -> Sample:
    """What a call teaches of all entries: the sizes of what is asked and answered."""
    return Sample(
        prompt_tokens=sample.prompt_tokens,
        cached_tokens=sample.cached_tokens,
        completion_tokens=sample.completion_tokens,
        estimated=sample.estimated,
        key=sample.key,
        cut=sample.cut,
        capped=sample.capped,
    )


def tokens(count: float | None, most: float = MOST_TOKENS) -> float | None:
    """`count` where it can be one."""
    return float(count) if count is not None and 0 < count <= most else None


def seconds(value: float | None) -> float | None:
    """`value` where a call can have taken so long."""
    return float(value) if value is not None and LEAST_SECONDS <= value <= MOST_SECONDS else None


def pace(value: float | None) -> float | None:
    """`value` where it can be a speed, in tokens per second."""
    return float(value) if value is not None and LEAST_SPEED <= value <= MOST_SPEED else None


def fresh_tokens(sample: Sample) -> float | None:
    """Prompt tokens that had to be read."""
    total = tokens(sample.prompt_tokens)
    return None if total is None else total - min(tokens(sample.cached_tokens) or 0.0, total)


def first_seconds(sample: Sample) -> float | None:
    """Seconds to the first token."""
    first, total = seconds(sample.first_token_seconds), seconds(sample.total_seconds)
    return first if first is not None and total is not None and first <= total else None


def silent_seconds(sample: Sample) -> float | None:
    """How long a call waited in vain for a first token, where it was cut before one came."""
    return seconds(sample.total_seconds) if sample.cut and sample.first_token_seconds is None else None


def told(sample: Sample, count: int | None, speed: float | None) -> tuple[float, float] | None:
    """Tokens and speed as the server measured them, unless that took longer than the whole call."""
    known, rate, total = tokens(count), pace(speed), seconds(sample.total_seconds)
    if known is None or rate is None or (total is not None and known / rate > 1.05 * total + LEAST_WRITING):
        return None
    return known, rate


def told_reading(sample: Sample) -> tuple[float, float] | None:
    """Tokens read and prefill speed, as the server measured them."""
    return told(sample, sample.server_prompt_tokens, sample.server_prompt_speed)


def told_writing(sample: Sample) -> tuple[float, float] | None:
    """Tokens written and generation speed, as the server measured them; None for too few of them."""
    found = told(sample, sample.server_completion_tokens, sample.server_completion_speed)
    return found if found is not None and found[0] >= LEAST_WRITTEN else None


def seen_writing(sample: Sample) -> tuple[float, float] | None:
    """Tokens that came after the first one, and the seconds they took, maybe 0; None where it is not told."""
    first, total, count = first_seconds(sample), sample.total_seconds, tokens(sample.completion_tokens)
    if first is None or total is None or count is None:
        return None
    if not 0 <= sample.hidden_tokens <= count - LEAST_WRITTEN:
        return None
    if not sample.held_seconds <= HELD_SHARE * (total - first):
        return None
    return count - sample.hidden_tokens - 1.0, total - first


def came_whole(sample: Sample, speed: float) -> bool:
    """Whether the reply came in one piece, so that its first token arrived with its last."""
    writing, total = seen_writing(sample), sample.total_seconds
    if writing is None or total is None:
        return False
    return writing[1] < WHOLE_SHARE * total and writing[0] > WHOLE * speed * writing[1]
