"""How values, keys and places of a registry are shown to people: short, on one line, without secrets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maxwell.registry.positions import Where

LONGEST = 60
HIDDEN = "(hidden)"

# Keys whose value is never shown. The format's own `..._tokens` are counts.
_SECRET_KEY = re.compile(
    r"key|secret|passw|authori[sz]ation|bearer|credential|token(?!s)|cookie", re.IGNORECASE
)
_KEY_PREFIX = r"(?:sk[-_]|pk[-_]|hf_|gsk_|gh[a-z]_|github_pat_|xai-|xox[a-z]-|r8_|AIza|AKIA|eyJ)[\w./+=-]{8,}"
# What looks like a key wherever it stands: a known beginning, or one long mixed run of letters and digits.
_SECRET = re.compile(
    rf"(?i:bearer|basic) +\S{{8,}}|{_KEY_PREFIX}|(?=[A-Za-z]*[0-9])(?=[0-9]*[A-Za-z])[A-Za-z0-9]{{24,}}$"
)
_SECRET_INSIDE = re.compile(rf"(?i:bearer) +\S{{8,}}|(?<![\w-]){_KEY_PREFIX}")
_CREDENTIALS = re.compile(r"^(\w+:/+)?.*@", re.DOTALL)
_LOGIN = re.compile(r"//[^/\s]*@")
_WORD = re.compile(r"\S+")
_PLAIN_KEY = re.compile(r"[A-Za-z0-9_$-]+")


def is_own_key(key: str) -> bool:
    """Whether a key is the user's own. `_schema_version` is Maxwell's at the top of the file only."""
    return key.startswith(("_", "x-"))


def looks_secret(text: str) -> bool:
    """Whether a text looks like an API key."""
    return bool(_SECRET.match(text))


def without_secrets(text: str) -> str:
    """The text with everything hidden that looks like an API key or a password, wherever it stands."""
    words = _WORD.sub(lambda word: HIDDEN if looks_secret(word[0]) else word[0], text)
    return _SECRET_INSIDE.sub(HIDDEN, _LOGIN.sub(f"//{HIDDEN}@", words))


def names_secret(key: str) -> bool:
    """Whether what stands under this key is not to be shown. `api_key_env` names a variable, not a key."""
    return key != "api_key_env" and bool(_SECRET_KEY.search(key))


def printable(text: str) -> str:
    """The text with everything escaped that would not print or would steer a terminal."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def shown(value: Any, key: str | int = "") -> str:
    """A value as a message may show it: shortened, on one line, hidden when it may be a secret.

    Args:
        value: Any JSON value.
        key: The key it stands under.
    """
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    if isinstance(key, str) and _SECRET_KEY.search(key):
        return HIDDEN
    return _quoted(value) if isinstance(value, str) else _cut(json.dumps(value))


def shown_url(url: str) -> str:
    """A URL as a message may show it: without user name, password, query and fragment."""
    bare = re.split(r"[?#]", url)
    return _quoted(_CREDENTIALS.sub(r"\1…@", bare[0]) + ("…" if len(bare) > 1 else ""))


def shown_key(key: str) -> str:
    """A key in quotes, hidden when it looks like a secret itself."""
    return _quoted(key)


def path_text(where: Where) -> str:
    """A place as people write it: `llms[2].capabilities.max_context`."""
    out = ""
    for step in where:
        if isinstance(step, int):
            out += f"[{step}]"
        elif _PLAIN_KEY.fullmatch(step) and len(step) <= LONGEST and not looks_secret(step):
            out += f".{step}" if out else step
        else:
            out += f"[{_quoted(step)}]"
    return out


def near(word: str, options: Iterable[str], *, cutoff: float = 0.7) -> str | None:
    """The option most like `word`, whatever its case and punctuation, or None when none is like it."""
    from difflib import get_close_matches

    plain = {_plainly(option): option for option in options}
    hits = get_close_matches(_plainly(word[:LONGEST]), list(plain), n=1, cutoff=cutoff)
    return plain[hits[0]] if hits else None


def did_you_mean(word: str, options: Iterable[str]) -> str:
    """`; did you mean "…"?`, or "" when nothing is like `word`."""
    hit = near(word, options)
    return f"; did you mean {_quoted(hit)}?" if hit else ""


def _quoted(text: str) -> str:
    if looks_secret(text):
        return HIDDEN
    start, end = text.find("//"), text.rfind("@")
    if 0 <= start < end:
        text = f"{text[: start + 2]}…{text[end:]}"
    text = _cut(_SECRET_INSIDE.sub(HIDDEN, text))
    return printable('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"')


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _plainly(word: str) -> str:
    return re.sub(r"[\W_]+", "", word.lower()) or word
