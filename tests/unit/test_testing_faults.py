"""Every fault of the fake server: seen once, then healed."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Callable

import pytest
from fake_http import (
    CHAT,
    DIALECTS,
    HELLO,
    REPLY,
    STREAM,
    broken,
    call,
    connected,
    events,
    finishes,
    opened,
    send,
    text,
)

from maxwell.testing import FakeServer, faults
from maxwell.testing.faults import Fault
from maxwell.types import BackendName

# Faults


def check_cut(server: FakeServer) -> None:
    assert text(events(broken(server, STREAM))) == "Hello th"


def check_silence(server: FakeServer) -> None:
    with opened(server, CHAT, STREAM, timeout=0.3) as response:
        seen = b""
        while b"o th" not in seen:
            seen += response.read1()
        with pytest.raises(TimeoutError):
            response.read1()
    assert text(events(seen)) == "Hello th"
    assert server.wait_aborted(1.0).path == CHAT


def check_bad_chunk(server: FakeServer) -> None:
    raw = call(server, CHAT, STREAM).raw
    lines = [line.removeprefix(b"data: ") for line in raw.splitlines() if line.startswith(b"data: ")]
    bad = [line for line in lines if line != b"[DONE]" and not _is_json(line)]
    assert len(bad) == 1
    assert lines.index(bad[0]) == 3
    assert raw.endswith(b"data: [DONE]\n\n")


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def check_error_frame(server: FakeServer) -> None:
    chunks = events(call(server, CHAT, STREAM).raw)
    assert text(chunks) == "Hello th"
    assert not finishes(chunks)
    frame = next(c for c in chunks if "error" in c)
    assert frame["error"]["message"] == "Internal server error"
    server_name = call(server, "/v1/models").json["data"][0]["owned_by"]
    assert (chunks[-1] == "[DONE]") == (server_name != "llamacpp")


def check_close_early(server: FakeServer) -> None:
    chunks = events(call(server, CHAT, STREAM).raw)
    assert text(chunks) == "Hello th"
    assert not finishes(chunks)
    assert "[DONE]" not in chunks


def check_no_usage(server: FakeServer) -> None:
    raw = call(server, CHAT, STREAM).raw
    chunks = events(raw)
    assert (text(chunks), finishes(chunks), chunks[-1]) == (REPLY, ["stop"], "[DONE]")
    assert b"completion_tokens" not in raw
    assert b"timings" not in raw


def check_no_done(server: FakeServer) -> None:
    chunks = events(call(server, CHAT, STREAM).raw)
    assert (text(chunks), finishes(chunks)) == (REPLY, ["stop"])
    assert "[DONE]" not in chunks


def check_crlf(server: FakeServer) -> None:
    raw = call(server, CHAT, STREAM).raw
    assert text(events(raw)) == REPLY
    assert raw.count(b"\n") == raw.count(b"\r\n") > 0


def check_comments(server: FakeServer) -> None:
    raw = call(server, CHAT, STREAM).raw
    assert text(events(raw)) == REPLY
    assert raw.count(b": keep-alive\n\n") == len(events(raw))


def check_reset(server: FakeServer) -> None:
    with pytest.raises(http.client.RemoteDisconnected), opened(server, CHAT, STREAM):
        pass


def check_slow_first_byte(server: FakeServer) -> None:
    with pytest.raises(TimeoutError), opened(server, CHAT, STREAM, timeout=0.2):
        pass
    server.wait_aborted(1.0)


def check_slow_tokens(server: FakeServer) -> None:
    with opened(server, CHAT, STREAM, timeout=0.3) as response:
        assert events(response.read1())[0]["choices"][0]["delta"]["role"] == "assistant"
        with pytest.raises(TimeoutError):
            response.read1()
    server.wait_aborted(1.0)


def check_empty(server: FakeServer) -> None:
    answer = call(server, CHAT, STREAM)
    assert (answer.status, answer.raw) == (200, b"")
    assert answer.headers["content-type"].startswith("text/event-stream")


def check_garbage(server: FakeServer) -> None:
    answer = call(server, CHAT, STREAM)
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html")
    assert answer.raw.startswith(b"<html>")


def check_ignored(server: FakeServer) -> None:
    body = STREAM | {"response_format": {"type": "json_object"}}
    assert text(events(call(server, CHAT, body).raw)) == REPLY
    assert text(events(call(server, CHAT, body).raw)) == "{}"


def status(code: int) -> Callable[[FakeServer], None]:
    def check(server: FakeServer) -> None:
        assert call(server, CHAT, STREAM).status == code

    return check


def check_rate_limited(server: FakeServer) -> None:
    answer = call(server, CHAT, STREAM)
    assert (answer.status, answer.headers["retry-after"]) == (429, "7")


def check_status(server: FakeServer) -> None:
    answer = call(server, CHAT, STREAM)
    assert (answer.status, answer.raw, answer.headers["x-why"]) == (418, b"teapot", "test")


CHECKS: list[tuple[Fault, Callable[[FakeServer], None]]] = [
    (faults.Loading(), status(503)),
    (faults.Status(418, body="teapot", headers={"X-Why": "test"}), check_status),
    (faults.RateLimited(7), check_rate_limited),
    (faults.QuotaExhausted(), status(429)),
    (faults.Unauthorized(), status(401)),
    (faults.ServerError(500), status(500)),
    (faults.ContextOverflow(), status(400)),
    (faults.EmptyBody(), check_empty),
    (faults.Garbage(), check_garbage),
    (faults.Reset(), check_reset),
    (faults.SlowFirstByte(math.inf), check_slow_first_byte),
    (faults.SlowTokens(60.0), check_slow_tokens),
    (faults.Silence(after=2), check_silence),
    (faults.Cut(after=2), check_cut),
    (faults.BadChunk(after=2), check_bad_chunk),
    (faults.ErrorFrame(after=2), check_error_frame),
    (faults.CloseEarly(after=2), check_close_early),
    (faults.NoUsage(), check_no_usage),
    (faults.NoDone(), check_no_done),
    (faults.CRLF(), check_crlf),
    (faults.KeepAliveComments(), check_comments),
    (faults.IgnoreConstraints(), check_ignored),
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize(
    ("fault", "check"), CHECKS, ids=lambda v: type(v).__name__ if isinstance(v, Fault) else ""
)
def test_fault_is_seen_once_and_then_healed(
    dialect: BackendName, fault: Fault, check: Callable[[FakeServer], None]
) -> None:
    with FakeServer(dialect, constrained_reply="{}") as server:
        server.fail(fault)
        check(server)
        assert server.requests[0].fault == fault
        chunks = events(call(server, CHAT, STREAM).raw)
        assert (text(chunks), finishes(chunks), chunks[-1]) == (REPLY, ["stop"], "[DONE]")
        assert server.requests[-1].fault is None


@pytest.mark.parametrize(("dialect", "code"), [("llamacpp", 400), ("vllm", 404), ("openai", 404)])
def test_model_missing_is_seen_once(dialect: BackendName, code: int) -> None:
    with FakeServer(dialect) as server:
        server.fail(faults.ModelMissing())
        assert [call(server, CHAT, HELLO).status for _ in range(2)] == [code, 200]


def test_every_fault_is_checked() -> None:
    public = {v for v in vars(faults).values() if isinstance(v, type) and issubclass(v, Fault)}
    assert public - {Fault, faults.Answer, faults.ModelMissing} == {type(fault) for fault, _ in CHECKS}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_faults_act_on_whole_replies_too(dialect: BackendName) -> None:
    with FakeServer(dialect) as server:
        server.fail(faults.Cut())
        assert len(broken(server, HELLO)) > 0
        server.fail(faults.Silence())
        with opened(server, CHAT, HELLO, timeout=0.3) as response, pytest.raises(TimeoutError):
            response.read()
        for fault in (faults.BadChunk(), faults.CloseEarly()):
            server.fail(fault)
            assert not _is_json(call(server, CHAT, HELLO).raw)
        server.fail(faults.NoUsage())
        assert "usage" not in call(server, CHAT, HELLO).json
        server.fail(faults.ErrorFrame(code=503, message="full"))
        answer = call(server, CHAT, HELLO)
        assert (answer.status, answer.json["error"]["message"]) == (503, "full")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_faults_act_on_embeddings_too(dialect: BackendName) -> None:
    body = {"model": "tiny", "input": "x"}
    with FakeServer(dialect, embeddings=True) as server:
        server.fail(faults.NoUsage())
        assert "usage" not in call(server, "/v1/embeddings", body).json
        server.fail(faults.ContextOverflow())
        assert call(server, "/v1/embeddings", body).status >= 400
        server.fail(faults.CloseEarly())
        assert not _is_json(call(server, "/v1/embeddings", body).raw)
        assert "usage" in call(server, "/v1/embeddings", body).json


def test_close_early_may_still_say_done() -> None:
    with FakeServer("vllm") as server:
        server.fail(faults.CloseEarly(after=1, done=True))
        chunks = events(call(server, CHAT, STREAM).raw)
        assert (finishes(chunks), chunks[-1]) == ([], "[DONE]")


def test_error_frame_may_carry_any_error() -> None:
    with FakeServer("openai") as server:
        server.fail(faults.ErrorFrame(after=1, error={"message": "slow down", "code": "slow_down"}))
        frame = events(call(server, CHAT, STREAM).raw)[2]
        assert frame == {"error": {"message": "slow down", "code": "slow_down"}}


def test_server_errors_come_in_the_form_that_sends_them() -> None:
    with FakeServer("openai") as server:
        for code in (500, 502, 503, 504, 529):
            server.fail(faults.ServerError(code))
            answer = call(server, CHAT, HELLO)
            assert answer.status == code
            if code in (502, 504):
                assert answer.raw.startswith(b"<html>")
            elif code == 529:
                assert answer.json["error"]["type"] == "overloaded_error"
            else:
                assert answer.json["error"]["message"]


def test_rate_limits_carry_retry_after_only_when_given() -> None:
    date = "Wed, 21 Oct 2026 07:28:00 GMT"
    with FakeServer("openai") as server:
        for given, header in ((None, None), (0.5, "0.5"), (date, date)):
            server.fail(faults.RateLimited(given))
            assert call(server, CHAT, HELLO).headers.get("retry-after") == header
        server.fail(faults.QuotaExhausted("credit_balance_exhausted"))
        error = call(server, CHAT, HELLO).json["error"]
        assert (error["type"], error["code"]) == ("insufficient_quota", "credit_balance_exhausted")


def test_faults_count_and_choose_their_requests() -> None:
    with FakeServer("llamacpp") as server:
        server.fail(faults.ServerError(), times=2)
        assert call(server, "/health").status == 200
        assert [call(server, CHAT, HELLO).status for _ in range(3)] == [500, 500, 200]
        server.fail(faults.Loading(), times=None, path="*")
        assert [call(server, "/health").status, call(server, "/v1/models").status] == [503, 503]
        server.heal()
        server.fail(faults.Status(503), path="/v1/mod")
        assert [call(server, "/health").status, call(server, "/v1/models").status] == [200, 503]
        server.fail(faults.ServerError(502))
        server.fail(faults.ServerError(504))
        assert [call(server, CHAT, HELLO).status for _ in range(3)] == [502, 504, 200]


def test_fault_that_never_ends_lets_the_server_stop_at_once() -> None:
    with FakeServer("llamacpp") as server:
        server.fail(faults.SlowFirstByte(math.inf), path="/health")
        with connected(server) as raw:
            send(raw, "/health")
            server.wait_requests(1)
            server.stop()
            with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
                raw.getresponse()
        assert server.requests[0].finished.wait(10.0)
        assert not server.requests[0].aborted
