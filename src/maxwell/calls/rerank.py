"""Reranking calls as flows: every document scored by one server, for scores of two cannot be compared."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from maxwell.backends.base import Backend
from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.state import PoolState
from maxwell.calls.whole import MOST_COUNTED, Post, Task, insisting, item_cap, post, tokens_of
from maxwell.errors import InputTooLong, StatusError
from maxwell.registry.specs import RerankerSpec
from maxwell.tokens import estimate, text_upper_bound, utf8_length
from maxwell.types import HTTPRequest, Usage

MOST_DOCUMENTS = 1000  # in one request: Cohere's limit
# More than a model is told beside query and document: four special tokens, or a short prompt where an LLM
# plays the reranker.
PAIR_TOKENS = 128


class Ranked(Struct, frozen=True):
    """One document's score for a query.

    Attributes:
        index: Its place among the documents given.
        score: The higher the better. Comparable within one call only: each server has a scale of its own.
        document: The document.
    """

    index: int
    score: float
    document: str


def rerank(  # noqa: PLR0913 - everything that is said about one call
    state: PoolState,
    entry: Entry,
    query: str,
    documents: Sequence[str],
    *,
    asked: str | None = None,
    top_n: int | None = None,
    seconds: float | None = None,
) -> Flow[list[Ranked]]:
    """The documents, best first; of equal ones the earlier first. The call's receipt is kept.

    Args:
        state: The pool's state.
        entry: The reranker.
        query: What is looked for; not empty.
        documents: What to look in.
        asked: The name or tag it was chosen by; None = neither.
        top_n: Give only so many; None = all. All are scored in any case.
        seconds: Longest the whole call may take; None = the entry's own limit an exchange.

    Raises:
        ValueError: The query is empty.
        InputTooLong: The query and a document are too long.
        BudgetExceeded: The daily budget has no room.
        BackendError: The exchange failed.
    """
    if not query:
        raise ValueError("the query to rank by is empty")
    if not documents:
        return []
    deadline = None if seconds is None else state.clock.monotonic() + seconds
    with state.receipts.rerank(asked, query, documents) as record, record.attempt(entry.spec):
        scores = yield from _scores(state, entry, query, documents, Task(record, deadline))
    ranked = sorted(range(len(documents)), key=lambda i: (-scores[i], i))
    return [Ranked(i, scores[i], documents[i]) for i in ranked[:top_n]]


def _scores(
    state: PoolState, entry: Entry, query: str, documents: Sequence[str], task: Task
) -> Flow[list[float]]:
    """One score a document; in several requests where the server takes only so many at once."""
    scores: list[float] = []
    most = min(MOST_DOCUMENTS, entry.backend(state.known(entry)).most_inputs)
    while len(scores) < len(documents):
        start = len(scores)
        some = documents[start : start + most]

        def once(start: int = start, some: Sequence[str] = some) -> Flow[list[float]]:
            return _scores_of(state, entry, query, some, start, task)

        try:
            scores += yield from insisting(state, entry, task, once)
        except StatusError as error:
            most = item_cap(error, len(some))
    return scores


def _scores_of(
    state: PoolState, entry: Entry, query: str, documents: Sequence[str], start: int, task: Task
) -> Flow[list[float]]:
    """The scores of one request."""
    spec = entry.spec
    assert isinstance(spec, RerankerSpec)
    health = state.known(entry)
    backend = entry.backend(health)
    request = backend.rerank(spec, query, documents, entry.endpoint.key)
    if request is None:
        why = backend.no_rerank or "its server cannot rank documents"
        raise StatusError(why, llm=spec.name, kind="unsupported")

    def made() -> HTTPRequest:
        return request

    def decode(body: bytes) -> tuple[list[float], Usage | None]:
        reply = backend.decode_rerank(body, len(documents))
        return reply.scores, reply.usage

    asked = Post(
        made,
        decode,
        what="a reranking reply",
        worst=sum(_most(query, document) for document in documents),
        likely=sum(estimate(utf8_length(query) + utf8_length(document)) for document in documents),
        exactly=lambda: _counted(state, entry, backend, query, documents, task.deadline),
    )
    try:
        return (yield from post(state, entry, backend, asked, task))
    except StatusError as error:
        if error.kind != "context_overflow":
            raise
        longest = max(range(len(documents)), key=lambda i: utf8_length(documents[i]))
        raise InputTooLong(
            f"{spec.name}: the query and a document are longer than the model reads (limit "
            f"{entry.context(health)} tokens); the longest is document {start + longest}, "
            f"{utf8_length(documents[longest]):,} bytes: shorten it or rank its parts"
        ) from error


def _most(query: str, document: str) -> int:
    return text_upper_bound(query) + text_upper_bound(document) + PAIR_TOKENS


def _counted(
    state: PoolState,
    entry: Entry,
    backend: Backend,
    query: str,
    documents: Sequence[str],
    deadline: float | None,
) -> Flow[int | None]:
    """Tokens of all pairs as the server counts them; None where that is not to be had soon."""
    if len(documents) >= MOST_COUNTED:
        return None
    sizes = []
    for text in (query, *documents):
        tokens = yield from tokens_of(state, entry, backend, text, deadline, special=True)
        if tokens is None:
            return None
        sizes.append(len(tokens))
    return sum(sizes[1:]) + len(documents) * (sizes[0] + PAIR_TOKENS)
