"""What a Maxwell call costs beside the bare HTTP library, against a stub in another process.

Goal: at most 1.3 times the bare library, sync and async, streaming included. The bare library sends the same
request and reads the same stream without looking at it. CPU is this process's alone; the stub's is not in it.
openai and LiteLLM join when they are installed.

Run: python benchmarks/bench_calls.py
"""

from __future__ import annotations

import asyncio
import importlib.util
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import urllib3

import stub
from maxwell.backends import get_backend
from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from maxwell.types import ChatCall, HTTPRequest
from tables import Spread, options, ratio, show, spread

PROMPT = "Why is the sky blue?"
MAX_TOKENS = 300
CONCURRENCY = 32


def spec(url: str) -> LLMSpec:
    return LLMSpec(
        name="stub",
        api_base=url,
        model="m",
        backend="vllm",
        capabilities=Capabilities(max_tokens=4096, max_context=32768, speed_tokens_per_sec=100),
        default_temperature=0.5,
    )


def request(url: str) -> HTTPRequest:
    """The request Maxwell sends, for the bare library to send."""
    call = ChatCall(messages=[{"role": "user", "content": PROMPT}], max_tokens=MAX_TOKENS)
    return get_backend("vllm").chat(spec(url), call, None)


Figures = tuple[Spread, Spread]  # wall us, CPU us
Named = list[tuple[str, Figures]]


def sync_cost(works: dict[str, Callable[[], object]], rounds: int, calls: int) -> Named:
    """Cost of one call of each; they take turns, so a machine that changes its speed treats all alike."""
    walls: dict[str, list[float]] = {name: [] for name in works}
    cpus: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                work()
            if round_:
                walls[name].append((time.perf_counter() - wall) / calls * 1e6)
                cpus[name].append((time.process_time() - cpu) / calls * 1e6)
    return [(name, (spread(walls[name]), spread(cpus[name]))) for name in works]


async def async_cost(
    works: dict[str, Callable[[], Awaitable[object]]], rounds: int, calls: int, at_once: int
) -> Named:
    """As `sync_cost`, with `at_once` calls under way."""

    async def worker(work: Callable[[], Awaitable[object]]) -> None:
        for _ in range(calls // at_once):
            await work()

    walls: dict[str, list[float]] = {name: [] for name in works}
    cpus: dict[str, list[float]] = {name: [] for name in works}
    for round_ in range(rounds + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            await asyncio.gather(*(worker(work) for _ in range(at_once)))
            if round_:
                walls[name].append((time.perf_counter() - wall) / calls * 1e6)
                cpus[name].append((time.process_time() - cpu) / calls * 1e6)
    return [(name, (spread(walls[name]), spread(cpus[name]))) for name in works]


def sync_rows(url: str, home: Path, rounds: int, calls: int) -> Named:
    asked = request(url)
    http = urllib3.PoolManager()

    def bare() -> int:
        response = http.request(
            "POST", asked.url, body=asked.body, headers=asked.headers, preload_content=False, retries=False
        )
        size = sum(len(piece) for piece in response.stream(65536))
        response.release_conn()
        return size

    with LLMPool(Registry(llms=(spec(url),)), home=home) as pool:
        lm = pool.get_lm()
        works: dict[str, Callable[[], object]] = {
            "bare urllib3": bare,
            "Maxwell generate": lambda: lm.generate(PROMPT, max_tokens=MAX_TOKENS),
            "Maxwell stream": lambda: sum(map(len, lm.stream(PROMPT, max_tokens=MAX_TOKENS))),
        }
        return sync_cost(works, rounds, calls) + sync_cost(peers(url), rounds, max(calls // 10, 5))


def peers(url: str) -> dict[str, Callable[[], object]]:
    """The same call by others, where they are installed; never part of Maxwell's environment."""
    found: dict[str, Callable[[], object]] = {}
    messages: list[Any] = [{"role": "user", "content": PROMPT}]
    if importlib.util.find_spec("openai") is not None:
        import openai

        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def ask_openai() -> int:
            stream = client.chat.completions.create(
                model="m",
                messages=messages,
                max_tokens=MAX_TOKENS,
                stream=True,
                stream_options={"include_usage": True},
            )
            return sum(len(c.choices[0].delta.content or "") for c in stream if c.choices)

        found["openai SDK, streamed"] = ask_openai
    if importlib.util.find_spec("litellm") is not None:
        import litellm

        def ask_litellm() -> int:
            stream = litellm.completion(
                model="openai/m",
                api_base=f"{url}/v1",
                api_key="none",
                messages=messages,
                stream=True,
                num_retries=0,
            )
            return sum(len(c.choices[0].delta.content or "") for c in stream if c.choices)

        found["LiteLLM completion, streamed"] = ask_litellm
    return found


async def async_rows(url: str, home: Path, rounds: int, calls: int, at_once: int) -> Named:
    asked = request(url)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        AsyncLLMPool(Registry(llms=(spec(url),)), home=home) as pool,
    ):
        lm = await pool.get_lm()

        async def bare() -> int:
            size = 0
            async with session.post(asked.url, data=asked.body, headers=asked.headers) as response:
                async for piece in response.content.iter_any():
                    size += len(piece)
            return size

        async def stream() -> int:
            return sum([len(piece) async for piece in lm.stream(PROMPT, max_tokens=MAX_TOKENS)])

        works: dict[str, Callable[[], Awaitable[object]]] = {
            "bare aiohttp": bare,
            "Maxwell generate": lambda: lm.generate(PROMPT, max_tokens=MAX_TOKENS),
            "Maxwell stream": stream,
        }
        return await async_cost(works, rounds, calls, at_once)


def main() -> None:
    given = options(__doc__)
    rounds = 3 if given.quick else 11
    rows: list[list[object]] = []
    with stub.running() as url, tempfile.TemporaryDirectory() as home:
        for words, calls in ((1, 300), (200, 60)):
            base = f"{url}/{words}"
            groups = [
                ("sync", sync_rows(base, Path(home), rounds, calls)),
                ("async, 1 at once", asyncio.run(async_rows(base, Path(home), rounds, calls, 1))),
                (
                    f"async, {CONCURRENCY} at once",
                    asyncio.run(
                        async_rows(
                            base, Path(home), rounds, calls * 3 // CONCURRENCY * CONCURRENCY, CONCURRENCY
                        )
                    ),
                ),
            ]
            for kind, group in groups:
                bare_wall, bare_cpu = group[0][1]
                for name, (wall, cpu) in group:
                    rows.append(
                        [
                            f"{words} chunks, {kind}: {name}",
                            wall,
                            ratio(wall.median, bare_wall.median),
                            cpu,
                            ratio(cpu.median, bare_cpu.median),
                        ]
                    )
    show(
        "One chat call (goal 1.3 x the bare library)",
        ["what", "wall us", "of bare", "CPU us", "of bare"],
        rows,
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
