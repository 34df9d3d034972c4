"""One pool, many callers: event loops one after another, threads, forked children, other processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import BUDGET, Calls, assert_idle, assert_no_threads, chats, count, entry

from maxwell.errors import BudgetExceeded, NoEligibleLM
from maxwell.lm_pool import LLMPool, get_lm
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

THREADS = 16


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply=lambda body: f"echo {body['messages'][-1]['content']}", slots=64)


@pytest.fixture
def calls(server: FakeServer, tmp_path: Path) -> Calls:
    return Calls(tmp_path, entry(server, "one"))


def in_threads(work: Callable[[int], Any], number: int = THREADS) -> list[Any]:
    """Do the work in so many threads that all begin at the same moment."""
    start = threading.Barrier(number)

    def begin(i: int) -> Any:
        start.wait()
        return work(i)

    with ThreadPoolExecutor(number) as threads:
        return list(threads.map(begin, range(number)))


# --- event loops


def test_one_pool_in_one_event_loop_after_another(calls: Calls, server: FakeServer) -> None:
    pool = calls.async_pool()

    async def main(i: int) -> str:
        lm = await pool.get_lm()
        pieces = [piece async for piece in lm.stream(f"stream {i}")]
        assert "".join(pieces) == f"echo stream {i}"
        return await lm.generate(f"call {i}")

    assert [asyncio.run(main(i)) for i in range(4)] == [f"echo call {i}" for i in range(4)]
    assert calls.used("one").tokens == server.usage.total_tokens
    assert_idle(server)


def test_a_handle_outlives_the_event_loop_it_was_made_in(calls: Calls) -> None:
    pool = calls.async_pool()
    lm = asyncio.run(pool.get_lm())
    for i in range(3):
        assert asyncio.run(lm.generate(f"{i}")) == f"echo {i}"


def test_one_async_pool_in_event_loops_of_several_threads(calls: Calls) -> None:
    pool = calls.async_pool()

    def work(i: int) -> list[str]:
        async def main() -> list[str]:
            lm = await pool.get_lm()
            return await asyncio.gather(*(lm.generate(f"{i}.{n}") for n in range(4)))

        return asyncio.run(main())

    assert in_threads(work, 4) == [[f"echo {i}.{n}" for n in range(4)] for i in range(4)]


def test_sync_calls_work_while_an_event_loop_runs(calls: Calls) -> None:
    async def main() -> str:
        with calls.pool() as pool:
            return pool.get_lm().generate("sync")  # blocks the loop, as it says, and works

    assert asyncio.run(main()) == "echo sync"


# --- threads


def test_many_threads_share_a_pool(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:

        def work(i: int) -> list[str]:
            lm = pool.get_lm()
            return [lm.generate(f"{i}.{n}") for n in range(5)] + ["".join(lm.stream(f"{i}.5"))]

        assert in_threads(work) == [[f"echo {i}.{n}" for n in range(6)] for i in range(THREADS)]
        used = pool.usage()["one"]
    assert (used.tokens, used.held_tokens) == (server.usage.total_tokens, 0)
    assert server.connections <= 2 * THREADS
    assert_idle(server)
    assert_no_threads()


def test_many_threads_share_a_pool_on_disk(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(entry(server, "one"))

    def work(i: int) -> str:
        return get_lm().generate(f"{i}")

    assert in_threads(work) == [f"echo {i}" for i in range(THREADS)]
    with LLMPool.from_registry() as pool:
        used = pool.usage()["one"]
    assert (used.tokens, used.held_tokens) == (server.usage.total_tokens, 0)


def test_threads_never_pass_a_budget(server: FakeServer, write_registry: WriteRegistry) -> None:
    # A call may need 300 tokens by its bound and uses some 17, so not all fit, and few are under way at once.
    write_registry(entry(server, "one", daily_budget_tokens=900))

    def work(i: int) -> int:
        done = 0
        for _ in range(10):
            with contextlib.suppress(BudgetExceeded, NoEligibleLM):
                done += bool(get_lm("one").generate("Hello", max_tokens=16))
        return done

    assert 1 <= sum(in_threads(work)) < 10 * THREADS
    with LLMPool.from_registry() as pool:
        used = pool.usage()["one"]
    assert used.held_tokens == 0
    assert used.tokens == server.usage.total_tokens <= 900


# --- pooled connections


def test_sequential_calls_use_one_connection(calls: Calls, server: FakeServer) -> None:
    with calls.pool() as pool:
        lm = pool.get_lm()
        for i in range(10):
            lm.generate(f"{i}")
            list(lm.stream(f"{i}"))
    assert len(chats(server)) == 20
    assert server.connections == 1


def test_sequential_async_calls_use_one_connection(calls: Calls, server: FakeServer) -> None:
    async def main() -> None:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            for i in range(10):
                await lm.generate(f"{i}")
                async for _ in lm.stream(f"{i}"):
                    pass

    asyncio.run(main())
    assert len(chats(server)) == 20
    assert server.connections == 1


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_every_dialects_end_of_stream_leaves_the_connection_usable(
    fake_server: FakeServers, tmp_path: Path, dialect: Any
) -> None:
    server = fake_server(dialect)
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        for _ in range(5):
            lm.generate("Hello")
    assert server.connections == 1


def test_fifty_async_calls_at_once(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(slots=50, reply=lambda body: body["messages"][-1]["content"], tokens_per_sec=20)
    calls = Calls(tmp_path, entry(server, "one"))

    async def main() -> list[str]:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            return await asyncio.gather(*(lm.generate(f"number {i:03}") for i in range(50)))

    assert asyncio.run(main()) == [f"number {i:03}" for i in range(50)]
    assert server.max_in_flight >= 25  # side by side, not one after another
    assert server.connections <= 51
    assert calls.used("one").tokens == server.usage.total_tokens


# --- one probe for all


@pytest.mark.parametrize("round_", range(5))
def test_threads_of_a_cold_pool_share_one_probe(
    fake_server: FakeServers, tmp_path: Path, round_: int
) -> None:
    servers = [fake_server() for _ in range(3)]
    for server in servers:
        server.fail(faults.SlowFirstByte(0.05), path="/health")
    entries = [entry(s, f"{i}{twin}", 100 + i) for i, s in enumerate(servers) for twin in "ab"]
    with Calls(tmp_path, *entries).pool() as pool:
        assert {lm.name for lm in in_threads(lambda i: pool.get_lm())} == {"2a"}
        assert_no_threads()
    assert [count(s, "/health") for s in servers] == [1, 1, 1]


def test_tasks_of_a_cold_pool_share_one_probe(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.fail(faults.SlowFirstByte(0.05), path="/health")
    calls = Calls(tmp_path, entry(server, "one"))

    async def main() -> None:
        async with calls.async_pool() as pool:
            await asyncio.gather(*(pool.get_lm() for _ in range(THREADS)))

    asyncio.run(main())
    assert count(server, "/health") == 1


def test_a_late_asker_uses_what_an_earlier_one_has_just_found_out(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    # Many more threads than cores: some decide that the state is unknown, and run again when it is known.
    server = fake_server()
    for n in range(3):
        choose_in_threads(Calls(tmp_path / str(n), entry(server, "one")))
        assert count(server, "/health") == n + 1


def choose_in_threads(calls: Calls) -> None:
    with calls.pool() as pool:
        in_threads(lambda i: pool.get_lm(), 64)
        assert_no_threads()


# --- processes


def run(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


CHOOSE = "from maxwell.lm_pool import get_lm; print('\"' + get_lm().name + '\"')"


def test_a_second_process_does_not_probe_again(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(entry(server, "one"))
    assert run(CHOOSE) == "one"
    asked = len(server.requests)
    assert count(server, "/health") == 1
    assert run(CHOOSE) == "one"
    assert len(server.requests) == asked


def test_processes_that_start_together_probe_once(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(entry(server, "one"))
    server.fail(faults.SlowFirstByte(1.0), path="/health")
    with ThreadPoolExecutor(3) as threads:
        assert list(threads.map(lambda _: run(CHOOSE), range(3))) == ["one"] * 3
    assert count(server, "/health") == 1


def test_what_a_call_met_is_known_to_other_processes(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    first, second = fake_server(), fake_server(reply="Here.")
    write_registry(entry(first, "first", 500), entry(second, "second"))
    with LLMPool.from_registry() as pool:
        assert all(s.state == "up" for s in pool.health())
        lm = pool.get_lm()
        first.stop()
        assert lm.generate("Hello") == "Here."
        assert run(CHOOSE) == "second"


FORK = """
import json, os, sys
from maxwell.lm_pool import LLMPool

pool = LLMPool.from_registry()
lm = pool.get_lm()
open_stream = lm.stream("parent's")
said = [next(open_stream), lm.generate("before")]
read, write = os.pipe()
child = os.fork()
if child == 0:
    answers = [lm.generate("child"), pool.get_lm().generate("child again"), "".join(lm.stream("child's"))]
    pool.close()
    os.write(write, json.dumps(answers).encode())
    os._exit(0)
os.close(write)
said += [lm.generate("after"), "".join(open_stream)]
with os.fdopen(read) as pipe:
    said += json.loads(pipe.read())
assert os.waitpid(child, 0)[1] == 0
pool.close()
print(json.dumps(said))
"""


def test_parent_and_child_go_on_after_a_fork(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(entry(server, "one"))
    said = run(FORK)
    first = said.pop(0)
    assert said[:2] == ["echo before", "echo after"]
    assert first + said[2] == "echo parent's"
    assert said[3:] == ["echo child", "echo child again", "echo child's"]
    assert not any(r.aborted for r in chats(server))
    with LLMPool.from_registry() as pool:
        used = pool.usage()["one"]
    assert (used.tokens, used.held_tokens) == (server.usage.total_tokens, 0)


ASYNC_FORK = """
import asyncio, json, os
from maxwell.lm_pool import AsyncLLMPool

pool = AsyncLLMPool.from_registry()

async def ask(prompt):
    return await (await pool.get_lm()).generate(prompt)

said = [asyncio.run(ask("before"))]
read, write = os.pipe()
child = os.fork()
if child == 0:
    os.write(write, json.dumps([asyncio.run(ask("child"))]).encode())
    os._exit(0)
os.close(write)
said.append(asyncio.run(ask("after")))
with os.fdopen(read) as pipe:
    said += json.loads(pipe.read())
assert os.waitpid(child, 0)[1] == 0
print(json.dumps(said))
"""


def test_an_async_pool_works_on_both_sides_of_a_fork(
    server: FakeServer, write_registry: WriteRegistry
) -> None:
    write_registry(server.llm_entry("one", daily_budget_tokens=BUDGET))
    assert run(ASYNC_FORK) == ["echo before", "echo after", "echo child"]


WORKERS = """
import json, multiprocessing
from maxwell.lm_pool import get_lm

def ask(n):
    return get_lm().generate(f"{n}")

if __name__ == "__main__":
    get_lm().generate("warm")
    with multiprocessing.get_context("fork").Pool(4) as workers:
        print(json.dumps(workers.map(ask, range(12), chunksize=1)))
        workers.close()
        workers.join()
"""


@pytest.mark.parametrize("budget", [BUDGET, None])
def test_workers_of_multiprocessing_book_all_they_use(
    server: FakeServer, write_registry: WriteRegistry, tmp_path: Path, budget: int | None
) -> None:
    # Such workers end without Python's exit handlers.
    write_registry(server.llm_entry("one", daily_budget_tokens=budget))
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [f"echo {n}" for n in range(12)]
    with LLMPool.from_registry() as pool:
        assert pool.usage()["one"].tokens == server.usage.total_tokens
