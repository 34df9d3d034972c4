from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from command_line import unreachable, unstyled

from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture
def pool(fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    """One entry of every kind that the list should tell apart."""
    chat = fake_server("llamacpp", context=2048, slots=3)
    paid = fake_server("openai", model="gpt-x")
    write_registry(
        chat.llm_entry("local", capabilities={"max_context": 8192}, tags=["fast", "coding"], tier="free"),
        paid.llm_entry(
            "paid",
            cost_per_1k_tokens=0.005,
            daily_budget_tokens=100_000,
            daily_budget_usd=0.5,
            tier="premium",
        ),
        paid.llm_entry("spent", daily_budget_tokens=0),
        unreachable("gone", model="C:\\models\\Big-30B-Q5_K_M.gguf"),
        unreachable("keyless", api_key_env="SOME_API_KEY"),
        fake_server(embeddings=True, dimension=64).embedding_entry("vectors", tags=["default"]),
    )


def rows(text: str) -> dict[str, str]:
    """Lines of the piped table by the name in their second column."""
    return {line.split()[1]: line for line in text.splitlines()}


def test_shows_every_entry_in_plain_columns_when_piped(run: Run, pool: None) -> None:
    result = run("list")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert result.stdout.isascii()
    assert "\x1b" not in result.stdout
    by_name = rows(result.stdout)
    assert list(by_name) == ["NAME", "local", "paid", "spent", "gone", "keyless", "vectors"]
    for words in (
        "llm",
        "up",
        "100",
        "2,048 of 8,192",
        "free",
        "unlimited",
        " 3 ",
        "fast, coding",
        "127.0.0.1:",
    ):
        assert words in by_name["local"]
    for words in ("up", "$0.005", "100,000 tokens, $0.50", "premium", "gpt-x"):
        assert words in by_name["paid"]
    assert "over budget" in by_name["spent"]
    for words in ("down", "127.0.0.1:9 ", " Big-30B-Q5_K_M ", "Connection refused"):
        assert words in by_name["gone"]
    for words in ("blocked", "environment variable SOME_API_KEY is not set"):
        assert words in by_name["keyless"]
    for words in ("embedding", "up", " 64 ", "default"):
        assert words in by_name["vectors"]


def test_piped_columns_are_aligned_and_never_cut(run: Run, pool: None) -> None:
    lines = run("list", env={"COLUMNS": "40"}).stdout.splitlines()
    where = lines[0].index("WHERE")
    assert all(line[where - 2 : where] == "  " and line[where] != " " for line in lines)
    assert all("…" not in line for line in lines)


def test_shows_what_was_used(run: Run, pool: None) -> None:
    run("ask", "--name", "paid", "hi")
    told = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    used = told["paid"]["tokens_used"]
    assert used > 0
    assert told["paid"]["tokens_left"] == 100_000 - used
    assert f"{100_000 - used:,} tokens" in rows(run("list").stdout)["paid"]


def test_json_tells_everything(run: Run, pool: None) -> None:
    told = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    local, vectors = told["local"], told["vectors"]
    assert (local["kind"], local["state"], local["context"], local["declared_context"]) == (
        "llm",
        "up",
        2048,
        8192,
    )
    assert (local["slots"], local["tier"], local["tags"]) == (3, "free", ["fast", "coding"])
    assert (told["paid"]["daily_budget_usd"], told["paid"]["usd_left"]) == (0.5, 0.5)
    assert (told["gone"]["state"], told["keyless"]["state"]) == ("down", "blocked")
    assert (vectors["kind"], vectors["dimension"]) == ("embedding", 64)


@pytest.mark.parametrize("columns", [50, 80, 120, 250])
def test_a_terminal_of_any_width_shows_everything(on_terminal: OnTerminal, pool: None, columns: int) -> None:
    code, shown = on_terminal("list", columns=columns)
    assert code == 0
    shown = unstyled(shown)
    lines = shown[shown.index("LLMs") :].splitlines()
    assert max(map(len, lines)) <= columns
    flat = " ".join(shown.split())
    for words in (
        "local",
        "2,048 of 8,192",
        "gpt-x",
        "over budget",
        "Big-30B-Q5_K_M",
        "Embeddings",
        "premium",
    ):
        assert words in flat


def test_colour_is_for_terminals_that_want_it(on_terminal: OnTerminal, pool: None) -> None:
    assert "\x1b[32mup" in on_terminal("list")[1]
    assert "\x1b[32m" not in on_terminal("list", NO_COLOR="1")[1]


def test_an_unreadable_ledger_is_said_and_guessed_nowhere(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    file = write_registry(fake_server().llm_entry("tiny", daily_budget_tokens=10_000))
    (file.parent / "ledger.db").write_text("this is no database, it is a text of some length\n" * 50)
    result = run("list")
    assert result.exit_code == 0
    assert " unknown " in rows(result.stdout)["tiny"]
    assert result.stderr.startswith("maxwell: warning: ")
    assert len(result.stderr.splitlines()) == 1
