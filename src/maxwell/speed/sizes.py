"""How large things are: bytes of a token, tokens of a reply."""

from __future__ import annotations

from msgspec import Struct

from maxwell.registry.specs import LLMSpec
from maxwell.speed.filters import MEMORY, Amount, Count, Mean
from maxwell.speed.sample import Sample, tokens
from maxwell.tokens import BYTES_PER_TOKEN, DEFAULT_COMPLETION

LEAST_TEXT = 200  # bytes of a prompt from which bytes per token are learned
MOST_TEXT = 500.0  # one prompt counts as no more tokens than this
TEXT_PRIOR = 200.0  # the assumed bytes per token count as so many tokens
MESSAGE_TOKENS, REPLY_TOKENS = 5, 4  # what templates write around a message, and before the reply
LEAST_BYTES, MOST_BYTES = 1.0, 16.0  # per token; outside of that something else was counted

USUAL_CALLS = 50.0  # what is usual for all entries together counts as so many replies of one

MOST_KEYS = 32
MOST_KEY = 64  # characters


class Text(Struct, frozen=True, gc=False):
    """Bytes and tokens of prompts, both forgetting alike.

    Attributes:
        bytes: UTF-8 bytes.
        tokens: What a tokenizer made of them.
        seen: Number of prompts.
    """

    bytes: Amount = 0.0
    tokens: Amount = 0.0
    seen: Count = 0

    @property
    def bytes_per_token(self) -> float:
        """Drawn to what is assumed of every tokenizer while few prompts stand against it."""
        return (TEXT_PRIOR * BYTES_PER_TOKEN + self.bytes) / (TEXT_PRIOR + self.tokens)


def with_prompt(text: Text, sample: Sample) -> Text:
    """`text` and one more prompt, with what templates add set aside."""
    size, count = tokens(sample.prompt_bytes), tokens(sample.prompt_tokens)
    if size is None or count is None or size < LEAST_TEXT or sample.estimated:
        return text
    count -= MESSAGE_TOKENS * (tokens(sample.messages) or 1.0) + REPLY_TOKENS
    if count <= 0.0 or not LEAST_BYTES <= size / count <= MOST_BYTES:
        return text
    part = min(MOST_TEXT / count, 1.0)
    return Text(text.bytes * MEMORY + size * part, text.tokens * MEMORY + count * part, text.seen + 1)


def assumed_length(spec: LLMSpec) -> float:
    """Tokens of a reply, before any was seen."""
    return min(DEFAULT_COMPLETION, spec.capabilities.max_tokens)


def possible_length(sample: Sample, spec: LLMSpec) -> float | None:
    """Tokens of the reply, where there can be so many."""
    return tokens(sample.completion_tokens, max(spec.capabilities.max_tokens, spec.capabilities.max_context))


def likely_length(
    lengths: dict[str, Mean], spec: LLMSpec, key: str = "", usual: dict[str, Mean] | None = None
) -> float:
    """Likely tokens of a reply: a task's own, drawn to the entry's, drawn to what is assumed.

    Where it is known what is `usual` for all entries together, the entry's own is drawn to that: it is the
    task more than the model that makes replies long, and the mean of few replies is chance.
    """
    if usual is not None:
        own = lengths.get(key[:MOST_KEY], Mean())
        likely = own.shrunk(likely_length(usual, spec, key), USUAL_CALLS)
    else:
        likely = lengths.get("", Mean()).shrunk(assumed_length(spec))
        if key:
            likely = lengths.get(key[:MOST_KEY], Mean()).shrunk(likely)
    return min(likely, spec.capabilities.max_tokens)


def with_reply(lengths: dict[str, Mean], sample: Sample, spec: LLMSpec, reply: float) -> dict[str, Mean]:
    """`lengths` and one more reply of so many tokens.

    One that was cut or capped would have been longer: it counts where it is longer than expected.
    """
    after = dict(lengths)
    for key in dict.fromkeys(("", sample.key[:MOST_KEY])):
        if not (sample.cut or sample.capped) or reply > likely_length(lengths, spec, key):
            after[key] = after.pop(key, Mean()).plus(reply)  # the latest stands last
    while len(after) > MOST_KEYS:
        del after[next(key for key in after if key)]
    return after


def length_of(lengths: dict[str, Mean], key: str) -> Mean | None:
    """The replies that `likely_length` rests on."""
    return lengths.get(key[:MOST_KEY]) or lengths.get("")
