from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result
from command_line import one_line, unreachable, unstyled

from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture
def servers(fake_server: FakeServers, write_registry: WriteRegistry) -> list[FakeServer]:
    """A cheap slow LLM, a paid fast one, and one that is down."""
    cheap, fast = fake_server(), fake_server()
    write_registry(
        cheap.llm_entry("cheap", capabilities={"speed_tokens_per_sec": 100}),
        fast.llm_entry("fast", cost_per_1k_tokens=0.01, capabilities={"speed_tokens_per_sec": 400}),
        unreachable("gone"),
    )
    return [cheap, fast]


def told(result: Result) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(result.stdout)
    return value


def test_shows_every_candidate_with_every_term(run: Run, servers: list[FakeServer]) -> None:
    result = run("explain", "Why is the sky blue?")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    heading = "RANK LLM SCORE COST (MILLS) SECONDS BONUS WAIT READ WRITE TOKENS CONTEXT SPEED"
    assert " ".join(lines[0].split()) == heading
    assert lines[1].split()[:2] == ["1", "cheap"]
    assert lines[2].split()[:2] == ["2", "fast"]
    assert "NOT ELIGIBLE" in lines[4]
    assert lines[5].startswith("gone")
    assert "Connection refused" in lines[5]
    assert lines[7].startswith("cheap is chosen over fast: ")
    assert "mills cheaper" in lines[7]
    assert "s slower" in lines[7]


def test_the_terms_shown_make_up_the_score(run: Run, servers: list[FakeServer]) -> None:
    for scored in told(run("explain", "--json", "-w", "2.5", "hello"))["ranked"]:
        expected = -scored["mills"] - 2.5 * scored["seconds"] + scored["utilization_bonus"]
        assert scored["score"] == pytest.approx(expected)
        parts = scored["wait_seconds"] + scored["prompt_seconds"] + scored["completion_seconds"]
        assert parts == pytest.approx(scored["seconds"])


def test_the_choice_does_flip_at_the_weight_it_names(run: Run, servers: list[FakeServer]) -> None:
    first = told(run("explain", "--json", "hello"))
    [flip] = first["flips"]
    assert (first["chosen"], flip["name"]) == ("cheap", "fast")
    below, above = (str(flip["weight"] + by) for by in (-0.001, 0.001))
    assert told(run("explain", "--json", "-w", below, "hello"))["chosen"] == "cheap"
    assert told(run("explain", "--json", "-w", above, "hello"))["chosen"] == "fast"
    assert (
        f"The choice flips to fast above weight {flip['weight']:.3g} (now 1)."
        in run("explain", "hello").stdout
    )
    assert "flips to cheap below weight" in run("explain", "-w", "10", "hello").stdout


def test_calls_nobody(run: Run, servers: list[FakeServer]) -> None:
    for args in (["hello"], ["--json", "hello"], []):
        run("explain", *args)
    assert {r.path for s in servers for r in s.requests} <= {"/health", "/v1/models", "/props", "/tokenize"}
    assert all(s.usage.total_tokens == 0 for s in servers)


def test_without_a_prompt_the_fastest_is_chosen(run: Run, servers: list[FakeServer]) -> None:
    result = run("explain")
    assert "fast is chosen: it is the fastest." in result.stdout
    assert told(run("explain", "--json"))["by"] == "speed"


def test_no_candidate_is_called_down_because_nobody_asked_it(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(*(fake_server().llm_entry(f"n{i}") for i in range(6)))
    assert len(told(run("explain", "--json", "hello"))["ranked"]) == 6


def test_a_name_is_checked_against_requirements(run: Run, servers: list[FakeServer]) -> None:
    assert "fast is the one you named" in run("explain", "--name", "fast", "hello").stdout
    refused = run("explain", "--name", "fast", "--vision", "hello")
    assert refused.exit_code == 4
    assert "vision is required" in refused.stdout
    assert "cheap" not in refused.stdout


def test_nothing_eligible_shows_reasons_and_ways_out(run: Run, servers: list[FakeServer]) -> None:
    result = run("explain", "--tag", "coding", "hello")
    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["NOT", "ELIGIBLE", "REASON"]
    assert "lacks tag coding" in lines[1]
    assert "Nothing can be chosen. Ways out:" in lines
    assert any(line.startswith("  - ") and "cheap" in line for line in lines)
    as_json = run("explain", "--json", "--tag", "coding", "hello")
    assert as_json.exit_code == 4
    assert told(as_json)["chosen"] is None
    assert told(as_json)["ways_out"]
    assert {no["reason"] for no in told(as_json)["rejected"]} == {"tags"}


def test_too_long_a_prompt_says_how_much_to_trim(run: Run, servers: list[FakeServer]) -> None:
    result = run("explain", "-", input="word " * 2_000_000)
    assert result.exit_code == 4
    assert "context is 4,096" in result.stdout
    assert "tokens to fit cheap" in result.stdout


def test_a_budget_that_is_used_up_is_a_reason(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server()
    write_registry(server.llm_entry("spent", daily_budget_tokens=0), server.llm_entry("other"))
    result = run("explain", "hello")
    assert result.exit_code == 0
    assert "daily budget has 0 tokens left; it resets in" in result.stdout
    assert "other is chosen: nothing else is eligible." in result.stdout


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["-w", "11", "hi"], 2, "time_cost_weight must be a number from 0 to 10"),
        ([""], 2, "the prompt is empty"),
        (["--name", "chaep", "hi"], 4, "no LLM 'chaep'; did you mean cheap?"),
    ],
)
def test_wrong_usage_is_one_line(
    run: Run, servers: list[FakeServer], args: list[str], code: int, words: str
) -> None:
    result = run("explain", *args)
    assert result.exit_code == code
    assert words in one_line(result)


@pytest.mark.parametrize("columns", [60, 80, 140])
def test_a_terminal_of_any_width_shows_everything(
    on_terminal: OnTerminal, servers: list[FakeServer], columns: int
) -> None:
    code, shown = on_terminal("explain", "hello", columns=columns)
    assert code == 0
    shown = unstyled(shown)
    lines = shown[shown.index("RANK") :].splitlines()
    assert max(map(len, lines)) <= columns
    flat = " ".join(shown.split())
    for words in ("cheap is chosen over fast", "flips to fast above", "400 tok/s", "+ 512", "score = -cost"):
        assert words in flat
