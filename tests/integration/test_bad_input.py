"""Wrong files, wrong arguments, nothing to choose from: one clear typed sentence each, and nothing lost."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from calling import MODES, Calls, chats, dead_entry, entry

from maxwell.errors import (
    AllAttemptsFailed,
    BadConstraint,
    BudgetExceeded,
    LedgerError,
    MaxwellError,
    NoEligibleLM,
    RegistryError,
    StatusError,
    UnknownName,
)
from maxwell.lm_pool import LLMPool, get_embedding, get_lm
from maxwell.pools import shared_pool
from maxwell.registry.specs import Registry
from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry


@pytest.fixture
def registry_file(maxwell_home: Path) -> Path:
    path = maxwell_home / ".maxwell" / "lm_registry.json"
    path.parent.mkdir()
    return path


def told(error: BaseException) -> str:
    """The error's message, which is no traceback and no dump."""
    message = str(error)
    assert message
    assert "Traceback" not in message
    assert "Struct" not in message
    return message


# --- the file


def test_no_registry_says_where_it_looked_and_how_to_make_one(maxwell_home: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        get_lm()
    message = told(caught.value)
    assert str(Path.cwd() / ".maxwell" / "lm_registry.json") in message
    assert str(maxwell_home / ".maxwell" / "lm_registry.json") in message
    assert "maxwell up" in message
    assert "\n" not in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_registry(registry_file: Path) -> None:
    registry_file.write_text("{}")
    registry_file.chmod(0)
    with pytest.raises(RegistryError, match=r"lm_registry\.json: cannot be read: Permission denied"):
        get_lm()


def test_a_registry_that_is_a_directory(registry_file: Path) -> None:
    registry_file.mkdir()
    with pytest.raises(RegistryError, match=r"lm_registry\.json: cannot be read: Is a directory"):
        get_lm()


def test_a_dangling_link_is_not_passed_over(registry_file: Path) -> None:
    registry_file.symlink_to("nowhere.json")
    with pytest.raises(RegistryError, match=r"lm_registry\.json: cannot be read: No such file"):
        get_lm()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"llms": [{"name": "caf\xe9"}]}', "UTF-8"),
        (b"\xff\xfe{\x00}\x00", "UTF-"),
        (b"", "empty"),
        (b"   \n", "empty"),
        (b'{"llms": [', "1:11"),
        (b'{"llms": [],}', "1:1"),
        (b"[]", "object"),
        (b'"text"', "object"),
        (b'{"llms": {}}', "llms"),
        (b'{"llms": [[]]}', r"llms\[0\]"),
        (b'{"llms": null}', "llms"),
        (b"[" * 100_000, "deep|nest"),
        (b'{"lms": []}', "did you mean"),
        (b'{"llms": [], "llms": []}', "llms"),
    ],
)
def test_a_file_that_is_no_registry(registry_file: Path, content: bytes, words: str) -> None:
    registry_file.write_bytes(content)
    with pytest.raises(RegistryError, match=words) as caught:
        get_lm()
    assert str(registry_file) in told(caught.value)
    assert registry_file.read_bytes() == content


def test_every_problem_of_a_file_is_told_with_its_place(registry_file: Path) -> None:
    good = FakeServer("llamacpp").llm_entry("one")
    bad: dict[str, Any] = {**good, "name": "two", "backend": "lamacpp", "daily_buget_tokens": 5}
    bad["capabilities"] = {**good["capabilities"], "max_context": -1}
    registry_file.write_text(json.dumps({"llms": [good, bad, good]}, indent=2))
    with pytest.raises(RegistryError) as caught:
        get_lm()
    message = told(caught.value)
    for part in ("llms[1].backend", "lamacpp", "daily_budget_tokens", "max_context", "-1", "llms[2].name"):
        assert part in message
    assert len(caught.value.problems) >= 4
    assert all(p.line and p.column for p in caught.value.problems)


def test_a_named_registry_that_does_not_exist(maxwell_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RegistryError, match=r"none\.json"):
        get_lm(registry="none.json")
    with pytest.raises(RegistryError, match=r"none\.json"):
        LLMPool.from_registry("none.json")
    monkeypatch.setenv("MAXWELL_REGISTRY", "other.json")
    with pytest.raises(RegistryError, match=r"MAXWELL_REGISTRY.*other\.json"):
        get_embedding()


def test_an_empty_registry(write_registry: WriteRegistry) -> None:
    write_registry()
    with pytest.raises(RegistryError, match="declares no model; add an entry"):
        get_lm()


def test_an_empty_pool(tmp_path: Path) -> None:
    with LLMPool(Registry(), home=tmp_path) as pool:
        with pytest.raises(NoEligibleLM, match="the registry declares none"):
            pool.get_lm()
        with pytest.raises(UnknownName, match="no LLM 'one'"):
            pool.get_lm("one")
        with pytest.raises(NoEligibleLM, match="the registry declares none"):
            pool.get_embedding()
        with pytest.raises(UnknownName, match="no embedding 'default'"):
            pool.get_embedding("default")
        assert pool.health() == []


def test_a_name_of_the_other_kind(fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    server = fake_server("openai")
    write_registry(server.llm_entry("chat"), server.embedding_entry("vectors"))
    with pytest.raises(UnknownName, match="no LLM 'vectors'"):
        get_lm("vectors")
    with pytest.raises(UnknownName, match="no embedding 'chat'"):
        get_embedding("chat")


def test_a_file_that_is_broken_while_in_use_is_told_and_mended_is_used(
    fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server()
    path = write_registry(server.llm_entry("one"))
    lm = get_lm()
    path.write_text("{")
    with pytest.raises(RegistryError):
        get_lm()
    assert lm.generate("Hello")
    write_registry(server.llm_entry("another"))
    assert get_lm().name == "another"


# --- nothing fits


def test_everything_is_down(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, dead_entry(server, "first"), dead_entry(server, "second"))
    with calls.pool() as pool, pytest.raises(NoEligibleLM) as caught:
        pool.get_lm()
    message = told(caught.value)
    assert "\n" not in message
    assert message.startswith("no LLM can be chosen: first: cannot connect to http://127.0.0.1:")
    assert "second: cannot connect" in message
    assert "start first at http://127.0.0.1:" in message


def test_nothing_fits(fake_server: FakeServers, tmp_path: Path) -> None:
    small, blind = fake_server(context=512), fake_server(context=1024)
    calls = Calls(tmp_path, entry(small, "small"), entry(blind, "blind"))
    with calls.pool() as pool:
        with pytest.raises(NoEligibleLM) as caught:
            pool.get_lm(prompt="word " * 5000)
        message = told(caught.value)
        assert "small: needs " in message
        assert "context is 512" in message
        assert "tokens to fit blind" in message
        with pytest.raises(NoEligibleLM, match="small: vision is required; blind: vision is required"):
            pool.get_lm(vision=True)
        with pytest.raises(NoEligibleLM, match="small: completes at most 128 tokens, 9,000 wanted"):
            pool.get_lm(prompt="Hello", max_completion=9000)


@pytest.mark.parametrize(
    ("needs", "words"),
    [
        ({"time_cost_weight": -1}, "time_cost_weight must be a number from 0 to 10"),
        ({"time_cost_weight": 11}, "0 to 10"),
        ({"time_cost_weight": float("nan")}, "0 to 10"),
        ({"time_cost_weight": float("inf")}, "0 to 10"),
        ({"time_cost_weight": "1"}, "0 to 10"),
        ({"time_cost_weight": True}, "0 to 10"),
        ({"min_context": 0}, "min_context"),
        ({"min_context": "32k"}, "min_context"),
        ({"min_context": 1.5}, "min_context"),
        ({"min_speed": -5}, "min_speed"),
        ({"max_completion": 0}, "max_completion"),
        ({"vision": "yes"}, "vision must be True, False or None"),
        ({"tier": "gold"}, "tier must be free, standard, premium"),
        ({"tags": [1]}, "tags"),
        ({"tags": 5}, "tags"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": " \n"}, "the prompt is empty"),
        ({"prompt": b"bytes"}, "the prompt must be a str, not bytes"),
        ({"min_contxt": 5}, "did you mean min_context"),
    ],
)
def test_a_requirement_that_is_none(
    fake_server: FakeServers, tmp_path: Path, needs: dict[str, Any], words: str
) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        with pytest.raises((TypeError, ValueError), match=words):
            pool.get_lm(**needs)
        with pytest.raises((TypeError, ValueError), match=words):
            pool.explain("one", **needs)
    assert server.requests == []


@pytest.mark.parametrize("name", ["", " ", "onne", "ONE", "one\n", "\ud800"])
def test_an_unknown_name(fake_server: FakeServers, tmp_path: Path, name: str) -> None:
    with Calls(tmp_path, entry(fake_server(), "one")).pool() as pool:
        with pytest.raises(UnknownName, match=r"no LLM .*one") as caught:
            pool.get_lm(name)
        assert len(told(caught.value)) < 500


@pytest.mark.parametrize("name", [5, b"one", ["one"]])
def test_a_name_that_is_no_text(fake_server: FakeServers, tmp_path: Path, name: Any) -> None:
    with (
        Calls(tmp_path, entry(fake_server(), "one")).pool() as pool,
        pytest.raises((TypeError, UnknownName), match=r"name|no LLM"),
    ):
        pool.get_lm(name)


# --- calls


@pytest.mark.parametrize("mode", ["generate", "stream", "async generate", "async stream"])
@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "the prompt is empty"),
        (" \t\n", "the prompt is empty"),
        (None, "must be a str, not NoneType"),
        (b"bytes", "must be a str, not bytes"),
        (["a"], "must be a str, not list"),
    ],
)
def test_a_prompt_that_is_none(
    fake_server: FakeServers, tmp_path: Path, mode: str, prompt: Any, words: str
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises((TypeError, ValueError), match=words):
        calls.ask(mode, prompt)
    assert chats(server) == []
    assert calls.used("one").tokens == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"temperature": -0.1}, "temperature must be from 0 to 2"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"stop": 5}, "stop"),
        ({"stop": [5]}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"tools": "look"}, "tools"),
        ({"extra": ["x"]}, "extra"),
        ({"grammar": 5}, "grammar"),
        ({"max_token": 5}, "unknown option 'max_token'; did you mean max_tokens"),
    ],
)
def test_an_option_that_is_none(
    fake_server: FakeServers, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises((TypeError, ValueError), match=words):
        calls.ask("generate", **options)
    assert chats(server) == []
    assert calls.used("one").tokens == 0


@pytest.mark.parametrize("messages", [[], "Hello", [1], [{"role": "user"}], None])
def test_messages_that_are_none(fake_server: FakeServers, tmp_path: Path, messages: Any) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with calls.pool() as pool, pytest.raises((TypeError, ValueError, StatusError)) as caught:
        pool.get_lm().chat(messages)
    told(caught.value)
    assert calls.used("one").tokens == 0


def test_a_wrong_grammar_never_leaves(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(BadConstraint, match=r"undefined"):
        calls.ask("generate", grammar="root ::= undefined")
    assert chats(server) == []


def test_a_grammar_where_none_is_obeyed(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server("openai")
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(MaxwellError, match=r"one: .*grammar"):
        calls.ask("generate", grammar='root ::= "x"')
    assert chats(server) == []


def test_a_grammar_goes_to_whoever_obeys_it(fake_server: FakeServers, tmp_path: Path) -> None:
    deaf, obeys = fake_server("openai"), fake_server("vllm", reply="no", constrained_reply="yes")
    calls = Calls(tmp_path, entry(deaf, "deaf", 500), entry(obeys, "obeys"))
    calls.warm()
    got = calls.ask("chat", grammar='root ::= "yes"')
    assert got.completion is not None
    assert (got.text, got.completion.llm) == ("yes", "obeys")
    assert chats(deaf) == []


# --- 10 MB


HUGE = "0123456789abcdef" * (10 * 1024 * 1024 // 16)


@pytest.mark.parametrize("mode", MODES)
def test_a_huge_prompt_is_refused_clearly(fake_server: FakeServers, tmp_path: Path, mode: str) -> None:
    server, other = fake_server(), fake_server()
    calls = Calls(tmp_path, entry(server, "one", 500), entry(other, "two"))
    calls.warm()
    began = time.monotonic()
    with pytest.raises((BudgetExceeded, StatusError, AllAttemptsFailed)) as caught:
        calls.ask(mode, HUGE)
    assert time.monotonic() - began < 10
    assert len(told(caught.value)) < 2000
    assert calls.used("one").held_tokens == calls.used("two").held_tokens == 0


def test_a_huge_prompt_is_not_chosen_for(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server()
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        with pytest.raises(
            NoEligibleLM, match=r"one: needs about 2,62\d,\d+ tokens, context is 4,096"
        ) as caught:
            pool.get_lm(prompt=HUGE)
        assert len(told(caught.value)) < 500
    assert all(r.method == "GET" for r in server.requests)


def test_a_huge_prompt_that_fits_is_answered(fake_server: FakeServers, tmp_path: Path) -> None:
    server = fake_server(context=4_000_000)
    calls = Calls(tmp_path, entry(server, "one", daily_budget_tokens=None))
    got = calls.ask("chat", HUGE, max_tokens=16)
    assert got.completion is not None
    assert got.completion.usage.prompt_tokens > 2_600_000
    assert calls.used("one").tokens == server.usage.total_tokens


# --- the books


def test_books_that_cannot_be_opened_close_what_has_a_budget(
    fake_server: FakeServers, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    limited, free = fake_server(), fake_server(reply="free")
    write_registry(entry(limited, "limited", 500), free.llm_entry("free"))
    (maxwell_home / ".maxwell" / "ledger.db").write_bytes(b"this is no database, whatever its name says" * 50)
    assert get_lm().generate("Hello") == "free"
    with pytest.raises(LedgerError, match=r"limited: the usage ledger .*ledger\.db is damaged"):
        get_lm("limited")
    assert chats(limited) == []
    (maxwell_home / ".maxwell" / "ledger.db").unlink()
    shared_pool(LLMPool, None).close()


def test_books_that_break_before_the_call_do_not_lose_the_alternative(
    fake_server: FakeServers, write_registry: WriteRegistry, maxwell_home: Path
) -> None:
    limited, free = fake_server(), fake_server(reply="free")
    write_registry(entry(limited, "limited", 500), free.llm_entry("free"))
    with LLMPool.from_registry() as pool:
        assert all(s.state == "up" for s in pool.health())
        lm = pool.get_lm()
        pool.close()
        for file in (maxwell_home / ".maxwell").glob("ledger.db*"):
            file.unlink()
        (maxwell_home / ".maxwell" / "ledger.db").mkdir()
        assert lm.generate("Hello") == "free"
        with pytest.raises(LedgerError):
            pool.usage()
        (maxwell_home / ".maxwell" / "ledger.db").rmdir()
    assert chats(limited) == []
