"""One cold selection with 50 dead hosts beside a healthy one, in seconds. Goal: 2.1 s at most.

A dead host here swallows the connection attempt without a word, as a box that is switched off does. The
bound is the health check's own limit of 2 s: a host that might still answer must be given that long. Where
the best candidate is alive, nobody is waited for.

Run: python benchmarks/bench_dead_hosts.py
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import stub
from maxwell.calls.probe import PROBE_SECONDS
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from tables import options, ratio, repeat, show

DEAD = 50


@contextmanager
def black_holes(count: int) -> Iterator[list[str]]:
    """Servers whose queues of waiting connections are full: the kernel drops every further attempt."""
    with ExitStack() as held:
        urls = []
        for _ in range(count):
            listening = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
            for _ in range(4):
                filling = held.enter_context(socket.socket())
                filling.setblocking(False)
                filling.connect_ex(listening.getsockname())
            urls.append(f"http://127.0.0.1:{listening.getsockname()[1]}")
        yield urls


def spec(name: str, url: str, speed: float) -> LLMSpec:
    return LLMSpec(
        name=name,
        api_base=url,
        model="m",
        backend="vllm",
        capabilities=Capabilities(max_tokens=512, max_context=8192, speed_tokens_per_sec=speed),
        default_temperature=0.5,
    )


def registry(dead: list[str], alive: str, speed: float) -> Registry:
    return Registry(
        llms=(*(spec(f"dead-{i}", u, 100.0) for i, u in enumerate(dead)), spec("alive", alive, speed))
    )


def cold_sync(found: Registry) -> float:
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home,
        LLMPool(found, home=Path(home)) as pool,
    ):
        began = time.perf_counter()
        assert pool.get_lm().name == "alive"
        return time.perf_counter() - began


def cold_async(found: Registry) -> float:
    async def select() -> float:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
            async with AsyncLLMPool(found, home=Path(home)) as pool:
                began = time.perf_counter()
                assert (await pool.get_lm()).name == "alive"
                return time.perf_counter() - began

    return asyncio.run(select())


def main() -> None:
    given = options(__doc__)
    rounds = 2 if given.quick else 7
    rows: list[list[object]] = []
    with black_holes(DEAD) as dead, stub.running() as alive:
        for label, speed in (("the healthy one ranks last", 1.0), ("the healthy one ranks first", 1000.0)):
            found = registry(dead, f"{alive}/1", speed)
            for kind, select in (("sync", cold_sync), ("async", cold_async)):
                took = repeat(partial(select, found), rounds)
                rows.append([f"{label}, {kind}", took, ratio(took.median, PROBE_SECONDS)])
    show(
        f"Cold selection beside {DEAD} dead hosts",
        ["what", "s", "of the 2 s limit"],
        rows,
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
