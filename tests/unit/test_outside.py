from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from maxwell.calls.moment import NO_OTHERS, Others
from maxwell.calls.outside import FADING, OTHERS_SEND, Outside
from maxwell.health import Health
from maxwell.queueing import MOST_DISPATCHERS

quick = settings(deadline=None, max_examples=100)

NOW = 1_800_000_000.0
A, B = "http://a", "http://b"
SLOTS, SERVICE = 4, 8.0
UP = Health(state="up", at=NOW)


def told(busy: int, own: int = 0, at: float = NOW) -> Health:
    """A server that said at that moment how busy it is."""
    return Health(state="up", at=at, busy=busy, own=own, busy_at=at)


def guess(outside: Outside, health: Health, now: float | None = None, root: str = A) -> Others:
    at = health.busy_at or NOW
    return outside.at(root, health, SLOTS, SERVICE, at if now is None else now)


@pytest.fixture
def outside() -> Outside:
    return Outside()


# --- nobody else


def test_of_a_server_that_tells_nothing_nothing_is_guessed(outside: Outside) -> None:
    outside.sent(A, NOW)
    assert guess(outside, UP) is NO_OTHERS
    assert guess(outside, replace(UP, busy=3)) is NO_OTHERS  # nobody knows when


@quick
@given(
    answers=st.lists(st.tuples(st.sampled_from([A, B]), st.integers(0, 9), st.integers(0, 3)), max_size=40),
    looks=st.integers(1, 3),
)
def test_who_is_alone_sees_nobody_whatever_they_do(answers: list[tuple[str, int, int]], looks: int) -> None:
    """However many of the own calls run when a server is asked, and however many follow."""
    outside = Outside()
    for number, (root, busy, sent) in enumerate(answers):
        health = told(busy, busy, NOW + number)
        for _ in range(looks):
            assert guess(outside, health, NOW + number + 0.5, root) is NO_OTHERS
        for _ in range(sent):
            outside.sent(root, NOW + number + 0.6)


def test_calls_held_inside_a_server_are_nobody_elses(outside: Outside) -> None:
    # A server counts what it works on; what waits in it for a slot is ours all the same.
    for number in range(9):
        assert guess(outside, told(4, 6, NOW + number)) is NO_OTHERS


# --- others


def test_what_others_have_there_is_seen_at_once(outside: Outside) -> None:
    assert guess(outside, told(3, 1)) == Others(2.0, 0.0)


def test_what_was_seen_drains_as_slots_become_free(outside: Outside) -> None:
    health = told(3, 1)
    found = guess(outside, health, NOW + 4.0)
    assert found.age == 4.0
    assert found.count == pytest.approx(2.0 - 4.0 * 2 / SERVICE)
    assert guess(outside, health, NOW + 999.0) == Others(0.0, 999.0)


def test_a_clock_set_back_makes_no_count_from_the_future(outside: Outside) -> None:
    assert guess(outside, told(3, 1), NOW - 50.0) == Others(2.0, 0.0)


def test_others_send_as_this_one_does(outside: Outside) -> None:
    health = told(4, 1)  # four send as much as this one alone
    assert guess(outside, health).count == 3.0
    outside.sent(A, NOW)
    outside.sent(A, NOW)
    outside.sent(B, NOW)
    assert guess(outside, health).count == 3.0 + 2 * 3


def test_what_was_sent_ends_as_usual_here_and_at_the_others(outside: Outside) -> None:
    health = told(4, 1)
    guess(outside, health)
    outside.sent(A, NOW + 1.0)
    assert guess(outside, health, NOW + SERVICE).count == pytest.approx(3.0)  # drained, and three new ones
    assert guess(outside, health, NOW + SERVICE + 1.5).count == 0.0


def test_a_new_answer_knows_of_what_was_sent_before_it(outside: Outside) -> None:
    guess(outside, told(4, 1))
    outside.sent(A, NOW)
    assert guess(outside, told(4, 1, NOW + 1)).count == 3.0


def test_where_others_send_an_idle_server_is_no_safer_guess(outside: Outside) -> None:
    guess(outside, told(4, 1))
    idle = told(0, 0, NOW + 1)
    assert guess(outside, idle, NOW + 3.0, B) == Others(0.0, 2.0)
    outside.sent(B, NOW + 2.0)
    assert guess(outside, idle, NOW + 3.0, B).count > 0


def test_how_many_send_is_what_all_servers_told_together(outside: Outside) -> None:
    one, other = told(4, 2), told(5, 1, NOW + 1)
    guess(outside, one, root=A)
    guess(outside, other, root=B)
    outside.sent(A, NOW)
    senders = (4 * FADING + 5) / (2 * FADING + 1)
    assert guess(outside, one, root=A).count == pytest.approx(2.0 + senders - 1)


def test_others_who_stop_are_forgotten_little_by_little(outside: Outside) -> None:
    guess(outside, told(8, 2))
    answers = 0
    while guess(outside, told(2, 2, NOW + 1 + answers)) is not NO_OTHERS:
        answers += 1
        assert answers < 100
    assert 2 <= answers <= 10  # neither at once nor never
    assert 0.9 < FADING < 1.0


def test_who_sends_nothing_of_their_own_is_one_of_many(outside: Outside) -> None:
    health = told(500)
    assert guess(outside, health).count == 500
    outside.sent(A, NOW)
    assert guess(outside, health).count == 500 + MOST_DISPATCHERS - 1


def test_a_stray_request_is_nobody_who_sends(outside: Outside) -> None:
    for number in range(10):
        guess(outside, told(2, 2, NOW + number))
    assert guess(outside, told(3, 2, NOW + 10)).count == 1.0  # it is there
    outside.sent(A, NOW)
    again = told(2, 2, NOW + 11)
    assert guess(outside, again) is NO_OTHERS  # and when it has gone, so has the guess
    assert OTHERS_SEND > 1.0


def test_a_look_more_changes_nothing(outside: Outside) -> None:
    health = told(4, 1)
    first = guess(outside, health)
    for _ in range(50):
        assert guess(outside, health) == first
    outside.sent(A, NOW)
    assert guess(outside, health).count == 6.0
