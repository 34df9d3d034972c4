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


def sync_cost(work: Callable[[], object], rounds: int, calls: int) -> Figures:
    walls, cpus = [], []
    for round_ in range(rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(calls):
            work()
        if round_:
            walls.append((time.perf_counter() - wall) / calls * 1e6)
            cpus.append((time.process_time() - cpu) / calls * 1e6)
    return spread(walls), spread(cpus)


async def async_cost(work: Callable[[], Awaitable[object]], rounds: int, calls: int, at_once: int) -> Figures:
    async def worker(count: int) -> None:
        for _ in range(count):
            await work()

    walls, cpus = [], []
    for round_ in range(rounds + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(worker(calls // at_once) for _ in range(at_once)))
        if round_:
            walls.append((time.perf_counter() - wall) / calls * 1e6)
            cpus.append((time.process_time() - cpu) / calls * 1e6)
    return spread(walls), spread(cpus)


def sync_rows(url: str, home: Path, rounds: int, calls: int) -> list[tuple[str, Figures]]:
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
        rows = [
            ("bare urllib3", sync_cost(bare, rounds, calls)),
            (
                "Maxwell generate",
                sync_cost(lambda: lm.generate(PROMPT, max_tokens=MAX_TOKENS), rounds, calls),
            ),
            (
                "Maxwell stream",
                sync_cost(lambda: sum(map(len, lm.stream(PROMPT, max_tokens=MAX_TOKENS))), rounds, calls),
            ),
        ]
    return rows + peers(url, rounds, calls)


def peers(url: str, rounds: int, calls: int) -> list[tuple[str, Figures]]:
    """The same call by others, where they are installed; never part of Maxwell's environment."""
    rows = []
    messages = [{"role": "user", "content": PROMPT}]
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

        rows.append(("openai SDK, streamed", sync_cost(ask_openai, rounds, max(calls // 10, 5))))
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

        rows.append(("LiteLLM completion, streamed", sync_cost(ask_litellm, rounds, max(calls // 20, 3))))
    return rows


async def async_rows(
    url: str, home: Path, rounds: int, calls: int, at_once: int
) -> list[tuple[str, Figures]]:
    asked = request(url)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def bare() -> int:
            size = 0
            async with session.post(asked.url, data=asked.body, headers=asked.headers) as response:
                async for piece in response.content.iter_any():
                    size += len(piece)
            return size

        bare_cost = await async_cost(bare, rounds, calls, at_once)
    async with AsyncLLMPool(Registry(llms=(spec(url),)), home=home) as pool:
        lm = await pool.get_lm()

        async def stream() -> int:
            return sum([len(piece) async for piece in lm.stream(PROMPT, max_tokens=MAX_TOKENS)])

        return [
            ("bare aiohttp", bare_cost),
            (
                "Maxwell generate",
                await async_cost(lambda: lm.generate(PROMPT, max_tokens=MAX_TOKENS), rounds, calls, at_once),
            ),
            ("Maxwell stream", await async_cost(stream, rounds, calls, at_once)),
        ]


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
