from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import unreachable, unstyled

from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]


def findings(result: Result) -> dict[str, tuple[str, str]]:
    """(verdict, rest of the line) of each entry."""
    table = result.stdout.split("\n\n")[0].splitlines()[1:]
    return {line.split()[1]: (line.split()[0], " ".join(line.split()[3:])) for line in table}


def test_all_well_is_0(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    write_registry(
        fake_server(slots=2).llm_entry("chat"), fake_server(embeddings=True).embedding_entry("vectors")
    )
    result = run("check")
    assert result.exit_code == 0, result.output
    verdict, words = findings(result)["chat"]
    assert verdict == "ok"
    assert "4,096 tokens a request, 2 slots, answered in" in words
    assert findings(result)["vectors"][0] == "ok"
    assert result.stdout.splitlines()[-1].endswith("lm_registry.json: 2 entries, 0 faults, 0 warnings")


def test_a_server_that_cannot_be_used_is_1(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    other = fake_server("vllm", model="other")
    locked = fake_server("openai", api_key="the right one")
    write_registry(
        fake_server().llm_entry("good"),
        unreachable("gone"),
        other.llm_entry("renamed", model="wanted"),
        unreachable("keyless", api_key_env="SOME_API_KEY"),
        locked.llm_entry("locked"),
    )
    result = run("check")
    assert result.exit_code == 1
    found = findings(result)
    assert {name: verdict for name, (verdict, _) in found.items()} == {
        "good": "ok",
        "gone": "fault",
        "renamed": "fault",
        "keyless": "fault",
        "locked": "fault",
    }
    assert "Connection refused" in found["gone"][1]
    assert "start the server or correct api_base" in found["gone"][1]
    assert "does not serve wanted; it serves other" in found["renamed"][1]
    assert "SOME_API_KEY is not set" in found["keyless"][1]
    assert "check its key (api_key_env)" in found["locked"][1]
    assert "5 entries, 4 faults, 0 warnings" in result.stdout


def test_a_declaration_the_server_contradicts_is_a_warning(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(
        fake_server(context=2048).llm_entry("chat", capabilities={"max_context": 8192}),
        fake_server(embeddings=True, dimension=64).embedding_entry("vectors", dimension=65),
    )
    result = run("check")
    assert result.exit_code == 0
    verdict, words = findings(result)["chat"]
    assert (verdict, "8192" in words, "2048" in words) == ("warning", True, True)


def test_loading_is_a_warning(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    server = fake_server()
    server.set_state("loading")
    write_registry(server.llm_entry("chat"))
    result = run("check")
    assert result.exit_code == 0
    assert findings(result)["chat"][0] == "warning"
    assert "is loading its model" in findings(result)["chat"][1]


def test_a_spent_budget_is_a_warning(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server().llm_entry("chat", daily_budget_tokens=0))
    result = run("check")
    assert result.exit_code == 0
    assert "today's budget is used up; it resets in" in findings(result)["chat"][1]


def test_a_paid_looking_host_without_price_is_said(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable("cloud", api_base="https://api.example.com", api_key_env="SOME_API_KEY"))
    words = findings(run("check"))["cloud"][1]
    assert "has no price, so calls to api.example.com count as free" in words


def test_asks_now_whatever_was_known(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    server = fake_server()
    write_registry(server.llm_entry("chat"))
    assert run("check").exit_code == 0
    server.stop()
    result = run("check")
    assert result.exit_code == 1
    assert findings(result)["chat"][0] == "fault"


def test_generates_nothing(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    server = fake_server("openai")
    server.fail(faults.ServerError(500), times=None)
    write_registry(server.llm_entry("chat"))
    run("check")
    assert server.requests
    assert server.usage.total_tokens == 0
    assert not server.requests_to("/v1/chat/completions")


def test_only_deep_makes_a_vector(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    server = fake_server(embeddings=True)
    write_registry(server.embedding_entry("vectors"))
    assert run("check").exit_code == 0
    assert not server.requests_to("/v1/embeddings")
    assert run("check", "--deep").exit_code == 0
    assert len(server.requests_to("/v1/embeddings")) == 1


def test_json_tells_everything(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    file = write_registry(fake_server().llm_entry("chat"), unreachable("gone"))
    result = run("check", "--json")
    told: dict[str, Any] = json.loads(result.stdout)
    assert result.exit_code == 1
    assert (told["ok"], told["problems"], told["registry"]) == (False, [], str(file))
    chat, gone = told["entries"]
    assert (chat["name"], chat["verdict"], chat["state"], chat["kind"]) == ("chat", "ok", "up", "llm")
    assert (gone["verdict"], gone["state"]) == ("fault", "down")
    assert gone["findings"]


def test_every_problem_of_the_file_has_its_line(run: Run, write_registry: WriteRegistry) -> None:
    file = write_registry(
        unreachable("a", tier="gold", daily_budget_token=5), unreachable("a", default_temperature=3)
    )
    result = run("check")
    assert result.exit_code == 3
    lines = result.stderr.splitlines()
    assert len(lines) == 4, result.stderr
    assert all(line.startswith(f"maxwell: error: {file}:") for line in lines)
    assert "did you mean" in result.stderr
    as_json = run("check", "--json")
    assert as_json.exit_code == 3
    told = json.loads(as_json.stdout)
    assert told["ok"] is False
    assert len(told["problems"]) == 4


@pytest.mark.parametrize("columns", [60, 80, 160])
def test_a_terminal_of_any_width_shows_everything(
    on_terminal: OnTerminal, write_registry: WriteRegistry, columns: int
) -> None:
    write_registry(unreachable("gone"))
    code, shown = on_terminal("check", columns=columns)
    assert code == 1
    shown = unstyled(shown)
    lines = shown[shown.index("VERDICT") :].splitlines()
    assert max(len(line) for line in lines if "lm_registry.json" not in line) <= columns
    assert "start the server or correct api_base" in " ".join(shown.split())


def test_registry_option_names_the_file(run: Run, fake_server: FakeServers, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"llms": [fake_server().llm_entry("chat")], "embeddings": []}))
    assert run("check", "--registry", str(file)).exit_code == 0
