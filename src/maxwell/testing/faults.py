"""Ways to misbehave, as values: `server.fail(faults.Cut(after=3))`.

Faults that act within a stream count tokens: `after=3` acts once three tokens have been sent. Where a request
is answered without a stream, the body plays its part: half of it is sent, then the fault acts.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from maxwell.testing.dialects.base import Dialect, Reply

_PAGES = {502: "Bad Gateway", 504: "Gateway Time-out"}


class Fault(Struct, frozen=True):
    """Base of all faults."""


class Answer(Fault, frozen=True):
    """Base of the faults that put another response in the place of the proper one."""

    def reply(self, dialect: Dialect) -> Reply:
        """The response to give."""
        raise NotImplementedError


class Loading(Answer, frozen=True):
    """503, the model is still loading. `FakeServer.set_state("loading")` says so on every path."""

    def reply(self, dialect: Dialect) -> Reply:
        """The dialect's 503."""
        return dialect.loading()


class Status(Answer, frozen=True):
    """Any status.

    Attributes:
        code: HTTP status.
        body: JSON value, or text or bytes sent as they are; None = an error in the dialect's envelope.
        retry_after: `Retry-After`, in seconds or as an HTTP date; None = no such header.
        headers: Further headers.
    """

    code: int
    body: Any = None
    retry_after: float | str | None = None
    headers: dict[str, str] = {}

    def reply(self, dialect: Dialect) -> Reply:
        """The response as described."""
        headers = _retry_after(self.retry_after) | self.headers
        if isinstance(self.body, str | bytes):
            raw = self.body.encode() if isinstance(self.body, str) else self.body
            return Reply(self.code, raw, "text/plain; charset=utf-8", headers)
        if self.body is None:
            made = dialect.error(self.code, f"status {self.code} on request")
        else:
            made = dialect.json(self.body, self.code)
        return Reply(self.code, made.body, made.content_type, headers)


class RateLimited(Answer, frozen=True):
    """429 that waiting mends.

    Attributes:
        retry_after: `Retry-After`, in seconds or as an HTTP date; None = no such header.
    """

    retry_after: float | str | None = None

    def reply(self, dialect: Dialect) -> Reply:
        """The dialect's 429."""
        return dialect.rate_limited(_retry_after(self.retry_after))


class QuotaExhausted(Answer, frozen=True):
    """429 that waiting does not mend: no credit left.

    Attributes:
        code: OpenAI's error code, e.g. "credit_balance_exhausted".
    """

    code: str = "insufficient_quota"

    def reply(self, dialect: Dialect) -> Reply:
        """The dialect's 429."""
        return dialect.quota(self.code)


class Unauthorized(Answer, frozen=True):
    """401, the key is refused."""

    def reply(self, dialect: Dialect) -> Reply:
        """The dialect's 401."""
        return dialect.unauthorized("sk-wrong-key-0000")


class ModelMissing(Answer, frozen=True):
    """The model is not there: 404, on llama.cpp a router's 400."""

    def reply(self, dialect: Dialect) -> Reply:
        """The dialect's refusal of its own model name."""
        return dialect.model_missing(dialect.served)


class ServerError(Answer, frozen=True):
    """A failure inside the server or before it.

    Attributes:
        code: 500 or 503 in the dialect's envelope, 502 or 504 as a proxy's HTML page, 529 as Anthropic's
            "overloaded"; others in the dialect's envelope.
    """

    code: int = 500

    def reply(self, dialect: Dialect) -> Reply:
        """The failure."""
        if self.code in _PAGES:
            return _page(self.code, f"{self.code} {_PAGES[self.code]}")
        if self.code == 529:
            overloaded = {"type": "overloaded_error", "message": "Overloaded"}
            return dialect.json({"type": "error", "error": overloaded}, 529)
        return dialect.error(
            self.code, "Service Unavailable" if self.code == 503 else "Internal Server Error"
        )


class EmptyBody(Answer, frozen=True):
    """200 with the content type of a stream and nothing in it, not even `[DONE]`."""

    def reply(self, dialect: Dialect) -> Reply:
        """An empty stream."""
        return Reply(200, b"", dialect.stream_type)


class Garbage(Answer, frozen=True):
    """200 with an HTML page, as a captive portal or a wrong port answers."""

    def reply(self, dialect: Dialect) -> Reply:
        """The page."""
        return _page(200, "Welcome")


class ContextOverflow(Fault, frozen=True):
    """The prompt is refused as too long, in the dialect's words, however short it is."""


class Reset(Fault, frozen=True):
    """The connection is closed before one byte of the response."""


class SlowFirstByte(Fault, frozen=True):
    """The response's head comes late; the request holds its slot meanwhile.

    Attributes:
        seconds: How late; `math.inf` = never.
    """

    seconds: float


class SlowTokens(Fault, frozen=True):
    """Tokens come slowly, whatever `tokens_per_sec` is.

    Attributes:
        seconds: Time from one token to the next.
    """

    seconds: float


class Silence(Fault, frozen=True):
    """The stream falls silent; the connection stays open."""

    after: int = 0


class Cut(Fault, frozen=True):
    """The connection is closed in the middle of the body, without its end."""

    after: int = 0


class BadChunk(Fault, frozen=True):
    """One `data:` line is not JSON; the stream then goes on as if nothing had been."""

    after: int = 0


class ErrorFrame(Fault, frozen=True):
    """The stream carries an error and ends, in the dialect's way: llama.cpp without `[DONE]`, others with it.

    Attributes:
        after: Tokens sent before it.
        code: Status the error names; without a stream, the response's own status.
        message: What it says.
        error: The whole `error` object, in place of the dialect's.
    """

    after: int = 0
    code: int = 500
    message: str = "Internal server error"
    error: dict[str, Any] | None = None


class CloseEarly(Fault, frozen=True):
    """The body ends cleanly, but without a finish reason.

    Attributes:
        after: Tokens sent before it.
        done: Whether `[DONE]` is sent all the same.
    """

    after: int = 0
    done: bool = False


class NoUsage(Fault, frozen=True):
    """Usage is left out though it was asked for, llama.cpp's `timings` too."""


class NoDone(Fault, frozen=True):
    """The stream ends with its finish reason, but without `[DONE]`."""


class CRLF(Fault, frozen=True):
    """Stream lines end in CR LF instead of LF."""


class KeepAliveComments(Fault, frozen=True):
    """Comment lines (`: keep-alive`) stand between the stream's events."""


class IgnoreConstraints(Fault, frozen=True):
    """Grammar and schema are ignored: the plain reply is given."""


def _retry_after(value: float | str | None) -> dict[str, str]:
    return {} if value is None else {"Retry-After": str(value)}


def _page(status: int, title: str) -> Reply:
    head, body = f"<head><title>{title}</title></head>", f"<body><h1>{title}</h1></body>"
    return Reply(status, f"<html>\r\n{head}\r\n{body}\r\n</html>\r\n".encode(), "text/html")
