"""Who is known to ignore constraints, and for how long."""

from __future__ import annotations

import threading

import pytest

from maxwell.calls.obedience import ENOUGH, FORGET_SECONDS, Obedience
from maxwell.constraints import constraint_of
from maxwell.types import Constraint


def made(**options: object) -> Constraint:
    constraint = constraint_of(**options)  # type: ignore[arg-type]
    assert constraint is not None
    return constraint


CHOICES, REGEX = made(choices=["yes", "no"]), made(regex="[0-9]+")


def broken(times: int, *, now: float = 0.0) -> Obedience:
    obedience = Obedience()
    for _ in range(times):
        obedience.note("one", CHOICES, obeyed=False, now=now)
    return obedience


def test_nothing_is_said_of_who_was_never_judged() -> None:
    assert Obedience().words("one", CHOICES, 0.0) == ""


@pytest.mark.parametrize("times", range(1, 5))
def test_one_broken_reply_may_be_chance(times: int) -> None:
    words = broken(times).words("one", CHOICES, 1.0)
    assert words == (
        "" if times < ENOUGH else f"ignored the constraint in {times} of {times} replies (choices)"
    )


def test_whoever_obeyed_once_can_obey() -> None:
    obedience = Obedience()
    obedience.note("one", CHOICES, obeyed=True, now=0.0)
    for _ in range(5):
        obedience.note("one", CHOICES, obeyed=False, now=1.0)
    assert obedience.words("one", CHOICES, 2.0) == ""


def test_a_reply_that_obeys_clears_the_name_at_once() -> None:
    obedience = broken(5)
    obedience.note("one", CHOICES, obeyed=True, now=1.0)
    assert obedience.words("one", CHOICES, 1.0) == ""


def test_it_holds_for_that_kind_and_that_entry_alone() -> None:
    obedience = broken(3)
    assert obedience.words("one", made(choices=["a", "b"]), 0.0)
    assert obedience.words("one", REGEX, 0.0) == ""
    assert obedience.words("two", CHOICES, 0.0) == ""


def test_it_is_forgotten_and_one_more_broken_reply_renews_it() -> None:
    obedience = broken(ENOUGH, now=100.0)
    assert obedience.words("one", CHOICES, 100.0 + FORGET_SECONDS)
    assert obedience.words("one", CHOICES, 100.1 + FORGET_SECONDS) == ""
    obedience.note("one", CHOICES, obeyed=False, now=200.0 + FORGET_SECONDS)
    assert obedience.words("one", CHOICES, 200.0 + FORGET_SECONDS)


def test_threads_may_judge_at_once() -> None:
    obedience = Obedience()

    def work(name: str) -> None:
        for i in range(500):
            obedience.note(name, CHOICES, obeyed=False, now=float(i))
            assert obedience.words(name, REGEX, 0.0) == ""

    threads = [threading.Thread(target=work, args=(f"entry {i % 2}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert obedience.words("entry 0", CHOICES, 499.0)
    assert obedience.words("entry 1", CHOICES, 499.0)
