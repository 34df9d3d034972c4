"""The transport contract (see `maxwell.calls.transport`): limits, cuts, pooling, what is sent and read."""

from __future__ import annotations

import gc
import gzip
import itertools
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from holes import black_hole
from transport_harness import (
    AT_ONCE,
    CANARY,
    CHUNKED,
    EVENT,
    LAST_CHUNK,
    SOON,
    Caller,
    Heard,
    Peer,
    answer_ok,
    ask,
    begin,
    chunk,
    failure,
    head,
    in_chunks,
    interrupt,
    post,
    read_all,
    say_nothing,
    serving,
    whole,
)

from maxwell.calls.effects import Limits
from maxwell.types import HTTPRequest

MOST_PIECE = 65536


# --- limits ---------------------------------------------------------------------------------------


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


def test_idle_limit_runs_out_after_a_lively_start(caller: Caller) -> None:
    def fade(peer: Peer, heard: Heard) -> None:
        peer.send(CHUNKED)
        for _ in range(2):
            time.sleep(0.2)
            peer.send(chunk(EVENT))
        peer.until_gone()

    with serving(fade) as server:
        call = caller.send(post(server.url), Limits(idle=0.5))
        assert [call.read(), call.read()] == [EVENT, EVENT]
        assert failure(call.read).stage == "idle"


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
        limits = Limits(connect=None, first_byte=None, idle=None)
        assert read_all(caller.send(post(server.url), limits)) == b"ok"


# --- closing, abandoning, cancelling --------------------------------------------------------------


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
        listening.settimeout(SOON)
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
        thread = threading.Thread(target=take_a_little, daemon=True)
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


# --- pooling --------------------------------------------------------------------------------------


def empty(peer: Peer, heard: Heard) -> None:
    peer.send(head(status="204 No Content"))


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
    for descriptor in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        try:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                    found.append(copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0)
        except OSError:
            pass  # no socket, or not connected
    return found


# --- a connection that went stale while idle ------------------------------------------------------


def serve_once_then(end: Callable[[Peer], object]) -> Callable[[Peer, Heard], object]:
    """Answers the first request of each connection; at the second, ends it."""
    seen: set[int] = set()

    def handler(peer: Peer, heard: Heard) -> object:
        if peer.number in seen:
            end(peer)
            return False
        seen.add(peer.number)
        peer.send(whole(b"ok"))
        return True

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
    everyone = threading.Barrier(5)

    def together(peer: Peer, heard: Heard) -> None:
        peer.send(CHUNKED)
        everyone.wait(SOON)
        peer.send(LAST_CHUNK)

    with serving(together) as server:
        calls = [caller.send(post(server.url)) for _ in range(4)]
        everyone.wait(SOON)
        assert [read_all(call) for call in calls] == [b""] * 4
        server.handler = lambda peer, heard: answer_ok(peer, heard) if peer.number == 5 else False
        assert ask(caller, server.url) == b"ok"
        assert (server.accepted, len(server.heard)) == (5, 6)


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


# --- broken replies -------------------------------------------------------------------------------


def reset_after(peer: Peer, data: bytes) -> None:
    peer.send(data)
    time.sleep(0.1)  # a reset overtakes what has not been read
    peer.reset()


BROKEN: dict[str, Callable[[Peer], None]] = {
    "chunk cut": lambda peer: peer.send(CHUNKED + b"40\r\n" + EVENT),
    "no last chunk": lambda peer: peer.send(CHUNKED + chunk(EVENT)),
    "size cut": lambda peer: peer.send(CHUNKED + chunk(EVENT) + b"4"),
    "length not reached": lambda peer: peer.send(head("Content-Length: 1000") + EVENT),
    "length not begun": lambda peer: peer.send(head("Content-Length: 1000")),
    "reset in chunks": lambda peer: reset_after(peer, CHUNKED + chunk(EVENT)),
    "reset without length": lambda peer: reset_after(peer, head("Connection: close") + EVENT),
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


@pytest.mark.parametrize(
    "sent", [b"220 mail.example ESMTP\r\n\r\n", b"\x15\x03\x01\x00\x02\x02", b"<html>\r\n\r\n"]
)
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


# --- what is sent and what comes back -------------------------------------------------------------


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


def test_a_body_comes_as_it_was_sent(caller: Caller) -> None:
    packed = gzip.compress(EVENT)
    with serving(lambda peer, heard: peer.send(whole(packed, "Content-Encoding: gzip"))) as server:
        assert ask(caller, server.url) == packed


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
    heads = {
        "chunked": CHUNKED,
        "length": head(f"Content-Length: {3 * len(EVENT)}"),
        "close": head("Connection: close"),
    }

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
    heads = {
        "chunked": CHUNKED,
        "length": head(f"Content-Length: {20 * len(block)}"),
        "close": head("Connection: close"),
    }

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
