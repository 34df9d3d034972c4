"""One request for vectors: verified dimension, exact truncation or a clear refusal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from maxwell.backends.base import Backend
from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.state import PoolState
from maxwell.calls.whole import MOST_COUNTED, Post, Task, post, tokens_of
from maxwell.errors import CallTimeout, DimensionMismatch, InputTooLong, StatusError
from maxwell.registry.specs import EmbeddingSpec
from maxwell.tokens import estimate, text_upper_bound, utf8_length
from maxwell.types import HTTPRequest, Usage

BATCH_ITEMS = 256  # OpenAI takes 2048, llama.cpp and vLLM any number; small batches keep a failure cheap
BATCH_BYTES = 256 * 1024  # about 64k tokens; OpenAI takes 300k a request

MOST_TOKENS = 2**40  # of one text; more than there are
SPECIAL_TOKENS = 4  # more than any embedding model puts around a text

Input = str | list[int]
Vectors = list[list[float]]


class Batch(NamedTuple):
    """Consecutive texts of a call, few enough for one request.

    Attributes:
        start: Place of the first one in the call.
        texts: The texts.
    """

    start: int
    texts: list[str]


def batches(texts: Sequence[str], most: int = BATCH_ITEMS) -> Iterator[Batch]:
    """The texts in runs small enough for one request, `most` at once."""
    batch: list[str] = []
    size = start = 0
    for i, text in enumerate(texts):
        length = utf8_length(text)
        if batch and (len(batch) >= min(most, BATCH_ITEMS) or size + length > BATCH_BYTES):
            yield Batch(start, batch)
            batch, size, start = [], 0, i
        batch.append(text)
        size += length
    if batch:
        yield Batch(start, batch)


def embed_batch(
    state: PoolState, entry: Entry, batch: Batch, task: Task, *, truncate: int | None = None
) -> Flow[Vectors]:
    """The vectors of a batch; where one text is too long, it is cut to `truncate` tokens, or named.

    Raises:
        InputTooLong: A text is too long, and may not or cannot be cut.
        DimensionMismatch: The vectors have another size than declared.
        BudgetExceeded, LedgerError, BackendError: See `whole.post`.
    """
    spec, texts = entry.spec, batch.texts
    assert isinstance(spec, EmbeddingSpec)
    health = state.known(entry)
    backend = entry.backend(health)
    context = entry.context(health)
    limit = min(context, context if truncate is None else truncate)
    inputs: list[Input] = list(texts)
    if truncate is None and not backend.says_too_long:
        _check_lengths(spec, batch, limit)
    if truncate is not None and not backend.truncates and entry.key_problem is None:
        inputs = yield from _cut(state, entry, backend, texts, limit, task.deadline)
        if task.deadline is not None and state.clock.monotonic() >= task.deadline:
            raise CallTimeout("the time ran out while texts were counted", llm=spec.name, kind="timeout")
    most = MOST_TOKENS if truncate is None else limit  # of one text: what is cut off is not read

    def request() -> HTTPRequest:
        truncate_to = limit if truncate is not None and backend.truncates else None
        return backend.embed(spec, inputs, entry.endpoint.key, truncate_to=truncate_to)

    def decode(body: bytes) -> tuple[Vectors, Usage | None]:
        reply = backend.decode_embeddings(body, len(texts))
        return reply.vectors, reply.usage

    asked = Post(
        request,
        decode,
        what="an embeddings reply",
        worst=sum(min(text_upper_bound(text) + SPECIAL_TOKENS, most) for text in texts),
        likely=sum(estimate(utf8_length(text)) for text in texts),
        exactly=lambda: _counted(state, entry, backend, texts, most, task.deadline),
    )
    try:
        vectors = yield from post(state, entry, backend, asked, task)
    except StatusError as error:
        if error.kind != "context_overflow":
            raise
        raise (yield from _too_long(state, entry, batch, limit, task.deadline)) from error
    _check_dimension(spec, vectors)
    return vectors


def _check_lengths(spec: EmbeddingSpec, batch: Batch, limit: int) -> None:
    """Refuse what is probably too long, where the server would cut it without a word."""
    for i, text in enumerate(batch.texts):
        size = utf8_length(text)
        if estimate(size) > limit:
            raise InputTooLong(
                f"{spec.name}: text {batch.start + i} ({size:,} bytes, some {estimate(size)} tokens) is "
                f"longer than the model reads (limit {limit} tokens), and its server would cut it without a "
                "word; shorten it or pass truncate=True"
            )


def _check_dimension(spec: EmbeddingSpec, vectors: Vectors) -> None:
    for vector in vectors:
        if len(vector) != spec.dimension:
            raise DimensionMismatch(
                f"{spec.name}: declared dimension {spec.dimension}, but the server returned {len(vector)}; "
                f"set dimension to {len(vector)} in the registry if this is the model you mean"
            )


def _cut(
    state: PoolState, entry: Entry, backend: Backend, batch: list[str], limit: int, deadline: float | None
) -> Flow[list[Input]]:
    """The batch with every over-long text replaced by its first `limit` tokens, as the server counts them.

    The special tokens that the server puts around a text are counted and kept. Where the server has no
    tokenizer the texts stay as they are: most fit, and it says so if one does not.
    """
    inputs: list[Input] = list(batch)
    for i, text in enumerate(batch):
        if text_upper_bound(text) + SPECIAL_TOKENS <= limit:
            continue
        whole = yield from tokens_of(state, entry, backend, text, deadline, special=True)
        if whole is None:
            break
        if len(whole) > limit:
            plain = yield from tokens_of(state, entry, backend, text, deadline, special=False)
            inputs[i] = _shortened(whole, plain or whole, limit)
    return inputs


def _shortened(whole: list[int], plain: list[int], limit: int) -> list[int]:
    """`whole`, special tokens included, with as much taken from the end of the text as is too much."""
    extra = len(whole) - len(plain)
    for before in range(extra + 1):
        if whole[before : before + len(plain)] == plain:
            after = whole[before + len(plain) :]
            return whole[:before] + plain[: limit - extra] + after
    return whole[:limit]


def _counted(
    state: PoolState, entry: Entry, backend: Backend, batch: list[str], most: int, deadline: float | None
) -> Flow[int | None]:
    """Tokens of the whole batch as the server counts them, at most so many of each text.

    None where that is not to be had soon.
    """
    if len(batch) > MOST_COUNTED:
        return None
    total = 0
    for text in batch:
        tokens = yield from tokens_of(state, entry, backend, text, deadline, special=True)
        if tokens is None:
            return None
        total += min(len(tokens), most)
    return total


def _too_long(
    state: PoolState, entry: Entry, batch: Batch, limit: int, deadline: float | None
) -> Flow[InputTooLong]:
    """Say which text is too long, counted by the server's tokenizer where it has one."""
    backend = entry.backend(state.known(entry))
    suspects = [i for i, text in enumerate(batch.texts) if text_upper_bound(text) + SPECIAL_TOKENS > limit]
    suspects.sort(key=lambda i: -utf8_length(batch.texts[i]))
    found = suspects[0] if suspects else 0
    size = f"{utf8_length(batch.texts[found]):,} bytes"
    for i in suspects[:MOST_COUNTED]:
        counted = yield from tokens_of(state, entry, backend, batch.texts[i], deadline, special=True)
        if counted is None:
            break
        if len(counted) > limit:
            found, size = i, f"{len(counted)} tokens"
            break
    can_cut = backend.truncates or backend.has_tokenizer
    way = (
        "shorten it or pass truncate=True"
        if can_cut
        else "shorten it; its server has no tokenizer to cut it by"
    )
    return InputTooLong(
        f"{entry.spec.name}: text {batch.start + found} ({size}) is longer than the model reads "
        f"(limit {limit} tokens); {way}"
    )
