from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.prefixes import BLOCK, KEPT_TOKENS, MOST_BLOCKS, TOKENS_A_BLOCK, Prefixes, blocks, text_of

quick = settings(deadline=None, max_examples=60)

A, B = "http://a", "http://b"
texts = st.lists(st.sampled_from(["x", "y"]), max_size=6).map(lambda parts: "".join(p * BLOCK for p in parts))


def written(*parts: str) -> str:
    """A text of so many whole blocks."""
    return "".join((part * BLOCK)[:BLOCK] for part in parts)


def room_for(number: int) -> int:
    """Tokens in which so many blocks have room."""
    return int(number * TOKENS_A_BLOCK)


# --- blocks


@pytest.mark.parametrize(
    ("length", "number"), [(0, 0), (1, 0), (BLOCK - 1, 0), (BLOCK, 1), (2 * BLOCK - 1, 1), (2 * BLOCK, 2)]
)
def test_only_whole_blocks_count(length: int, number: int) -> None:
    assert len(blocks("z" * length)) == number


def test_another_beginning_changes_all_that_follows() -> None:
    one, other = blocks(written("a", "b", "c")), blocks(written("A", "b", "c"))
    assert not set(one) & set(other)


def test_another_end_changes_nothing_before_it() -> None:
    one, other = blocks(written("a", "b", "c")), blocks(written("a", "b", "C"))
    assert one[:2] == other[:2]
    assert one[2] != other[2]


def test_a_text_that_repeats_itself_has_different_blocks() -> None:
    assert len(set(blocks("la " * 5000))) == len(blocks("la " * 5000))


def test_endless_prompts_are_compared_up_to_a_length() -> None:
    assert len(blocks("z" * (BLOCK * MOST_BLOCKS + 5 * BLOCK))) == MOST_BLOCKS


@quick
@given(st.text(max_size=3 * BLOCK), st.text(max_size=BLOCK))
def test_what_is_appended_leaves_the_blocks_before_it_alone(text: str, more: str) -> None:
    before = blocks(text)
    assert blocks(text + more)[: len(before)] == before


# --- conversations as texts


def test_a_longer_conversation_begins_as_the_shorter_one() -> None:
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    answered = [*said, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"}]
    assert text_of(answered).startswith(text_of(said))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hello"}),
        ({"role": "user", "content": "Hello"}, {"role": "user", "content": "Hullo"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "one"}]},
            {"role": "user", "content": [{"type": "text", "text": "two"}]},
        ),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,a"}}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,b"}}]},
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{'x': 1}"}}]},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"arguments": "{'x': 2}"}}]},
        ),
        ({"role": "assistant", "content": None}, {"role": "assistant", "content": ""}),
        ({"role": "user"}, {"content": "user"}),
    ],
    ids=["role", "content", "part", "image", "tool call", "no content", "a part missing"],
)
def test_different_messages_look_different(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert text_of([one]) != text_of([other])
    assert text_of([one]) == text_of([dict(one)])


def test_a_message_without_content_is_no_end_of_the_conversation() -> None:
    messages: list[dict[str, Any]] = [
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42"},
    ]
    assert text_of(messages).endswith("tool: 42")
    assert text_of([]) == ""


# --- what a server has read


@pytest.fixture
def prefixes() -> Prefixes:
    return Prefixes()


def test_a_server_knows_what_it_has_read_and_no_other_does(prefixes: Prefixes) -> None:
    chain = blocks(written("a", "b"))
    assert prefixes.share(A, chain) == 0.0
    prefixes.note(A, chain)
    assert prefixes.share(A, chain) == 1.0
    assert prefixes.share(B, chain) == 0.0


def test_the_share_ends_where_the_texts_part(prefixes: Prefixes) -> None:
    prefixes.note(A, blocks(written("a", "b", "c")))
    assert prefixes.share(A, blocks(written("a", "b", "X", "c"))) == 0.5
    assert prefixes.share(A, blocks(written("a", "b", "c", "d"))) == 0.75
    assert prefixes.share(A, blocks(written("a"))) == 1.0
    assert prefixes.share(A, blocks(written("X", "a", "b", "c"))) == 0.0


def test_a_prompt_shorter_than_a_block_is_nowhere(prefixes: Prefixes) -> None:
    prefixes.note(A, blocks("Hello"))
    prefixes.note(A, blocks(written("a")))
    assert prefixes.share(A, blocks("Hello")) == 0.0
    assert prefixes.share(A, ()) == 0.0


@quick
@given(st.lists(texts, max_size=4), texts)
def test_the_share_is_that_of_the_longest_common_beginning(read: list[str], text: str) -> None:
    prefixes = Prefixes()
    for one in read:
        prefixes.note(A, blocks(one))
    wanted = blocks(text)
    longest = 0
    for one in read:
        known = blocks(one)
        common = next((i for i, (x, y) in enumerate(zip(known, wanted, strict=False)) if x != y), None)
        longest = max(longest, min(len(known), len(wanted)) if common is None else common)
    assert prefixes.share(A, wanted) == (longest / len(wanted) if wanted else 0.0)


# --- how much is remembered


def test_the_prompts_read_longest_ago_are_forgotten_first(prefixes: Prefixes) -> None:
    old, middle, new = (blocks(written(c, c, c)) for c in "omn")
    for chain in (old, middle, new):
        prefixes.note(A, chain, room_for(6))
    assert [prefixes.share(A, chain) for chain in (old, middle, new)] == [0.0, 1.0, 1.0]


def test_a_prompt_read_again_is_a_late_one(prefixes: Prefixes) -> None:
    one, other, third = (blocks(written(c, c)) for c in "abc")
    for chain in (one, other, one, third):
        prefixes.note(A, chain, room_for(4))
    assert [prefixes.share(A, chain) for chain in (one, other, third)] == [1.0, 0.0, 1.0]


def test_ends_are_forgotten_before_their_beginning(prefixes: Prefixes) -> None:
    prefixes.note(A, blocks(written(*"abcd")), room_for(6))
    prefixes.note(A, blocks(written(*"wxyz")), room_for(6))
    assert prefixes.share(A, blocks(written(*"abcd"))) == 0.5


def test_of_a_prompt_longer_than_the_room_the_beginning_is_kept(prefixes: Prefixes) -> None:
    chain = blocks(written(*"abcdefgh"))
    prefixes.note(A, chain, room_for(6))
    assert prefixes.share(A, chain) == 0.75


def test_a_server_that_does_not_tell_its_room_has_the_usual_one(prefixes: Prefixes) -> None:
    chain = tuple(range(1, int(KEPT_TOKENS / TOKENS_A_BLOCK) + 1))
    prefixes.note(A, chain)
    assert prefixes.share(A, chain) == 1.0
    prefixes.note(A, (-1, -2))
    assert prefixes.share(A, chain) == (len(chain) - 2) / len(chain)


def test_each_server_has_a_room_of_its_own(prefixes: Prefixes) -> None:
    one, other = blocks(written("a", "a")), blocks(written("b", "b"))
    prefixes.note(A, one, room_for(2))
    prefixes.note(B, other, room_for(2))
    assert (prefixes.share(A, one), prefixes.share(B, other)) == (1.0, 1.0)


@pytest.mark.parametrize("room", [1, 100, 127])
def test_room_for_nothing_keeps_nothing(prefixes: Prefixes, room: int) -> None:
    prefixes.note(A, blocks(written("a", "b")), room)
    assert prefixes.share(A, blocks(written("a", "b"))) == 0.0


# --- threads


@pytest.fixture
def hasty() -> Iterator[None]:
    """Threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("room", [100, room_for(2), room_for(20)])
def test_threads_may_lose_a_beginning_and_nothing_else(prefixes: Prefixes, room: int) -> None:
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(6000):
                start = chance.randrange(6)
                prefixes.note(A, range(start, start + 3), room)
                assert 0.0 <= prefixes.share(A, range(start, start + 4)) <= 1.0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    prefixes.note(A, (1001, 1002), room)
    assert prefixes.share(A, (1001, 1002)) == (0.0 if room < TOKENS_A_BLOCK else 1.0)
