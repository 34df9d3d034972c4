"""The transport contract (see `maxwell.calls.transport`): where a request goes and whom it trusts."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transport_harness import (
    AT_ONCE,
    CANARY,
    EVENT,
    SOON,
    Caller,
    Certificate,
    Heard,
    Peer,
    answer_ok,
    ask,
    begin,
    failure,
    free_port,
    post,
    say_nothing,
    serving,
    whole,
)

from maxwell.calls.effects import Limits
from maxwell.types import HTTPRequest

# --- no connection --------------------------------------------------------------------------------


def test_a_closed_port_refuses(caller: Caller) -> None:
    error = failure(lambda: caller.send(post(f"http://127.0.0.1:{free_port()}")))
    assert (error.stage, error.fresh) == ("refused", True)
    assert "refused" in str(error)


@pytest.mark.parametrize("host", ["no-such-host.invalid", "x" * 64 + ".invalid"])
def test_an_unknown_name_refuses(caller: Caller, host: str) -> None:
    assert failure(lambda: caller.send(post(f"http://{host}:8080"))).stage == "refused"


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/", "127.0.0.1:8080", "http://", "http://127.0.0.1:port/", "http://[::1/"]
)
def test_what_is_no_http_url_refuses(caller: Caller, url: str) -> None:
    assert failure(lambda: caller.send(post(url))).stage == "refused"


@pytest.mark.parametrize("key", [f"{CANARY}\n", f"{CANARY}\r\nX-Evil: 1", f"“{CANARY}”"])
def test_a_key_that_http_forbids_is_named_but_not_shown(caller: Caller, key: str) -> None:
    with serving(answer_ok) as server:
        error = failure(lambda: caller.send(HTTPRequest("POST", server.url, {"Authorization": key}, b"{}")))
        assert error.stage == "refused"
        assert "'Authorization'" in str(error)
        assert server.heard == []


# --- proxies and certificates ---------------------------------------------------------------------


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


@pytest.mark.parametrize(
    "no_proxy", ["127.0.0.1", "example.org, 127.0.0.1", "127.0.0.0/8", "*", "127.0.0.1:{port}"]
)
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
    with (
        serving(answer_ok, certificate.server) as server,
        serving(tunnel, certificate.server if secure_proxy else None) as proxy,
    ):
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


def test_does_not_trust_a_certificate_for_another_name(
    calling: Callable[..., Caller], certificate: Certificate
) -> None:
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


def test_closing_over_tls_closes_upstream_at_once(
    calling: Callable[..., Caller], certificate: Certificate
) -> None:
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
