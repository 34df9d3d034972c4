"""Keys struck out of text by their value, whatever field they stand in."""

from __future__ import annotations

import re
from collections.abc import Iterable

import msgspec

_LEAST = 4  # characters; a shorter key is a placeholder such as "x"


def redacted(text: str, secrets: Iterable[str]) -> str:
    """`text` without `secrets`, plain or escaped as in JSON. Cut it afterwards, or half a key may stay."""
    hidden = {s.strip() for s in secrets}
    forms = {form for s in hidden if len(s) >= _LEAST for form in (s, _escaped(s))}
    if not forms:
        return text
    longest_first = sorted(forms, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, longest_first)), "[redacted]", text)


def _escaped(secret: str) -> str:
    return msgspec.json.encode(secret.encode("utf-8", "replace").decode()).decode()[1:-1]
