"""A server's refusal as a typed error: one sentence with its words, what to do next, and no key in it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from maxwell.backends.complaints import classify, complaint_of, is_incapable, read_complaint
from maxwell.errors import Fault, StatusError
from maxwell.redaction import redacted

# A server's own words are quoted up to this many characters.
_SHOWN = 300

# A number of seconds above this is a moment: seconds since the epoch.
_MOMENTS = 1e9
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_NUMBER = r"[0-9]{1,9}(?:\.[0-9]{1,9})?"
_SPAN = rf"(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?(?:{_NUMBER}ms)?"

_NEXT: dict[Fault, str] = {
    "loading": "the model is not ready yet; try again shortly",
    "overloaded": "the server has no room now; try again later or use another entry",
    "rate_limited": "too many requests for this key; wait or use another entry",
    "quota": "no credit is left, waiting does not help; raise the limit there or use another entry",
    "auth": "check this entry's API key (`api_key_env`, or OPENAI_API_KEY for OpenAI) and what it may use",
    "model_missing": "this server does not have that model; compare the entry's `model` with its /v1/models",
    "context_overflow": "shorten the prompt, ask for fewer tokens or use a model with a larger context",
    "unsupported": "this server or model cannot do that; use another entry",
    "bad_request": "the request itself is at fault; correct it",
    "content_policy": "the request was refused for its content; change it",
    "timeout": "the server took too long; try again or use another entry",
    "server_error": "the fault lies with the server; see its log or use another entry",
    "bad_reply": "that is no reply of an OpenAI-compatible API; check the entry's `api_base`",
}
_NO_ROUTE = (
    "this server has no such route; check the entry's `api_base`, "
    "and that the server was started for this kind of task"
)


def refusal(
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    llm: str,
    *,
    now: float | None = None,
    secrets: Sequence[str] = (),
) -> StatusError:
    """The error for a response that is not 2xx. Never raises.

    Args:
        status: HTTP status.
        headers: Response headers, names in lower case.
        body: Response body, or as much of it as was read.
        llm: Name of the registry entry.
        now: Seconds since the epoch, for a `retry-after` that is a date where the response has no `date`.
        secrets: Keys that must not appear in the message.
    """
    complaint = read_complaint(body)
    kind = _as_told(classify(status, complaint), headers)
    advice = _NEXT.get(kind, "")
    if status in (404, 405) and kind == "unsupported" and not is_incapable(complaint):
        advice = _NO_ROUTE
    if kind == "bad_reply" and "location" in headers:
        advice = (
            f"it redirects to {_shown(headers['location'], secrets)!r}; put the final address into `api_base`"
        )
    wait = retry_after(headers, now)
    if wait is not None and kind in ("rate_limited", "overloaded", "loading"):
        advice += f" (it asks to wait {wait:g} s)"
    said = _shown(complaint.message, secrets)
    heard = f'HTTP {status}, "{said}"' if said else f"HTTP {status} without a word"
    return StatusError(f"{heard}: {advice}", llm=llm, kind=kind, status=status, retry_after=wait)


def frame_error(error: Any, llm: str, *, secrets: Sequence[str] = ()) -> StatusError:
    """The error for an `error` object that came inside a stream. Never raises.

    Args:
        error: The object, decoded: usually a dict or a text.
        llm: Name of the registry entry.
        secrets: Keys that must not appear in the message.
    """
    complaint = complaint_of(error if isinstance(error, dict) else {"error": error})
    code = complaint.code
    status = int(code) if re.fullmatch(r"[45][0-9]{2}", code) else None
    kind = classify(status, complaint)
    said = _shown(complaint.message, secrets)
    heard = f'error in the stream, "{said}"' if said else "error in the stream without a word"
    return StatusError(f"{heard}: {_NEXT.get(kind, '')}", llm=llm, kind=kind, status=status)


def _as_told(kind: Fault, headers: Mapping[str, str]) -> Fault:
    """`kind`, unless `x-should-retry` says that waiting mends it, or does not."""
    told = headers.get("x-should-retry", "").strip().lower()
    if told == "false" and kind == "rate_limited":
        return "quota"
    return "server_error" if told == "true" and kind == "bad_request" else kind


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds the server asks to wait, >= 0; None when it does not say.

    Reads `retry-after-ms`, both forms of `retry-after`, and else when a limit that is used up begins anew. A
    moment counts from the response's own `date`, so that clocks that differ do no harm; without one, from
    `now`.
    """
    millis = _seconds(headers.get("retry-after-ms", ""))
    if millis is not None:
        return millis / 1000
    value = headers.get("retry-after", "")
    wait = _seconds(value)
    if wait is not None:
        return wait
    since = _instant(headers.get("date", ""))
    since = now if since is None else since
    until = _instant(value)
    if until is not None and since is not None:
        return max(until - since, 0.0)
    return _reset(headers, since)


def _reset(headers: Mapping[str, str], since: float | None) -> float | None:
    """Seconds until the limit that is used up begins anew; where it is not told which, the first of them."""
    waits: dict[str, float] = {}
    for of in ("", "-requests", "-tokens"):
        wait = _duration(headers.get("x-ratelimit-reset" + of, ""), since)
        if wait is not None:
            waits[of] = wait
    used_up = [w for of, w in waits.items() if _seconds(headers.get("x-ratelimit-remaining" + of, "")) == 0]
    return max(used_up) if used_up else min(waits.values(), default=None)


def _duration(value: str, since: float | None) -> float | None:
    """Seconds in `6m0s`, `12ms` or `7.5`; a very large number is a moment, in seconds or milliseconds."""
    number = _seconds(value)
    if number is not None:
        if number < _MOMENTS:
            return number
        until = number / 1000 if number >= 1000 * _MOMENTS else number
        return None if since is None else max(until - since, 0.0)
    if re.fullmatch(_SPAN, value.strip()) is None:
        return None
    parts = re.findall(r"([0-9.]+)(ms|[hms])", value)
    return sum(float(count) * _UNITS[unit] for count, unit in parts) if parts else None


def _seconds(value: str) -> float | None:
    value = value.strip()
    return float(value) if re.fullmatch(r"[0-9]{1,15}(?:\.[0-9]{0,9})?", value) else None


def _instant(value: str) -> float | None:
    if not value:
        return None
    from email.utils import mktime_tz, parsedate_tz  # rarely needed, and slow to import

    try:
        parts = parsedate_tz(value)
        return float(mktime_tz(parts)) if parts is not None else None
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _shown(text: str, secrets: Sequence[str]) -> str:
    """`text` without secrets, on one line, cut to a bearable length; in this order, or half a key stays."""
    text = redacted(text, secrets)
    text = " ".join("".join(c if c.isprintable() else " " for c in text[: 20 * _SHOWN]).split())
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
