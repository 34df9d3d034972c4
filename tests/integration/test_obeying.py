"""Constraints in calls: obeyed, ignored, cut off, sent back; and who may be asked at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from calling import MODES, Calls, assert_idle, chats, entry

from maxwell.errors import (
    AllAttemptsFailed,
    BadConstraint,
    ConstraintBroken,
    NoEligibleLM,
    ReplyCutOff,
    StatusError,
)
from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import BackendName

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "size": {"enum": ["small", "large"]}},
    "required": ["city", "size"],
    "additionalProperties": False,
}
LIST_SCHEMA = {"type": "array", "items": {"type": "integer"}}


class Case(NamedTuple):
    """A constraint, a text that obeys it, and one that does not."""

    options: dict[str, Any]
    obeys: str
    breaks: str


CASES = {
    "json_schema": Case({"json_schema": SCHEMA}, '{"city":"Oslo","size":"large"}', '{"city":"Oslo"}'),
    "no object": Case({"json_schema": LIST_SCHEMA}, "[1,2,3]", '["one"]'),
    "grammar": Case({"grammar": 'root ::= "yes" | "no"'}, "yes", "Yes!"),
    "choices": Case({"choices": ["yes", "no"]}, "no", "No."),
    "regex": Case({"regex": "[A-Z]{2}-[0-9]{3}"}, "AB-123", "AB-12"),
}
WRAPPED = ("no object", "choices", "regex")  # as OpenAI's strict mode takes only objects
STREAMS = ("stream", "async stream")
PAIRS = [
    (dialect, kind)
    for dialect in ("llamacpp", "vllm", "openai")
    for kind in CASES
    if (dialect, kind) != ("openai", "grammar")
]


def sent_by(dialect: BackendName, kind: str, text: str) -> str:
    """What the server writes where `text` is the reply."""
    if dialect != "openai" or kind not in WRAPPED:
        return text
    return json.dumps({"value": json.loads(text) if kind == "no object" else text}, separators=(",", ":"))


@pytest.mark.parametrize(("dialect", "kind"), PAIRS)
@pytest.mark.parametrize("mode", MODES)
def test_an_obedient_server_gives_the_reply(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName, kind: str, mode: str
) -> None:
    case = CASES[kind]
    server = fake_server(dialect, constrained_reply=sent_by(dialect, kind, case.obeys))
    calls = Calls(tmp_path, entry(server, "one"))
    assert calls.ask(mode, **case.options).text == case.obeys
    assert calls.used("one").tokens > 0


@pytest.mark.parametrize(("dialect", "kind"), PAIRS)
@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_ignores_the_constraint_is_caught(
    fake_server: FakeServers, tmp_path: Path, dialect: BackendName, kind: str, mode: str
) -> None:
    case = CASES[kind]
    server = fake_server(dialect, reply=case.breaks, constrained_reply=case.obeys)
    server.fail(faults.IgnoreConstraints(), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken, match="one: the reply does not obey the constraint: ") as caught:
        calls.ask(mode, **case.options)
    assert caught.value.violation
    assert caught.value.completion.usage.completion_tokens > 0
    assert calls.used("one").tokens > 0  # what it wrote is paid for
    assert calls.used("one").held_tokens == 0
    assert len(chats(server)) == 1
    assert_idle(server)


@pytest.mark.parametrize("kind", ["json_schema", "regex"])
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode not in STREAMS])
def test_the_next_one_takes_a_call_that_the_first_did_not_obey(
    fake_server: FakeServers, tmp_path: Path, kind: str, mode: str
) -> None:
    case = CASES[kind]
    deaf = fake_server(reply=case.breaks)
    deaf.fail(faults.IgnoreConstraints(), times=None)
    obeys = fake_server("vllm", constrained_reply=case.obeys)
    calls = Calls(tmp_path, entry(deaf, "deaf", 500), entry(obeys, "obeys"))
    calls.warm()
    assert calls.ask(mode, **case.options).text == case.obeys
    assert len(chats(deaf)) == len(chats(obeys)) == 1
    assert calls.used("deaf").tokens > 0


def test_who_ignored_it_twice_is_not_asked_while_there_is_another(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    deaf = fake_server(reply="nonsense")
    deaf.fail(faults.IgnoreConstraints(), times=None)
    obeys = fake_server("vllm", constrained_reply="yes")
    calls = Calls(tmp_path, entry(deaf, "deaf", 500), entry(obeys, "obeys"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        assert lm.name == "deaf"
        assert [lm.generate("Well?", choices=["yes", "no"]) for _ in range(4)] == ["yes"] * 4
        assert len(chats(deaf)) == 2
        lm.generate("Well?")  # free text is another matter
        assert len(chats(deaf)) == 3
        with pytest.raises(ConstraintBroken):  # and whoever names it gets it
            pool.get_lm("deaf").generate("Well?", choices=["yes", "no"])


def test_two_that_do_not_obey_are_both_named(fake_server: FakeServers, tmp_path: Path) -> None:
    servers = [fake_server(reply="nonsense") for _ in range(2)]
    for server in servers:
        server.fail(faults.IgnoreConstraints(), times=None)
    calls = Calls(tmp_path, entry(servers[0], "one"), entry(servers[1], "two"))
    with pytest.raises(AllAttemptsFailed, match=r"one: .*constraint.*two: .*constraint"):
        calls.ask("generate", choices=["yes", "no"])


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_cut_off_is_an_error_of_its_own(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server, other = fake_server(constrained_reply=CASES["json_schema"].obeys), fake_server()
    calls = Calls(tmp_path, entry(server, "one", 500), entry(other, "two"))
    calls.warm()
    with pytest.raises(ReplyCutOff, match=r"one: .*cut off after 3 tokens.*max_tokens") as caught:
        calls.ask(mode, json_schema=SCHEMA, max_tokens=3)
    assert caught.value.completion.text
    assert chats(other) == []  # nobody else would make it shorter


# --- who may be asked


def test_who_cannot_honour_it_is_not_asked(fake_server: FakeServers, tmp_path: Path) -> None:
    deaf, obeys = fake_server("openai"), fake_server("llamacpp", constrained_reply="yes")
    calls = Calls(tmp_path, entry(deaf, "deaf", 500), entry(obeys, "obeys"))
    calls.warm()
    assert calls.ask("generate", grammar='root ::= "yes"').text == "yes"
    assert chats(deaf) == []


@pytest.mark.parametrize("mode", MODES)
def test_the_one_that_was_named_says_why_it_cannot(
    fake_server: FakeServers, tmp_path: Path, mode: str
) -> None:
    server = fake_server("openai")
    calls = Calls(tmp_path, entry(server, "one"), entry(fake_server(), "two"))
    with pytest.raises(StatusError, match=r"one: .*grammar") as caught:
        calls.ask(mode, name="one", grammar='root ::= "yes"')
    assert caught.value.kind == "unsupported"
    assert chats(server) == []


def test_strict_schemas_name_the_place_that_openai_cannot_take(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = fake_server("openai")
    calls = Calls(tmp_path, entry(server, "one"))
    schema = {"type": "object", "properties": {"tags": {"type": "array", "uniqueItems": True}}}
    with pytest.raises(StatusError, match=r"\$\.properties\.tags\.uniqueItems"):
        calls.ask("generate", json_schema=schema)
    assert chats(server) == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"json_schema": {"type": "strng"}}, BadConstraint, r"\$\.type"),
        ({"grammar": "root ::= undefined"}, BadConstraint, "undefined"),
        ({"grammar": "garbage ((("}, BadConstraint, "grammar"),
        ({"choices": []}, BadConstraint, "choices"),
        ({"choices": "yes"}, TypeError, "choices"),
        ({"regex": "("}, BadConstraint, "regex"),
        ({"regex": "a", "choices": ["a", "b"]}, ValueError, "regex.*choices|choices.*regex"),
        ({"repair": "yes"}, TypeError, "repair"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_a_wrong_constraint_is_never_sent(
    fake_server: FakeServers,
    tmp_path: Path,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
    mode: str,
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(error, match=words):
        calls.ask(mode, **options)
    assert chats(server) == []
    assert calls.used("one").tokens == 0


# --- sent back


def mended(wrong: str, right: str) -> Any:
    """A model that is right once it was told what is wrong."""
    return lambda body: right if len(body["messages"]) > 1 else wrong


def repairing(fake_server: FakeServers, wrong: str, right: str) -> FakeServer:
    return fake_server(constrained_reply=mended(wrong, right))


def test_a_broken_reply_is_sent_back_once_where_that_is_asked(
    fake_server: FakeServers, tmp_path: Path
) -> None:
    server = repairing(fake_server, "maybe", "yes")
    calls = Calls(tmp_path, entry(server, "one"), entry(fake_server(), "other", 1))
    assert calls.ask("generate", choices=["yes", "no"], repair=True).text == "yes"
    first, second = [request.body["messages"] for request in chats(server)]
    assert second[:1] == first
    assert second[1] == {"role": "assistant", "content": "maybe"}
    assert "maybe" in second[2]["content"] or "one of" in second[2]["content"]


def test_it_is_sent_back_once_and_no_more(fake_server: FakeServers, tmp_path: Path) -> None:
    server = repairing(fake_server, "maybe", "perhaps")
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(ConstraintBroken, match="perhaps") as caught:
        calls.ask("chat", choices=["yes", "no"], repair=True)
    assert caught.value.completion.text == "perhaps"
    assert len(chats(server)) == 2


@pytest.mark.parametrize("mode", STREAMS)
def test_a_stream_is_not_sent_back(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    calls = Calls(tmp_path, entry(fake_server(), "one"))
    with pytest.raises(ValueError, match="stream cannot be repaired"):
        calls.ask(mode, choices=["yes", "no"], repair=True)


# --- parse


class City(msgspec.Struct):
    name: str
    size: int


def test_parse_gives_an_instance(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(constrained_reply='{"name": "Oslo", "size": 3}')
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        assert pool.get_lm().parse("Which city?", City) == City("Oslo", 3)
        assert pool.get_lm().parse([{"role": "user", "content": "Which?"}], City) == City("Oslo", 3)


def test_parse_repairs_what_is_no_instance(fake_server: FakeServers, tmp_path: Path) -> None:
    server = repairing(fake_server, '{"name": "Oslo"}', '{"name": "Oslo", "size": 3}')
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        with pytest.raises(ConstraintBroken, match="size"):
            pool.get_lm().parse("Which city?", City)
        assert pool.get_lm().parse("Which city?", City, repair=True) == City("Oslo", 3)


def test_parse_has_its_own_constraint(fake_server: FakeServers, tmp_path: Path) -> None:
    pool = Calls(tmp_path, entry(fake_server(), "one")).pool()
    with pool, pytest.raises(TypeError, match="drop choices"):
        pool.get_lm().parse("Which city?", City, choices=["a", "b"])


# --- maps


def test_a_map_takes_constraints_for_all_and_for_one(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(constrained_reply=lambda body: "yes" if "Yes?" in str(body["messages"]) else "3")
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        items: list[Any] = ["Yes?", {"prompt": "How many?", "choices": None, "regex": "[0-9]"}, "What?"]
        done = list(pool.map(items, choices=["yes", "no"]))
    assert [mapped.completion and mapped.text for mapped in done] == ["yes", "3", None]
    assert isinstance(done[2].error, ConstraintBroken)


def test_a_map_is_not_done_by_who_cannot_honour(fake_server: FakeServers, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(fake_server("openai"), "deaf")).pool() as pool:
        (done,) = pool.map(["Well?"], grammar='root ::= "yes"')
    assert isinstance(done.error, NoEligibleLM)
    assert "grammar" in str(done.error)
