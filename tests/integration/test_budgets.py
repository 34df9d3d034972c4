"""Daily budgets, of tokens and of money, as a caller meets them."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, Calls, chats, count, entry

from maxwell.errors import BudgetExceeded, NoEligibleLM
from maxwell.ledger import Amount
from maxwell.testing import FakeClock, FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

COUNT = "/v1/chat/completions/input_tokens"
NOON = datetime(2026, 1, 15, 12, tzinfo=UTC)


@pytest.fixture
def server(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply="limited", context=32768)


@pytest.fixture
def spare(fake_server: FakeServers) -> FakeServer:
    return fake_server(reply="spare", context=32768)


def pool_of(home: Path, *entries: dict[str, Any]) -> Calls:
    return Calls(home, *entries, clock=FakeClock(NOON))


def spend(calls: Calls, name: str, tokens: int, usd: float = 0.0) -> None:
    with calls.pool() as pool:
        pool.ledger.book(name, pool.today(), Amount.of(tokens, usd))


def limited(server: FakeServer, **fields: Any) -> dict[str, Any]:
    """The fastest entry, which everything would choose."""
    return entry(server, "limited", 1000.0, tags=["coding"], **fields)


def spent(home: Path, server: FakeServer, spare: FakeServer, kind: str) -> Calls:
    """A pool whose fast entry has nothing left of its budget."""
    other = entry(spare, "spare", tags=["coding"])
    if kind == "tokens":
        calls = pool_of(
            home, limited(server, daily_budget_tokens=500), entry(spare, "spare", tags=["coding"])
        )
        spend(calls, "limited", 500)
    else:
        fields = {"daily_budget_tokens": None, "daily_budget_usd": 0.25, "cost_per_1k_tokens": 0.001}
        calls = pool_of(home, limited(server, **fields), other)
        spend(calls, "limited", 10, 0.25)
    return calls


# --- what is spent is passed over


@pytest.mark.parametrize("kind", ["tokens", "money"])
@pytest.mark.parametrize(
    "needs",
    [
        {},
        {"prompt": "Hello"},
        {"tags": ["coding"]},
        {"min_speed": 1},
        {"prompt": "Hello", "time_cost_weight": 10},
    ],
    ids=["nothing", "prompt", "tags", "speed", "weight"],
)
def test_a_spent_entry_is_passed_over_by_every_selection(
    server: FakeServer, spare: FakeServer, tmp_path: Path, needs: dict[str, Any], kind: str
) -> None:
    calls = spent(tmp_path, server, spare, kind)
    with calls.pool() as pool:
        lm = pool.get_lm(**needs)
        assert lm.name == "spare"
        assert [(no.spec.name, no.reason) for no in lm.decision.rejected] == [("limited", "budget")]
        assert "daily budget has" in lm.decision.rejected[0].detail
        assert "it resets in 12 h" in lm.decision.rejected[0].detail
        assert lm.generate("Hello") == "spare"
    assert chats(server) == []


@pytest.mark.parametrize("kind", ["tokens", "money"])
def test_a_spent_entry_asked_for_by_name_says_what_is_left_and_when_it_resets(
    server: FakeServer, spare: FakeServer, tmp_path: Path, kind: str
) -> None:
    calls = spent(tmp_path, server, spare, kind)
    left = "0 tokens" if kind == "tokens" else r"\$0"
    with (
        calls.pool() as pool,
        pytest.raises(BudgetExceeded, match=f"limited: daily budget has {left} left") as caught,
    ):
        pool.get_lm("limited")
    assert caught.value.left == 0
    assert caught.value.resets_at.timestamp() - NOON.timestamp() <= 24 * 3600
    assert chats(server) == []


def test_a_spent_entry_is_used_again_the_next_day(
    server: FakeServer, spare: FakeServer, tmp_path: Path
) -> None:
    clock = FakeClock(NOON)
    calls = Calls(tmp_path, limited(server, daily_budget_tokens=2000), clock=clock)
    spend(calls, "limited", 2000)
    with calls.pool() as pool, pytest.raises(NoEligibleLM, match="budget resets in"):
        pool.get_lm()
    clock.advance(24 * 3600)
    assert calls.ask("generate").text == "limited"


def test_what_other_calls_hold_counts(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=1000))
    with calls.pool() as pool:
        stream = pool.get_lm().stream("Hello", max_tokens=600)
        next(stream)
        with pytest.raises(BudgetExceeded):
            pool.get_lm("limited").generate("Hello", max_tokens=600)
        assert "".join(stream)
        assert pool.get_lm("limited").generate("Hello", max_tokens=600) == "limited"


# --- what does not fit: count, shrink, skip


@pytest.mark.parametrize("mode", MODES)
def test_a_prompt_is_counted_before_its_budget_refuses_it(
    server: FakeServer, tmp_path: Path, mode: str
) -> None:
    # 4,000 bytes, so 4,000 tokens at most; the server counts a quarter of that.
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=2000))
    assert calls.ask(mode, "word " * 800, max_tokens=100).text == "limited"
    assert count(server, COUNT) == 1
    assert chats(server)[0].body["max_tokens"] == 100
    assert calls.used("limited").held_tokens == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_completion_shrinks_to_what_is_left_of_the_budget(
    server: FakeServer, tmp_path: Path, mode: str
) -> None:
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=1500))
    assert calls.ask(mode, "word " * 800).text == "limited"
    sent = chats(server)[0].body["max_tokens"]
    assert 64 <= sent <= 500  # 1,000 tokens of prompt leave so much


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_the_budget_goes_to_the_next(
    server: FakeServer, spare: FakeServer, tmp_path: Path, mode: str
) -> None:
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=900), entry(spare, "spare"))
    assert calls.ask(mode, "word " * 800).text == "spare"
    assert chats(server) == []
    assert calls.used("limited").held_tokens == 0


@pytest.mark.parametrize("mode", MODES)
def test_what_does_not_fit_the_budget_of_the_named_one_is_an_error(
    server: FakeServer, spare: FakeServer, tmp_path: Path, mode: str
) -> None:
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=900), entry(spare, "spare"))
    with pytest.raises(BudgetExceeded, match="daily budget has 900 tokens left, this call may need"):
        calls.ask(mode, "word " * 800, name="limited")
    assert chats(server) == chats(spare) == []


def test_a_server_that_cannot_count_is_held_to_the_bound(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai", reply="limited", context=32768)
    calls = pool_of(tmp_path, limited(server, daily_budget_tokens=2000))
    with pytest.raises(BudgetExceeded):
        calls.ask("generate", "word " * 800, name="limited", max_tokens=100)
    assert chats(server) == []


def test_max_tokens_is_always_sent(server: FakeServer, tmp_path: Path) -> None:
    calls = pool_of(tmp_path, limited(server), server.llm_entry("free"))
    calls.ask("generate", name="limited")
    calls.ask("generate", name="free")
    assert all(found.body["max_tokens"] > 0 for found in chats(server))


# --- embeddings


def embeddings(server: FakeServer, home: Path, **fields: Any) -> Calls:
    return pool_of(home, server.embedding_entry("e", tags=["default"], **fields))


def test_an_embedding_has_a_money_budget(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True)
    calls = embeddings(server, tmp_path, cost_per_1k_tokens=0.1, daily_budget_usd=0.01)
    with calls.pool() as pool:
        assert pool.get_embedding("e").embed("a" * 40)
        used = calls.used("e")
        assert used.nanousd == used.tokens * 100_000 > 0
        pool.ledger.book("e", pool.today(), Amount.of(0, 0.01))
        with pytest.raises(BudgetExceeded, match=r"e: daily budget has \$0 left; it resets at"):
            pool.get_embedding("e")
        with pytest.raises(NoEligibleLM, match=r"e: daily budget has \$0 left"):
            pool.get_embedding("default")


def test_what_is_cut_off_is_not_reserved(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True, context=64)
    calls = embeddings(server, tmp_path, daily_budget_tokens=100)
    with calls.pool() as pool:
        assert pool.get_embedding("e").embed("word " * 1000, truncate=True)
    assert 0 < calls.used("e").tokens <= 64


def test_texts_are_counted_before_their_budget_refuses_them(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(embeddings=True, context=4096)
    calls = embeddings(server, tmp_path, daily_budget_tokens=500)
    with calls.pool() as pool:
        assert len(pool.get_embedding("e").embed_many(["word " * 100] * 3)) == 3  # 1,500 bytes, 375 tokens
    assert count(server, "/tokenize") == 3
    assert calls.used("e").tokens == server.usage.total_tokens


# --- without books


def test_a_free_reply_is_a_success_although_it_cannot_be_booked(
    server: FakeServer, write_registry: WriteRegistry, tmp_path: Path
) -> None:
    registry = write_registry(server.llm_entry("free"))
    (tmp_path / "a file").write_text("in the way")
    done = subprocess.run(
        [sys.executable, "-m", "maxwell", "ask", "--registry", registry, "Hello"],
        env={**os.environ, "MAXWELL_HOME": str(tmp_path / "a file" / "home")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "limited\n")
    assert done.stderr.count("could not be written down") == 1
