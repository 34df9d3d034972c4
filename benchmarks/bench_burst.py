"""600 requests at once over four unequal servers: Maxwell, LiteLLM's Router, and what could be had at best.

The servers are `maxwell.testing.FakeServer`s over loopback HTTP, each in a process of its own, with 1, 4, 8
and 8 slots that generate 25, 50, 100 and 150 tokens a second and read 400, 1500, 4000 and 6000. What
exceeds the slots waits, first come, first served. Prompts have LogNormal(600, 1.0) tokens, replies
LogNormal(200, 0.9). Time runs six times faster than those figures say. How long a reply will be stands in
the prompt, for the server alone: no policy makes use of it but the first, which is what could be had at
best.

Goal: at most 1.15 times the bound, which no plan can beat. LiteLLM joins when it is installed. It is asked
without a stream, which is cheaper for it; Maxwell always streams. Where a policy has handed every request
to a server and is not done after 20 s, the rest is computed from the servers' queues, and the row marked
with ~. One run a policy. Client and servers share the machine: its CPU seconds say whether the client was
in the way. What a call costs besides the model's time weighs six times as much as in earnest.

Run: python benchmarks/bench_burst.py
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import importlib.util
import math
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tables import options, ratio, show

SCALE = 6.0
REQUESTS, QUICK_REQUESTS = 600, 100
HANDED_OVER_SECONDS = 20.0  # when a policy that decides everything at once is cut
MOST_SECONDS = 60.0  # when any other is
SEED = 1
TEMPLATE = 55  # characters that the chat template adds to a prompt
MAX_TOKENS, CONTEXT = 2048, 16384
CHAT = "/v1/chat/completions"
spawning = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Machine:
    """One server: slots, tokens a second of one slot, and how fast it reads; real time, not scaled."""

    name: str
    slots: int
    speed: float
    prefill: float

    def seconds(self, job: Job) -> float:
        """How long a job holds a slot, in scaled time."""
        return (job.prompt / self.prefill + job.reply / self.speed) / SCALE


@dataclass(frozen=True)
class Job:
    """One request: prompt and reply in tokens."""

    prompt: int
    reply: int

    @property
    def text(self) -> str:
        said = f"{self.reply} words about this. "
        return said + "x" * (4 * self.prompt - TEMPLATE - len(said))


MACHINES = (
    Machine("A", 1, 25, 400),
    Machine("B", 4, 50, 1500),
    Machine("C", 8, 100, 4000),
    Machine("D", 8, 150, 6000),
)
SLOTS = sum(m.slots for m in MACHINES)


def burst(count: int) -> list[Job]:
    draw = random.Random(SEED)
    return [
        Job(
            int(min(max(draw.lognormvariate(math.log(600), 1.0), 24), 8000)),
            int(min(max(draw.lognormvariate(math.log(200), 0.9), 8), MAX_TOKENS)),
        )
        for _ in range(count)
    ]


def bound(jobs: Sequence[Job]) -> float:
    """Seconds that every plan takes at least.

    A Lagrangian bound: with prices w_i >= 0 of a slot-second and sum(w_i * slots_i) = 1, all slots until the
    end cost what the end is, and no plan pays less than sum_j min_i(w_i * t_ij). Prices of overloaded servers
    are raised, by less and less, and the best of these bounds is near the linear program's.
    """
    times = [[m.seconds(job) for m in MACHINES] for job in jobs]
    best = max(min(row) for row in times)
    prices = [1.0] * len(MACHINES)
    for step in range(400):
        total = sum(w * m.slots for w, m in zip(prices, MACHINES, strict=True))
        prices = [w / total for w in prices]
        work, least = [0.0] * len(MACHINES), 0.0
        for row in times:
            price, i = min((w * t, i) for i, (w, t) in enumerate(zip(prices, row, strict=True)))
            least += price
            work[i] += row[i] / MACHINES[i].slots
        best = max(best, least)
        rate, mean = 0.5 / (1 + step) ** 0.5, sum(work) / len(work)
        prices = [w * math.exp(rate * min(b / mean - 1, 1.0)) for w, b in zip(prices, work, strict=True)]
    return best


# --- the servers


def serve(machine: Machine, pipe: Connection) -> None:
    """Serve until told to stop; then tell which jobs came, in order."""
    from maxwell.testing import FakeServer

    def reply(body: dict[str, Any]) -> list[str]:
        return ["word "] * int(body["messages"][-1]["content"].split(" ", 1)[0])

    with FakeServer(
        "llamacpp",
        model="m",
        slots=machine.slots,
        context=CONTEXT,
        reply=reply,
        tokens_per_sec=machine.speed * SCALE,
        prefill_tokens_per_sec=machine.prefill * SCALE,
    ) as server:
        pipe.send(server.url)
        pipe.recv()
        told = []
        for request in server.requests_to(CHAT):
            text = request.body["messages"][-1]["content"]
            job = Job((len(text) + TEMPLATE) // 4, int(text.split(" ", 1)[0]))
            told.append(job)
        pipe.send(told)


class Servers:
    """The four of them, anew for each policy."""

    def __init__(self) -> None:
        self._pipes = []
        self._processes = []
        for machine in MACHINES:
            here, there = spawning.Pipe()
            process = spawning.Process(target=serve, args=(machine, there), daemon=True)
            process.start()
            self._pipes.append(here)
            self._processes.append(process)
        self.urls: list[str] = [pipe.recv() for pipe in self._pipes]

    def stop(self) -> list[list[Job]]:
        """End them; the jobs of each, as they came."""
        told = []
        for pipe in self._pipes:
            pipe.send(None)
            told.append(pipe.recv())
        for process in self._processes:
            process.join()
        return told


def ends(queues: Sequence[Sequence[Job]]) -> list[float]:
    """When jobs end that are all queued at once, each server's first come, first served."""
    found = []
    for machine, queue in zip(MACHINES, queues, strict=True):
        free = [0.0] * machine.slots
        for job in queue:
            found.append(heapq.heappop(free) + machine.seconds(job))
            heapq.heappush(free, found[-1])
    return sorted(found)


# --- the policies


class Clock:
    """When each request ended, since the burst began."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.ended: list[float] = []

    def note(self, job: Job, text: str | None) -> None:
        assert text is not None
        assert text.count("word") == job.reply, (text[:50], job)
        self.ended.append(time.perf_counter() - self.began)


Ask = Callable[[Job], Awaitable[str]]
Run = Callable[[Sequence[str], Sequence[Job], Clock], Awaitable[None]]


async def at_once(ask: Ask, jobs: Sequence[Job], clock: Clock, most: int | None = None) -> None:
    """Every request as soon as may be; `most` of them under way."""
    gate = asyncio.Semaphore(most or len(jobs))

    async def one(job: Job) -> None:
        async with gate:
            clock.note(job, await ask(job))

    await asyncio.gather(*map(one, jobs))


@contextlib.asynccontextmanager
async def bare() -> Any:
    """The bare HTTP library, reading the stream as it must be read to know the text."""
    import aiohttp

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(url: str, job: Job) -> str:
            body = {
                "messages": [{"role": "user", "content": job.text}],
                "max_tokens": MAX_TOKENS,
                "stream": True,
            }
            async with session.post(url + CHAT, json=body) as response:
                return (await response.read()).decode()

        yield ask


async def plan(urls: Sequence[str], jobs: Sequence[Job], clock: Clock) -> None:
    """Lengths known: the longest first, each to the slot where it ends soonest; slots keep to their lists."""
    slots: list[tuple[float, int, int]] = [
        (0.0, i, k) for i, m in enumerate(MACHINES) for k in range(m.slots)
    ]
    lists: dict[tuple[int, int], list[Job]] = {(i, k): [] for _, i, k in slots}
    for job in sorted(jobs, key=lambda j: -min(m.seconds(j) for m in MACHINES)):
        soonest = min(range(len(slots)), key=lambda n: slots[n][0] + MACHINES[slots[n][1]].seconds(job))
        end, i, k = slots[soonest]
        slots[soonest] = (end + MACHINES[i].seconds(job), i, k)
        lists[i, k].append(job)
    async with bare() as ask:

        async def work(i: int, own: Sequence[Job]) -> None:
            for job in own:
                clock.note(job, await ask(urls[i], job))

        await asyncio.gather(*(work(i, own) for (i, _), own in lists.items()))


async def pull(urls: Sequence[str], jobs: Sequence[Job], clock: Clock) -> None:
    """Lengths unknown: one queue, and every free slot takes the next."""
    queue = list(reversed(jobs))
    async with bare() as ask:

        async def work(i: int) -> None:
            while queue:
                job = queue.pop()
                clock.note(job, await ask(urls[i], job))

        await asyncio.gather(*(work(i) for i, m in enumerate(MACHINES) for _ in range(m.slots)))


@contextlib.contextmanager
def maxwell_pool(urls: Sequence[str]) -> Iterator[Any]:
    from maxwell.lm_pool import AsyncLLMPool
    from maxwell.registry.specs import Capabilities, LLMSpec, Registry

    llms = tuple(
        LLMSpec(
            name=machine.name,
            api_base=url,
            model="m",
            backend="llamacpp",
            capabilities=Capabilities(
                max_tokens=MAX_TOKENS,
                max_context=CONTEXT,
                speed_tokens_per_sec=machine.speed * SCALE,
                prefill_tokens_per_sec=machine.prefill * SCALE,
            ),
            default_temperature=0.5,
        )
        for machine, url in zip(MACHINES, urls, strict=True)
    )
    with tempfile.TemporaryDirectory() as home:
        yield AsyncLLMPool(Registry(llms=llms), home=Path(home))


async def maxwell_calls(urls: Sequence[str], jobs: Sequence[Job], clock: Clock) -> None:
    with maxwell_pool(urls) as made:
        async with made as pool:

            async def ask(job: Job) -> str:
                lm = await pool.get_lm(prompt=job.text)
                text: str = await lm.generate(job.text)
                return text

            await at_once(ask, jobs, clock)


async def maxwell_map(urls: Sequence[str], jobs: Sequence[Job], clock: Clock) -> None:
    with maxwell_pool(urls) as made:
        async with made as pool:
            async for result in pool.map([job.text for job in jobs], ordered=False):
                clock.note(jobs[result.index], result.text)


def litellm_policy(strategy: Any, *, weighted: bool = False, most: int | None = None) -> Run:
    async def run(urls: Sequence[str], jobs: Sequence[Job], clock: Clock) -> None:
        import litellm

        litellm.suppress_debug_info = True
        random.seed(SEED)
        deployments = []
        for machine, url in zip(MACHINES, urls, strict=True):
            weight = {"weight": machine.slots * machine.speed} if weighted else {}
            params = {"model": "openai/m", "api_base": f"{url}/v1", "api_key": "none", **weight}
            deployments.append({"model_name": "pool", "litellm_params": params})
        router = litellm.Router(model_list=deployments, routing_strategy=strategy)

        async def ask(job: Job) -> str:
            messages: list[Any] = [{"role": "user", "content": job.text}]
            done = await router.acompletion(model="pool", messages=messages, max_tokens=MAX_TOKENS)
            text: str = done.choices[0].message.content
            return text

        clock.began = time.perf_counter()
        await at_once(ask, jobs, clock, most)

    return run


def policies() -> dict[str, Run]:
    found: dict[str, Run] = {
        "lengths known, planned by hand": plan,
        "one queue, every free slot pulls": pull,
        "Maxwell, get_lm + generate": maxwell_calls,
        "Maxwell, pool.map": maxwell_map,
    }
    if importlib.util.find_spec("litellm") is None:
        return found
    for strategy in (
        "simple-shuffle",
        "least-busy",
        "latency-based-routing",
        "usage-based-routing-v2",
        "usage-based-routing",
        "cost-based-routing",
    ):
        found[f"LiteLLM {strategy}"] = litellm_policy(strategy)
    found["LiteLLM simple-shuffle, weighted"] = litellm_policy("simple-shuffle", weighted=True)
    # As someone would who knows the slots and counts requests outside of the router.
    for strategy in ("least-busy", "latency-based-routing"):
        found[f"LiteLLM {strategy}, {SLOTS} at a time"] = litellm_policy(strategy, most=SLOTS)
    return found


def hands_over(name: str) -> bool:
    """Whether this policy gives every request to a server at once, whatever waits there."""
    return name.startswith("LiteLLM") and not name.endswith("at a time")


@dataclass(frozen=True)
class Outcome:
    """How a burst went: when each request ended, and what the client spent."""

    ended: list[float]
    cpu: float
    error: str = ""


def client(name: str, urls: Sequence[str], jobs: Sequence[Job], pipe: Connection) -> None:
    """One policy, in a process of its own."""
    policy = policies()[name]
    clock = Clock()
    error = ""

    async def cut() -> None:
        with contextlib.suppress(TimeoutError):
            seconds = HANDED_OVER_SECONDS if hands_over(name) else MOST_SECONDS
            await asyncio.wait_for(policy(urls, jobs, clock), seconds)

    if name.startswith("LiteLLM"):
        # Otherwise what exceeds 500 connections to a server would not be in its queue at the cut.
        os.environ["AIOHTTP_CONNECTOR_LIMIT_PER_HOST"] = "0"
        importlib.import_module("litellm")  # takes seconds, which are not the burst's
    before = resource.getrusage(resource.RUSAGE_SELF)
    clock.began = time.perf_counter()
    try:
        asyncio.run(cut())
    except Exception as problem:
        error = f"{type(problem).__name__}: {problem}"[:300]
    after = resource.getrusage(resource.RUSAGE_SELF)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    pipe.send(Outcome(clock.ended, cpu, error))


def measure(name: str, jobs: Sequence[Job]) -> tuple[list[float], Outcome]:
    """When each request ended or would have, and how it went."""
    servers = Servers()
    here, there = spawning.Pipe()
    process = spawning.Process(target=client, args=(name, servers.urls, jobs, there), daemon=True)
    process.start()
    outcome: Outcome = here.recv()
    queues = servers.stop()
    process.kill()  # threads of its libraries may keep it
    process.join()
    ended = list(outcome.ended)
    missing = len(jobs) - len(ended)
    if missing and hands_over(name) and sum(map(len, queues)) == len(jobs):
        ended += [max(end, HANDED_OVER_SECONDS) for end in ends(queues)[-missing:]]
    return sorted(ended), outcome


def row(name: str, jobs: Sequence[Job], least: float) -> list[object]:
    ended, outcome = measure(name, jobs)
    if len(ended) != len(jobs):
        what = outcome.error or f"over {MOST_SECONDS:g}"
        return [f"{name}: {len(ended)} done", what, "", "", "", f"{outcome.cpu:.1f}"]
    about = "" if len(outcome.ended) == len(jobs) else "~"
    return [
        name,
        f"{about}{ended[-1]:.1f}",
        about + ratio(ended[-1], least),
        f"{about}{ended[len(ended) // 2]:.1f}",
        f"{about}{ended[int(len(ended) * 0.99)]:.1f}",
        f"{outcome.cpu:.1f}",
    ]


def main() -> None:
    given = options(__doc__)
    jobs = burst(QUICK_REQUESTS if given.quick else REQUESTS)
    least = bound(jobs)
    rows: list[list[object]] = [["bound", f"{least:.1f}", ratio(least, least), "", "", ""]]
    rows += [row(name, jobs, least) for name in policies()]
    show(
        f"{len(jobs)} requests at once, four unequal servers, time x {SCALE:g} (goal 1.15 x the bound)",
        ["policy", "makespan s", "of bound", "p50 s", "p99 s", "client CPU s"],
        rows,
        as_json=given.json,
    )


if __name__ == "__main__":
    main()
