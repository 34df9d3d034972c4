from __future__ import annotations

import contextlib
import logging
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls import sync_driver
from maxwell.calls.accounts import UNSEEN_SECONDS, Account, cost_usd, worst_case
from maxwell.calls.chat import Call, chat
from maxwell.calls.effects import Aside, Flow, Limits, Send
from maxwell.calls.embed import embed
from maxwell.calls.entries import Entry
from maxwell.calls.state import PoolState, limit_of
from maxwell.decision import Request
from maxwell.errors import BudgetExceeded, LedgerError, MaxwellError
from maxwell.health import Health, HealthBook
from maxwell.ledger import Amount, Ledger, NoRoom, Used
from maxwell.ledger.memory import MemoryLedger
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.receipts.record import Record
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec, Registry, Spec
from maxwell.requirements import chat_call
from maxwell.testing.clock import FakeClock
from maxwell.types import HTTPRequest, Message, Requirements, Usage

DAY = date(2026, 1, 15)  # the fake clock's
NEXT_DAY = date(2026, 1, 16)


def llm(name: str = "gpt-4o", **fields: Any) -> LLMSpec:
    return LLMSpec(
        name=name,
        api_base="http://box:8080",
        model="m",
        backend="llamacpp",
        capabilities=Capabilities(
            max_tokens=4096, max_context=32768, speed_tokens_per_sec=50.0, tools=True, vision=True
        ),
        default_temperature=0.5,
        **fields,
    )


def embedding(**fields: Any) -> EmbeddingSpec:
    return EmbeddingSpec(
        name="embed", api_base="http://box", model="m", dimension=4, max_context=512, **fields
    )


class Unwritable(MemoryLedger):
    """A ledger whose disk is full."""

    def refuse(self, *args: object, **more: object) -> Any:
        raise LedgerError("the disk is full")

    is_open = False
    ready = reserve = send = usage = refuse


def pool(*specs: Spec, ledger: Ledger | None = None, clock: FakeClock | None = None) -> PoolState:
    clock = clock or FakeClock()
    registry = Registry(
        llms=tuple(s for s in specs if isinstance(s, LLMSpec)),
        embeddings=tuple(s for s in specs if isinstance(s, EmbeddingSpec)),
        budget_timezone="UTC",
    )
    return PoolState(
        registry,
        health=HealthBook(None, clock),
        ledger=MemoryLedger() if ledger is None else ledger,
        clock=clock,
        environ={},
    )


def only(state: PoolState) -> Entry:
    return [*state.llms, *state.embeddings][0]


def finished(flow: Flow[Any]) -> Any:
    """The result of a flow that needs no server."""
    return sync_driver.run(flow, Scripted())


def receipt(state: PoolState) -> Record:
    return state.receipts.embed(None, [])


def opened(
    state: PoolState, prompt: int, most: int, *, may_shrink: bool = True, counted: int | None = None
) -> Account:
    def count() -> Flow[int | None]:
        yield Aside(lambda: None)
        return counted

    account = Account(state, only(state).spec, receipt(state))
    finished(account.open(prompt, most, may_shrink=may_shrink, count=count))
    return account


def until_sent(flow: Flow[Any]) -> Any:
    """Run a flow up to its first `Send` and return that."""
    effect = flow.send(None)
    while isinstance(effect, Aside):
        effect = flow.send(effect.work())
    assert isinstance(effect, Send)
    return effect


def books(state: PoolState, day: date = DAY) -> Used:
    return state.ledger.usage(day).get(only(state).spec.name, Used())


# --- prices


@pytest.mark.parametrize(
    ("prices", "usage", "usd"),
    [
        ({}, Usage(1000, 1000), 0.0),
        ({"cost_per_1k_tokens": 0.005}, Usage(1000, 500), 0.0075),
        (
            {"cost_per_1k_prompt_tokens": 0.003, "cost_per_1k_completion_tokens": 0.015},
            Usage(2000, 100),
            0.0075,
        ),
        ({"cost_per_1k_tokens": 0.002, "cost_per_1k_completion_tokens": 0.01}, Usage(1000, 100), 0.003),
        ({"cost_per_1k_tokens": 0.01, "cost_per_1k_prompt_tokens": 0.0}, Usage(1000, 100), 0.001),
        ({"cost_per_1k_tokens": 0.01, "cost_per_1k_cached_tokens": 0.001}, Usage(1000, 0, 800), 0.0028),
        ({"cost_per_1k_tokens": 0.01, "cost_per_1k_cached_tokens": 0.0}, Usage(1000, 0, 1000), 0.0),
        ({"cost_per_1k_tokens": 0.01}, Usage(1000, 0, 800), 0.01),
        ({"cost_per_1k_tokens": 0.01}, Usage(1000, 300, None, 250), 0.013),  # reasoning is in the completion
    ],
)
def test_usage_is_priced_by_the_registry(prices: dict[str, Any], usage: Usage, usd: float) -> None:
    assert cost_usd(llm(**prices), usage) == pytest.approx(usd)


def test_an_embedding_is_priced_by_its_tokens() -> None:
    assert cost_usd(embedding(cost_per_1k_tokens=0.0001), Usage(5000)) == pytest.approx(0.0005)
    assert worst_case(embedding(cost_per_1k_tokens=0.0001), 5000, 0).usd == pytest.approx(0.0005)


def test_a_cache_larger_than_the_prompt_never_makes_money() -> None:
    # As servers report that count cached tokens apart from the prompt's.
    spec = llm(cost_per_1k_tokens=1.0, cost_per_1k_cached_tokens=0.1)
    assert cost_usd(spec, Usage(10, 0, cached_tokens=20)) >= cost_usd(spec, Usage(10, 0, cached_tokens=10))


PRICES = st.floats(0, 100)


@settings(deadline=None, max_examples=100)
@given(
    prompt=st.integers(0, 10**6),
    completion=st.integers(0, 10**5),
    cached=st.one_of(st.none(), st.integers(0, 2 * 10**6)),
    prices=st.tuples(PRICES, PRICES, st.one_of(st.none(), PRICES)),
)
def test_no_usage_costs_more_than_the_worst_case_or_less_than_nothing(
    prompt: int, completion: int, cached: int | None, prices: tuple[float, float, float | None]
) -> None:
    spec = llm(
        cost_per_1k_prompt_tokens=prices[0],
        cost_per_1k_completion_tokens=prices[1],
        cost_per_1k_cached_tokens=prices[2],
    )
    usd = cost_usd(spec, Usage(prompt, completion, cached))
    assert 0 <= usd <= worst_case(spec, prompt, completion).usd * (1 + 1e-9) + 1e-15


# --- reserving


def test_without_a_budget_nothing_is_reserved() -> None:
    state = pool(llm(cost_per_1k_tokens=0.01))
    account = opened(state, 1000, 500)
    assert account.max_tokens == 500
    assert books(state) == Used()
    assert account.settle(Usage(900, 100)) == pytest.approx(0.01)
    assert books(state).tokens == 1000
    assert books(state).usd == pytest.approx(0.01)


def test_the_worst_case_is_held_and_what_was_used_is_settled() -> None:
    state = pool(llm(cost_per_1k_tokens=0.01, daily_budget_tokens=10000))
    account = opened(state, 1000, 500)
    assert books(state).held_tokens == 1500
    assert books(state).held_usd == pytest.approx(0.015)
    assert account.settle(Usage(900, 100)) == pytest.approx(0.01)
    assert books(state).tokens == 1000
    assert books(state).usd == pytest.approx(0.01)
    assert (books(state).held_tokens, books(state).held_usd) == (0, 0.0)
    assert state.ledger.holds() == []


def test_a_dearer_cache_counts_in_the_worst_case() -> None:
    spec = llm(cost_per_1k_tokens=0.01, cost_per_1k_cached_tokens=0.02, daily_budget_usd=1.0)
    state = pool(spec)
    opened(state, 1000, 0)
    assert books(state).held_usd == pytest.approx(0.02)


def test_a_released_account_books_nothing() -> None:
    state = pool(llm(daily_budget_tokens=10000))
    opened(state, 1000, 500).release()
    assert books(state) == Used()


@pytest.mark.parametrize("budget", [None, 10000])
def test_an_account_is_closed_once(budget: int | None) -> None:
    state = pool(llm(daily_budget_tokens=budget))
    account = opened(state, 1000, 500)
    account.settle(Usage(900, 100))
    assert account.settle(Usage(5000, 5000)) == 0.0
    account.release()
    assert books(state) == Used(tokens=1000, calls=1)
    released = opened(state, 1000, 500)
    released.release()
    released.settle(Usage(900, 100))
    assert books(state) == Used(tokens=1000, calls=1)


@pytest.mark.parametrize("budget", [None, 10000])
def test_a_call_counts_on_the_day_it_began(budget: int | None) -> None:
    clock = FakeClock(datetime(2026, 1, 15, 23, 59, tzinfo=UTC))
    state = pool(llm(daily_budget_tokens=budget), clock=clock)
    account = opened(state, 1000, 500)
    clock.advance(120)
    account.settle(Usage(900, 100))
    assert books(state, DAY) == Used(tokens=1000, calls=1)
    assert books(state, NEXT_DAY) == Used()
    assert opened(state, 9000, 1000, may_shrink=False).max_tokens == 1000


def test_embeddings_have_budgets_too() -> None:
    state = pool(embedding(daily_budget_tokens=100))
    opened(state, 80, 0, may_shrink=False)
    with pytest.raises(BudgetExceeded, match="embed: daily budget has 20 tokens left"):
        opened(state, 21, 0, may_shrink=False)


# --- shrinking


def test_a_completion_shrinks_to_the_tokens_that_are_left() -> None:
    state = pool(llm(daily_budget_tokens=1500))
    assert opened(state, 1000, 4096).max_tokens == 500
    assert books(state).held_tokens == 1500


def test_a_completion_shrinks_to_the_money_that_is_left() -> None:
    spec = llm(cost_per_1k_prompt_tokens=1.0, cost_per_1k_completion_tokens=2.0, daily_budget_usd=2.0)
    state = pool(spec)
    assert opened(state, 1000, 4096).max_tokens == 500
    assert books(state).held_usd == pytest.approx(2.0)


def test_a_completion_shrinks_to_the_tighter_budget() -> None:
    spec = llm(cost_per_1k_tokens=1.0, daily_budget_usd=2.0, daily_budget_tokens=1200)
    assert opened(pool(spec), 1000, 4096).max_tokens == 200


def test_a_completion_the_caller_named_never_shrinks() -> None:
    state = pool(llm(daily_budget_tokens=1500))
    with pytest.raises(BudgetExceeded):
        opened(state, 1000, 501, may_shrink=False)
    assert books(state) == Used()
    assert opened(state, 1000, 500, may_shrink=False).max_tokens == 500


def test_a_completion_does_not_shrink_to_uselessness() -> None:
    assert opened(pool(llm(daily_budget_tokens=1064)), 1000, 4096).max_tokens == 64
    with pytest.raises(BudgetExceeded):
        opened(pool(llm(daily_budget_tokens=1063)), 1000, 4096)


def test_a_short_completion_that_fits_is_not_refused() -> None:
    assert opened(pool(llm(daily_budget_tokens=1010)), 1000, 10).max_tokens == 10


@settings(deadline=None, max_examples=300)
@given(
    prompt=st.integers(1, 5000),
    price=st.floats(1e-5, 1.0),
    ratio=st.sampled_from((1.0, 2.0, 4.0, 3.3)),
    fits=st.integers(66, 4000),
    already=st.floats(0, 0.9),
)
def test_whatever_fits_the_money_is_given(
    prompt: int, price: float, ratio: float, fits: int, already: float
) -> None:
    """A budget that holds `fits` tokens of completion gives that many, but for rounding."""
    spec = llm(cost_per_1k_prompt_tokens=price, cost_per_1k_completion_tokens=ratio * price)
    budget = worst_case(spec, prompt, fits).usd / (1 - already)
    spec = llm(
        cost_per_1k_prompt_tokens=price, cost_per_1k_completion_tokens=ratio * price, daily_budget_usd=budget
    )
    state = pool(spec)
    state.ledger.book(spec.name, DAY, Amount.of(1, budget * already))
    account = opened(state, prompt, 4096)
    assert fits - 1 <= account.max_tokens <= fits
    have = books(state)
    assert have.nanousd + have.held_nanousd <= (limit_of(spec).nanousd or 0)


# --- refusing


def test_a_refusal_names_what_is_left_what_is_needed_and_when_it_ends() -> None:
    with pytest.raises(BudgetExceeded) as caught:
        opened(pool(llm(daily_budget_tokens=1200)), 1000, 4096, may_shrink=False)
    assert str(caught.value) == (
        "gpt-4o: daily budget has 1,200 tokens left, this call may need 5,096 tokens; "
        "it resets at 2026-01-16 00:00 UTC"
    )
    assert (caught.value.left, caught.value.needed, caught.value.unit) == (1200, 5096, "tokens")
    assert caught.value.resets_at == datetime(2026, 1, 16, tzinfo=UTC)


def test_a_refusal_for_money_is_in_dollars() -> None:
    spec = llm(cost_per_1k_tokens=1.0, daily_budget_usd=1.25, daily_budget_tokens=10**6)
    with pytest.raises(BudgetExceeded) as caught:
        opened(pool(spec), 1000, 500, may_shrink=False)
    assert str(caught.value) == (
        "gpt-4o: daily budget has $1.25 left, this call may need $1.50; it resets at 2026-01-16 00:00 UTC"
    )


def test_a_refusal_never_says_that_nothing_is_needed() -> None:
    spec = llm(cost_per_1k_tokens=0.00015, daily_budget_usd=0.00001)
    with pytest.raises(BudgetExceeded) as caught:
        opened(pool(spec), 100, 100, may_shrink=False)
    assert not re.search(r"\$0(\.0+)?[; ]", str(caught.value))


def test_an_overdrawn_budget_is_shown_as_empty() -> None:
    state = pool(llm(daily_budget_tokens=100))
    opened(state, 50, 0).settle(Usage(500, 0))
    with pytest.raises(BudgetExceeded, match="has 0 tokens left"):
        opened(state, 50, 64)


def test_more_used_than_reserved_is_booked_and_told(caplog: pytest.LogCaptureFixture) -> None:
    state = pool(llm(daily_budget_tokens=1000))
    with caplog.at_level(logging.WARNING, "maxwell"):
        opened(state, 50, 64).settle(Usage(500, 64))
    assert books(state) == Used(tokens=564, calls=1)
    assert [r for r in caplog.records if "gpt-4o" in r.getMessage()]


# --- a ledger that fails


def test_with_a_budget_nothing_is_sent_while_the_books_cannot_be_kept() -> None:
    with pytest.raises(LedgerError, match="the disk is full"):
        opened(pool(llm(daily_budget_tokens=1000), ledger=Unwritable()), 10, 10)


def test_what_costs_money_is_not_called_either_while_the_books_cannot_be_kept() -> None:
    with pytest.raises(LedgerError, match="the disk is full"):
        opened(pool(llm(cost_per_1k_tokens=1.0), ledger=Unwritable()), 10, 10)


def test_what_is_free_goes_on_while_the_books_cannot_be_kept() -> None:
    state = pool(llm(), ledger=Unwritable())
    assert opened(state, 10, 10).settle(Usage(10, 10)) == 0.0


def test_a_broken_home_is_told_and_not_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger.db").mkdir()
    ledger = SQLiteLedger(tmp_path, FakeClock())
    state = pool(llm(), ledger=ledger)
    for _ in range(3):
        opened(state, 10, 10).settle(Usage(10, 10))
    with pytest.raises(LedgerError, match=re.escape("ledger.db")):
        ledger.flush()
    (tmp_path / "ledger.db").rmdir()
    ledger.close()
    assert books(state) == Used(tokens=60, calls=3)


# --- refining what does not fit


def test_an_exact_count_makes_room_before_the_completion_shrinks() -> None:
    state = pool(llm(daily_budget_tokens=1000))
    account = opened(state, 900, 300, counted=200)
    assert account.max_tokens == 300
    assert 500 <= books(state).held_tokens < 900


def test_a_completion_shrinks_to_what_the_exact_count_leaves() -> None:
    account = opened(pool(llm(daily_budget_tokens=1000)), 2000, 4096, counted=500)
    assert 450 <= account.max_tokens <= 500


def test_a_count_is_not_asked_for_where_the_bound_fits() -> None:
    def count() -> Flow[int | None]:
        raise AssertionError("nobody has to be asked")
        yield

    state = pool(llm(daily_budget_tokens=1000))
    finished(Account(state, only(state).spec, receipt(state)).open(100, 100, count=count))


def test_a_count_above_the_bound_changes_nothing() -> None:
    with pytest.raises(BudgetExceeded):
        opened(pool(llm(daily_budget_tokens=100)), 90, 64, counted=5000)


def test_a_server_that_used_more_than_was_held_is_held_to_more_the_next_time() -> None:
    state = pool(llm(daily_budget_tokens=10_000))
    opened(state, 100, 100).settle(Usage(400, 100))
    opened(state, 100, 100)
    assert books(state).held_tokens == 500


# --- sending, leaving


def test_a_reservation_given_back_too_soon_is_made_anew() -> None:
    state = pool(llm(daily_budget_tokens=1000))
    account = opened(state, 100, 100)
    for found in state.ledger.holds():  # as when this process was thought dead
        state.ledger.release(found.hold)
    finished(account.send())
    assert [found.state for found in state.ledger.holds()] == ["sent"]
    account.settle(Usage(10, 10))
    assert books(state) == Used(tokens=20, calls=1)


def test_a_reservation_given_back_whose_budget_went_to_others_is_refused() -> None:
    state = pool(llm(daily_budget_tokens=300))
    account = opened(state, 100, 100)
    for found in state.ledger.holds():
        state.ledger.release(found.hold)
    opened(state, 150, 100)
    with pytest.raises(BudgetExceeded):
        finished(account.send())
    account.release()
    assert books(state).held_tokens == 250


def test_a_caller_who_leaves_while_it_reserves_holds_nothing() -> None:
    state = pool(llm(daily_budget_tokens=1000))
    account = Account(state, only(state).spec, receipt(state))
    flow = account.open(100, 100)
    reserving = flow.send(None)
    flow.close()
    account.release()
    reserving.work()  # the thread that reserves goes on
    assert books(state) == Used()


# --- what no server reported


def test_a_reported_usage_is_taken_as_it_is() -> None:
    account = opened(pool(llm(daily_budget_tokens=1000)), 100, 100)
    assert account.sure(Usage(3, 4), cut=True) == Usage(3, 4)


def test_an_estimate_without_a_budget_is_what_was_seen() -> None:
    seen = Usage(3, 4, estimated=True)
    assert opened(pool(llm()), 100, 100).sure(seen, cut=True) == seen


def test_an_estimate_that_a_budget_hangs_on_is_on_the_safe_side() -> None:
    account = opened(pool(llm(daily_budget_tokens=10_000)), 100, 4000)
    seen = Usage(3, 4, estimated=True)
    assert account.sure(seen, cut=False) == Usage(100, 4, estimated=True)
    assert account.sure(seen, cut=True) == Usage(100, 4 + int(UNSEEN_SECONDS * 50), estimated=True)


def test_an_estimate_is_never_more_than_was_held() -> None:
    account = opened(pool(llm(daily_budget_tokens=10_000)), 100, 64)
    assert account.sure(Usage(3, 60, estimated=True), cut=True) == Usage(100, 64, estimated=True)


def test_estimated_tokens_are_marked_in_the_books() -> None:
    state = pool(llm(daily_budget_tokens=10_000))
    opened(state, 100, 64).settle(Usage(100, 10, estimated=True))
    opened(state, 100, 64).settle(Usage(50, 10))
    assert books(state) == Used(tokens=170, estimated_tokens=110, calls=2)


# --- what a chat call reserves


def ready(*specs: LLMSpec) -> PoolState:
    """A pool whose servers are up."""
    state = pool(*specs)
    for entry in state.llms:
        state.health.put(entry.endpoint, Health(state="up", at=state.clock.time()))
    return state


def calling(state: PoolState, messages: list[Message], **options: Any) -> Any:
    decision = state.decide(Request(needs=Requirements()))
    return chat(state, Call(chat=chat_call(messages, options), decision=decision))


HELLO: list[Message] = [{"role": "user", "content": "Hello"}]


def held_while_sending(messages: list[Message], **options: Any) -> Used:
    state = ready(llm(daily_budget_tokens=10**6))
    flow = calling(state, messages, **options)
    until_sent(flow)
    held = books(state)
    flow.close()
    return held


def test_a_call_holds_its_prompt_and_its_completion() -> None:
    assert held_while_sending(HELLO, max_tokens=100).held_tokens >= 5 + 100


def test_a_call_holds_the_tools_it_describes() -> None:
    # A template writes the definitions into the prompt.
    parameters = {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(100)}}
    tools = [
        {"type": "function", "function": {"name": "f", "description": "d" * 3000, "parameters": parameters}}
    ]
    assert held_while_sending(HELLO, max_tokens=100, tools=tools).held_tokens >= 3000 + 100


@pytest.mark.parametrize(
    "extra", [{"max_tokens": 4000}, {"max_completion_tokens": 4000}, {"n_predict": 4000}, {"n": 40}]
)
def test_a_call_holds_what_extra_fields_ask_for(extra: dict[str, int]) -> None:
    try:
        held = held_while_sending(HELLO, max_tokens=100, extra=extra).held_tokens
    except (MaxwellError, ValueError):
        return  # refusing such a field is as good
    assert held >= 4000


@pytest.mark.parametrize("budget", [None, 10**6])
@pytest.mark.parametrize(
    ("messages", "options"),
    [
        ([{"role": "user", "content": "a lone surrogate: \ud800"}], {}),
        (HELLO, {"grammar": 'root ::= "a"', "extra": {"response_format": {"type": "json_object"}}}),
    ],
    ids=["unencodable", "two-constraints"],
)
def test_what_was_never_sent_is_never_booked(
    messages: list[Message], options: dict[str, Any], budget: int | None
) -> None:
    state = ready(llm(daily_budget_tokens=budget))
    with pytest.raises((ValueError, MaxwellError)):
        finished(calling(state, messages, **options))
    assert books(state) == Used()


def test_a_call_left_while_it_was_sent_is_booked_and_holds_nothing() -> None:
    state = ready(llm(daily_budget_tokens=10**6))
    flow = calling(state, HELLO)
    until_sent(flow)
    flow.close()
    have = books(state)
    assert have.tokens > 0
    assert (have.held_tokens, have.held_usd) == (0, 0.0)


@settings(deadline=None, max_examples=60)
@given(
    budget=st.integers(0, 3000),
    calls=st.lists(
        st.tuples(st.integers(1, 800), st.integers(1, 900), st.booleans(), st.sampled_from((0.0, 0.5, 1.0))),
        max_size=12,
    ),
)
def test_a_budget_is_never_passed_while_servers_keep_to_what_was_asked(
    budget: int, calls: list[tuple[int, int, bool, float]]
) -> None:
    state = pool(llm(daily_budget_tokens=budget))
    running: list[tuple[Account, int]] = []
    for prompt, most, may_shrink, part in calls:
        with contextlib.suppress(BudgetExceeded):
            running.append((opened(state, prompt, most, may_shrink=may_shrink), prompt))
        have = books(state)
        assert have.tokens + have.held_tokens <= budget
        if running and part:
            account, its_prompt = running.pop(0)
            account.settle(Usage(math.floor(its_prompt * part), math.floor(account.max_tokens * part)))
    assert books(state).tokens <= budget


def test_no_room_is_no_error_of_the_user() -> None:
    assert not issubclass(NoRoom, MaxwellError)


def test_an_embedding_call_holds_the_special_tokens_too() -> None:
    # Most embedding models put one before and one after each text.
    state = pool(embedding(daily_budget_tokens=10**6))
    flow = embed(state, only(state), ["a"] * 50)
    until_sent(flow)
    held = books(state).held_tokens
    flow.close()
    assert held >= 50 * 3


class Scripted:
    """A transport with one reply to all that is asked, an event stream."""

    status = 200
    headers: Mapping[str, str] = {"content-type": "text/event-stream"}

    def __init__(self, *frames: str) -> None:
        self.reply = [f"data: {frame}\n\n".encode() for frame in frames]
        self.pieces: list[bytes] = []
        self.asked = 0

    def send(self, request: HTTPRequest, limits: Limits) -> Scripted:
        self.pieces = list(self.reply)
        self.asked += 1
        return self

    def read(self, seconds: float | None = None) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def close(self) -> None:
        pass


USAGE = '{"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":50,"total_tokens":1050}}'


@pytest.mark.parametrize("budget", [None, 10**6])
@pytest.mark.parametrize(
    ("frames", "asked"),
    [
        ((USAGE, "[DONE]"), 1),
        ((USAGE,), 1),
        ((USAGE, '{"error":{"message":"no"}}'), 2),  # which may pass: each attempt is booked
    ],
)
def test_usage_that_a_server_reported_is_booked_even_when_the_reply_failed(
    frames: tuple[str, ...], asked: int, budget: int | None
) -> None:
    state = ready(llm(daily_budget_tokens=budget))
    server = Scripted(*frames)
    with pytest.raises(MaxwellError):
        sync_driver.run(calling(state, HELLO), server)
    assert server.asked == asked
    assert books(state) == Used(tokens=asked * 1050, calls=asked)
