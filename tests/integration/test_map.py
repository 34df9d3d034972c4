"""`pool.map` against real servers: everything is done once, in both worlds, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import math
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from calling import AT_ONCE, BUDGET, SOON, Calls, assert_idle, chats, entry, wait_chats, wait_tokens

from maxwell.calls.mapped import Mapped
from maxwell.clock import SystemClock
from maxwell.errors import AllAttemptsFailed, BackendError, MaxwellError, NoEligibleLM
from maxwell.ledger.days import budget_day
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

World = Literal["sync", "async"]
LONG = ["word "] * 2000


@pytest.fixture(params=["sync", "async"])
def world(request: pytest.FixtureRequest) -> World:
    found: World = request.param
    return found


def last(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def echo(body: dict[str, Any]) -> str:
    return f"echo {last(body)}"


def prompts(number: int) -> list[str]:
    return [f"prompt {i}" for i in range(number)]


def do(
    world: World,
    calls: Calls,
    items: Iterable[Any],
    each: Callable[[Mapped], object] = lambda mapped: None,
    after: Callable[[], object] = lambda: None,
    **options: Any,
) -> list[Mapped]:
    """Map the items, with `each` result looked at as it comes; a true value leaves early.

    `after` runs when the map is left, however that happened, while its pool lives on.
    """
    out: list[Mapped] = []
    if world == "async":
        asyncio.run(_do_async(calls, items, each, after, options, out))
        return out
    with calls.pool() as pool:
        try:
            with pool.map(items, **options) as results:
                for mapped in results:
                    out.append(mapped)  # one by one: what came before a failure is kept
                    if each(mapped):
                        break
        finally:
            after()
            assert pool.explain().ranked == () or pool.explain().ranked[0].in_flight == 0
    return out


async def _do_async(
    calls: Calls,
    items: Iterable[Any],
    each: Callable[[Mapped], object],
    after: Callable[[], object],
    options: dict[str, Any],
    out: list[Mapped],
) -> None:
    async with calls.async_pool() as pool:
        try:
            async with pool.map(items, **options) as results:
                async for mapped in results:
                    out.append(mapped)
                    if await asyncio.to_thread(each, mapped):
                        break
        finally:
            await asyncio.to_thread(after)
            decision = await pool.explain()
            assert decision.ranked == () or decision.ranked[0].in_flight == 0


def assert_once_each(mapped: list[Mapped], items: list[Any]) -> None:
    """Every item has a result, and the right one."""
    assert [m.error for m in mapped if m.error is not None] == []
    assert sorted(m.index for m in mapped) == list(range(len(items)))
    assert [m.item for m in mapped] == [items[m.index] for m in mapped]
    assert [m.text for m in mapped] == [f"echo {items[m.index]}" for m in mapped]


def assert_settled(calls: Calls, *names: str) -> None:
    """Nothing is held, and no thread of a call is left."""
    for thread in threading.enumerate():
        if thread.name == "maxwell-call":
            thread.join(SOON)
            assert not thread.is_alive(), thread
    for name in names:
        assert calls.used(name).held_tokens == 0


# --- what comes out


def test_nothing_to_do(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    assert do(world, Calls(tmp_path, entry(server, "one")), []) == []
    assert chats(server) == []


def test_results_keep_the_items_order(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=4, reply=lambda body: ["x"] * int(last(body)), tokens_per_sec=200)
    mapped = do(world, Calls(tmp_path, entry(server, "one")), ["30", "1", "20", "2", "10"])
    assert [len(m.text) for m in mapped] == [30, 1, 20, 2, 10]


def test_or_come_as_they_are_done(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=3, reply=lambda body: ["x"] * int(last(body)), tokens_per_sec=100)
    mapped = do(world, Calls(tmp_path, entry(server, "one")), ["60", "30", "1"], ordered=False)
    assert [len(m.text) for m in mapped] == [1, 30, 60]
    assert [m.index for m in mapped] == [2, 1, 0]


def test_five_hundred_items_through_three_servers(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    servers = [fake_server(slots=4, reply=echo) for _ in range(3)]
    calls = Calls(tmp_path, *(entry(s, name) for s, name in zip(servers, "abc", strict=True)))
    items = prompts(500)
    assert_once_each(do(world, calls, items), items)
    asked = Counter(last(request.body) for server in servers for request in chats(server))
    assert asked == Counter(items)
    for server, name in zip(servers, "abc", strict=True):
        assert calls.used(name).tokens == server.usage.total_tokens
        assert server.max_in_flight <= 4
    assert_settled(calls, *"abc")


def test_what_goes_wrong_with_an_item_is_its_value(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(reply=echo, context=512)
    items: list[Any] = ["fine", "", "word " * 5000, 7, {"prompt": "fine too"}, {"propmt": "wrong"}]
    mapped = do(world, Calls(tmp_path, entry(server, "one")), items)
    kinds = [type(m.error) for m in mapped]
    assert kinds == [type(None), ValueError, NoEligibleLM, TypeError, type(None), ValueError]
    assert [m.text for m in mapped if m.error is None] == ["echo fine", "echo fine too"]
    with pytest.raises(NoEligibleLM, match="one"):
        _ = mapped[2].text


def test_a_servers_refusal_is_the_value_of_its_item_alone(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(reply=echo)
    server.fail(faults.ContextOverflow(), times=1)
    mapped = do(world, Calls(tmp_path, entry(server, "one")), prompts(10), at_most=1)
    assert [isinstance(m.error, BackendError) for m in mapped] == [True] + [False] * 9


def test_items_have_options_of_their_own(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server, other = fake_server(reply=echo), fake_server(reply=echo)
    calls = Calls(tmp_path, entry(server, "one", 200), entry(other, "two", tags=["odd"]))
    messages = [{"role": "system", "content": "Own."}, {"role": "user", "content": "three"}]
    items: list[Any] = [
        "one",
        {"prompt": "two", "max_tokens": 7, "system_prompt": "Mine."},
        {"messages": messages, "temperature": 0.25},
        messages,
        {"prompt": "odd", "tags": ["odd"]},
    ]
    do(world, calls, items, max_tokens=99, system_prompt="Be brief.", temperature=0.5, at_most=1)
    asked = [
        ([m["content"] for m in body["messages"]], body["max_tokens"], body["temperature"])
        for body in (request.body for request in (*chats(server), *chats(other)))
    ]
    assert sorted(asked) == [
        (["Be brief.", "odd"], 99, 0.5),
        (["Be brief.", "one"], 99, 0.5),
        (["Mine.", "two"], 7, 0.5),
        (["Own.", "three"], 99, 0.25),
        (["Own.", "three"], 99, 0.5),
    ]
    assert "odd" not in [last(request.body) for request in chats(server)]


def test_wrong_options_are_raised_at_once(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(fake_server(), "one"))
    pool: Any = calls.pool() if world == "sync" else calls.async_pool()
    with pytest.raises(TypeError, match="did you mean max_tokens"):
        pool.map(["Hi"], max_token=7)
    with pytest.raises(ValueError, match="time_cost_weight"):
        pool.map(["Hi"], time_cost_weight=11)


def test_nobody_to_ask_is_an_error_of_every_item(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server()
    server.close()
    mapped = do(world, Calls(tmp_path, entry(server, "one")), prompts(20))
    assert [type(m.error) for m in mapped] == [NoEligibleLM] * 20


# --- how the work is spread


def test_slots_are_all_used_and_never_passed(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server(slots=n, reply=echo, tokens_per_sec=100) for n in (1, 2, 3)]
    calls = Calls(tmp_path, *(entry(s, name) for s, name in zip(servers, "abc", strict=True)))
    items = prompts(60)
    assert_once_each(do(world, calls, items), items)
    assert [server.max_in_flight for server in servers] == [1, 2, 3]


def test_the_caller_may_want_fewer_calls_at_once(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(slots=8, reply=echo, tokens_per_sec=200)
    do(world, Calls(tmp_path, entry(server, "one")), prompts(12), at_most=3)
    assert server.max_in_flight == 3


def test_two_maps_share_the_slots(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server(slots=2, reply=echo, tokens_per_sec=200) for _ in range(2)]
    calls = Calls(tmp_path, entry(servers[0], "a"), entry(servers[1], "b"))
    items = prompts(30)
    out: list[list[Mapped]] = []
    with calls.pool() as pool:
        threads = [threading.Thread(target=lambda: out.append(list(pool.map(items)))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    for mapped in out:
        assert_once_each(mapped, items)
    assert [server.max_in_flight for server in servers] == [2, 2]


def test_items_are_taken_as_slots_come_free(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    taken = 0

    def items() -> Iterator[str]:
        nonlocal taken
        for taken in itertools.count(1):
            yield f"prompt {taken}"

    ahead: list[int] = []

    def look(mapped: Mapped) -> bool:
        ahead.append(taken - len(ahead) - 1)
        return len(ahead) == 51

    server = fake_server(slots=2, reply=echo)
    # In their order one that is late would let others go ahead of it.
    do(world, Calls(tmp_path, entry(server, "one")), items(), look, ordered=False)
    assert len(ahead) == 51
    assert max(ahead) <= 6  # two under way, two or three that lie ready, and what came in meanwhile


def test_progress_is_told_and_may_end_it(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=2, reply=echo)
    calls = Calls(tmp_path, entry(server, "one"))
    told: list[tuple[int, int, int | None]] = []
    do(world, calls, ["a", "", "c"], progress=lambda *numbers: told.append(numbers))
    assert [done for done, _, _ in told] == [1, 2, 3]
    assert told[-1] == (3, 1, 3)

    def enough(done: int, failed: int, total: int | None) -> None:
        if done == 5:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        do(world, calls, prompts(50), progress=enough, after=lambda: assert_idle(server))
    assert_settled(calls, "one")


# --- servers that die


def kill_at(*deaths: tuple[int, Callable[[], object]]) -> Callable[[Mapped], None]:
    """Do each of these when so many results have come."""
    count = itertools.count(1)
    plan = dict(deaths)

    def each(_: Mapped) -> None:
        plan.get(next(count), lambda: None)()

    return each


def test_a_server_stopped_in_the_middle_costs_no_item(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    dies, lives = (fake_server(slots=2, reply=echo, tokens_per_sec=200) for _ in range(2))
    calls = Calls(tmp_path, entry(dies, "dies", 200), entry(lives, "lives"))
    items = prompts(60)
    assert_once_each(do(world, calls, items, kill_at((10, dies.close))), items)
    assert_settled(calls, "dies", "lives")


def test_servers_killed_one_after_another_cost_no_item(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    servers = [fake_server(slots=4, reply=echo) for _ in range(3)]
    calls = Calls(tmp_path, *(entry(s, name) for s, name in zip(servers, "abc", strict=True)))
    items = prompts(500)
    deaths = kill_at((100, servers[0].close), (200, servers[1].close))
    assert_once_each(do(world, calls, items, deaths, ordered=False), items)
    assert_settled(calls, *"abc")


def test_a_server_that_is_started_again_takes_over_when_the_last_one_dies(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    first, second = (fake_server(slots=2, reply=echo, tokens_per_sec=300) for _ in range(2))
    calls = Calls(tmp_path, entry(first, "first"), entry(second, "second"))
    items = prompts(60)

    def change_over() -> None:
        first.start()
        second.close()

    deaths = kill_at((5, first.close), (15, change_over))
    assert_once_each(do(world, calls, items, deaths), items)
    assert_settled(calls, "first", "second")


def test_when_the_last_one_dies_the_rest_are_errors(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(slots=2, reply=echo)
    calls = Calls(tmp_path, entry(server, "one"))
    mapped = do(world, calls, prompts(40), kill_at((10, server.close)), patience=0.5)
    assert [m.index for m in mapped] == list(range(40))
    assert all(m.text == f"echo prompt {m.index}" for m in mapped[:10])
    for m in mapped[20:]:
        assert isinstance(m.error, NoEligibleLM | BackendError | AllAttemptsFailed)
    assert_settled(calls, "one")


def test_a_single_box_that_is_started_again_loses_nothing(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(slots=2, reply=echo)
    calls = Calls(tmp_path, entry(server, "one"))
    again = threading.Timer(1.0, server.start)
    items = prompts(30)

    def stop() -> None:
        server.stop()
        again.start()

    try:
        assert_once_each(do(world, calls, items, kill_at((10, stop))), items)
    finally:
        again.join()


def test_broken_replies_are_asked_for_again(world: World, fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=2, reply=echo)
    server.fail(faults.Cut(), times=3)
    calls = Calls(tmp_path, entry(server, "one"))
    items = prompts(20)
    assert_once_each(do(world, calls, items), items)


# --- doubles


def test_what_hangs_at_the_end_is_asked_of_another_free_server(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    hangs, works = fake_server(slots=1, reply=LONG, tokens_per_sec=5), fake_server(slots=1, reply="works")
    calls = Calls(
        tmp_path,
        entry(hangs, "hangs", 10_000, daily_budget_tokens=None),
        entry(works, "works", 9_000, daily_budget_tokens=None),
    )
    mapped = do(world, calls, ["a", "b"], ordered=False, max_tokens=1000, after=lambda: assert_idle(hangs))
    assert hangs.wait_aborted(AT_ONCE)
    assert [m.text for m in mapped] == ["works", "works"]
    assert len(chats(hangs)) == 1
    assert calls.used("hangs").tokens > 0  # the loser is booked, too
    assert_settled(calls, "hangs", "works")


def test_what_has_a_budget_is_never_asked_twice(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    slow, fast = (
        fake_server(slots=1, reply=["x"] * 30, tokens_per_sec=30),
        fake_server(slots=1, reply="fast"),
    )
    calls = Calls(tmp_path, entry(slow, "slow", 10_000), entry(fast, "fast", 9_000))
    mapped = do(world, calls, ["a", "b"], max_tokens=1000)
    assert sorted(len(m.text) for m in mapped) == [4, 30]
    assert (len(chats(slow)), len(chats(fast))) == (1, 1)


# --- leaving early


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    """Its first reply is short; the others take 40 s unless they are stopped."""
    return fake_server(
        slots=4, tokens_per_sec=50, reply=lambda body: "short" if last(body) == "prompt 0" else LONG
    )


@pytest.fixture
def calls(server: FakeServer, tmp_path: Path) -> Calls:
    return Calls(tmp_path, entry(server, "one"))


def assert_stopped_and_booked(calls: Calls, server: FakeServer) -> None:
    assert_settled(calls, "one")
    aborted = [request for request in chats(server) if request.aborted]
    assert len(aborted) == 4
    used = calls.used("one")
    assert 0 < used.tokens < 10_000  # what was seen of each, not its worst case


@pytest.mark.parametrize("how", ["break", "raise"])
def test_leaving_early_stops_every_call(world: World, server: FakeServer, calls: Calls, how: str) -> None:
    def leave(mapped: Mapped) -> bool:
        assert mapped.text == "short"
        wait_chats(server, 5)
        wait_tokens(server, 10)
        if how == "raise":
            raise ZeroDivisionError
        return True

    with suppress(ZeroDivisionError):
        do(world, calls, prompts(20), leave, after=lambda: assert_idle(server))
    assert_stopped_and_booked(calls, server)


def test_calls_that_wait_for_a_reply_to_begin_are_cut(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(slots=3)
    server.fail(faults.SlowFirstByte(math.inf), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    do(
        world,
        calls,
        ["", "a", "b", "c"],  # the first one has its result at once
        each=lambda mapped: wait_chats(server, 3),
        after=lambda: assert_idle(server),
    )
    assert [request.aborted for request in chats(server)] == [True] * 3
    assert_settled(calls, "one")


def test_dropping_a_map_stops_every_call(server: FakeServer, calls: Calls) -> None:
    with calls.pool() as pool:
        results = pool.map(prompts(20))
        assert next(results).text == "short"
        wait_chats(server, 5)
        del results
        assert_idle(server)
        assert_stopped_and_booked(calls, server)


def test_dropping_an_async_map_stops_every_call(server: FakeServer, calls: Calls) -> None:
    async def main() -> None:
        async with calls.async_pool() as pool:
            results = pool.map(prompts(20))
            assert (await anext(results)).text == "short"
            await asyncio.to_thread(wait_chats, server, 5)
            del results
            gc.collect()
            await asyncio.to_thread(assert_idle, server)

    asyncio.run(main())
    assert_stopped_and_booked(calls, server)


def test_cancelling_the_task_of_a_map_stops_every_call(server: FakeServer, calls: Calls) -> None:
    async def main() -> None:
        async with calls.async_pool() as pool:

            async def use() -> None:
                async for _ in pool.map(prompts(20)):
                    pass

            task = asyncio.create_task(use())
            await asyncio.to_thread(wait_chats, server, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(assert_idle, server)
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
    assert_stopped_and_booked(calls, server)


def test_a_map_never_begun_asks_nothing(world: World, server: FakeServer, calls: Calls) -> None:
    pool: Any = calls.pool() if world == "sync" else calls.async_pool()
    results = pool.map(prompts(3))
    del results
    gc.collect()
    assert server.requests == []


def test_a_map_that_is_over_stays_over(fake_server: FakeServers, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(fake_server(), "one")).pool() as pool:
        results = pool.map(["Hi"])
        assert [m.text for m in results] == ["Hello there, friend."]
        assert list(results) == []
        results.close()


SCRIPT = """
import sys
from maxwell.lm_pool import LLMPool, AsyncLLMPool

PROMPTS = [f"prompt {i}" for i in range(20)]
results = LLMPool.from_registry().map(PROMPTS)
if sys.argv[1] == "async":
    import asyncio

    async def main():
        async for _ in AsyncLLMPool.from_registry().map(PROMPTS):
            pass

    asyncio.run(main())
elif sys.argv[1] == "ends":
    next(results)
else:
    list(results)
"""


@pytest.mark.parametrize("how", ["sync", "async", "ends"])
def test_ctrl_c_and_the_end_of_the_process_stop_every_call(
    server: FakeServer, write_registry: WriteRegistry, maxwell_home: Path, how: str
) -> None:
    write_registry(server.llm_entry("one", daily_budget_tokens=BUDGET))
    script = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with script:
        wait_chats(server)
        if how != "ends":
            wait_chats(server, 5)
            wait_tokens(server, 10)
            script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=30)
    if how == "ends":
        assert (script.returncode, said) == (0, "")
    else:
        assert script.returncode in (-signal.SIGINT, 130), said
        assert said.rstrip().endswith("KeyboardInterrupt")
    assert_idle(server)
    clock = SystemClock()
    ledger = SQLiteLedger(maxwell_home / ".maxwell", clock)
    used = ledger.usage(budget_day(clock.time(), None))["one"]
    ledger.close()
    assert used.held_tokens == 0
    assert 0 < used.tokens < 10_000
    written = json.loads((maxwell_home / ".maxwell" / "llm_usage.json").read_text())
    assert sum(written["one"].values()) == used.tokens


def test_every_error_of_an_item_is_one_of_ours(
    world: World, fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server(slots=2, reply=echo)
    for fault in (faults.Garbage(), faults.Unauthorized(), faults.EmptyBody(), faults.QuotaExhausted()):
        server.fail(fault, times=1)
    mapped = do(world, Calls(tmp_path, entry(server, "one")), prompts(8), at_most=1)
    assert len(mapped) == 8
    assert all(m.error is None or isinstance(m.error, MaxwellError) for m in mapped)
    assert any(m.error is not None for m in mapped)


def test_items_that_few_can_do_do_not_keep_the_others_waiting(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    """The only one that honours grammars is busy for ever; the rest goes on elsewhere meanwhile."""
    few, many = fake_server(slots=1), fake_server("openai", reply=echo)
    few.fail(faults.SlowFirstByte(math.inf), times=None)
    calls = Calls(tmp_path, entry(few, "few", 500), entry(many, "many", tags=["cloud"]))
    calls.warm()
    items: list[Any] = [{"prompt": f"grammar {i}", "grammar": 'root ::= "x"'} for i in range(3)]
    items += [{"prompt": f"plain {i}", "tags": ["cloud"]} for i in range(3)]
    with calls.pool() as pool, pool.map(items, ordered=False, at_most=2) as results:
        done = [next(results) for _ in range(3)]
    assert sorted(mapped.index for mapped in done) == [3, 4, 5]
    assert few.max_in_flight == 1
