from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import one_line, unreachable, unstyled

from maxwell.lm_pool import AsyncLLMPool, LLMPool
from maxwell.testing import FakeServer, faults
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
    heading = (
        "RANK LLM SCORE COST (MILLS) SECONDS BONUS WAIT OVERHEAD READ WRITE OTHERS TOKENS CONTEXT SPEED NOW"
    )
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
        assert sum_of_parts(scored) == pytest.approx(scored["seconds"])


def sum_of_parts(scored: dict[str, Any]) -> float:
    parts = ("wait", "ready_in", "overhead", "prompt", "completion")
    at_its_pace: float = scored["slowdown"] * sum(scored[f"{part}_seconds"] for part in parts)
    return at_its_pace + float(scored["occupancy_seconds"])


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


@pytest.fixture
def contended(fake_server: FakeServers, write_registry: WriteRegistry) -> Iterator[None]:
    """A free LLM that would be chosen but has its only slot taken, one that loads, and a paid one."""
    busy, loading, paid = fake_server(slots=1), fake_server(), fake_server()
    write_registry(
        busy.llm_entry("box", capabilities={"speed_tokens_per_sec": 60}),
        loading.llm_entry("other", capabilities={"speed_tokens_per_sec": 50}),
        paid.llm_entry("paid", cost_per_1k_tokens=0.012, capabilities={"speed_tokens_per_sec": 120}),
    )
    loading.set_state("loading")
    busy.fail(faults.Silence(after=1), path="/v1/chat/completions")
    with LLMPool.from_registry() as pool, pool.get_lm("box").stream("hello") as stream:
        assert next(iter(stream))
        yield


def test_a_busy_one_and_a_loading_one_show_what_they_have_to_be_waited_for(run: Run, contended: None) -> None:
    shown = run("explain", "hello")
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    standing = {line.split()[1]: line for line in lines[1:4]}
    assert list(standing) == ["paid", "box", "other"]
    assert standing["paid"].endswith(" -")
    assert re.search(r" busy \(1 of 1 slot; about \d+ s\)$", standing["box"])
    assert re.search(r" loading \(ready in about \d+ s\)$", standing["other"])
    assert lines[5].startswith("paid is chosen over box: ")
    assert re.fullmatch(
        r"box is busy \(1 of 1 slot; about \d+ s\): paid saves [\d.]+ s \([\d.]+ s of them to other calls\), "
        r"worth [\d.]+ mills at weight 1, and costs [\d.]+ mills: spending\.",
        lines[6],
    )
    assert lines[7].startswith("The choice flips to box below weight 0.")
    assert ": waiting." in run("explain", "-w", "0.01", "hello").stdout


def test_the_terms_of_the_moment_are_told_to_programs(run: Run, contended: None) -> None:
    value = told(run("explain", "--json", "hello"))
    paid, box, other = value["ranked"]
    assert value["wait_or_spend"].startswith("box is busy (1 of 1 slot; ")
    assert (box["in_flight"], box["slots"], box["state"], box["failing"]) == (1.0, 1, "up", False)
    assert box["wait_seconds"] > 0
    assert box["occupancy_seconds"] > 0
    assert (other["state"], other["ready_in_seconds"] > 0) == ("loading", True)
    assert (paid["wait_seconds"], paid["occupancy_seconds"], paid["slowdown"]) == (0.0, 0.0, 1.0)
    for scored in value["ranked"]:
        assert sum_of_parts(scored) == pytest.approx(scored["seconds"])
    [flip] = value["flips"]
    weight = (paid["mills"] + box["utilization_bonus"] - paid["utilization_bonus"]) / (
        box["seconds"] - paid["seconds"]
    )
    assert (flip["name"], flip["weight"]) == ("box", pytest.approx(weight))


def test_by_speed_the_standing_is_shown_too(run: Run, contended: None) -> None:
    lines = run("explain").stdout.splitlines()
    assert lines[0].split() == ["RANK", "LLM", "SPEED", "CONTEXT", "NOW"]
    assert [line.split()[1] for line in lines[1:4]] == ["paid", "box", "other"]
    assert "busy (1 of 1 slot; " in lines[2]


def test_an_idle_pool_is_shown_without_the_terms_of_busy_ones(
    on_terminal: OnTerminal, servers: list[FakeServer]
) -> None:
    _, shown = on_terminal("explain", "hello", columns=200)
    shown = unstyled(shown)
    heading = next(line for line in shown.splitlines() if "RANK" in line).split()
    assert heading[:2] == ["RANK", "LLM"]
    assert not {"WAIT", "OVERHEAD", "OTHERS", "NOW"} & set(heading)
    assert "slots" not in shown


def test_a_likely_reply_is_shown_beside_what_must_have_room(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(reply="Four tokens of reply.").llm_entry("brief"))
    with LLMPool.from_registry() as pool:
        for _ in range(3):
            pool.get_lm("brief").generate("hello")
        expected = pool.explain(prompt="hello").ranked[0]
    assert expected.reply_tokens < expected.completion_tokens == 512
    assert f"+ ~{expected.reply_tokens:,.0f} of 512 " in run("explain", "hello").stdout
    assert told(run("explain", "--json", "hello"))["ranked"][0]["reply_tokens"] == expected.reply_tokens


def test_calls_nobody(run: Run, servers: list[FakeServer]) -> None:
    for args in (["hello"], ["--json", "hello"], []):
        run("explain", *args)
    asked = {r.path for s in servers for r in s.requests}
    assert asked <= {"/health", "/v1/models", "/props", "/slots", "/tokenize"}
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


@pytest.fixture
def family(fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    """A vLLM that sees and a faster llama.cpp that does not."""
    fast, seeing = fake_server("llamacpp"), fake_server("vllm", vision=True)
    write_registry(
        fast.llm_entry("fast", capabilities={"speed_tokens_per_sec": 400}),
        seeing.llm_entry("seeing", capabilities={"speed_tokens_per_sec": 100, "vision": True}),
    )


def test_those_that_cannot_hold_a_reply_to_it_are_not_eligible_and_why_is_told(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry, tmp_path: Path
) -> None:
    paid, local = fake_server("openai"), fake_server("llamacpp")
    write_registry(paid.llm_entry("paid"), local.llm_entry("local"))
    grammar = tmp_path / "g.gbnf"
    grammar.write_text('root ::= "yes" | "no"')
    for words in ([], ["Is it?"]):
        told_so = told(run("explain", "--json", "--grammar", str(grammar), *words))
        assert told_so["chosen"] == "local"
        (no,) = told_so["rejected"]
        assert (no["name"], no["reason"]) == ("paid", "cannot")
        assert "grammar" in no["detail"]


def test_a_picture_needs_one_that_sees(run: Run, family: None, tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG\r\n\x1a\n")
    assert told(run("explain", "--json"))["chosen"] == "fast"
    seen = told(run("explain", "--json", "--image", str(picture), "What is it?"))
    assert seen["chosen"] == "seeing"
    bare = told(run("explain", "--json", "--name", "seeing", "What is it?"))
    assert seen["ranked"][0]["prompt_tokens"] > bare["ranked"][0]["prompt_tokens"] + 100


def test_what_is_wrong_with_a_constraint_is_told(run: Run, family: None) -> None:
    result = run("explain", "--regex", "[a-", "Hi")
    assert result.exit_code == 2
    assert "character 1: a [ without its ]" in one_line(result)


def test_the_library_explains_the_same_in_coroutines(family: None) -> None:
    async def chosen() -> str | None:
        pool = AsyncLLMPool.from_registry()
        try:
            picture = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
            decision = await pool.explain(options={"images": [picture], "max_tokens": 20})
        finally:
            await pool.close()
        assert decision.request.needs.max_completion == 20
        return None if decision.chosen is None else decision.chosen.spec.name

    assert asyncio.run(chosen()) == "seeing"
    with LLMPool.from_registry() as pool, pytest.raises(TypeError, match="unknown option 'choice'"):
        pool.explain(options={"choice": ["a"]})  # type: ignore[arg-type] # on purpose


def test_no_way_out_is_named_that_cannot_take_the_picture(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server("llamacpp").llm_entry("blind"))
    result = run("explain", "--json", "--image", "https://example.org/a.png", "What is it?")
    assert result.exit_code == 4
    assert told(result)["ways_out"] == []
