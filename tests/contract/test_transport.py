"""The transport contract (see `maxwell.calls.transport`), checked for every implementation in the same words."""

from __future__ import annotations

import gc
import itertools
import os
import queue
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from transport_harness import (
    CANARY,
    CHUNKED,
    KINDS,
    LAST_CHUNK,
    SOON,
    AsyncCaller,
    Call,
    Caller,
    Certificate,
    Heard,
    Peer,
    Server,
    answer_ok,
    black_hole,
    chunk,
    free_port,
    head,
    interrupt,
    make_certificate,
    serving,
    whole,
)

from maxwell.calls.effects import Limits, TransportError
from maxwell.types import HTTPRequest

AT_ONCE = 0.2  # seconds; how soon the server must see that an exchange was cut
MOST_PIECE = 65536
EVENT = b'data: {"choices": []}\n\n'


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def caller(kind: str) -> Iterator[Caller]:
    made = KINDS[kind]({})
    yield made
    made.leave()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


def post(url: str, body: bytes = b"{}") -> HTTPRequest:
    return HTTPRequest("POST", url, {"Authorization": f"Bearer {CANARY}", "Content-Type": "application/json"}, body)


def read_all(call: Call) -> bytes:
    return b"".join(iter(call.read, b""))


def ask(caller: Caller, url: str) -> bytes:
    return read_all(caller.send(post(url)))


def failure(work: Callable[[], object]) -> TransportError:
    """The error that `work` fails with, after a look at every way to print it for the key."""
    with pytest.raises(TransportError) as caught:
        work()
    error = caught.value
    shown = "".join([repr(error), str(error), *traceback.format_exception(error)])
    assert CANARY not in shown
    return error


def begin(peer: Peer, heard: Heard) -> None:
    """One event, then silence until the other side goes."""
    peer.send(CHUNKED + chunk(EVENT))
    peer.until_gone()


def say_nothing(peer: Peer, heard: Heard) -> None:
    peer.until_gone()


# --- limits ---------------------------------------------------------------------------------------------------


def test_connect_limit_runs_out(caller: Caller) -> None:
    with black_hole() as url:
        error = failure(lambda: caller.send(post(url), Limits(connect=0.2)))
    assert (error.stage, error.fresh) == ("connect", True)


def test_first_byte_limit_runs_out(caller: Caller) -> None:
    with serving(say_nothing) as server:
        error = failure(lambda: caller.send(post(server.url), Limits(first_byte=0.2)))
        assert (error.stage, error.fresh) == ("first_byte", True)
        assert server.gone.get(timeout=SOON)


def test_head_that_drips_does_not_outlast_the_first_byte_limit(caller: Caller) -> None:
    def drip(peer: Peer, heard: Heard) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(200):
            peer.send(b"x")
            time.sleep(0.05)

    with serving(drip) as server:
        assert failure(lambda: caller.send(post(server.url), Limits(first_byte=0.3))).stage == "first_byte"


def test_idle_limit_runs_out(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url), Limits(idle=0.2))
        assert call.read() == EVENT
        error = failure(call.read)
        late = time.monotonic()
        assert (error.stage, error.fresh) == ("idle", False)
        assert server.gone.get(timeout=SOON) - late < AT_ONCE


def test_idle_limit_starts_anew_with_each_piece(caller: Caller) -> None:
    def trickle(peer: Peer, heard: Heard) -> None:
        peer.send(CHUNKED)
        for _ in range(4):
            time.sleep(0.25)
            peer.send(chunk(EVENT))
        peer.send(LAST_CHUNK)

    with serving(trickle) as server:
        assert read_all(caller.send(post(server.url), Limits(idle=0.7))) == EVENT * 4


def test_idle_limit_does_not_count_the_readers_own_pauses(caller: Caller) -> None:
    more = threading.Event()

    def two_parts(peer: Peer, heard: Heard) -> None:
        peer.send(CHUNKED + chunk(EVENT))
        assert more.wait(SOON)
        peer.send(chunk(EVENT) + LAST_CHUNK)

    with serving(two_parts) as server:
        call = caller.send(post(server.url), Limits(idle=0.3))
        assert call.read() == EVENT
        caller.idle(0.5)
        threading.Timer(0.1, more.set).start()
        assert read_all(call) == EVENT


def test_one_read_can_have_its_own_idle_limit(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url), Limits(idle=600))
        assert call.read() == EVENT
        error = failure(lambda: call.read(0.2))
    assert error.stage == "idle"
    assert "0.2 s" in str(error)


def test_total_limit_runs_out_before_the_head(caller: Caller) -> None:
    with serving(say_nothing) as server:
        assert failure(lambda: caller.send(post(server.url), Limits(total=0.2))).stage == "total"


def test_total_limit_runs_out_while_connecting(caller: Caller) -> None:
    with black_hole() as url:
        assert failure(lambda: caller.send(post(url), Limits(total=0.2))).stage == "total"


def test_total_limit_runs_out_in_a_body_that_keeps_coming(caller: Caller) -> None:
    def for_ever(peer: Peer, heard: Heard) -> None:
        peer.send(CHUNKED)
        while True:
            peer.send(chunk(EVENT))
            time.sleep(0.02)

    with serving(for_ever) as server:
        call = caller.send(post(server.url), Limits(total=0.3))
        assert call.read()
        assert failure(lambda: read_all(call)).stage == "total"


def test_no_limits_at_all(caller: Caller) -> None:
    with serving(answer_ok) as server:
        limits = Limits(connect=None, first_byte=None, idle=None)  # type: ignore[arg-type]
        assert read_all(caller.send(post(server.url), limits)) == b"ok"


# --- closing, abandoning, cancelling --------------------------------------------------------------------------


def test_closing_closes_upstream_at_once(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        assert call.read() == EVENT
        closed = time.monotonic()
        call.close()
        assert server.gone.get(timeout=SOON) - closed < AT_ONCE
        call.close()
        assert failure(call.read).stage == "closed"


def test_closing_before_the_first_read_closes_upstream_at_once(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        closed = time.monotonic()
        call.close()
        assert server.gone.get(timeout=SOON) - closed < AT_ONCE


def test_closing_cuts_a_body_that_only_the_close_ends(caller: Caller) -> None:
    def no_end(peer: Peer, heard: Heard) -> None:
        peer.send(head("Connection: close") + EVENT)
        peer.until_gone()

    with serving(no_end) as server:
        call = caller.send(post(server.url))
        assert call.read() == EVENT
        closed = time.monotonic()
        call.close()
        assert server.gone.get(timeout=SOON) - closed < AT_ONCE


def test_abandoning_closes_upstream_at_once(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        assert call.read() == EVENT
        dropped = time.monotonic()
        del call
        gc.collect()
        assert server.gone.get(timeout=SOON) - dropped < AT_ONCE


def test_cancelling_the_wait_for_the_head_closes_upstream_at_once(caller: Caller) -> None:
    arrived = threading.Event()

    def hold(peer: Peer, heard: Heard) -> None:
        arrived.set()
        peer.until_gone()

    with serving(hold) as server:
        interrupt(lambda: caller.send(post(server.url)), arrived)
        cancelled = time.monotonic()
        assert server.gone.get(timeout=SOON) - cancelled < AT_ONCE


def test_cancelling_the_wait_for_bytes_closes_upstream_at_once(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        assert call.read() == EVENT
        now = threading.Event()
        now.set()
        interrupt(call.read, now)
        cancelled = time.monotonic()
        assert server.gone.get(timeout=SOON) - cancelled < AT_ONCE


def test_cancelling_while_the_request_is_still_being_sent_closes_upstream_at_once(caller: Caller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        request = post(f"http://127.0.0.1:{listening.getsockname()[1]}", bytes(64 << 20))
        begun = threading.Event()
        received: queue.Queue[tuple[int, float]] = queue.Queue()

        def take_a_little() -> None:
            source, _ = listening.accept()
            with source:
                source.recv(1000)
                begun.set()
                ended.wait(SOON)
                size = 0
                try:
                    while data := source.recv(1 << 20):
                        size += len(data)
                except ConnectionResetError:
                    pass
                received.put((size, time.monotonic()))

        ended = threading.Event()
        thread = threading.Thread(target=take_a_little)
        thread.start()
        interrupt(lambda: caller.send(request), begun)
        cancelled = time.monotonic()
        ended.set()
        size, at = received.get(timeout=SOON)
        thread.join()
    assert at - cancelled < AT_ONCE + 0.3  # what was in flight has to be read first
    assert size < 60 << 20


def test_a_cut_connection_is_not_used_again(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        call.read()
        call.close()
        server.handler = answer_ok
        assert ask(caller, server.url) == b"ok"
        assert server.accepted == 2


def test_closing_a_reply_that_has_arrived_does_not_disturb_the_next(caller: Caller) -> None:
    with serving(answer_ok) as server:
        first = caller.send(post(server.url))
        caller.idle(0.05)
        second = caller.send(post(server.url))
        first.close()
        assert read_all(second) == b"ok"


# --- pooling --------------------------------------------------------------------------------------------------


def empty(peer: Peer, heard: Heard) -> None:
    peer.send(head(status="204 No Content"))


def in_chunks(peer: Peer, heard: Heard) -> None:
    peer.send(CHUNKED + chunk(b"o") + chunk(b"k") + LAST_CHUNK)


@pytest.mark.parametrize("handler", [answer_ok, in_chunks, empty])
def test_calls_in_a_row_share_one_connection(caller: Caller, handler: Callable[[Peer, Heard], None]) -> None:
    with serving(handler) as server:
        for _ in range(5):
            ask(caller, server.url)
        assert (len(server.heard), server.accepted) == (5, 1)


def test_a_fully_read_exchange_is_pooled_without_being_asked_for_its_end(caller: Caller) -> None:
    with serving(answer_ok) as server:
        for _ in range(3):
            call = caller.send(post(server.url))
            assert call.read() == b"ok"
            call.close()
        assert server.accepted == 1


def test_a_connection_the_server_will_close_is_not_pooled(caller: Caller) -> None:
    def once(peer: Peer, heard: Heard) -> bool:
        peer.send(whole(b"ok", "Connection: close"))
        return False

    with serving(once) as server:
        assert [ask(caller, server.url) for _ in range(3)] == [b"ok"] * 3
        assert server.accepted == 3


def test_calls_side_by_side_have_their_own_connections(caller: Caller) -> None:
    with serving(begin) as server:
        calls = [caller.send(post(server.url)) for _ in range(8)]
        assert [call.read() for call in calls] == [EVENT] * 8
        assert server.accepted == 8
        for call in calls:
            call.close()


def test_close_drops_the_pool_and_the_transport_goes_on(caller: Caller) -> None:
    with serving(answer_ok) as server:
        assert ask(caller, server.url) == b"ok"
        caller.close()
        caller.idle(0.05)
        assert server.gone.get(timeout=SOON)
        assert ask(caller, server.url) == b"ok"
        assert server.accepted == 2


def test_sets_tcp_nodelay(caller: Caller) -> None:
    with serving(begin) as server:
        call = caller.send(post(server.url))
        assert no_delay(server.port) == [True]
        call.close()


def no_delay(port: int) -> list[bool]:
    """TCP_NODELAY of each of this process's connections to a port, whichever library made them."""
    found = []
    for descriptor in [int(name) for name in os.listdir("/dev/fd")]:
        try:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                    found.append(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        except OSError:
            pass  # no socket, or not connected
    return found


# --- a connection that went stale while idle ------------------------------------------------------------------


def serve_once_then(end: Callable[[Peer], object]) -> Callable[[Peer, Heard], object]:
    """Answers the first request of each connection; at the second, ends it."""
    seen: set[int] = set()

    def handler(peer: Peer, heard: Heard) -> object:
        if peer.number in seen:
            end(peer)
            return False
        seen.add(peer.number)
        return peer.send(whole(b"ok"))

    return handler


@pytest.mark.parametrize("end", [lambda peer: None, Peer.reset], ids=["closed", "reset"])
def test_a_stale_connection_is_replaced_unseen(caller: Caller, end: Callable[[Peer], object]) -> None:
    with serving(serve_once_then(end)) as server:
        assert [ask(caller, server.url) for _ in range(3)] == [b"ok"] * 3
        assert server.accepted == 3


def test_connections_closed_while_idle_are_replaced_unseen(caller: Caller) -> None:
    def last(peer: Peer, heard: Heard) -> bool:
        peer.send(whole(b"ok"))
        return False

    with serving(last) as server:
        for _ in range(3):
            assert ask(caller, server.url) == b"ok"
            caller.idle(0.05)
        assert len(server.heard) == 3


def test_the_second_try_does_not_take_another_stale_connection(caller: Caller) -> None:
    with serving(serve_once_then(lambda peer: None)) as server:
        calls = [caller.send(post(server.url)) for _ in range(4)]
        assert [read_all(call) for call in calls] == [b"ok"] * 4
        assert ask(caller, server.url) == b"ok"
        assert server.accepted == 5


def test_a_new_connection_that_breaks_is_not_tried_again(caller: Caller) -> None:
    with serving(lambda peer, heard: False) as server:
        error = failure(lambda: ask(caller, server.url))
        assert (error.stage, error.fresh) == ("closed", True)
        assert len(server.heard) == 1


def test_a_stale_connection_is_tried_again_only_once(caller: Caller) -> None:
    with serving(answer_ok) as server:
        ask(caller, server.url)
        server.handler = lambda peer, heard: False
        assert failure(lambda: ask(caller, server.url)).stage == "closed"
        assert len(server.heard) == 3


def test_a_reply_that_has_begun_is_not_asked_for_again(caller: Caller) -> None:
    with serving(serve_once_then(lambda peer: peer.send(b"HTTP/1.1 200 OK\r\nContent-"))) as server:
        ask(caller, server.url)
        error = failure(lambda: ask(caller, server.url))
        assert (error.stage, error.fresh) == ("closed", False)
        assert len(server.heard) == 2


# --- broken replies -------------------------------------------------------------------------------------------


def reset_later(peer: Peer) -> None:
    time.sleep(0.1)
    peer.reset()


BROKEN = {
    "chunk cut": lambda peer: peer.send(CHUNKED + b"40\r\n" + EVENT),
    "no last chunk": lambda peer: peer.send(CHUNKED + chunk(EVENT)),
    "size cut": lambda peer: peer.send(CHUNKED + chunk(EVENT) + b"4"),
    "length not reached": lambda peer: peer.send(head("Content-Length: 1000") + EVENT),
    "length not begun": lambda peer: peer.send(head("Content-Length: 1000")),
    "reset in chunks": lambda peer: (peer.send(CHUNKED + chunk(EVENT)), reset_later(peer)),
    "reset without length": lambda peer: (peer.send(head("Connection: close") + EVENT), reset_later(peer)),
    "bad chunk size": lambda peer: peer.send(CHUNKED + b"zz\r\n" + EVENT),
}


@pytest.mark.parametrize("way", BROKEN)
def test_a_body_that_breaks_off_is_an_error(caller: Caller, way: str) -> None:
    def handler(peer: Peer, heard: Heard) -> bool:
        BROKEN[way](peer)
        return False

    with serving(handler) as server:
        error = failure(lambda: ask(caller, server.url))
    assert (error.stage, error.fresh) == ("closed", False)


@pytest.mark.parametrize("sent", [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 2", b"HTTP/1.1 200 OK\r\n"])
def test_a_head_that_breaks_off_is_an_error(caller: Caller, sent: bytes) -> None:
    def handler(peer: Peer, heard: Heard) -> bool:
        peer.send(sent)
        return False

    with serving(handler) as server:
        error = failure(lambda: ask(caller, server.url))
    assert (error.stage, error.fresh) == ("closed", False)


@pytest.mark.parametrize("sent", [b"220 mail.example ESMTP\r\n\r\n", b"\x15\x03\x01\x00\x02\x02", b"<html>\r\n\r\n"])
def test_what_is_not_http_is_an_error(caller: Caller, sent: bytes) -> None:
    def handler(peer: Peer, heard: Heard) -> bool:
        peer.send(sent)
        return False

    with serving(handler) as server:
        error = failure(lambda: ask(caller, server.url))
    assert (error.stage, error.fresh) == ("closed", False)


def test_a_body_that_the_close_ends_is_whole(caller: Caller) -> None:
    def old(peer: Peer, heard: Heard) -> bool:
        peer.send(b"HTTP/1.0 200 OK\r\n\r\n" + EVENT)
        return False

    with serving(old) as server:
        assert ask(caller, server.url) == EVENT


def test_the_end_stays_the_end(caller: Caller) -> None:
    with serving(answer_ok) as server:
        call = caller.send(post(server.url))
        assert [call.read() for _ in range(3)] == [b"ok", b"", b""]
        call.close()
        assert call.read() == b""


# --- what is sent and what comes back -------------------------------------------------------------------------


def test_the_request_arrives_as_given(caller: Caller) -> None:
    with serving(answer_ok) as server:
        ask(caller, f"{server.url}/v1/chat/completions?a=b%20c&d=%2F")
        heard = server.heard[0]
    assert (heard.method, heard.target) == ("POST", "/v1/chat/completions?a=b%20c&d=%2F")
    assert heard.headers["authorization"] == f"Bearer {CANARY}"
    assert heard.headers["content-type"] == "application/json"
    assert heard.headers["host"] == f"127.0.0.1:{server.port}"
    assert heard.headers["accept-encoding"] == "identity"
    assert heard.body == b"{}"


def test_get_has_no_body(caller: Caller) -> None:
    with serving(answer_ok) as server:
        assert read_all(caller.send(HTTPRequest("GET", f"{server.url}/health", {}))) == b"ok"
        assert (server.heard[0].method, server.heard[0].body) == ("GET", b"")


def test_a_large_request_arrives_whole(caller: Caller) -> None:
    body = os.urandom(1 << 20) * 5
    with serving(answer_ok) as server:
        assert read_all(caller.send(post(server.url, body))) == b"ok"
        assert server.heard[0].body == body


def test_header_names_are_lower_case(caller: Caller) -> None:
    def shouting(peer: Peer, heard: Heard) -> None:
        peer.send(whole(b"", "RETRY-After: 3", "X-Two: a", "x-two: b", status="429 Too Many Requests"))

    with serving(shouting) as server:
        call = caller.send(post(server.url))
        assert call.status == 429
        assert call.headers["retry-after"] == "3"
        assert call.headers["x-two"] == "a, b"
        assert read_all(call) == b""


def test_redirects_are_not_followed(caller: Caller) -> None:
    with serving(answer_ok) as elsewhere:

        def redirect(peer: Peer, heard: Heard) -> None:
            peer.send(whole(b"", f"Location: {elsewhere.url}", status="307 Temporary Redirect"))

        with serving(redirect) as server:
            call = caller.send(post(server.url))
            assert (call.status, call.headers["location"]) == (307, elsewhere.url)
            assert read_all(call) == b""
        assert elsewhere.heard == []


def test_cookies_are_not_kept(caller: Caller) -> None:
    def bake(peer: Peer, heard: Heard) -> None:
        peer.send(whole(b"ok", "Set-Cookie: a=b"))

    with serving(bake) as server:
        for _ in range(2):
            ask(caller, server.url.replace("127.0.0.1", "localhost"))
        assert "cookie" not in server.heard[1].headers


def test_an_interim_response_is_passed_over(caller: Caller) -> None:
    def patient(peer: Peer, heard: Heard) -> None:
        peer.send(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(b"ok"))

    with serving(patient) as server:
        assert ask(caller, server.url) == b"ok"


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_an_event_comes_out_when_it_arrives(caller: Caller, framing: str) -> None:
    seen = threading.Semaphore(0)
    heads = {"chunked": CHUNKED, "length": head(f"Content-Length: {3 * len(EVENT)}"), "close": head("Connection: close")}

    def handler(peer: Peer, heard: Heard) -> bool:
        peer.send(heads[framing])
        for _ in range(3):
            peer.send(chunk(EVENT) if framing == "chunked" else EVENT)
            assert seen.acquire(timeout=SOON)
        if framing == "chunked":
            peer.send(LAST_CHUNK)
        return framing != "close"

    with serving(handler) as server:
        call = caller.send(post(server.url), Limits(idle=SOON / 2))
        for _ in range(3):
            assert call.read() == EVENT
            seen.release()
        assert call.read() == b""


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_a_large_body_comes_in_bounded_pieces(caller: Caller, framing: str) -> None:
    block = bytes(range(256)) * 4096  # 1 MiB
    heads = {"chunked": CHUNKED, "length": head(f"Content-Length: {20 * len(block)}"), "close": head("Connection: close")}

    def handler(peer: Peer, heard: Heard) -> bool:
        peer.send(heads[framing])
        for _ in range(20):
            peer.send(chunk(block) if framing == "chunked" else block)
        if framing == "chunked":
            peer.send(LAST_CHUNK)
        return framing != "close"

    with serving(handler) as server:
        call = caller.send(post(server.url))
        pieces = list(iter(call.read, b""))
    assert max(map(len, pieces)) <= MOST_PIECE
    assert b"".join(pieces) == block * 20


def test_a_slow_reader_holds_the_sender_back(caller: Caller) -> None:
    sent = itertools.count()
    block = bytes(1 << 20)

    def flood(peer: Peer, heard: Heard) -> None:
        peer.send(head(f"Content-Length: {512 * len(block)}"))
        for _ in range(512):
            peer.send(block)
            next(sent)

    with serving(flood) as server:
        call = caller.send(post(server.url))
        call.read()
        caller.idle(0.5)
        assert next(sent) < 64
        call.close()


# --- no connection --------------------------------------------------------------------------------------------


def test_a_closed_port_refuses(caller: Caller) -> None:
    error = failure(lambda: caller.send(post(f"http://127.0.0.1:{free_port()}")))
    assert (error.stage, error.fresh) == ("refused", True)
    assert "refused" in str(error)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_an_unknown_name_refuses(caller: Caller, host: str) -> None:
    assert failure(lambda: caller.send(post(f"http://{host}:8080"))).stage == "refused"


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "127.0.0.1:8080", "http://", "http://127.0.0.1:port/", "http://[::1/"])
def test_what_is_no_http_url_refuses(caller: Caller, url: str) -> None:
    assert failure(lambda: caller.send(post(url))).stage == "refused"


@pytest.mark.parametrize("key", [f"{CANARY}\n", f"{CANARY}\r\nX-Evil: 1", f"“{CANARY}”"])
def test_a_key_that_http_forbids_is_named_but_not_shown(caller: Caller, key: str) -> None:
    with serving(answer_ok) as server:
        error = failure(lambda: caller.send(HTTPRequest("POST", server.url, {"Authorization": key}, b"{}")))
        assert error.stage == "refused"
        assert "'Authorization'" in str(error)
        assert server.heard == []


# --- proxies and certificates ---------------------------------------------------------------------------------


@pytest.fixture
def calling(kind: str) -> Iterator[Callable[..., Caller]]:
    """Makes callers with an environment."""
    made: list[Caller] = []

    def make(**environ: str) -> Caller:
        made.append(KINDS[kind](environ))
        return made[-1]

    yield make
    for caller in made:
        caller.leave()


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_goes_through_the_proxy(calling: Callable[..., Caller], name: str) -> None:
    with serving(answer_ok) as proxy:
        caller = calling(**{name: proxy.url.replace("//", f"//me:{CANARY}%40@")})
        assert [ask(caller, "http://lm.example:8000/v1/models") for _ in range(2)] == [b"ok"] * 2
        heard = proxy.heard[0]
        assert proxy.accepted == 1
    assert heard.target == "http://lm.example:8000/v1/models"
    assert heard.headers["host"] == "lm.example:8000"
    assert heard.headers["proxy-authorization"] == "Basic bWU6Y2FuYXJ5LTRmMWRA"


@pytest.mark.parametrize("no_proxy", ["127.0.0.1", "example.org, 127.0.0.1", "127.0.0.0/8", "*", "127.0.0.1:{port}"])
def test_no_proxy_goes_straight(calling: Callable[..., Caller], no_proxy: str) -> None:
    with serving(answer_ok) as server:
        refused = f"http://127.0.0.1:{free_port()}"
        caller = calling(http_proxy=refused, no_proxy=no_proxy.format(port=server.port))
        assert ask(caller, server.url) == b"ok"


@pytest.mark.parametrize("no_proxy", ["", "127.0.0.2", "10.0.0.0/8", "example.org", "127.0.0.1:1"])
def test_no_proxy_for_others_does_not(calling: Callable[..., Caller], no_proxy: str) -> None:
    with serving(answer_ok) as server:
        caller = calling(http_proxy=f"http://127.0.0.1:{free_port()}", no_proxy=no_proxy)
        assert failure(lambda: ask(caller, server.url)).stage == "refused"


def tunnel(peer: Peer, heard: Heard) -> bool:
    """A proxy's answer to CONNECT: bytes both ways."""
    host, _, port = heard.target.partition(":")
    with socket.create_connection((host, int(port))) as onward:

        def back() -> None:
            try:
                while data := onward.recv(65536):
                    peer.send(data)
            except OSError:
                pass

        thread = threading.Thread(target=back, daemon=True)
        peer.send(b"HTTP/1.1 200 Connection established\r\n\r\n")
        thread.start()
        try:
            while data := peer.source.recv(65536):
                onward.sendall(data)
        finally:
            onward.shutdown(socket.SHUT_RDWR)
            thread.join()
    return False


@pytest.mark.parametrize("secure_proxy", [False, True], ids=["http proxy", "https proxy"])
def test_tunnels_tls_through_the_proxy(
    calling: Callable[..., Caller], certificate: Certificate, secure_proxy: bool
) -> None:
    with serving(answer_ok, certificate.server) as server, serving(tunnel, certificate.server if secure_proxy else None) as proxy:
        url = proxy.url.replace("//", f"//me:{CANARY}@")
        caller = calling(https_proxy=url, SSL_CERT_FILE=str(certificate.file))
        assert [ask(caller, server.url) for _ in range(2)] == [b"ok"] * 2
        assert (proxy.accepted, server.accepted) == (1, 1)
        assert "proxy-authorization" in proxy.heard[0].headers
        assert "authorization" not in proxy.heard[0].headers
        assert "proxy-authorization" not in server.heard[0].headers


def test_a_proxy_that_says_no_refuses(calling: Callable[..., Caller], certificate: Certificate) -> None:
    def deny(peer: Peer, heard: Heard) -> None:
        peer.send(whole(b"", status="407 Proxy Authentication Required"))

    with serving(deny) as proxy:
        caller = calling(https_proxy=proxy.url.replace("//", f"//me:{CANARY}@"))
        assert failure(lambda: ask(caller, "https://lm.example")).stage == "refused"


def test_a_proxy_that_cannot_be_used_refuses(calling: Callable[..., Caller]) -> None:
    caller = calling(http_proxy=f"socks5://me:{CANARY}@127.0.0.1:1080")
    error = failure(lambda: ask(caller, "http://127.0.0.1:1"))
    assert error.stage == "refused"
    assert "http_proxy" in str(error)


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"])
def test_trusts_the_certificates_the_environment_names(
    calling: Callable[..., Caller], certificate: Certificate, name: str
) -> None:
    with serving(answer_ok, certificate.server) as server:
        caller = calling(**{name: str(certificate.file)})
        assert [ask(caller, server.url) for _ in range(3)] == [b"ok"] * 3
        assert server.accepted == 1


@pytest.mark.parametrize("name", ["SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"])
def test_trusts_a_folder_of_certificates(
    calling: Callable[..., Caller], certificate: Certificate, name: str, tmp_path: Path
) -> None:
    command = ["openssl", "x509", "-hash", "-noout", "-in", str(certificate.file)]
    digest = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    (tmp_path / f"{digest}.0").write_bytes(certificate.file.read_bytes())
    with serving(answer_ok, certificate.server) as server:
        assert ask(calling(**{name: str(tmp_path)}), server.url) == b"ok"


def test_does_not_trust_a_strange_certificate(caller: Caller, certificate: Certificate) -> None:
    with serving(answer_ok, certificate.server) as server:
        error = failure(lambda: ask(caller, server.url))
        assert error.stage == "refused"
        assert "certificate" in str(error)
        assert server.heard == []


def test_does_not_trust_a_certificate_for_another_name(calling: Callable[..., Caller], certificate: Certificate) -> None:
    with serving(answer_ok, certificate.server) as server:
        caller = calling(SSL_CERT_FILE=str(certificate.file))
        assert failure(lambda: ask(caller, server.url.replace("127.0.0.1", "localhost"))).stage == "refused"
        assert server.heard == []


def test_missing_certificates_are_said_to_be_missing(calling: Callable[..., Caller], tmp_path: Path) -> None:
    caller = calling(SSL_CERT_FILE=str(tmp_path / "gone.pem"))
    error = failure(lambda: ask(caller, f"https://127.0.0.1:{free_port()}"))
    assert error.stage == "refused"
    assert "gone.pem" in str(error)
    assert "SSL_CERT_FILE" in str(error)


def test_closing_over_tls_closes_upstream_at_once(calling: Callable[..., Caller], certificate: Certificate) -> None:
    with serving(begin, certificate.server) as server:
        call = calling(SSL_CERT_FILE=str(certificate.file)).send(post(server.url))
        assert call.read() == EVENT
        closed = time.monotonic()
        call.close()
        assert server.gone.get(timeout=SOON) - closed < AT_ONCE


def test_connect_limit_covers_tls(caller: Caller) -> None:
    with serving(say_nothing) as server:
        url = server.url.replace("http:", "https:")
        assert failure(lambda: caller.send(post(url), Limits(connect=0.3))).stage == "connect"


# --- threads, processes, loops --------------------------------------------------------------------------------


def test_serves_eight_threads_at_once(kind: str) -> None:
    # A sync transport is shared by the threads; an async one has a loop in each of them.
    shared = KINDS[kind]({})
    results: list[list[bytes]] = []

    def work(server: Server) -> None:
        caller = AsyncCaller(shared.transport) if isinstance(shared, AsyncCaller) else shared
        results.append([ask(caller, server.url) for _ in range(25)])
        if caller is not shared:
            caller.leave()

    with serving(in_chunks) as server:
        threads = [threading.Thread(target=work, args=(server,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON * 3)
        assert results == [[b"ok"] * 25] * 8
        assert len(server.heard) == 200
        assert server.accepted <= 8
        shared.leave()


def run(kind: str, url: str, script: str, *, strict: bool = True) -> str:
    """What a fresh process prints that runs `script` with a `caller`; it may not say or warn of anything else."""
    start = f"""
        import os, sys
        from transport_harness import KINDS, AsyncCaller
        from maxwell.types import HTTPRequest
        caller = KINDS[{kind!r}]({{}})
        def send(path="/", caller=caller):
            return caller.send(HTTPRequest("POST", {url!r} + path, {{}}, b"{{}}"))
        def read(exchange):
            return b"".join(iter(exchange.read, b"")).decode()
        def own(caller):
            return AsyncCaller(caller.transport) if isinstance(caller, AsyncCaller) else caller
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path]))
    done = subprocess.run(
        [sys.executable, *(["-W", "error", "-X", "dev"] if strict else []), "-c", textwrap.dedent(start + script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    return done.stdout


def say_number(peer: Peer, heard: Heard) -> None:
    peer.send(whole(b"%d" % peer.number))


def test_works_in_a_forked_child_and_in_its_parent(kind: str) -> None:
    script = """
        print(read(send()), flush=True)
        child = os.fork()
        if child == 0:
            caller = own(caller)
            print(read(send(caller=caller)), read(send(caller=caller)), flush=True)
            caller.leave()
            os._exit(0)
        print(os.waitpid(child, 0)[1], read(send()), flush=True)
        caller.leave()
    """
    with serving(say_number) as server:
        # The first connection is the parent's and stays so, the second is the child's.
        assert run(kind, server.url, script) == "1\n2 2\n0 1\n"


def test_a_forked_child_that_tidies_up_leaves_its_parents_exchanges_alone(kind: str) -> None:
    script = """
        read(send("/more"))
        exchange = send("/")
        print(len(exchange.read()), flush=True)
        if os.fork() == 0:
            caller = own(caller)
            read(send("/other", caller))
            caller.leave()
            del exchange
            sys.exit()  # finalizes everything, unlike os._exit
        print(os.wait()[1], read(send("/more")), len(read(exchange)))
        caller.leave()
    """
    more = threading.Semaphore(0)

    def handler(peer: Peer, heard: Heard) -> None:
        if heard.target == "/":
            peer.send(CHUNKED + chunk(EVENT))
            assert more.acquire(timeout=SOON)
            assert more.acquire(timeout=SOON)
            peer.send(chunk(EVENT) + LAST_CHUNK)
        else:
            more.release(1 if heard.target == "/more" else 0)
            peer.send(whole(b"ok"))

    with serving(handler) as server:
        size = len(EVENT)
        assert run(kind, server.url, script, strict=False) == f"{size}\n0 ok {size}\n"


def test_closing_reaches_the_server_although_a_forked_child_lives_on(kind: str) -> None:
    script = """
        exchange = send("/")
        exchange.read()
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(theirs)
            os.read(ours, 1)
            os._exit(0)
        exchange.close()
        print(read(send("/seen")))
        os.close(theirs)
        os.wait()
        caller.leave()
    """

    def handler(peer: Peer, heard: Heard) -> None:
        if heard.target == "/":
            begin(peer, heard)
        else:
            server.gone.get(timeout=SOON / 2)
            peer.send(whole(b"seen"))

    with serving(handler) as server:
        assert run(kind, server.url, script) == "seen\n"


def test_works_in_one_loop_after_another(kind: str) -> None:
    script = """
        for _ in range(3):
            caller = own(caller)
            print(read(send(caller=caller)), read(send(caller=caller)), flush=True)
            caller.leave()
    """
    with serving(say_number) as server:
        # Each loop has one connection, and takes it along when it ends.
        assert run(kind, server.url, script) == "1 1\n2 2\n3 3\n"
        assert [server.gone.get(timeout=SOON) for _ in range(3)]


def test_an_exchange_left_open_ends_with_its_loop_without_a_word(kind: str) -> None:
    script = """
        exchange = send()
        print(len(exchange.read()))
        caller.leave()
        exchange.close() if isinstance(caller, AsyncCaller) is False else None
    """
    with serving(begin) as server:
        assert run(kind, server.url, script) == f"{len(EVENT)}\n"
        assert server.gone.get(timeout=SOON)
