"""What every ledger does, for one program and for several."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import (
    MONDAY,
    NAME,
    TUESDAY,
    Programs,
    held,
    settled,
    take,
    use,
    used,
    wait_until,
)

from maxwell.clock import SystemClock
from maxwell.database.owners import this_process
from maxwell.ledger import NANO, Amount, Hold, Ledger, NoRoom, Used
from maxwell.ledger.memory import MemoryLedger
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing.clock import FakeClock


@pytest.fixture(params=["memory", "sqlite", "sqlite without log"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    store: Ledger = MemoryLedger()
    if request.param != "memory":
        store = SQLiteLedger(tmp_path, FakeClock(), wal=request.param == "sqlite")
    with closing(store):
        yield store


# --- amounts


@settings(deadline=None, max_examples=300)
@given(tokens=st.integers(1, 1_000_000), price=st.integers(1, 1_000_000))
def test_what_calls_cost_is_counted_to_the_nanodollar(tokens: int, price: int) -> None:
    per_1k = price / 1_000_000  # as in a registry: up to six places
    exact = Fraction(tokens * price, 1000 * 1_000_000) * NANO
    amount = Amount.of(tokens, tokens * per_1k / 1000).nanousd
    assert amount >= 1
    assert math.ceil(exact) == amount if exact < NANO else 0 <= amount - exact < 2


@settings(deadline=None, max_examples=300)
@given(usd=st.floats(1e-15, 1e6))
def test_a_price_is_never_rounded_to_nothing(usd: float) -> None:
    amount = Amount.of(0, usd)
    assert amount.nanousd >= 1
    # Up, but for the last digit of a float.
    assert Fraction(amount.nanousd) >= Fraction(usd) * NANO * (1 - Fraction(1, 2**50)) - Fraction(1, 10**6)
    assert amount.nanousd <= Fraction(usd) * NANO * (1 + Fraction(1, 2**50)) + 1


def test_nothing_costs_nothing() -> None:
    assert Amount.of(5, 0.0) == Amount(5, 0)
    assert Amount.of(0, 1.5).usd == 1.5


# --- what every store does


def test_a_new_ledger_is_empty(ledger: Ledger) -> None:
    ledger.ready()
    assert (ledger.usage(MONDAY), ledger.history(date.min), list(ledger.holds())) == ({}, {}, [])


def test_a_reservation_is_held_until_it_is_settled(ledger: Ledger) -> None:
    hold = take(ledger, 100, 500)
    assert (hold.name, hold.day, hold.amount) == (NAME, MONDAY, Amount(100, 500))
    assert used(ledger) == held(100, 500)
    assert ledger.send(hold)
    assert used(ledger) == held(100, 500)
    ledger.settle(hold, Amount(60, 250))
    assert used(ledger) == settled(60, 250)


def test_a_released_reservation_leaves_nothing(ledger: Ledger) -> None:
    hold = take(ledger, 100, 500)
    ledger.send(hold)
    ledger.release(hold)
    assert used(ledger) == Used()
    ledger.flush()
    assert ledger.usage(MONDAY) == {}


@pytest.mark.parametrize("flushes", [0, 1, 3], ids=["in memory", "first written", "all written"])
@pytest.mark.parametrize("again", ["settle", "release"])
@pytest.mark.parametrize("first", ["settle", "release"])
def test_a_reservation_ends_once(ledger: Ledger, first: str, again: str, flushes: int) -> None:
    hold = take(ledger, 100)
    expected = settled(60, 250) if first == "settle" else Used()
    for number, end in enumerate((first, again, again)):
        if end == "settle":
            ledger.settle(hold, Amount(60, 250))
        else:
            ledger.release(hold)
        if number < flushes:
            ledger.flush()
        assert used(ledger) == expected
    assert not ledger.send(hold)
    assert used(ledger) == expected


def test_sending_twice_is_sending_once(ledger: Ledger) -> None:
    hold = take(ledger, 10)
    assert (ledger.send(hold), ledger.send(hold)) == (True, True)
    assert [(found.hold, found.state) for found in ledger.holds()] == [(hold, "sent")]


def test_a_hold_that_never_was_changes_nothing(ledger: Ledger) -> None:
    nobody = Hold("nobody", NAME, MONDAY, Amount(100))
    assert not ledger.send(nobody)
    ledger.settle(nobody, Amount(60))
    assert used(ledger) == Used()
    ledger.release(nobody)
    assert used(ledger) == Used()


def test_more_may_be_settled_than_was_held(ledger: Ledger) -> None:
    ledger.settle(take(ledger, 10, most=10), Amount(25))
    assert used(ledger) == settled(25)
    with pytest.raises(NoRoom):
        take(ledger, 1, most=10)


def test_usage_that_no_server_reported_is_marked(ledger: Ledger) -> None:
    ledger.settle(take(ledger, 10), Amount(8), estimated=True)
    ledger.book(NAME, MONDAY, Amount(5), estimated=True)
    use(ledger, 3)
    ledger.book(NAME, MONDAY, Amount(4))
    assert used(ledger) == settled(20, calls=4, estimated=13)
    ledger.flush()
    assert ledger.history(MONDAY) == {MONDAY: {NAME: settled(20, calls=4, estimated=13)}}


def test_holds_count_towards_the_token_budget(ledger: Ledger) -> None:
    first = take(ledger, 60, most=100)
    with pytest.raises(NoRoom) as full:
        take(ledger, 41, most=100)
    assert full.value.used == used(ledger) == held(60)
    take(ledger, 40, most=100)
    ledger.settle(first, Amount(10))
    take(ledger, 50, most=100)
    with pytest.raises(NoRoom):
        take(ledger, 1, most=100)


def test_holds_count_towards_the_money_budget(ledger: Ledger) -> None:
    first = take(ledger, 1, 500, most_nanousd=1000)
    take(ledger, 1, 500, most_nanousd=1000)
    with pytest.raises(NoRoom):
        take(ledger, 1, 1, most_nanousd=1000)
    ledger.settle(first, Amount(1, 499))
    take(ledger, 1, 1, most_nanousd=1000)
    with pytest.raises(NoRoom):
        take(ledger, 1, 1, most_nanousd=1000)


def test_each_budget_refuses_on_its_own(ledger: Ledger) -> None:
    for tokens, nanousd in ((11, 1), (10, 2)):
        with pytest.raises(NoRoom):
            take(ledger, tokens, nanousd, most=10, most_nanousd=1)
    take(ledger, 10, 1, most=10, most_nanousd=1)


def test_a_budget_of_nothing_admits_nothing(ledger: Ledger) -> None:
    with pytest.raises(NoRoom):
        take(ledger, 1, most=0)
    with pytest.raises(NoRoom):
        take(ledger, 0, 1, most_nanousd=0)
    assert take(ledger, 0, 0, most=0, most_nanousd=0).amount == Amount()


def test_days_and_names_have_books_of_their_own(ledger: Ledger) -> None:
    late = take(ledger, 80, most=100)
    take(ledger, 80, most=100, day=TUESDAY)
    take(ledger, 80, most=100, name="other")
    ledger.settle(late, Amount(70))  # a call that ended after midnight counts on the day it began
    assert ledger.usage(MONDAY) == {NAME: settled(70), "other": held(80)}
    assert ledger.usage(TUESDAY) == {NAME: held(80)}


@pytest.mark.parametrize("name", ["C:\\models\\a", "it's", 'say "hi"', "名前", "%s;--", " ", ""])
def test_any_name_is_kept(ledger: Ledger, name: str) -> None:
    use(ledger, 4, 500, name=name)
    ledger.book(name, MONDAY, Amount(1))
    ledger.flush()
    assert ledger.usage(MONDAY) == {name: settled(5, 500, calls=2)}


def test_unlimited_use_is_visible_at_once_and_counts(ledger: Ledger) -> None:
    ledger.book(NAME, MONDAY, Amount(10, 1))
    ledger.book(NAME, MONDAY, Amount(5, 2))
    assert used(ledger) == settled(15, 3, calls=2)
    assert ledger.usage(TUESDAY) == {}
    ledger.flush()
    ledger.book(NAME, MONDAY, Amount(1))
    assert used(ledger) == settled(16, 3, calls=3)
    with pytest.raises(NoRoom):  # as when a budget is declared in the middle of the day
        take(ledger, 5, most=20)


def test_history_tells_days_in_order(ledger: Ledger) -> None:
    for day, tokens in ((TUESDAY, 2), (MONDAY, 1), (date(2025, 12, 31), 9)):
        use(ledger, tokens, day=day)
    take(ledger, 5)
    ledger.book("box", MONDAY, Amount(7))
    assert list(ledger.history(MONDAY).items()) == [
        (MONDAY, {"box": settled(7), NAME: settled(1)}),
        (TUESDAY, {NAME: settled(2)}),
    ]


def test_an_entry_may_begin_at_zero_again(ledger: Ledger) -> None:
    use(ledger, 60, 7)
    running = take(ledger, 30)
    use(ledger, 9, day=TUESDAY)
    ledger.book("other", MONDAY, Amount(4))
    assert ledger.reset(NAME, MONDAY) == settled(60, 7)
    assert ledger.reset(NAME, MONDAY) == Used()
    assert used(ledger) == held(30)
    ledger.settle(running, Amount(20))
    assert (used(ledger), used(ledger, "other"), used(ledger, day=TUESDAY)) == (
        settled(20),
        settled(4),
        settled(9),
    )


def test_open_reservations_are_listed(ledger: Ledger) -> None:
    first, second, third = (take(ledger, n) for n in (1, 2, 3))
    ledger.send(first)
    ledger.settle(second, Amount())
    found = {entry.hold: entry for entry in ledger.holds()}
    assert found.keys() == {first, third}
    assert (found[first].state, found[third].state) == ("sent", "held")
    assert {(entry.owner, entry.alive) for entry in found.values()} == {(this_process(), True)}


def test_a_closed_ledger_can_be_used_again(ledger: Ledger) -> None:
    ledger.book(NAME, MONDAY, Amount(10))
    hold = take(ledger, 5)
    ledger.close()
    ledger.close()
    ledger.settle(hold, Amount(4))
    assert used(ledger) == settled(14, calls=2)


def test_threads_never_pass_a_budget(ledger: Ledger) -> None:
    together = threading.Barrier(8, timeout=20)
    refused: list[Used] = []

    def work(number: int) -> int:
        together.wait()
        admitted = 0
        for i in range(30):
            try:
                hold = take(ledger, 7, 3, most=500)
            except NoRoom as full:
                refused.append(full.used)
                continue
            assert ledger.send(hold)
            seen = used(ledger)
            assert 7 <= seen.tokens + seen.held_tokens <= 500
            if (number + i) % 3:
                ledger.settle(hold, Amount(5, 2))
                admitted += 1
            else:
                ledger.release(hold)
            ledger.book("free", MONDAY, Amount(1))
        return admitted

    with ThreadPoolExecutor(8) as threads:
        admitted = sum(threads.map(work, range(8)))
    assert all(there.tokens + there.held_tokens + 7 > 500 for there in refused)
    assert 93 <= admitted <= 100  # 500 tokens hold 98 calls and one that runs; none of the budget is lost
    assert used(ledger) == settled(5 * admitted, 2 * admitted, calls=admitted)
    ledger.flush()
    assert used(ledger) == settled(5 * admitted, 2 * admitted, calls=admitted)
    assert list(ledger.holds()) == []


# --- several programs


def test_programs_see_each_other(programs: Programs) -> None:
    one, other = programs(), programs()
    hold = take(one, 60, most=100)
    assert used(other) == held(60)
    with pytest.raises(NoRoom):
        take(other, 60, most=100)
    one.settle(hold, Amount(30))
    one.book("free", MONDAY, Amount(5))
    one.flush()
    assert other.usage(MONDAY) == {NAME: settled(30), "free": settled(5)}
    take(other, 60, most=100)


def test_what_is_used_is_soon_written_for_others(programs: Programs) -> None:
    one, other = programs(), programs()
    one.settle(take(one, 10), Amount(9))
    one.book("free", MONDAY, Amount(5))
    wait_until(lambda: other.usage(MONDAY) == {NAME: settled(9), "free": settled(5)})


def test_many_programs_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    def first_use(home: Path, together: threading.Barrier) -> None:
        with closing(SQLiteLedger(home, SystemClock())) as ledger:
            together.wait()
            use(ledger, 1)

    with ThreadPoolExecutor(8) as threads:
        for i in range(20):
            home, together = tmp_path / str(i), threading.Barrier(8, timeout=20)
            for done in [threads.submit(first_use, home, together) for _ in range(8)]:
                done.result()
            with closing(SQLiteLedger(home, SystemClock())) as ledger:
                assert used(ledger) == settled(8, calls=8)
