"""What keeps an entry from being chosen, told apart; and how selection finds out without waiting in vain."""

from __future__ import annotations

import asyncio
import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from calling import AT_ONCE, SOON, Calls, assert_no_threads, chats, count, dead_entry, entry, wait_held

from maxwell.calls.status import Status
from maxwell.errors import BackendError, CallTimeout, ConnectError, NoEligibleLM, StatusError
from maxwell.ledger import Used
from maxwell.testing import FakeClock, faults
from maxwell.testing.fixtures import FakeServers

NEVER = faults.SlowFirstByte(math.inf)


def refusal_and_status(calls: Calls) -> tuple[str, Status]:
    """Why the one entry cannot be chosen, and its status."""
    with calls.pool() as pool:
        with pytest.raises(NoEligibleLM) as caught:
            pool.get_lm()
        assert caught.value.decision is not None
        assert caught.value.decision.ranked == ()
        (status,) = pool.health()
    return str(caught.value), status


# --- states told apart


def test_loading_ranks_after_all_that_can_begin(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    loading, well = fake_server(), fake_server()
    loading.set_state("loading")
    calls = Calls(tmp_path, entry(loading, "loads", 500), entry(well, "well", 10), clock=fake_clock)
    with calls.pool() as pool:
        pool.health()
        first, loads = pool.get_lm().decision.ranked
        assert (first.spec.name, first.state, first.ready_in) == ("well", "up", 0)
        assert (loads.spec.name, loads.state) == ("loads", "loading")
        assert loads.ready_in > 0
        assert pool.get_lm("loads").decision.ranked == (loads,)


def test_a_loading_server_is_not_chosen_before_the_others_have_answered(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    loading, late = fake_server(), fake_server()
    loading.set_state("loading")
    late.fail(faults.SlowFirstByte(0.3), path="/health")
    with Calls(tmp_path, entry(loading, "loads", 500), entry(late, "late", 10)).pool() as pool:
        assert pool.get_lm().name == "late"


def test_loading_alone_is_chosen_and_is_not_asked_before_it_is_ready(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server()
    server.set_state("loading")
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        assert pool.health()[0].state == "loading"
        with pytest.raises(CallTimeout, match=r"one: .* waiting for its server to load"):
            lm.generate("Hello", timeout=0.2)
        assert chats(server) == []
        assert calls.used("one") == Used()
        server.set_state("up")
        assert lm.generate("Hello")


def test_loading_for_too_long_is_no_candidate(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    server.set_state("loading")
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        pool.health()
    for _ in range(10):
        fake_clock.advance(60)
        with calls.pool() as pool:
            assert pool.get_lm().decision.ranked[0].ready_in > 0  # ten minutes are believed
    fake_clock.advance(1)
    message, status = refusal_and_status(calls)
    assert "one: " in message
    assert "wait for one, it is loading" in message
    assert status.state == "loading"


def test_asleep_is_usable_and_wakes(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.set_state("asleep")
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        assert pool.health()[0].state == "asleep"
        assert pool.get_lm().generate("Hello")
        assert pool.health()[0].state == "up"


@pytest.mark.parametrize("dialect", ["llamacpp", "vllm", "openai"])
def test_misconfigured(fake_server: FakeServers, tmp_path: Path, dialect: Any) -> None:
    server = fake_server(dialect, api_key="sk-right-one")
    message, status = refusal_and_status(Calls(tmp_path, entry(server, "one")))
    assert status.state == "misconfigured"
    assert "401" in message


def test_a_missing_key_names_its_variable(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", api_key="sk-right-one")
    message, status = refusal_and_status(Calls(tmp_path, entry(server, "one", api_key_env="CLOUD_KEY")))
    assert "environment variable CLOUD_KEY is not set" in message
    assert (status.state, status.problem) == ("blocked", "environment variable CLOUD_KEY is not set")


def test_vllm_that_does_not_serve_the_model(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("vllm", model="Qwen/Qwen3-VL-4B-Instruct")
    message, status = refusal_and_status(Calls(tmp_path, entry(server, "one", model="Qwen/Qwen3-8B")))
    assert "does not serve Qwen/Qwen3-8B; it serves Qwen/Qwen3-VL-4B-Instruct" in message
    assert status.state == "blocked"


def test_llamacpp_with_another_model_is_used_with_a_remark(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(model="/models/qwen3-8b.gguf")
    calls = Calls(tmp_path, entry(server, "one", model="C:\\models\\llama-3.gguf"))
    with calls.pool() as pool:
        assert pool.get_lm().generate("Hello")
        (status,) = pool.health()
    assert status.state == "up"
    assert any("llama-3.gguf" in r and "/models/qwen3-8b.gguf" in r for r in status.remarks)


def test_a_windows_path_means_the_file_that_is_served(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(model="C:\\dev\\Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf")
    calls = Calls(tmp_path, entry(server, "one", model="c:/models/qwen3-coder-30b-a3b-instruct-q5_k_m.gguf"))
    with calls.pool() as pool:
        assert pool.get_lm().name == "one"
        assert pool.health()[0].remarks == ()


def test_rate_limited_by_a_call_until_the_time_it_named(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    server.fail(faults.RateLimited(retry_after=61))
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        lm = pool.get_lm()
        with pytest.raises(StatusError):  # at once: nobody waits for longer than a minute
            lm.generate("Hello")
        with pytest.raises(NoEligibleLM, match=r"one: .*429"):
            pool.get_lm()
        assert pool.health()[0].state == "rate_limited"
        fake_clock.advance(62)
        assert pool.get_lm().generate("Hello")


def test_a_short_rate_limit_is_waited_for_until_the_time_it_named(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    server.fail(faults.RateLimited(retry_after=20))
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool, ThreadPoolExecutor(1) as threads:
        lm = pool.get_lm()
        held = threads.submit(lm.generate, "Hello")
        wait_held(pool)
        (limited,) = pool.get_lm().decision.ranked
        assert (limited.state, limited.ready_in) == ("rate_limited", 20)
        assert pool.health()[0].state == "rate_limited"
        fake_clock.advance(19)
        assert pool.get_lm().decision.ranked[0].ready_in == 1
        assert len(chats(server)) == 1
        fake_clock.advance(2)
        assert held.result(SOON)
    assert len(chats(server)) == 2


def test_a_rate_limit_lasts_as_long_as_the_server_said(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    # Its health check knows nothing of the limit, and must not lift it.
    server = fake_server()
    server.fail(faults.RateLimited(retry_after=600))
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        lm = pool.get_lm()
        with pytest.raises(StatusError):
            lm.generate("Hello")
        fake_clock.advance(120)
        with pytest.raises(NoEligibleLM, match=r"one: .*429"):
            pool.get_lm()


def test_a_probe_does_not_lift_what_a_call_was_told(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    server.fail(faults.RateLimited(retry_after=600))
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        lm = pool.get_lm()
        with pytest.raises(StatusError):
            lm.generate("Hello")
        fake_clock.advance(1)
        assert pool.health(refresh=True)[0].state == "rate_limited"


def test_down(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, dead_entry(server, "one"))
    message, status = refusal_and_status(calls)
    assert "one: cannot connect to http://127.0.0.1:" in message
    assert "start one at http://127.0.0.1:" in message
    assert status.state == "down"


def test_a_server_of_another_kind_is_down(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    server.fail(faults.Garbage(), times=None, path="*")
    _, status = refusal_and_status(Calls(tmp_path, entry(server, "one")))
    assert status.state == "down"


def test_all_reasons_stand_in_one_message(fake_server: FakeServers, tmp_path: Path) -> None:
    limited, locked, wrong = fake_server(), fake_server("openai", api_key="sk-right-one"), fake_server("vllm")
    calls = Calls(
        tmp_path,
        entry(limited, "limited"),
        entry(locked, "locked"),
        entry(wrong, "wrong", model="other"),
        dead_entry(limited, "dead"),
    )
    with calls.pool() as pool:
        lm = pool.get_lm()
        limited.fail(faults.RateLimited(retry_after=600))
        with pytest.raises(StatusError):
            lm.generate("Hello")
        with pytest.raises(NoEligibleLM) as caught:
            pool.get_lm()
    message = str(caught.value)
    assert "\n" not in message
    for part in ("limited: ", "429", "locked: ", "wrong: ", "does not serve other", "dead: cannot connect"):
        assert part in message


# --- selection does not wait in vain


def test_a_dead_host_beside_a_healthy_one(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, dead_entry(server, "dead", 500), entry(server, "well"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        assert lm.name == "well"
        assert [no.spec.name for no in lm.decision.rejected] == ["dead"]
        assert lm.generate("Hello")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/props"])
def test_a_hanging_server_delays_selection_by_no_more_than_its_limit(
    fake_server: FakeServers, tmp_path: Path, path: str
) -> None:
    hung, well = fake_server(), fake_server()
    hung.fail(NEVER, times=None, path=path)
    calls = Calls(tmp_path, entry(hung, "hung", 500), entry(well, "well"))
    with calls.pool() as pool:
        began = time.monotonic()
        lm = pool.get_lm()
        assert time.monotonic() - began < 3.5  # 2 s, on a busy machine
        assert lm.name == ("hung" if path == "/props" else "well")


def test_a_slower_ranked_host_that_hangs_delays_nothing(fake_server: FakeServers, tmp_path: Path) -> None:
    hung, best = fake_server(), fake_server()
    hung.fail(NEVER, times=None, path="*")
    calls = Calls(tmp_path, entry(hung, "hung", 10), entry(best, "best", 500))
    began = time.monotonic()
    with calls.pool() as pool:
        assert pool.get_lm().name == "best"
        assert time.monotonic() - began < 1.9  # not the 2 s that the hung one would take

    async def main() -> str:
        async with calls.async_pool() as pool:
            return (await pool.get_lm()).name

    assert asyncio.run(main()) == "best"


def test_a_host_that_a_requirement_excludes_is_not_asked(fake_server: FakeServers, tmp_path: Path) -> None:
    excluded, fits = fake_server(), fake_server(vision=True)
    calls = Calls(tmp_path, entry(excluded, "excluded", 500), entry(fits, "fits"))
    with calls.pool() as pool:
        assert pool.get_lm(vision=True).name == "fits"
        assert_no_threads()
    assert excluded.requests == []


def test_a_name_asks_its_own_server_only(fake_server: FakeServers, tmp_path: Path) -> None:
    other, wanted = fake_server(), fake_server()
    calls = Calls(tmp_path, entry(other, "other", 500), entry(wanted, "wanted"))
    with calls.pool() as pool:
        assert pool.get_lm("wanted").name == "wanted"
        assert_no_threads()
    assert other.requests == []


def test_probes_never_generate(fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock) -> None:
    servers = [fake_server(d) for d in ("llamacpp", "vllm", "openai")]
    calls = Calls(tmp_path, *(entry(s, f"llm-{i}") for i, s in enumerate(servers)), clock=fake_clock)
    with calls.pool() as pool:
        for _ in range(30):  # an hour of use
            pool.get_lm()
            pool.health(refresh=True)
            fake_clock.advance(120)
    for server in servers:
        assert server.usage.total_tokens == 0
        assert {r.method for r in server.requests} == {"GET"}


def test_entries_of_one_server_share_a_probe(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    with Calls(tmp_path, *(entry(server, f"llm-{i}") for i in range(5))).pool() as pool:
        pool.health()
    assert count(server, "/health") == 1


# --- what calls met


def test_a_refused_call_is_remembered_without_a_probe(fake_server: FakeServers, tmp_path: Path) -> None:
    first, second = fake_server(), fake_server(reply="Here.")
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        first.stop()
        assert lm.generate("Hello") == "Here."
        first.start()  # a probe would find it up again
        asked = len(first.requests)
        assert pool.get_lm().name == "second"
        assert_no_threads()
        assert len(first.requests) == asked


@pytest.mark.parametrize(
    ("fault", "state"),
    [
        (faults.Loading(), "loading"),
        (faults.Unauthorized(), "misconfigured"),
        (faults.QuotaExhausted(), "misconfigured"),
        (faults.RateLimited(retry_after=30), "rate_limited"),
    ],
)
def test_what_a_refusal_says_of_its_server_is_remembered(
    fake_server: FakeServers, tmp_path: Path, fault: faults.Fault, state: str
) -> None:
    first, second = fake_server(), fake_server()
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"))
    calls.warm()
    first.fail(fault)
    with calls.pool() as pool:
        pool.get_lm().generate("Hello")
        assert {s.spec.name: s.state for s in pool.health()} == {"first": state, "second": "up"}
        assert pool.get_lm().name == "second"


@pytest.mark.parametrize(
    ("fault", "times"),
    [(faults.ContextOverflow(), 1), (faults.Status(400), 1), (faults.ServerError(), 2)],  # asked once more
)
def test_a_refused_request_says_nothing_of_its_server(
    fake_server: FakeServers, tmp_path: Path, fault: faults.Fault, times: int
) -> None:
    server = fake_server()
    server.fail(fault, times=times)
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        with pytest.raises(StatusError):
            pool.get_lm().generate("Hello")
        assert len(chats(server)) == times
        assert pool.health()[0].state == "up"
        assert pool.get_lm().generate("Hello")


@pytest.mark.parametrize(
    ("fault", "most"),
    [
        (faults.ServerError(), 3),
        (faults.Cut(), 3),
        (faults.Cut(3), 3),
        (faults.Silence(), 1),
        (faults.Silence(3), 1),
    ],
)
def test_a_server_that_fails_again_and_again_is_passed_over(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock, fault: faults.Fault, most: int
) -> None:
    # Its health check is fine all the while.
    sick, well = fake_server(), fake_server(reply="Here.")
    sick.fail(fault, times=None)
    fields = {"timeout_seconds": 0.2} if isinstance(fault, faults.Silence) else {}
    calls = Calls(tmp_path, entry(sick, "sick", 500, **fields), entry(well, "well"), clock=fake_clock)
    calls.warm()
    with calls.pool() as pool:
        for _ in range(10):
            assert pool.get_lm().generate("Hello") == "Here."
        (no,) = pool.get_lm().decision.rejected
        assert (no.spec.name, no.reason) == ("sick", "failing")
        assert pool.health(refresh=True)[0].state == "up"
    assert len(chats(sick)) == most


def test_a_success_outranks_a_failed_probe(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        lm = pool.get_lm()
        fake_clock.advance(1)
        server.fail(faults.ServerError(), times=None, path="/health")
        assert pool.health(refresh=True)[0].state == "down"
        assert lm.generate("Hello")
        assert pool.health()[0].state == "up"
        assert pool.get_lm().name == "one"


# --- old states


def test_a_state_is_used_while_it_is_refreshed(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        pool.get_lm()
        fake_clock.advance(60)
        server.fail(faults.SlowFirstByte(0.3), path="/health")
        began = time.monotonic()
        assert pool.get_lm().name == "one"
        assert time.monotonic() - began < 0.3
        assert_no_threads()  # the refresh is over
        assert count(server, "/health") == 2
        asked = len(server.requests)
        fake_clock.advance(20)
        pool.get_lm()
        assert_no_threads()
        assert len(server.requests) == asked


def test_a_state_is_used_while_it_is_refreshed_in_an_event_loop(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)

    async def main() -> None:
        async with calls.async_pool() as pool:
            await pool.get_lm()
            fake_clock.advance(60)
            seen = len(server.requests)
            assert (await pool.get_lm()).name == "one"
            await asyncio.to_thread(server.wait_requests, seen + 1)
            deadline = time.monotonic() + SOON
            while count(server, "/props") < 2:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)

    asyncio.run(main())
    assert count(server, "/health") == 2


def test_a_forgotten_state_is_asked_for_again(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    first, second = fake_server(), fake_server()
    calls = Calls(tmp_path, entry(first, "first", 500), entry(second, "second"), clock=fake_clock)
    calls.warm()
    first.stop()
    fake_clock.advance(91)
    with calls.pool() as pool:
        assert pool.get_lm().name == "second"


@pytest.mark.parametrize("by_name", [False, True])
def test_a_model_that_has_loaded_is_found_after_2_seconds(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock, by_name: bool
) -> None:
    # "Caches health status for 30 seconds" is the longest: a server that loads may be ready any moment.
    server = fake_server()
    server.set_state("loading")
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    name = "one" if by_name else None
    with calls.pool() as pool:
        assert pool.get_lm(name).decision.ranked[0].state == "loading"
        server.set_state("up")
        fake_clock.advance(2.1)
        lm = pool.get_lm(name)
        assert lm.decision.ranked[0].state == "up"
        assert lm.generate("Hello")


@pytest.mark.parametrize("by_name", [False, True])
def test_a_key_that_was_set_right_is_found_after_30_seconds(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock, by_name: bool
) -> None:
    # "Caches health status for 30 seconds": after that, a state that forbids must not be believed unasked.
    server = fake_server()
    server.fail(faults.Unauthorized(), path="/v1/models")
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        with pytest.raises(NoEligibleLM):
            pool.get_lm()
        fake_clock.advance(31)
        assert pool.get_lm("one" if by_name else None).generate("Hello")


def test_a_box_that_was_started_again_is_found_after_30_seconds(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    fast, slow = fake_server(), fake_server()
    fast.stop()
    calls = Calls(tmp_path, entry(fast, "fast", 500), entry(slow, "slow", 10), clock=fake_clock)
    with calls.pool() as pool:
        assert pool.get_lm().name == "slow"
        fast.start()
        fake_clock.advance(31)
        pool.get_lm()  # at the latest this one has it asked
        assert_no_threads()
        assert pool.get_lm().name == "fast"


def test_a_vllm_restarted_with_the_right_model_is_found_after_30_seconds(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server("vllm", model="right")
    other = {"object": "list", "data": [{"id": "wrong", "owned_by": "vllm"}]}
    server.fail(faults.Status(200, other), path="/v1/models")
    calls = Calls(tmp_path, entry(server, "one"), clock=fake_clock)
    with calls.pool() as pool:
        with pytest.raises(NoEligibleLM, match="does not serve right; it serves wrong"):
            pool.get_lm()
        fake_clock.advance(31)
        assert pool.get_lm().name == "one"


def test_an_embedding_server_that_was_started_again_is_found_after_30_seconds(
    fake_server: FakeServers, tmp_path: Path, fake_clock: FakeClock
) -> None:
    server = fake_server(embeddings=True)
    server.stop()
    calls = Calls(tmp_path, server.embedding_entry("e"), clock=fake_clock)
    with calls.pool() as pool:
        with pytest.raises(NoEligibleLM):
            pool.get_embedding("e")
        server.start()
        fake_clock.advance(31)
        assert pool.get_embedding("e").embed("Hello")


def test_one_bad_key_does_not_close_the_others(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    bad = entry(server, "bad", 500, api_key_env="BAD_KEY")
    calls = Calls(tmp_path, bad, entry(server, "well"), environ={"BAD_KEY": "sk-two\nlines"})
    with calls.pool() as pool:
        lm = pool.get_lm()
        assert lm.name == "well"
        assert lm.generate("Hello")
        with pytest.raises(NoEligibleLM, match=r"bad: .*BAD_KEY") as caught:
            pool.get_lm("bad")
    assert "sk-two" not in str(caught.value)


def test_a_call_in_trouble_is_a_clear_error_without_an_alternative(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        server.stop()
        with pytest.raises(ConnectError, match="one: cannot connect to") as caught:
            lm.generate("Hello")
        assert isinstance(caught.value, BackendError)
        with pytest.raises(NoEligibleLM, match="one: cannot connect"):
            pool.get_lm()
        server.start()
        assert lm.generate("Hello")  # a handle goes to its server whatever is said of it
        assert pool.get_lm().name == "one"
        assert server.connections


def test_a_probe_that_outlasts_the_selection_ends_by_itself(fake_server: FakeServers, tmp_path: Path) -> None:
    hung, best = fake_server(), fake_server()
    hung.fail(NEVER, path="/health")
    calls = Calls(tmp_path, entry(hung, "hung", 10), entry(best, "best", 500))
    with calls.pool() as pool:
        pool.get_lm()
        assert hung.wait_requests()[0].finished.wait(SOON)
        assert_no_threads()
        assert not best.requests[-1].aborted
        assert best.requests[-1].finished.wait(AT_ONCE)
