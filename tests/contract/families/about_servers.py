"""What a server tells of itself, and what Maxwell then says of it. One test is one topic."""

from __future__ import annotations

import re
from typing import Any

import pytest
from families.asking import CHAT, HELLO, KEY, state_of
from families.meeting import NAME, Meeting

from maxwell.errors import NoEligibleLM, StatusError
from maxwell.lm_pool import LLMPool


def test_found_up(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        status = state_of(pool)
    health, expected = status.health, meeting.expected
    assert (status.state, status.problem) == ("up", "")
    assert health.family == expected["family"]
    assert re.fullmatch(expected.get("version", ""), health.version)
    listed = [model.id for model in health.models]
    assert (meeting.server.model in listed) == expected.get("lists", True)
    assert meeting.count(CHAT) in (0, None)


def test_context_and_slots(meeting: Meeting) -> None:
    expected = meeting.expected
    with meeting.pool(context=9999) as pool:
        status = state_of(pool)
        assert (status.context, status.slots) == (expected["context"], expected["slots"])
        if expected["context"] < 9999:
            assert [r for r in status.remarks if "declares a context of 9999" in r]
            with pytest.raises(NoEligibleLM, match=f"context is {expected['context']:,}"):
                pool.get_lm(prompt="the cat " * 5000)


def test_how_busy(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).health.busy == 0


def test_another_model(meeting: Meeting) -> None:
    """It answers to any name, it lists its names, or it refuses."""
    how = meeting.expected["how"]
    with meeting.pool(model="nope") as pool:
        if how == "known before":
            state_of(pool)
            with pytest.raises(NoEligibleLM, match=re.escape(meeting.server.model)):
                pool.get_lm()
            assert meeting.count(CHAT) in (0, None)
            return
        lm = pool.get_lm()
        if how == "answers":
            assert lm.chat(HELLO, max_tokens=3).text
            assert [remark for remark in state_of(pool).remarks if "to any name" in remark]
        else:
            with pytest.raises(StatusError, match="nope") as caught:
                lm.chat(HELLO, max_tokens=3)
            assert caught.value.kind == "model_missing"


@pytest.mark.parametrize("key", [KEY, ""])
def test_the_key(meeting: Meeting, key: str) -> None:
    kind = meeting.expected.get("kind", "llm")

    def use(pool: LLMPool) -> Any:
        if kind == "llm":
            return pool.get_lm().generate("Hello", max_tokens=3)
        return pool.get_embedding(NAME).embed("hello")

    with meeting.pool(kind, key=key) as pool:
        assert state_of(pool).state == ("misconfigured" if key else "blocked")
        with pytest.raises(NoEligibleLM) as caught:
            use(pool)
        assert KEY not in str(caught.value)
    with meeting.pool(kind) as pool:
        assert state_of(pool).state == "up"
        assert use(pool)


def test_loading(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).state == meeting.expected["state"]
    assert meeting.count(CHAT) in (0, None)


def test_asleep(meeting: Meeting) -> None:
    with meeting.pool() as pool:
        assert state_of(pool).state == "asleep"
        assert meeting.count("/slots") in (0, None), "it would be kept from sleeping"
        assert pool.get_lm().generate("Hello", max_tokens=2)


def test_a_router(meeting: Meeting) -> None:
    """Several models behind one address, loaded when they are first asked."""
    with meeting.pool() as pool:
        status = state_of(pool)
        assert (status.state, status.problem) == ("up", "")
        assert [model.loaded for model in status.health.models] == [False] * 3
        assert pool.get_lm().chat(HELLO, max_tokens=3).model == meeting.server.model
    with meeting.pool(model="nope") as pool:
        state_of(pool)
        with pytest.raises(NoEligibleLM, match="tiny-chat"):
            pool.get_lm()
