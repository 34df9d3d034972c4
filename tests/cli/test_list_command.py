from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable

import pytest
from click.testing import Result
from command_line import unreachable, unstyled

from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]
Start = Callable[..., subprocess.Popen[bytes]]


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


# --- what calls showed


@pytest.fixture
def spoken(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """A server at twice the declared speed, after three calls; one that was never called; an embedding."""
    server = fake_server(tokens_per_sec=200, reply=["word "] * 30)
    write_registry(
        server.llm_entry("busy", capabilities={"speed_tokens_per_sec": 100.0}),
        fake_server().llm_entry("quiet", capabilities={"prefill_tokens_per_sec": 900.0}),
        fake_server(embeddings=True).embedding_entry("vectors"),
    )
    for _ in range(3):
        assert run("ask", "--name", "busy", "Tell me something.").exit_code == 0
    return server


def cells(text: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split() for line in text.splitlines()}


def test_measured_speed_stands_beside_the_declared_one(run: Run, spoken: FakeServer) -> None:
    shown = run("list").stdout
    by_name = rows(shown)
    measured = by_name["busy"].split()[4:6]
    assert by_name["busy"].split()[3] == "100"
    assert float(measured[0]) == pytest.approx(200, rel=0.2)
    assert measured[1] == "!"
    assert "declares 100 tokens a second, " in by_name["busy"]
    assert by_name["quiet"].split()[3:5] == ["100", "-"]


def test_speeds_show_all_that_was_learned(run: Run, spoken: FakeServer) -> None:
    result = run("list", "--speeds")
    assert result.exit_code == 0
    found = cells(result.stdout)
    assert list(found) == ["NAME", "busy", "quiet"]
    busy, quiet = found["busy"], found["quiet"]
    assert float(busy[1]) == pytest.approx(200, rel=0.2)
    assert busy[2:4] == ["!", "100"]
    assert busy[-2:] == ["4", "3"]  # slots and calls
    assert quiet[1:] == ["-", "100", "-", "900", "-", "-", "-", "-", "4", "0"]


def test_json_tells_what_was_measured(run: Run, spoken: FakeServer) -> None:
    told = {entry["name"]: entry for entry in json.loads(run("list", "--json").stdout)}
    measured = told["busy"]["measured"]
    assert measured["speed_tokens_per_sec"] == pytest.approx(200, rel=0.2)
    assert 20 < measured["reply_tokens"] < 512
    assert measured["observations"]["speed"] == 3
    assert (measured["load_seconds"], measured["wake_seconds"]) == (None, None)
    assert told["quiet"]["measured"] is None
    assert told["quiet"]["prefill_tokens_per_sec"] == 900.0
    assert "measured" not in told["vectors"]


@pytest.mark.parametrize("columns", [60, 80, 100, 160])
def test_a_terminal_of_any_width_shows_the_speeds(
    on_terminal: OnTerminal, spoken: FakeServer, columns: int
) -> None:
    code, shown = on_terminal("list", "--speeds", columns=columns)
    assert code == 0
    shown = unstyled(shown)
    lines = shown[shown.index("NAME") :].splitlines()
    assert "WRITES/S" in lines[0]
    assert "FIRST TOKEN: seconds" in " ".join(shown.split())
    assert max(map(len, lines)) <= columns


def test_calls_under_way_are_counted(run: Run, spoken: FakeServer, start: Start) -> None:
    def in_flight() -> dict[str, int]:
        told = json.loads(run("list", "--json").stdout)
        return {entry["name"]: entry["in_flight"] for entry in told if entry["kind"] == "llm"}

    assert in_flight() == {"busy": 0, "quiet": 0}
    spoken.fail(faults.SlowFirstByte(60.0), times=None, path="/v1/chat")
    asking = start("ask", "--name", "busy", "Take your time.")
    try:
        spoken.wait_requests(len(spoken.requests) + 1, timeout=30)
        deadline = time.monotonic() + 10
        while in_flight() != {"busy": 1, "quiet": 0}:
            assert time.monotonic() < deadline
        assert rows(run("list").stdout)["busy"].split()[9:13].count("1") == 1
    finally:
        asking.kill()
        asking.communicate()
