"""The yardstick's own parts: virtual time, the third driver, the simulated servers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from maxwell.calls.effects import (
    Aside,
    Close,
    Emit,
    First,
    Flow,
    Gather,
    Limits,
    Pull,
    Send,
    Sleep,
    Start,
    Stop,
    TransportError,
)
from maxwell.types import HTTPRequest
from scheduling.driver import Task, run_all
from scheduling.machines import Machine, Spell, Weather
from scheduling.network import Exchange, Network
from scheduling.servers import Job, Server, prompt_text
from scheduling.world import World

MACHINE = Machine("A", slots=2, speed=10.0, prefill=100.0, overhead=0.5)
JOB = Job(number=0, prompt=100, completion=20, bytes=400)  # 0.5 + 1 + 2 seconds
LIMITS = Limits(first_byte=1000.0, idle=1000.0)


class Lab:
    """A world with one server."""

    def __init__(self, machine: Machine = MACHINE, *spells: Spell) -> None:
        self.world = World()
        self.network = Network(self.world)
        self.server = Server(self.world, machine, [JOB], weather=Weather(list(spells)))
        self.network.hosts["a"] = self.server

    def task(self, flow: Flow[Any], **more: Any) -> Task:
        return Task(self.world, self.network, flow, **more)

    def run(self, flow: Flow[Any]) -> Any:
        task = self.task(flow)
        run_all(self.world, [task])
        if task.error is not None:
            raise task.error
        return task.result


def request_of(job: Job, host: str = "a") -> HTTPRequest:
    body = {"messages": [{"role": "user", "content": prompt_text(job)}], "max_tokens": 100}
    return HTTPRequest("POST", f"http://{host}/v1/chat/completions", {}, msgspec.json.encode(body))


def whole(world: World, limits: Limits = LIMITS, host: str = "a") -> Flow[tuple[bytes, float]]:
    """The body of one chat, and when it was there."""
    exchange = yield Send(request_of(JOB, host), limits)
    body = b""
    while piece := (yield Pull(exchange)):
        body += piece
    return body, world.now


def sleeper(seconds: float, result: str = "") -> Flow[str]:
    yield Sleep(seconds)
    return result


def test_events_happen_in_the_order_of_their_time_and_then_of_their_planning() -> None:
    world = World()
    seen: list[tuple[str, float]] = []

    def see(name: str) -> None:
        seen.append((name, world.now))

    for seconds, name in ((2.0, "late"), (1.0, "first"), (1.0, "second")):
        world.after(seconds, partial(see, name))
    world.run()
    assert seen == [("first", 1.0), ("second", 1.0), ("late", 2.0)]


def test_a_cancelled_event_moves_no_time() -> None:
    world = World()
    world.after(5.0, lambda: None).cancel()
    world.run()
    assert world.now == 0.0


def test_both_clocks_tell_the_virtual_time() -> None:
    world = World()
    began = world.time(), world.monotonic()
    world.after(90.0, lambda: None)
    world.run()
    assert (world.time() - began[0], world.monotonic() - began[1]) == (90.0, 90.0)


def test_a_request_takes_overhead_reading_and_writing() -> None:
    lab = Lab()
    body, at = lab.run(whole(lab.world))
    assert at == pytest.approx(MACHINE.seconds(100, 20)) == pytest.approx(3.5)
    assert body.endswith(b"data: [DONE]\n\n")
    assert b'"completion_tokens":20' in body


def test_who_finds_no_free_slot_waits_for_its_turn() -> None:
    lab = Lab()
    tasks = [lab.task(whole(lab.world)) for _ in range(5)]
    run_all(lab.world, tasks)
    assert [task.result[1] for task in tasks] == pytest.approx([3.5, 3.5, 7.0, 7.0, 10.5])
    assert lab.server.most == 5


def test_the_first_token_comes_when_the_prompt_is_read() -> None:
    lab = Lab()

    def first() -> Flow[float]:
        yield Send(request_of(JOB), LIMITS)
        return lab.world.now

    assert lab.run(first()) == pytest.approx(1.6)


@pytest.mark.parametrize("leave", [Close, None])
def test_a_request_that_is_given_up_frees_its_slot_at_once(leave: Callable[[Any], Any] | None) -> None:
    lab = Lab(Machine("A", 1, 10.0, 100.0, 0.5))

    def impatient() -> Flow[None]:
        exchange = yield Send(request_of(JOB), LIMITS)
        if leave is not None:
            yield leave(exchange)

    left, waits = lab.task(impatient()), lab.task(whole(lab.world))
    run_all(lab.world, [left, waits])
    assert waits.result[1] == pytest.approx(1.6 + 3.5)
    assert [meter.whole for meter in lab.server.meter] == [False, True]
    assert lab.server.count == 0


def test_one_that_leaves_the_queue_is_never_begun() -> None:
    lab = Lab(Machine("A", 1, 10.0, 100.0, 0.5))
    served, queued = lab.task(whole(lab.world)), lab.task(whole(lab.world))
    lab.world.after(1.0, queued.stop)
    run_all(lab.world, [served])
    lab.world.run()
    assert queued.done
    assert len(lab.server.meter) == 1


@pytest.mark.parametrize(
    ("limits", "stage", "at"),
    [
        (Limits(first_byte=1.0), "first_byte", 1.0),
        (Limits(first_byte=100.0, idle=0.25), "idle", 1.85),
        (Limits(first_byte=100.0, total=2.0), "total", 2.0),
    ],
)
def test_limits_run_out(limits: Limits, stage: str, at: float) -> None:
    lab = Lab()
    with pytest.raises(TransportError) as caught:
        lab.run(whole(lab.world, limits))
    assert caught.value.stage == stage
    assert lab.world.now == pytest.approx(at)
    assert lab.server.count == 0


def test_a_server_that_is_away_refuses() -> None:
    lab = Lab(MACHINE, Spell("refusal", 0.0, 10.0))
    for host in ("a", "nobody"):
        with pytest.raises(TransportError) as caught:
            lab.run(whole(lab.world, host=host))
        assert caught.value.stage == "refused"


def test_a_storm_is_answered_429_and_a_slow_spell_takes_its_factor() -> None:
    lab = Lab(MACHINE, Spell("storm", 0.0, 1.0), Spell("slow", 5.0, 6.0, 20.0))

    def status() -> Flow[int]:
        exchange = yield Send(request_of(JOB), LIMITS)
        return int(exchange.status)

    assert lab.run(status()) == 429
    lab.run(sleeper(5.5))
    began = lab.world.now
    assert lab.run(whole(lab.world))[1] - began == pytest.approx(20 * 3.5)


def test_what_may_block_is_done_at_once_and_its_error_is_the_flow_s() -> None:
    lab = Lab()

    def flow() -> Flow[tuple[int, str]]:
        value = yield Aside(lambda: 7)
        try:
            yield Aside(lambda: 1 // 0)
        except ZeroDivisionError as error:
            return value, str(error)
        return value, ""

    assert lab.run(flow())[0] == 7


def test_what_is_emitted_is_handed_on() -> None:
    lab = Lab()
    seen: list[str] = []

    def flow() -> Flow[None]:
        yield Emit("a")
        yield Sleep(1.0)
        yield Emit("b")

    run_all(lab.world, [lab.task(flow(), emitted=seen.append)])
    assert seen == ["a", "b"]


def test_gather_gives_each_result_and_none_for_what_is_late() -> None:
    lab = Lab()

    def fails() -> Flow[None]:
        yield Sleep(0.5)
        raise KeyError("x")

    def flow(seconds: float, enough: Callable[[], bool]) -> Flow[tuple[list[Any], float]]:
        flows: list[Flow[Any]] = [sleeper(1.0, "one"), fails(), sleeper(3.0, "three")]
        found = yield Gather(flows, seconds, enough)
        return found, lab.world.now

    found, at = lab.run(flow(2.0, lambda: False))
    assert (found[0], type(found[1]), found[2], at) == ("one", KeyError, None, 2.0)
    lab = Lab()
    found, at = lab.run(flow(9.0, lambda: False))
    assert (found[2], at) == ("three", 3.0)
    lab = Lab()
    found, at = lab.run(flow(9.0, lambda: lab.world.now >= 0.5))
    assert (found[0], type(found[1]), at) == (None, KeyError, 0.5)


def test_first_waits_for_one_of_those_that_were_started() -> None:
    lab = Lab()

    def flow() -> Flow[list[Any]]:
        slow = yield Start(sleeper(3.0, "slow"))
        quick = yield Start(sleeper(1.0, "quick"))
        seen: list[Any] = [[h.result for h in (yield First([slow, quick]))], lab.world.now]
        seen += [(yield First([slow], 0.5)), lab.world.now]
        seen += [[h.result for h in (yield First([slow]))], lab.world.now, (yield First([]))]
        return seen

    assert lab.run(flow()) == [["quick"], 1.0, [], 1.5, ["slow"], 3.0, []]


def test_what_was_started_ends_with_whoever_started_it() -> None:
    lab = Lab()
    ended: list[tuple[str, float]] = []

    def patient(name: str) -> Flow[None]:
        try:
            yield Sleep(100.0)
        finally:
            ended.append((name, lab.world.now))

    def flow() -> Flow[None]:
        one = yield Start(patient("stopped"))
        yield Start(patient("left"))
        yield Sleep(1.0)
        yield Stop(one)
        yield Stop(one)
        yield Sleep(1.0)

    lab.run(flow())
    lab.world.run()
    assert ended == [("stopped", 1.0), ("left", 2.0)]
    assert lab.world.now == 2.0


class Mute:
    """A server that takes requests and never answers."""

    def refuses(self) -> bool:
        return False

    def answer(self, request: HTTPRequest, exchange: Exchange) -> None:
        pass

    def abandoned(self, exchange: Exchange) -> None:
        pass


def test_flows_that_wait_for_nothing_are_an_error_and_no_endless_loop() -> None:
    lab = Lab()
    lab.network.hosts["mute"] = Mute()
    task = lab.task(whole(lab.world, Limits(first_byte=None), host="mute"))
    with pytest.raises(RuntimeError, match="never happens"):
        run_all(lab.world, [task])


def test_maxwell_itself_runs_on_virtual_time_and_leaves_nothing_behind() -> None:
    pytest.importorskip("numpy", reason="the workload needs numpy")
    from scheduling.machines import POOL
    from scheduling.subject import Calls, call, map_jobs, spec_of
    from scheduling.subject import Lab as WholeLab
    from scheduling.workload import poisson

    load = poisson(40, 1, POOL, 0.9)
    lab = WholeLab(POOL, load.jobs())
    state = lab.pool([spec_of(m) for m in POOL])
    done = Calls(lab, load, lambda job: call(state, job)).run()
    assert done.errors == []
    found, seconds = map_jobs(lab, state, lab.jobs)
    assert sorted(mapped.index for mapped in found) == list(range(40))
    assert all(mapped.error is None for mapped in found)
    assert 0 < seconds < 600
    assert all(server.count == 0 for server in lab.servers.values())
    assert all(server.most <= server.machine.slots for server in lab.servers.values())
    assert not state.flights.loads()
    assert not state.ledger.holds()


def test_the_queues_of_the_simple_rules_are_those_of_the_servers() -> None:
    np = pytest.importorskip("numpy", reason="the workload needs numpy")
    from scheduling.naive import Line
    from scheduling.workload import poisson

    load = poisson(200, 1, [MACHINE], 0.9)
    line, seconds = Line(MACHINE), load.seconds([MACHINE])[:, 0]
    ends = [line.submit(float(t), float(s)) for t, s in zip(load.arrivals, seconds, strict=True)]
    lab = Lab()
    lab.server = Server(lab.world, MACHINE, jobs := load.jobs())
    lab.network.hosts["a"] = lab.server
    found: dict[int, float] = {}

    def one(job: Job) -> Flow[None]:
        yield Sleep(float(load.arrivals[job.number]))
        body = {"messages": [{"role": "user", "content": prompt_text(job)}]}
        url = "http://a/v1/chat/completions"
        exchange = yield Send(HTTPRequest("POST", url, {}, msgspec.json.encode(body)), LIMITS)
        while (yield Pull(exchange)):
            pass
        found[job.number] = lab.world.now

    run_all(lab.world, [lab.task(one(job)) for job in jobs])
    assert [found[i] for i in range(200)] == pytest.approx(ends)
    assert np.isfinite(ends).all()


def test_the_bounds_are_what_can_be_worked_out_by_hand() -> None:
    pytest.importorskip("scipy", reason="the bounds are linear programmes and need SciPy (make bench-peers)")
    import numpy as np

    from scheduling.bounds import makespan, mean_seconds
    from scheduling.workload import Load

    one, two = Machine("A", 1, 10.0, 100.0, 0.0), Machine("B", 2, 10.0, 100.0, 0.0, usd_per_1k=1.0)
    load = Load(np.full(8, 100), np.full(8, 10), np.linspace(0.0, 8.0, 8))  # 2 seconds each
    assert makespan(load, [one]) == pytest.approx(16.0)
    assert makespan(load, [one], 0.001) == pytest.approx(0.016)
    assert makespan(load, [one, two], 1000.0) == pytest.approx(1000 * 16 / 3 + 8 * 2 / 3 * 0.11)
    fast = Machine("C", 1, 40.0, 400.0, 0.0)  # half a second each
    assert mean_seconds(load, [one, fast]) == pytest.approx(0.5)
