"""What the environment says about reaching the network, read once: proxies and trusted certificates.

Both transports ask here, so that they agree on what `http_proxy`, `no_proxy` or `SSL_CERT_FILE` mean.
"""

from __future__ import annotations

import base64
import os
import socket
import ssl
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from msgspec import Struct

from maxwell.calls.effects import TransportError

PIECE = 65536  # most bytes that one read of a body returns
KEEPALIVE_SECONDS = (
    30.0  # an idle connection older than this is not used again: routers may have forgotten it
)

DEFAULT_PORTS = {"http": 80, "https": 443}
REMEMBERED_URLS = 1024


class Proxy(Struct, frozen=True):
    """A proxy to go through. `authorization` is secret, so `repr` leaves it out."""

    scheme: str
    host: str
    port: int
    authorization: str | None = None

    def __repr__(self) -> str:
        return f"Proxy({self.url})"

    @property
    def url(self) -> str:
        """The proxy's URL without its credentials."""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"


class Server(Struct, frozen=True):
    """Whom to connect to: connections to equal servers can stand in for each other."""

    scheme: str
    host: str
    port: int
    proxy: Proxy | None

    def __str__(self) -> str:
        via = f" through the proxy {self.proxy.url}" if self.proxy else ""
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}{via}"


class Network:
    """Where a URL leads and which certificates count, by the environment.

    `http_proxy`, `https_proxy` and `no_proxy` (upper case too) choose proxies; `REQUESTS_CA_BUNDLE`, else
    `SSL_CERT_FILE` and `SSL_CERT_DIR`, else the system choose the trusted certificates.

    Attributes:
        environ: The variables; later changes to the process's environment are not seen.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = dict(environ)
        self._routes: dict[str, tuple[Server, str]] = {}
        self._tls: ssl.SSLContext | None = None

    def route(self, url: str) -> tuple[Server, str]:
        """The server that `url` names and what to ask it for (path and query).

        Raises:
            TransportError: Stage "refused": not an http(s) URL, or a proxy that cannot be used.
        """
        found = self._routes.get(url)
        if found is None:
            if len(self._routes) >= REMEMBERED_URLS:
                self._routes.clear()
            found = self._routes[url] = self._find(url)
        return found

    def tls(self) -> ssl.SSLContext:
        """The context for TLS connections.

        Raises:
            TransportError: Stage "refused": the certificates named by the environment cannot be read.
        """
        if self._tls is None:
            name = next((n for n in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE") if self._environ.get(n)), None)
            bundle = self._environ[name] if name else None
            folder = self._environ.get("SSL_CERT_DIR") if name != "REQUESTS_CA_BUNDLE" else None
            if bundle and Path(bundle).is_dir():
                bundle, folder = None, bundle
            try:
                context = ssl.create_default_context(cafile=bundle, capath=folder or None)
            except OSError as error:
                message = f"cannot read the certificates in {bundle or folder}, which {name} names"
                raise TransportError("refused", f"{message}: {reason(error)}") from None
            context.set_alpn_protocols(["http/1.1"])
            self._tls = context
        return self._tls

    def _find(self, url: str) -> tuple[Server, str]:
        parts = _split(url)
        if parts is None or parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise TransportError("refused", "the URL to call is not a complete http or https URL")
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not (target.isascii() and target.isprintable()) or " " in target:
            raise TransportError(
                "refused", "the URL to call holds a character that has to be percent-encoded"
            )
        proxy = self._proxy(parts.scheme, parts.hostname, port)
        return Server(parts.scheme, parts.hostname, port, proxy), target

    def _proxy(self, scheme: str, host: str, port: int) -> Proxy | None:
        value = self._variable(f"{scheme}_proxy")
        if not value or bypasses(host, port, self._variable("no_proxy")):
            return None
        parts = _split(value if "://" in value else f"http://{value}")
        if parts is None or parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise TransportError(
                "refused", f"{scheme}_proxy names no http or https proxy; set it or unset it"
            )
        authorization = None
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            authorization = "Basic " + base64.b64encode(pair.encode()).decode()
        return Proxy(parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme], authorization)

    def _variable(self, name: str) -> str:
        # A CGI script's HTTP_PROXY is a header of whoever called it, so there only the lower case counts.
        upper = "" if name == "http_proxy" and "REQUEST_METHOD" in self._environ else name.upper()
        return self._environ.get(name, self._environ.get(upper, "")).strip()


def bypasses(host: str, port: int, no_proxy: str) -> bool:
    """Whether `no_proxy` (hosts, domains, `host:port`, addresses, networks, `*`) names this server."""
    host = host.lower()
    for entry in filter(None, (e.strip().lower() for e in no_proxy.split(","))):
        name = entry.removeprefix("*").removeprefix(".")
        if entry == "*" or host == name.strip("[]") or host.endswith(f".{name}"):
            return True
        if name == f"{bracketed(host)}:{port}" or _in_network(host, name):
            return True
    return False


def _in_network(host: str, network: str) -> bool:
    if "/" not in network:
        return False
    try:
        return ip_address(host) in ip_network(network, strict=False)
    except ValueError:
        return False


def bracketed(host: str) -> str:
    """The host as it stands in a URL: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


def lower_names(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers with lower-case names; a repeated one is joined by commas."""
    out: dict[str, str] = {}
    for name, value in headers:
        key = name.lower()
        out[key] = f"{out[key]}, {value}" if key in out else value
    return out


def failure(
    stage: str, server: Server, seconds: float | None, *, fresh: bool, error: BaseException | None = None
) -> TransportError:
    """The error to raise for an exchange that failed at `stage`.

    `seconds` is the limit that ran out, `error` what the library said.
    """
    said = "" if error is None else reason(error)
    why = f" ({said})" if said else ""
    if stage == "refused":
        text = f"cannot connect to {server}{why}"
    elif stage == "connect":
        text = f"{server} did not take the connection within {seconds:g} s"
    elif stage == "first_byte":
        text = f"{server} did not begin to answer within {seconds:g} s"
    elif stage == "idle":
        text = f"{server} fell silent for {seconds:g} s in the middle of its reply"
    elif stage == "total":
        text = f"{server} did not finish within {seconds:g} s"
    elif fresh:
        text = f"{server} closed the connection before it answered{why}"
    else:
        text = f"{server} broke its reply off{why}"
    return TransportError(stage, text, fresh=fresh)


def check(headers: Mapping[str, str]) -> None:
    """Raise for a header value that cannot be sent, such as a key with a line break, without showing it."""
    for name, value in headers.items():
        if not (value.isascii() and value.isprintable()):
            text = f"the request was not sent: its header {name!r} holds a line break or another character"
            raise TransportError("refused", f"{text} that HTTP forbids; mend it where it is set")


def reason(error: BaseException) -> str:
    """What failed, in words that cannot hold a header's value: never the error's own text. "" = unknown."""
    inner = getattr(error, "os_error", None) or error
    if isinstance(inner, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({inner.verify_message})"
    if isinstance(inner, ssl.SSLError | socket.gaierror):
        return inner.strerror or type(inner).__name__
    if isinstance(inner, OSError) and inner.errno:
        return os.strerror(inner.errno)
    return ""


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises for a port that is no number
    except ValueError:
        return None
    return parts
