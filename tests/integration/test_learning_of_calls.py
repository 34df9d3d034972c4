"""What calls teach of the entries, and what comes of it: shown, kept, shared, and used to choose."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, Calls, entry, make_registry, wait_held

from maxwell.calls.status import Status
from maxwell.errors import BackendError, NoEligibleLM
from maxwell.lm_pool import LLMPool
from maxwell.speed import Speeds
from maxwell.testing import FakeClock, FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

SOON = 10.0  # seconds; how long something that must happen may take before a test gives up
SPEED = 200.0  # tokens a second, in truth
WORDS = ["word "] * 40
NEAR = 0.35  # of a speed; machines that do other things, too, are not always as fast


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(tokens_per_sec=SPEED, reply=WORDS)


def pool_of(home: Path, *entries: dict[str, Any], clock: FakeClock | None = None) -> LLMPool:
    return LLMPool(make_registry(*entries), home=home, environ={}, clock=clock)


def measured(pool: LLMPool, name: str = "box") -> Speeds | None:
    return status(pool, name).measured


def status(pool: LLMPool, name: str = "box") -> Status:
    return next(status for status in pool.health() if status.spec.name == name)


def known(pool: LLMPool, name: str = "box") -> Speeds:
    """What was learned; it must be something."""
    found = pool._state.speeds_of(pool._state.llm(name))
    assert found is not None
    return found


def ask(pool: LLMPool, name: str = "box", times: int = 1) -> None:
    lm = pool.get_lm(name)
    for number in range(times):
        lm.generate(f"Hello for the {number}th time.")


# --- shown


@pytest.mark.parametrize("declared", [20.0, SPEED, 5000.0])
@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_the_measured_speed_is_shown_beside_the_declared_one(
    fake_server: FakeServers, tmp_path: Path, dialect: Any, declared: float
) -> None:
    server = fake_server(dialect, tokens_per_sec=SPEED, reply=WORDS)
    with pool_of(tmp_path, entry(server, "box", declared)) as pool:
        assert measured(pool) is None
        ask(pool, times=4)
        found = measured(pool)
        assert found is not None
        # What is shown is what counts when choosing; it moves a little with time.
        assert found.speed == pytest.approx(known(pool).speed, rel=0.01)
        assert found.seen.speed == 4
        assert found.speed == pytest.approx(SPEED, rel=NEAR)
        said = [remark for remark in status(pool).remarks if "were measured" in remark]
        assert len(said) == (declared != SPEED)


@pytest.mark.parametrize("mode", MODES)
def test_every_manner_of_calling_teaches(server: FakeServer, tmp_path: Path, mode: str) -> None:
    calls = Calls(tmp_path, entry(server, "box", 20))
    assert calls.ask(mode, "Hello").text == "".join(WORDS)
    with calls.pool() as pool:
        found = measured(pool)
    assert found is not None
    assert (found.seen.speed, found.seen.completion) == (1, 1)
    assert found.speed > 40


def test_a_map_teaches_too(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box", 20)) as pool:
        assert all(done.error is None for done in pool.map([f"{n}?" for n in range(8)]))
        assert known(pool).seen.speed == 8
        assert known(pool).speed == pytest.approx(SPEED, rel=NEAR)


def test_a_call_that_gets_no_answer_teaches_nothing(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box")) as pool:
        server.fail(faults.ServerError(), times=None)
        with pytest.raises(BackendError):
            pool.get_lm("box").generate("Hello")
        assert measured(pool) is None


# --- kept


ONE_CALL = """
from maxwell.lm_pool import get_lm
print(get_lm("box").generate("Hello"))
"""

SHOW = """
from maxwell.lm_pool import LLMPool
with LLMPool.from_registry() as pool:
    [status] = pool.health()
    print(status.measured.seen.speed, status.measured.speed)
"""


def run(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_programs_of_one_call_each_learn_together(server: FakeServer, write_registry: WriteRegistry) -> None:
    write_registry(server.llm_entry("box", capabilities={"speed_tokens_per_sec": 20.0}))
    for _ in range(3):
        run(ONE_CALL)
    seen, speed = run(SHOW).split()
    assert int(seen) == 3
    assert float(speed) == pytest.approx(SPEED, rel=NEAR)


def assert_same(one: Speeds, other: Speeds) -> None:
    assert one.seen == other.seen
    assert one.speed == pytest.approx(other.speed, rel=0.01)


def test_another_pool_of_this_process_knows_it_too(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box", 20)) as pool:
        ask(pool, times=3)
        before = known(pool)
        with pool_of(tmp_path, entry(server, "box", 20)) as other:
            assert_same(known(other), before)
    del pool, other
    gc.collect()
    with pool_of(tmp_path, entry(server, "box", 20)) as later:
        assert_same(known(later), before)


def test_another_home_knows_nothing(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path / "one", entry(server, "box")) as pool:
        ask(pool)
    with pool_of(tmp_path / "two", entry(server, "box")) as other:
        assert measured(other) is None


def test_a_damaged_file_costs_what_was_learned_and_no_call(
    server: FakeServer, tmp_path: Path, fake_clock: FakeClock
) -> None:
    with pool_of(tmp_path, entry(server, "box", 20), clock=fake_clock) as pool:
        ask(pool, times=2)
    (tmp_path / "live.db").write_bytes(b"no database at all" * 1000)
    with pool_of(tmp_path, entry(server, "box", 20), clock=fake_clock) as pool:
        ask(pool, times=2)
        assert known(pool).seen.speed == 2


@pytest.mark.parametrize("elsewhere", ["server", "model"])
def test_an_entry_that_points_elsewhere_begins_anew(
    server: FakeServer, fake_server: FakeServers, tmp_path: Path, elsewhere: str
) -> None:
    with pool_of(tmp_path, entry(server, "box", 20)) as pool:
        ask(pool, times=3)
    other = fake_server(tokens_per_sec=50, reply=WORDS) if elsewhere == "server" else server
    model = {"model": "another"} if elsewhere == "model" else {}
    changed = entry(other, "box", 20, **model)
    with pool_of(tmp_path, changed) as pool:
        assert measured(pool) is None
        found = known(pool)  # how long replies usually are stays known
        assert (found.seen.speed, found.seen.overhead, found.speed) == (0, 0, 20.0)
        assert found.seen.completion == 3
    with pool_of(tmp_path, entry(server, "box", 20)) as pool:
        assert known(pool).seen.speed == 3  # and when it points back, all is there


# --- cancelled


@pytest.mark.parametrize("pieces", [1, 12, 30])
def test_a_cancelled_stream_never_raises_the_speed(server: FakeServer, tmp_path: Path, pieces: int) -> None:
    with pool_of(tmp_path, entry(server, "box", 20)) as pool:
        lm = pool.get_lm("box")
        for _ in range(3):
            with lm.stream("Hello") as stream:
                for _ in range(pieces):
                    next(stream)
        assert known(pool).speed == 20.0
        assert known(pool).seen.speed == 0


def test_a_cancelled_stream_of_a_slow_server_tells_that_it_is(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box", 5000)) as pool:
        for _ in range(3):
            with pool.get_lm("box").stream("Hello") as stream:
                for _ in range(30):
                    next(stream)
        assert known(pool).speed < 1000


def test_a_reader_that_takes_its_time_is_not_a_slow_server(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box", SPEED)) as pool:
        ask(pool, times=2)
        before = known(pool).speed
        tick = threading.Event()
        for piece in pool.get_lm("box").stream("Hello"):
            assert piece
            tick.wait(0.02)  # four times as slow as the server
        assert known(pool).speed > 0.7 * before


# --- used to choose


def test_min_speed_means_the_measured_speed(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "boaster", 5000), entry(server, "modest", 20)) as pool:
        assert pool.get_lm(min_speed=1000).name == "boaster"
        ask(pool, "boaster", times=4)
        ask(pool, "modest", times=4)
        with pytest.raises(NoEligibleLM, match="tokens/s, 1000 required"):
            pool.get_lm(min_speed=1000)
        assert {s.spec.name for s in pool.explain(min_speed=100).ranked} == {"boaster", "modest"}


@pytest.mark.parametrize("prompt", [None, "Hello"], ids=["by speed", "by score"])
def test_a_server_slower_than_declared_loses_its_rank(
    fake_server: FakeServers, tmp_path: Path, prompt: str | None
) -> None:
    boaster = fake_server(tokens_per_sec=60, reply=["word "] * 20)
    honest = fake_server(tokens_per_sec=SPEED, reply=["word "] * 20)
    with pool_of(tmp_path, entry(boaster, "boaster", 1000), entry(honest, "honest", SPEED)) as pool:
        names = []
        for _ in range(6):
            lm = pool.get_lm(prompt=prompt)
            names.append(lm.name)
            lm.generate("Hello")
    assert names[0] == "boaster"
    assert names[-1] == "honest"
    assert names == sorted(names)  # once is enough: it does not go to and fro


def test_a_handle_keeps_to_its_choice_however_it_turns_out(fake_server: FakeServers, tmp_path: Path) -> None:
    boaster = fake_server(tokens_per_sec=60, reply=["word "] * 20)
    honest = fake_server(tokens_per_sec=SPEED, reply=["word "] * 20)
    with pool_of(tmp_path, entry(boaster, "boaster", 1000), entry(honest, "honest", SPEED)) as pool:
        lm = pool.get_lm()
        said = [{"role": "user", "content": "Hello"}]
        assert [lm.chat(said).llm for _ in range(4)] == ["boaster"] * 4
        assert pool.get_lm().name == "honest"


def test_how_long_replies_usually_are_is_known_of_all(server: FakeServer, tmp_path: Path) -> None:
    with pool_of(tmp_path, entry(server, "box"), entry(server, "other", model="another")) as pool:
        before = {s.spec.name: s for s in pool.explain(prompt="Hello").ranked}
        assert before["other"].reply_tokens == 512
        ask(pool, times=20)
        after = {s.spec.name: s for s in pool.explain(prompt="Hello").ranked}
        assert 40 <= after["other"].reply_tokens < 250
        assert after["other"].speed == before["other"].speed
        assert after["other"].completion_tokens == 512  # so many must have room all the same


def test_a_task_has_replies_of_its_own_length(fake_server: FakeServers, tmp_path: Path) -> None:
    def reply(body: dict[str, Any]) -> list[str]:
        return ["word "] * (300 if "poem" in body["messages"][-1]["content"] else 3)

    server = fake_server(reply=reply)
    with pool_of(tmp_path, entry(server, "box", tags=["poems", "answers"])) as pool:
        for _ in range(15):
            pool.get_lm(prompt="A poem, please.", tags=["poems"]).generate("A poem, please.")
            pool.get_lm(prompt="Yes or no?", tags=["answers"]).generate("Yes or no?")
        poem = pool.explain(prompt="A poem, please.", tags=["poems"]).ranked[0].reply_tokens
        answer = pool.explain(prompt="Yes or no?", tags=["answers"]).ranked[0].reply_tokens
    assert answer < 150 < 250 < poem


# --- loading


def until(true: Callable[[], bool]) -> None:
    tick, end = threading.Event(), time.monotonic() + SOON
    while not true():
        assert time.monotonic() < end
        tick.wait(0.01)


def test_how_long_a_server_loads_is_learned(server: FakeServer, tmp_path: Path) -> None:
    server.set_state("loading")
    with pool_of(tmp_path, entry(server, "box")) as pool, ThreadPoolExecutor(1) as threads:
        held = threads.submit(lambda: pool.get_lm("box").generate("Hello"))
        wait_held(pool)
        server.set_state("up")
        held.result(SOON)
        found = known(pool)
        assert (found.seen.load, found.seen.speed) == (1, 0)
        assert found.load < 30.0
        ask(pool)
        assert (known(pool).seen.load, known(pool).seen.speed) == (1, 1)


def test_a_loading_of_long_ago_is_no_news_to_later_programs(
    server: FakeServer, tmp_path: Path, fake_clock: FakeClock
) -> None:
    """The first call after a loading teaches no speed; that of every process would be one."""
    server.set_state("loading")
    with pool_of(tmp_path, entry(server, "box", 20), clock=fake_clock) as pool:
        for state in ("loading", "loading", "up"):
            server.set_state(state)
            pool.health(refresh=True)
            fake_clock.advance(3)
    for number in range(3):
        with pool_of(tmp_path, entry(server, "box", 20), clock=fake_clock) as pool:
            ask(pool)
            assert known(pool).seen.speed == number + 1
            assert known(pool).seen.load == 0
        fake_clock.advance(600)
