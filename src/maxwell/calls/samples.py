"""What a reply teaches about the entry that gave it, as it ended. Pure."""

from __future__ import annotations

from msgspec import Struct

from maxwell.calls.reply import Reply
from maxwell.speed import Sample
from maxwell.tokens import BYTES_PER_TOKEN
from maxwell.types import Usage


class Sent(Struct, frozen=True, kw_only=True):
    """What went out, and how its server was at that moment.

    Attributes:
        prompt_bytes: UTF-8 bytes of the prompt's text; None where it held more than text (images, tools).
        messages: Number of its messages.
        key: What kind of task it is; "" = not said.
        running: Other requests that ran at the server, as far as known; None = not known.
        queued: It is known to have no free slot.
        asleep: The server was asleep.
    """

    prompt_bytes: int | None = None
    messages: int = 1
    key: str = ""
    running: int | None = None
    queued: bool = False
    asleep: bool = False


def sample_of(
    reply: Reply, sent: Sent, now: float, *, cut: bool = False, failed: bool = False
) -> Sample | None:
    """How a call went, once its request had gone out; None where that teaches nothing.

    Args:
        reply: What came, `reply.began` being when the request went out.
        sent: What went out.
        now: When it ended, on the monotonic clock.
        cut: The caller left, or had no more time, before the end.
        failed: The server failed: refused, fell silent, broke off. Without a word of the reply that is the
            breaker's business: how long it took says nothing of how fast the server is when it works.
    """
    if failed and not reply.has_content:
        return None
    whole = not (cut or failed)
    usage, timings = reply.usage, reply.timings
    hidden = usage.reasoning_tokens if whole and not reply.has_reasoning else None
    return Sample(
        total_seconds=_ended(reply, now, left=cut and not failed) - reply.began,
        first_token_seconds=None if reply.first is None else reply.first - reply.began,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=_cached(reply, usage),
        completion_tokens=_written(reply, usage, whole=whole),
        hidden_tokens=hidden or 0,
        estimated=usage.estimated,
        server_prompt_tokens=timings.prompt_n if timings else None,
        server_prompt_speed=timings.prompt_per_second if timings else None,
        server_completion_tokens=timings.predicted_n if timings else None,
        server_completion_speed=timings.predicted_per_second if timings else None,
        held_seconds=reply.held,
        prompt_bytes=sent.prompt_bytes,
        messages=sent.messages,
        key=sent.key,
        running=sent.running,
        queued=sent.queued,
        cut=not whole,
        capped=reply.finish_reason == "length",
        asleep=sent.asleep,
    )


def _ended(reply: Reply, now: float, *, left: bool) -> float:
    """When the last token came. What follows it (usage, the end of the body) is no writing, and where a
    server fell silent, neither is the silence; but whoever left had waited for a token until then.
    """
    return now if left or reply.last is None else reply.last


def _cached(reply: Reply, usage: Usage) -> int | None:
    """Prompt tokens from the cache; older llama.cpp tells them in its timings alone."""
    if usage.cached_tokens is not None or usage.estimated or reply.timings is None:
        return usage.cached_tokens
    read = reply.timings.prompt_n
    return None if read is None else max(usage.prompt_tokens - read, 0)


def _written(reply: Reply, usage: Usage, *, whole: bool) -> int:
    """Tokens of the reply. What a server reported before it was cut off may be of an earlier moment.

    Unlike in the books, a count of our own is to be likely, not safe.
    """
    if whole and not usage.estimated:
        return usage.completion_tokens
    seen = reply.seen_tokens(BYTES_PER_TOKEN)
    return seen if usage.estimated else max(seen, usage.completion_tokens)
