"""Replies of rerankers, whichever of three shapes they have.

`{"results": [{"index", "relevance_score"}]}` is Jina's and Cohere's, and llama.cpp, vLLM and infinity follow
it; `{"data": [{"index", "score"}]}` is what vLLM's older route for scores gives; a bare list of
`{"index", "score"}` is TEI's and SGLang's.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

from maxwell.backends.wire import BAD_JSON, WireUsage, embedding_usage
from maxwell.types import Usage


class RerankReply(Struct, frozen=True):
    """How well each document answers the query.

    Attributes:
        scores: One a document, in the order of the documents; scores of two models cannot be compared.
        usage: Tokens as the server reported them; None = it did not.
        model: Model name as the server gave it.
    """

    scores: list[float]
    usage: Usage | None = None
    model: str = ""


class _Scored(Struct):
    index: int
    relevance_score: float | None = None
    score: float | None = None


class _Reply(Struct):
    results: list[_Scored] | None = None
    data: list[_Scored] | None = None
    model: str | None = None
    usage: WireUsage | None = None


_decode = msgspec.json.Decoder(_Reply | list[_Scored]).decode


def decode_rerank(body: bytes, count: int) -> RerankReply:
    """Scores of `count` documents, in their order.

    Raises:
        ValueError: Not such a reply, a document without its score or with two, or a score that is no number.
    """
    try:
        reply = _decode(body)
    except BAD_JSON as exc:
        raise ValueError(f"not a rerank reply: {exc}") from None
    if isinstance(reply, list):
        reply = _Reply(results=reply)
    found = reply.results if reply.results is not None else reply.data
    if found is None:
        raise ValueError("not a rerank reply: it has neither results nor data")
    scores: list[float | None] = [None] * count
    for item in found:
        if not 0 <= item.index < count or scores[item.index] is not None:
            raise ValueError(f"the rerank reply has an unexpected document with index {item.index}")
        score = item.score if item.relevance_score is None else item.relevance_score
        if score is None:  # what is not finite is no JSON, and not read as a number
            raise ValueError(f"the rerank reply has no score for document {item.index}")
        scores[item.index] = score
    known = [score for score in scores if score is not None]
    if len(known) < count:
        raise ValueError(f"the rerank reply has {len(known)} scores for {count} documents")
    return RerankReply(known, embedding_usage(reply.usage), reply.model or "")
