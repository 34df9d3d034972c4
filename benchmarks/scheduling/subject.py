"""Maxwell as it is, put in front of simulated servers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from maxwell.calls.chat import Call, chat
from maxwell.calls.effects import Flow
from maxwell.calls.entries import Entry
from maxwell.calls.mapped import Asked, Mapped, Plan
from maxwell.calls.mapping import mapping
from maxwell.calls.select import choose, insist
from maxwell.calls.state import PoolState
from maxwell.health import HealthBook
from maxwell.ledger import Ledger
from maxwell.ledger.memory import MemoryLedger
from maxwell.registry.specs import Capabilities, LLMSpec, Registry
from maxwell.requirements import request
from maxwell.types import ChatCall, Completion, Requirements
from scheduling.driver import Task, run_all
from scheduling.machines import Machine, Weather
from scheduling.network import Network
from scheduling.servers import Job, Server, prompt_text
from scheduling.workload import Floats, Load, sizes
from scheduling.world import World

MOST_TOKENS = 4096  # of a reply, as the registry declares it


def spec_of(machine: Machine, **changes: Any) -> LLMSpec:
    """The registry's entry for a machine, all true unless `changes` say otherwise."""
    told: dict[str, Any] = {
        "name": machine.name,
        "api_base": f"http://{machine.name.lower()}",
        "model": machine.name,
        "backend": "openai" if machine.usd_per_1k else "llamacpp",
        "default_temperature": 0.5,
        "cost_per_1k_tokens": machine.usd_per_1k,
        "speed": machine.speed,
        **changes,
    }
    can = Capabilities(
        max_tokens=MOST_TOKENS,
        max_context=machine.context,
        speed_tokens_per_sec=told.pop("speed"),
        slots=machine.slots,
        prefill_tokens_per_sec=machine.prefill,
    )
    return LLMSpec(capabilities=can, **told)


class Lab:
    """A world with servers and the network to them.

    Args:
        machines: The servers.
        jobs: What will be asked of them.
        weather: Their troubles, by name.
        options: Further arguments of every `Server`.

    Attributes:
        world: Its time.
        network: Where flows send.
        servers: By name.
    """

    def __init__(
        self,
        machines: Sequence[Machine],
        jobs: Sequence[Job],
        weather: dict[str, Weather] | None = None,
        **options: Any,
    ) -> None:
        self.world = World()
        self.network = Network(self.world)
        self.jobs = list(jobs)
        self.servers: dict[str, Server] = {}
        for machine in machines:
            server = Server(
                self.world,
                machine,
                self.jobs,
                weather=(weather or {}).get(machine.name),
                llamacpp=not machine.usd_per_1k,
                **options,
            )
            self.servers[machine.name] = server
            self.network.hosts[machine.name.lower()] = server

    def add(self, load: Load) -> list[Job]:
        """More jobs; returns them with their numbers."""
        first = len(self.jobs)
        new = [job._replace(number=first + job.number) for job in load.jobs()]
        self.jobs += new
        return new

    def pool(self, specs: Sequence[LLMSpec], *, ledger: Ledger | None = None, **parts: Any) -> PoolState:
        """Maxwell's state of a pool in this world."""
        return PoolState(
            Registry(llms=tuple(specs), budget_timezone="UTC"),
            health=HealthBook(None, self.world),
            ledger=ledger or MemoryLedger(),
            clock=self.world,
            environ={},
            **parts,
        )

    def task(
        self,
        flow: Flow[Any],
        ended: Callable[[Task], None] | None = None,
        emitted: Callable[[Any], None] | None = None,
    ) -> Task:
        """Start a flow."""
        return Task(self.world, self.network, flow, ended, emitted)


def call(
    state: PoolState, job: Job, *, name: str | None = None, weight: float = 1.0, **options: Any
) -> Flow[Completion]:
    """What a program does for one request: choose, then call; `name` is the only one that may answer."""
    text = prompt_text(job)
    most = options.get("max_tokens")
    needs = Requirements(prompt=text, time_cost_weight=weight, max_completion=most)
    decision = insist(state, (yield from choose(state, request(needs), name=name, prompt=text)))
    asked = ChatCall(messages=[{"role": "user", "content": text}], **options)
    return (yield from chat(state, Call(chat=asked, decision=decision, pinned=name is not None)))


class Calls:
    """Requests made one by one as they arrive.

    Args:
        lab: Where.
        load: When each comes.
        flow_of: The flow of a job.

    Attributes:
        latencies: Seconds from arrival to the last byte, NaN where it failed.
        done: Completions, None where it failed.
        errors: What went wrong.
    """

    def __init__(self, lab: Lab, load: Load, flow_of: Callable[[Job], Flow[Completion]]) -> None:
        self.latencies: Floats = np.full(len(load), np.nan)
        self.done: list[Completion | None] = [None] * len(load)
        self.errors: list[Exception] = []
        self._lab = lab
        self._arrivals = load.arrivals + lab.world.now
        self._flow_of = flow_of
        self._left = len(load)

    def run(self) -> Calls:
        """Let it all happen."""
        for number, when in enumerate(self._arrivals.tolist()):
            self._lab.world.after(when - self._lab.world.now, partial(self._begin, number))
        self._lab.world.run(lambda: not self._left)
        if self._left:
            raise RuntimeError(f"{self._left} calls wait for something that never happens")
        return self

    def _begin(self, number: int) -> None:
        self._lab.task(self._flow_of(self._lab.jobs[number]), lambda task: self._ended(number, task))

    def _ended(self, number: int, task: Task) -> None:
        self._left -= 1
        if task.error is not None:
            self.errors.append(task.error)
            return
        self.done[number] = task.result
        self.latencies[number] = self._lab.world.now - self._arrivals[number]


def teach(lab: Lab, state: PoolState, seed: int, count: int = 24) -> None:
    """Let the pool learn what an ordinary day would teach it: `count` calls to each entry by its name."""
    prompts, completions = sizes(count * len(state.llms), np.random.default_rng(seed + 10_000))
    lessons = lab.add(Load(prompts, completions, np.zeros(len(prompts))))

    def lecture(entry: Entry, jobs: Sequence[Job]) -> Flow[None]:
        for job in jobs:
            yield from call(state, job, name=entry.spec.name)

    parts = [lessons[i :: len(state.llms)] for i in range(len(state.llms))]
    run_all(lab.world, [lab.task(lecture(e, part)) for e, part in zip(state.llms, parts, strict=True)])
    for server in lab.servers.values():
        server.meter.clear()


def map_jobs(
    lab: Lab, state: PoolState, jobs: Sequence[Job], weight: float = 1.0
) -> tuple[list[Mapped], float]:
    """`pool.map` over the jobs, results as they come: what came, and how many seconds it all took."""
    found: list[Mapped] = []
    needs = Requirements(time_cost_weight=weight)

    def read(job: Job) -> Asked:
        text = prompt_text(job)
        chat_call = ChatCall(messages=[{"role": "user", "content": text}])
        return Asked(chat=chat_call, needs=needs, prompt=text)

    usual = request(needs)
    plan = Plan(items=iter(jobs), read=read, needs=needs, usual=usual, total=len(jobs), ordered=False)

    began = lab.world.now
    task = lab.task(mapping(state, plan), emitted=found.append)
    run_all(lab.world, [task])
    if task.error is not None:
        raise task.error
    return found, lab.world.now - began
