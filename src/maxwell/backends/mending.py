"""A chat request without the parameter that a server refused by name, or with what it takes instead."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from maxwell.backends.complaints import Complaint, read_complaint
from maxwell.backends.wire import BAD_JSON
from maxwell.types import HTTPRequest

_REFUSING = frozenset({"unsupported_parameter", "unsupported_value", "extra_forbidden"})
_REFUSING_TEXT = (
    r"unsupported (?:parameter|value)|unrecognized request argument|unexpected fields"
    r"|not (?:permitted|supported|configured)"
)

# From the least to the most.
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def without_refused(
    request: HTTPRequest, error_body: bytes, mends: Mapping[str, str | None]
) -> HTTPRequest | None:
    """`request` mended by what a 400 or 422 says, or None when that does not help.

    A server could refuse what stands in for a field in turn, so the caller must bound how often it asks.

    Args:
        request: As it was refused.
        error_body: The server's answer.
        mends: Fields it may refuse, and the field that stands in for each; None = it goes without.
    """
    complaint = read_complaint(error_body)
    field = _refused_field(complaint, mends)
    if field is None:
        return None
    try:
        body: Any = msgspec.json.decode(request.body)
    except BAD_JSON:
        return None
    if not isinstance(body, dict) or field not in body:
        return None
    value, other = body.pop(field), mends[field]
    if field == "reasoning_effort":
        effort = _other_effort(value, complaint.message)
        if effort is not None:
            body[field] = effort
        elif value == "none":
            return None  # a model that thinks in its own way then would eat the reply
    elif other is not None:
        body.setdefault(other, value)
    return HTTPRequest(request.method, request.url, request.headers, msgspec.json.encode(body))


def _refused_field(complaint: Complaint, mends: Mapping[str, str | None]) -> str | None:
    if not mends or not (complaint.named(_REFUSING) or complaint.says(_REFUSING_TEXT)):
        return None
    if complaint.param:
        return complaint.param if complaint.param in mends else None
    # The first name is the refused one: "'max_tokens' is not supported ... use 'max_completion_tokens'".
    found = re.search(r"\b(" + "|".join(mends) + r")\b", complaint.message)
    return found[1] if found else None


def _other_effort(refused: Any, message: str) -> str | None:
    """The effort nearest to the refused one among those that the message lists; None = it lists none."""
    listed = re.search(r"supported values are:?(.*)", message, re.IGNORECASE | re.DOTALL)
    words = re.findall(r"[a-z]+", listed[1].lower()) if listed else []
    taken = [word for word in _EFFORTS[1:] if word in words]  # "none" would be another thing
    if not taken or refused not in _EFFORTS:
        return None
    return min(taken, key=lambda word: abs(_EFFORTS.index(word) - _EFFORTS.index(refused)))
