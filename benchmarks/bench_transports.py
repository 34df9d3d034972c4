"""What one call costs through each HTTP library, bare and behind Maxwell's seam, and what importing it costs.

The call is a small streamed chat (eight words) from a stub in another process, read to its end. Candidates
that are not installed are left out; which of them keep the contract, tests/contract says.

Run: python benchmarks/bench_transports.py
"""

from __future__ import annotations

import asyncio
import http.client
import importlib
import importlib.util
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import Any
from urllib.parse import urlsplit

import stub
from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.effects import Limits
from maxwell.calls.urllib3_transport import Urllib3Transport
from maxwell.types import HTTPRequest
from tables import options, ratio, repeat, show, spread

WORDS = 8
AT_ONCE = 32
HEADERS = {
    "Content-Type": "application/json",
    "Authorization": "Bearer none",
    "Accept-Encoding": "identity",
}
BODY = b'{"model":"m","messages":[{"role":"user","content":"Why is the sky blue?"}],"stream":true}'

Work = Callable[[], int]  # does one call, gives the bytes it read
AsyncWork = Callable[[], Awaitable[int]]
Sample = tuple[float, float]  # wall us, CPU us


# --- sync candidates: each makes a function that calls -----------------------------------------------------


def stdlib(url: str, stack: ExitStack) -> Work:
    parts = urlsplit(url)
    local = threading.local()

    def call() -> int:
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(parts.hostname or "", parts.port)
            stack.callback(local.connection.close)
        local.connection.request("POST", parts.path, BODY, HEADERS)
        response = local.connection.getresponse()
        return sum(len(piece) for piece in iter(lambda: response.read1(65536), b""))

    return call


def bare_urllib3(url: str, stack: ExitStack) -> Work:
    import urllib3

    pool = stack.enter_context(urllib3.PoolManager(maxsize=AT_ONCE))
    timeout = urllib3.Timeout(connect=5, read=60)

    def call() -> int:
        response = pool.request(
            "POST", url, body=BODY, headers=HEADERS, preload_content=False, retries=False, timeout=timeout
        )
        size = sum(len(piece) for piece in response.stream(65536))
        response.release_conn()
        return size

    return call


def maxwell_sync(url: str, stack: ExitStack) -> Work:
    transport = Urllib3Transport({})
    stack.callback(transport.close)
    request, limits = HTTPRequest("POST", url, HEADERS, BODY), Limits()

    def call() -> int:
        return sum(len(piece) for piece in iter(transport.send(request, limits).read, b""))

    return call


def httpx2_sync(url: str, stack: ExitStack) -> Work:
    import httpx2

    client = stack.enter_context(httpx2.Client(timeout=60))

    def call() -> int:
        with client.stream("POST", url, content=BODY, headers=HEADERS) as response:
            return sum(len(piece) for piece in response.iter_raw())

    return call


def pyqwest_sync(url: str, stack: ExitStack) -> Work:
    pyqwest = importlib.import_module("pyqwest")

    client = pyqwest.SyncClient(pyqwest.SyncHTTPTransport())

    def call() -> int:
        with client.stream("POST", url, HEADERS, BODY) as response:
            return sum(len(piece) for piece in response.content)

    return call


def pyreqwest_sync(url: str, stack: ExitStack) -> Work:
    pyreqwest = importlib.import_module("pyreqwest.client")
    client = stack.enter_context(pyreqwest.SyncClientBuilder().build())

    def call() -> int:
        request = client.post(url).headers(HEADERS).body_bytes(BODY).build_streamed()
        with request as response:
            return sum(len(piece) for piece in iter(response.body_reader.read_chunk, None))

    return call


# --- async candidates ------------------------------------------------------------------------------------


async def bare_aiohttp(url: str, stack: AsyncExitStack) -> AsyncWork:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60)
    connector = aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector, timeout=timeout))

    async def call() -> int:
        size = 0
        async with session.post(url, data=BODY, headers=HEADERS) as response:
            async for piece in response.content.iter_any():
                size += len(piece)
        return size

    return call


async def maxwell_async(url: str, stack: AsyncExitStack) -> AsyncWork:
    transport = AiohttpTransport({})
    stack.push_async_callback(transport.close)
    request, limits = HTTPRequest("POST", url, HEADERS, BODY), Limits()

    async def call() -> int:
        size = 0
        exchange = await transport.send(request, limits)
        while piece := await exchange.read():
            size += len(piece)
        return size

    return call


async def httpx2_async(url: str, stack: AsyncExitStack) -> AsyncWork:
    import httpx2

    client = await stack.enter_async_context(httpx2.AsyncClient(timeout=60))

    async def call() -> int:
        size = 0
        async with client.stream("POST", url, content=BODY, headers=HEADERS) as response:
            async for piece in response.aiter_raw():
                size += len(piece)
        return size

    return call


async def pyqwest_async(url: str, stack: AsyncExitStack) -> AsyncWork:
    pyqwest = importlib.import_module("pyqwest")

    client = pyqwest.Client(pyqwest.HTTPTransport())

    async def call() -> int:
        size = 0
        async with client.stream("POST", url, HEADERS, BODY) as response:
            async for piece in response.content:
                size += len(piece)
        return size

    return call


async def pyreqwest_async(url: str, stack: AsyncExitStack) -> AsyncWork:
    pyreqwest = importlib.import_module("pyreqwest.client")
    client = await stack.enter_async_context(pyreqwest.ClientBuilder().build())

    async def call() -> int:
        size = 0
        request = client.post(url).headers(HEADERS).body_bytes(BODY).build_streamed()
        async with request as response:
            while (piece := await response.body_reader.read_chunk()) is not None:
                size += len(piece)
        return size

    return call


# name, module it needs; the first of each list is what Maxwell's own is compared with
SYNC: list[tuple[str, str, Callable[[str, ExitStack], Work]]] = [
    ("bare urllib3", "urllib3", bare_urllib3),
    ("Urllib3Transport", "urllib3", maxwell_sync),
    ("http.client", "http.client", stdlib),
    ("httpx2", "httpx2", httpx2_sync),
    ("pyqwest", "pyqwest", pyqwest_sync),
    ("pyreqwest", "pyreqwest", pyreqwest_sync),
]
ASYNC: list[tuple[str, str, Callable[[str, AsyncExitStack], Awaitable[AsyncWork]]]] = [
    ("bare aiohttp", "aiohttp", bare_aiohttp),
    ("AiohttpTransport", "aiohttp", maxwell_async),
    ("httpx2", "httpx2", httpx2_async),
    ("pyqwest", "pyqwest", pyqwest_async),
    ("pyreqwest", "pyreqwest", pyreqwest_async),
]
IMPORTS = [
    "http.client",
    "urllib3",
    "aiohttp",
    "httpx2",
    "pyqwest",
    "pyreqwest.client",
    "maxwell.calls.urllib3_transport",
    "maxwell.calls.aiohttp_transport",
]


def installed(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def sync_sample(work: Work, calls: int, at_once: int) -> Sample:
    def worker() -> None:
        for _ in range(calls // at_once):
            work()

    wall, cpu = time.perf_counter(), time.process_time()
    if at_once == 1:
        worker()
    else:
        threads = [threading.Thread(target=worker) for _ in range(at_once)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return (time.perf_counter() - wall) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6


async def async_sample(work: AsyncWork, calls: int, at_once: int) -> Sample:
    async def worker() -> None:
        for _ in range(calls // at_once):
            await work()

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(at_once)))
    return (time.perf_counter() - wall) / calls * 1e6, (time.process_time() - cpu) / calls * 1e6


def sync_rounds(url: str, rounds: int, calls: int, at_once: int) -> dict[str, list[Sample]]:
    """Samples by candidate; each round takes all of them in turn, so that a noisy moment hits all alike."""
    with ExitStack() as stack:
        works = {name: make(url, stack) for name, module, make in SYNC if installed(module)}
        samples: dict[str, list[Sample]] = {name: [] for name in works}
        for round_ in range(rounds + 1):
            for name, work in works.items():
                taken = sync_sample(work, calls, at_once)
                if round_:
                    samples[name].append(taken)
    return samples


async def async_rounds(url: str, rounds: int, calls: int, at_once: int) -> dict[str, list[Sample]]:
    async with AsyncExitStack() as stack:
        works = {name: await make(url, stack) for name, module, make in ASYNC if installed(module)}
        samples: dict[str, list[Sample]] = {name: [] for name in works}
        for round_ in range(rounds + 1):
            for name, work in works.items():
                taken = await async_sample(work, calls, at_once)
                if round_:
                    samples[name].append(taken)
    return samples


def import_milliseconds(module: str) -> float:
    """In a fresh process, the interpreter's own start not counted."""
    code = f"import time; t = time.perf_counter(); import {module}; print((time.perf_counter() - t) * 1e3)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    return float(done.stdout)


def rows_of(kind: str, samples: dict[str, list[Sample]]) -> list[list[Any]]:
    costs = {name: [spread(values) for values in zip(*taken, strict=True)] for name, taken in samples.items()}
    bare = next(iter(costs.values()))[1].median
    return [[kind, name, wall, cpu, ratio(cpu.median, bare)] for name, (wall, cpu) in costs.items()]


def main() -> None:
    given = options(__doc__)
    rounds, calls = (3, 64) if given.quick else (15, 320)
    rows = []
    with stub.running() as root:
        url = f"{root}/{WORDS}/v1/chat/completions"
        for at_once in (1, AT_ONCE):
            rows += rows_of(f"sync, {at_once} at once", sync_rounds(url, rounds, calls, at_once))
        for at_once in (1, AT_ONCE):
            taken = asyncio.run(async_rounds(url, rounds, calls, at_once))
            rows += rows_of(f"async, {at_once} at once", taken)
    header = ["kind", "library", "wall us a call", "CPU us a call", "CPU beside the first"]
    show(f"One streamed chat of {WORDS} words", header, rows, as_json=given.json)
    imports = [
        [name, repeat(lambda name=name: import_milliseconds(name), 3 if given.quick else 9)]  # type: ignore[misc]
        for name in IMPORTS
        if installed(name)
    ]
    show("Import in a fresh process", ["module", "ms"], imports, as_json=given.json)


if __name__ == "__main__":
    main()
