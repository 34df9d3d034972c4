"""Conversations stay where their beginning was read, as long as nothing speaks against it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from calling import Calls, chats, entry

from maxwell.errors import BackendError
from maxwell.ledger import Amount
from maxwell.lm_pool import LLMPool
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers

PREFILL = 500.0  # declared tokens a second
ALL = 10**9  # tokens
# 4 characters a token: 1000 tokens, 2 s of reading; a busy slot is expected to take 4 to 6 s.
HISTORY = "".join(f"{number:>4}th line of a long story. " for number in range(125))
MESSAGE = {"role": "user", "content": HISTORY}


def reply(body: dict[str, Any]) -> list[str]:
    return ["word "] * (1000 if "forever" in body["messages"][-1]["content"] else 2)


@pytest.fixture
def servers(fake_server: FakeServers) -> list[FakeServer]:
    """Three alike with one slot. They say that they had every prompt in their cache, which teaches nothing
    of how fast they read.
    """
    options: dict[str, Any] = {"slots": 1, "reply": reply, "tokens_per_sec": 20, "cached_tokens": ALL}
    return [fake_server(context=65536, **options) for _ in range(3)]


def pool_of(servers: list[FakeServer], home: Path, **fields: dict[str, Any]) -> LLMPool:
    """Entries "a", "b" and "c", each a little faster than the next, so that it is chosen else."""
    speeds = {"a": 110.0, "b": 100.0, "c": 85.0}
    entries = []
    for server, name in zip(servers, speeds, strict=False):
        more = dict(fields.get(name, {}))
        capabilities = {"prefill_tokens_per_sec": PREFILL, **more.pop("capabilities", {})}
        entries.append(entry(server, name, speeds[name], capabilities=capabilities, **more))
    calls = Calls(home, *entries)
    calls.warm()
    return calls.pool()


@contextlib.contextmanager
def occupied(pool: LLMPool, *names: str) -> Iterator[None]:
    """Somebody else's calls keep these busy."""
    with contextlib.ExitStack() as streams:
        for name in names:
            next(streams.enter_context(pool.get_lm(name).stream("Go on forever.")))
        yield


def by_text(pool: LLMPool, text: str) -> str:
    """The conversation as one growing prompt; who answered."""
    lm = pool.get_lm(prompt=text)
    return lm.chat([{"role": "user", "content": text}]).llm


# --- staying


def test_a_growing_prompt_stays_where_it_was_read(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        assert pool.get_lm(prompt=HISTORY).name == "a"
        with occupied(pool, "a"):
            assert by_text(pool, HISTORY) == "b"
        text = HISTORY
        for turn in range(4):
            text += f"Turn {turn}: " + "tell me more of it. " * 20
            assert by_text(pool, text) == "b"
    assert len(chats(servers[0])) == 1  # the one that kept it busy
    assert len(chats(servers[1])) == 5


def test_a_conversation_that_has_to_move_goes_where_it_was_before(
    servers: list[FakeServer], tmp_path: Path
) -> None:
    """One handle, `chat` with all messages: its own server is busy, and of the others one knows the story."""
    with pool_of(servers, tmp_path) as pool:
        lm = pool.get_lm(prompt="Hello")
        assert lm.name == "a"
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be patient."}, MESSAGE]
        with occupied(pool, "a", "b"):
            assert lm.chat(messages).llm == "c"
        with occupied(pool, "a"):
            for turn in range(3):
                messages += [
                    {"role": "assistant", "content": None, "tool_calls": [{"id": f"{turn}"}]},
                    {"role": "user", "content": [{"type": "text", "text": f"And then? {turn}"}]},
                ]
                assert lm.chat(messages).llm == "c"
            assert lm.chat([{"role": "user", "content": "Something else."}]).llm == "b"


def test_a_handle_stays_with_its_server(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        lm = pool.get_lm()
        messages = [{"role": "system", "content": "Be patient."}, MESSAGE]
        assert [lm.chat([*messages, *messages[1:] * n]).llm for n in range(3)] == ["a"] * 3
    assert chats(servers[1]) == []


def test_a_stream_is_remembered_as_any_call(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        assert "".join(pool.get_lm("b").stream(HISTORY)) == "word word "
        assert pool.get_lm(prompt=HISTORY + "And then?").name == "b"


def test_predicted_reading_is_shorter_where_it_was_read(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        before = {s.spec.name: s for s in pool.explain(prompt=HISTORY).ranked}
        pool.get_lm("b").generate(HISTORY)
        after = {s.spec.name: s for s in pool.explain(prompt=HISTORY).ranked}
        reading = before["b"].prompt_tokens / PREFILL
        # They need room and cost money all the same. How many they are was learned a little better meanwhile.
        assert after["b"].prompt_tokens == pytest.approx(before["b"].prompt_tokens, rel=0.05)
        gained = {name: after[name].seconds - before[name].seconds for name in "ab"}
        # A call more changes what replies are expected to be, of both about alike.
        assert gained["b"] - gained["a"] == pytest.approx(-reading, abs=0.3)


def test_what_is_new_has_to_be_read_all_the_same(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        pool.get_lm("b").generate(HISTORY)
        third, whole = pool.explain("b", prompt=HISTORY * 3), pool.explain("b", prompt="A" + HISTORY * 3)
        saved = whole.ranked[0].seconds - third.ranked[0].seconds
        assert saved == pytest.approx(whole.ranked[0].prompt_tokens / PREFILL / 3, rel=0.1)


# --- leaving


def test_load_escapes(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        pool.get_lm("b").generate(HISTORY)
        text = HISTORY + "And then?"
        assert by_text(pool, text) == "b"
        with occupied(pool, "b"):
            assert by_text(pool, text) == "a"
        text += "And after that?"
        assert by_text(pool, text) == "a"  # both know the story now, and this one is faster


def test_a_very_long_story_is_worth_waiting_for(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        story = HISTORY * 12  # 24 s of reading
        pool.get_lm("b").generate(story)
        with occupied(pool, "b"):
            decision = pool.explain(prompt=story + "And then?")
            best, other = decision.ranked
            assert (best.spec.name, other.spec.name) == ("b", "a")
            assert best.queue_wait > 0
            assert other.queue_wait == 0


# --- nobody else is drawn there


@pytest.mark.parametrize("fresh", ["Hello", "Once upon a time. " * 300, HISTORY[40:], "A" + HISTORY])
def test_a_fresh_prompt_is_not_attracted(servers: list[FakeServer], tmp_path: Path, fresh: str) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        for _ in range(3):
            pool.get_lm("b").generate(HISTORY)
        assert pool.get_lm(prompt=fresh).name == "a"
        assert pool.get_lm().name == "a"  # nothing is known of what it will be asked


def test_a_call_that_failed_has_read_nothing_for_sure(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        servers[1].fail(faults.Cut(after=0), times=None)
        with pytest.raises(BackendError):
            pool.get_lm("b").generate(HISTORY)
        servers[1].heal()
        assert pool.get_lm(prompt=HISTORY).name == "a"


@pytest.mark.parametrize(
    ("needs", "fields"),
    [
        ({"tags": ["good"]}, {"a": {"tags": ["good"]}}),
        ({"tier": "premium"}, {"a": {"tier": "premium"}}),
        ({"min_context": 60000}, {"b": {"capabilities": {"max_context": 32768}}}),
        ({"min_speed": 105.0}, {}),
        ({"max_completion": 9000}, {"b": {"capabilities": {"max_tokens": 4096}}}),
        ({"code_specialized": True}, {"a": {"capabilities": {"code_specialized": True}}}),
    ],
    ids=lambda value: next(iter(value), ""),
)
def test_no_rule_is_outweighed(
    servers: list[FakeServer], tmp_path: Path, needs: dict[str, Any], fields: dict[str, dict[str, Any]]
) -> None:
    with pool_of(servers[:2], tmp_path, **fields) as pool:
        pool.get_lm("b").generate(HISTORY * 8)
        assert pool.get_lm(prompt=HISTORY * 8).name == "b"
        assert pool.get_lm(prompt=HISTORY * 8, **needs).name == "a"


def test_a_spent_budget_is_not_outweighed(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path, b={"daily_budget_tokens": 100_000}) as pool:
        pool.get_lm("b").generate(HISTORY)
        assert pool.get_lm(prompt=HISTORY).name == "b"
        pool.ledger.book("b", pool.today(), Amount(98_500))
        assert pool.get_lm(prompt=HISTORY).name == "a"


def test_a_server_that_is_down_is_left(servers: list[FakeServer], tmp_path: Path) -> None:
    with pool_of(servers[:2], tmp_path) as pool:
        pool.get_lm("b").generate(HISTORY)
        servers[1].stop()
        assert by_text(pool, HISTORY + "And then?") == "a"
        assert pool.get_lm(prompt=HISTORY).name == "a"


@pytest.mark.parametrize(("weight", "name"), [(0.0, "a"), (1.0, "a"), (10.0, "b")])
def test_a_price_counts_against_the_seconds_saved_and_no_more(
    servers: list[FakeServer], tmp_path: Path, weight: float, name: str
) -> None:
    """2 s of reading are worth 2 mills at a weight of 1; 1,000 tokens and a reply cost at least 4."""
    with pool_of(servers[:2], tmp_path, b={"cost_per_1k_tokens": 0.004}) as pool:
        pool.get_lm("b").generate(HISTORY)
        assert pool.get_lm(prompt=HISTORY, time_cost_weight=weight).name == name
