"""Mistakes that types and ranges cannot tell: what a valid-looking registry cannot mean.

The checks read plain JSON values and skip whatever has the wrong shape (the schema names that), so the same
ones run over good files and over bad ones. They are cheap: every load runs them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from maxwell.registry.wording import looks_secret, near, path_text, shown, shown_key, shown_url

if TYPE_CHECKING:
    from maxwell.registry.positions import Where

KINDS = ("llms", "embeddings", "rerankers")

# Whole numbers beyond this are no token counts, and no float or database column holds them exactly.
_LARGEST = 2**53
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_URL = re.compile(r"[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=%-]+")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9.])?|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._-]+)?")
_ENDPOINT = re.compile(
    r"(/(?:chat/completions|health|rerank)|(?<=/v1)/(?:completions|embeddings|models|responses))/?$"
)


class Finding(NamedTuple):
    """A mistake at `where`: in its value, or in its key; `first` is where the same thing stands rightly."""

    where: Where
    message: str
    first: Where | None = None
    at_key: bool = False


def find(raw: Mapping[str, Any]) -> list[Finding]:
    """Every mistake in a registry's JSON value, the user's own keys taken out."""
    found = list(_check_top(raw))
    names: dict[str, Where] = {}
    for where, entry in entries(raw):
        found += _check_name(where, entry, names)
        found += _check_entry(where, entry)
    return found


def entries(raw: Mapping[str, Any]) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    """Each entry that is an object, with its place."""
    for kind in KINDS:
        listed = raw.get(kind)
        for index, entry in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(entry, dict):
                yield (kind, index), entry


def _check_top(raw: Mapping[str, Any]) -> Iterator[Finding]:
    if all(raw.get(kind, []) == [] for kind in KINDS):
        yield Finding((), 'declares no model; add an entry to "llms", "embeddings" or "rerankers"')
    zone = raw.get("budget_timezone")
    if isinstance(zone, str) and (message := timezone_problem(zone)):
        yield Finding(("budget_timezone",), message)


def _check_name(where: Where, entry: Mapping[str, Any], names: dict[str, Where]) -> Iterator[Finding]:
    name = entry.get("name")
    if not isinstance(name, str):
        return
    first = names.setdefault(name, where)
    if first != where:
        message = (
            f"{shown(name)} is already the name of {path_text(first)}; "
            "usage is booked by name, so all entries need different ones"
        )
        yield Finding((*where, "name"), message, (*first, "name"))


def _check_entry(where: Where, entry: Mapping[str, Any]) -> Iterator[Finding]:
    for place, text in _texts(where, entry):
        if message := text_problem(text):
            yield Finding(place, message)
    for place, number in _numbers(where, entry):
        if abs(number) > _LARGEST:
            yield Finding(place, f"is {shown(number)}, a number too large to be meant")
    for key, problem in (("api_base", api_base_problem), ("api_key_env", api_key_env_problem)):
        value = entry.get(key)
        if isinstance(value, str) and (message := problem(value)):
            yield Finding((*where, key), message)
    yield from _check_limits(where, entry)
    yield from _check_dollars(where, entry)


def _texts(where: Where, entry: Mapping[str, Any]) -> Iterator[tuple[Where, str]]:
    for key in ("name", "model"):
        if isinstance(entry.get(key), str):
            yield (*where, key), entry[key]
    for key in ("tags", "specialized_for"):
        listed = entry.get(key)
        for index, text in enumerate(listed if isinstance(listed, list) else ()):
            if isinstance(text, str):
                yield (*where, key, index), text


def _numbers(where: Where, value: Mapping[str, Any]) -> Iterator[tuple[Where, int]]:
    for key, child in value.items():
        if isinstance(child, int) and not isinstance(child, bool):
            yield (*where, key), child
        elif key == "capabilities" and isinstance(child, dict):
            yield from _numbers((*where, key), child)


def _check_limits(where: Where, entry: Mapping[str, Any]) -> Iterator[Finding]:
    limits = entry.get("capabilities")
    if not isinstance(limits, dict):
        return
    reply, context = limits.get("max_tokens"), limits.get("max_context")
    if isinstance(reply, int) and isinstance(context, int) and reply > context > 0:
        message = (
            f"is {shown(reply)}, more than max_context, {shown(context)}: "
            "prompt and completion share the context window"
        )
        yield Finding((*where, "capabilities", "max_tokens"), message)


def _check_dollars(where: Where, entry: Mapping[str, Any]) -> Iterator[Finding]:
    budget = entry.get("daily_budget_usd")
    if isinstance(budget, int | float) and budget > 0 and not any(_prices(entry)):
        message = (
            "limits dollars, but this entry has no price: add cost_per_1k_tokens or use daily_budget_tokens"
        )
        yield Finding((*where, "daily_budget_usd"), message)


def _prices(entry: Mapping[str, Any]) -> list[Any]:
    return [value for key, value in entry.items() if key.startswith("cost_per_1k_")]


def text_problem(text: str) -> str | None:
    """Why a name, model or tag cannot be meant, or None. Anything printable is allowed."""
    if not text.strip():
        return f"is {shown(text)}: blank"
    hidden = next((c for c in text if not c.isprintable()), None)
    if hidden is not None:
        hint = "; a backslash is written twice in JSON" if hidden in "\b\f\n\r\t" else ""
        return f"is {shown(text)}: holds the unprintable character U+{ord(hidden):04X}{hint}"
    if text != text.strip():
        return f"is {shown(text)}: begins or ends with a space"
    return None


def api_key_env_problem(name: str) -> str | None:
    """Why a text is not the name of an environment variable, or None. Never shows it: it may be a key."""
    secret = re.search("[0-9]", name) and looks_secret(name)
    if secret or not _ENV_NAME.fullmatch(name) or (len(name) >= 32 and "_" not in name):
        return (
            "is not the name of an environment variable (its value is not shown, it may be a key): "
            "put the key into a variable and write that variable's name here"
        )
    return None


def api_base_problem(url: str) -> str | None:
    """Why a text is no base URL of a server, or None. Never shows credentials."""
    said = f"is {shown_url(url)}"
    if "@" in url:
        return f"{said}: no user name or password here, a key belongs in the variable that api_key_env names"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return f"{said}: not a URL; allowed: http://host:port or https://host"
    if parts.scheme not in ("http", "https") or not host:
        guess = (
            f"; did you mean {shown_url('http://' + url)}?" if _HOST.match(url) and "//" not in url else ""
        )
        return f"{said}: must begin with http:// or https:// and name a host{guess}"
    if "?" in url or "#" in url:
        return (
            f"{said}: may not hold a query or fragment; a key belongs in the variable that api_key_env names"
        )
    if not _URL.fullmatch(url) or not _HOST.fullmatch(host) or port == 0:
        return f"{said}: not a URL; allowed: http://host:port or https://host, in plain ASCII"
    if end := _ENDPOINT.search(parts.path):
        return f"{said}: one endpoint, not the base; leave {shown_key(end[1])} away"
    return None


def timezone_problem(name: str) -> str | None:
    """Why a text is not an IANA time zone this machine knows, or None."""
    import zoneinfo

    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError):
        pass
    else:
        return None
    known = zoneinfo.available_timezones()
    if not known:
        return f"is {shown(name)}, but this machine has no time zone database; install the package tzdata"
    by_city = {zone.rpartition("/")[2]: zone for zone in sorted(known)}
    hit = near(name, known, cutoff=0.8) or by_city.get(near(name, by_city, cutoff=0.8) or "")
    guess = f"; did you mean {shown_key(hit)}?" if hit else ""
    return f'is {shown(name)}: not an IANA time zone such as "Europe/Berlin"{guess}'
