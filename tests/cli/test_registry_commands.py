from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from maxwell.cli.registry_commands import registry, trust_command
from maxwell.registry import load, schema
from maxwell.registry.locate import find

DATA = Path(__file__).parents[1] / "data"
SPEC = (DATA / "spec_registry.json").read_text(encoding="utf-8")

PAID: dict[str, Any] = {
    "name": "groq",
    "api_base": "https://api.groq.com/openai/v1",
    "model": "m",
    "dimension": 8,
    "max_context": 100,
    "api_key_env": "GROQ_API_KEY",
}


@click.group()
def main() -> None:
    pass


main.add_command(registry)
main.add_command(trust_command)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    (home / ".maxwell").mkdir(parents=True)
    (home / "work").mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("MAXWELL_HOME", "MAXWELL_REGISTRY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GROQ_API_KEY", "canary")
    monkeypatch.chdir(home / "work")
    return home


@pytest.fixture
def own(home: Path) -> Path:
    path = home / ".maxwell" / "lm_registry.json"
    path.write_text(SPEC)
    return path


@pytest.fixture
def project(home: Path) -> Path:
    path = home / "work" / ".maxwell" / "lm_registry.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"embeddings": [PAID, PAID | {"name": "two"}]}))
    return path


def run(*args: str) -> Result:
    result = CliRunner().invoke(main, args)
    assert "canary" not in result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_schema_is_printed_as_json() -> None:
    result = run("registry", "schema")
    assert result.exit_code == 0
    assert json.loads(result.stdout) == schema()


def test_check_counts_what_is_there(own: Path) -> None:
    result = run("registry", "check")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "~/.maxwell/lm_registry.json: 2 LLMs, 1 embedding, no problems\n"


@pytest.mark.parametrize("how", [["bad.json"], ["--registry", "bad.json"]])
def test_check_prints_every_problem(own: Path, how: list[str]) -> None:
    Path("bad.json").write_text(SPEC.replace('"tier"', '"teir"').replace("2560", "0"))
    result = run("registry", "check", *how)
    assert (result.exit_code, result.stdout) == (3, "")
    lines = result.stderr.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{Path('bad.json').resolve()}:") for line in lines)
    assert 'llms[0].teir: unknown key; did you mean "tier"?' in lines[0]
    assert "embeddings[0].dimension: is 0" in lines[2]


def test_check_without_any_registry_ends_with_its_own_code(home: Path) -> None:
    result = run("registry", "check")
    assert result.exit_code == 3
    assert str(home / ".maxwell" / "lm_registry.json") in result.stderr


def test_check_takes_one_path_only(own: Path) -> None:
    assert run("registry", "check", str(own), "--registry", str(own)).exit_code == 2


@pytest.mark.parametrize(
    ("change", "warning"),
    [
        ({}, "has no price"),
        ({"cost_per_1k_tokens": 0.1}, None),
        ({"api_base": "https://localhost"}, None),
        ({"api_base": "https://box.local"}, None),
        ({"api_base": "https://box"}, None),
        ({"api_base": "https://192.168.1.5"}, None),
        ({"api_base": "https://100.116.54.128"}, None),
        ({"api_base": "https://[::1]:8080"}, None),
        ({"api_base": "https://8.8.8.8"}, "has no price"),
        ({"api_base": "http://api.groq.com"}, "unencrypted"),
        ({"api_base": "http://api.openai.com"}, "no key is sent"),
        ({"api_base": "http://10.0.0.1"}, None),
        ({"cost_per_1k_tokens": 5}, "price of a million"),
    ],
)
def test_check_warns_of_what_is_probably_not_meant(project: Path, change: Any, warning: str | None) -> None:
    project.write_text(json.dumps({"embeddings": [PAID | change]}))
    result = run("registry", "check")
    assert result.exit_code == 0
    if warning is None:
        assert result.stderr == ""
    else:
        assert warning in result.stderr
        assert "1 embedding, 1 warning" in result.stdout


def test_check_warns_of_a_free_tier_with_a_price(own: Path) -> None:
    own.write_text(SPEC.replace('"cost_per_1k_tokens": 0.0', '"cost_per_1k_tokens": 0.1', 1))
    assert 'has tier "free" and a price' in run("registry", "check").stderr


def test_show_names_the_file_and_its_entries(own: Path) -> None:
    result = run("registry", "show")
    assert result.exit_code == 0
    assert result.stdout.startswith("~/.maxwell/lm_registry.json (your own)\n")
    assert "looked before at ~/work/.maxwell/lm_registry.json: none" in result.stdout
    assert "qwen-vl-4b: http://100.127.86.64:8001, vllm, 4096 tokens of context" in result.stdout
    assert "qwen-embed-4b" in result.stdout


def test_show_says_when_a_project_is_not_trusted(own: Path, project: Path) -> None:
    result = run("registry", "show")
    assert "of this project" in result.stdout
    assert "not trusted" in result.stdout
    assert "maxwell trust" in result.stdout


def test_show_as_json(project: Path) -> None:
    shown = json.loads(run("registry", "show", "--json").stdout)
    assert shown["path"] == str(project)
    assert shown["looked"] == [str(project)]
    assert (shown["project"], shown["trusted"], shown["source"]) == (True, False, "project")
    assert [(e["name"], e["has_key"]) for e in shown["embeddings"]] == [("groq", False), ("two", False)]
    run("trust")
    assert json.loads(run("registry", "show", "--json").stdout)["embeddings"][0]["has_key"] is True


def test_show_of_a_bad_file_ends_with_the_registry_code(own: Path) -> None:
    own.write_text("{}")
    result = run("registry", "show")
    assert (result.exit_code, result.stdout) == (3, "")
    assert "declares no model" in result.stderr


def test_trust_shows_the_hosts_and_records(project: Path) -> None:
    assert not load(find()).trusted
    result = run("trust")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "https://api.groq.com/openai/v1 gets $GROQ_API_KEY (groq, two)",
        "~/work/.maxwell/lm_registry.json: trusted as it is now",
    ]
    assert load(find()).trusted


def test_trust_ends_when_the_file_changes(project: Path) -> None:
    run("trust", str(project))
    project.write_text(project.read_text().replace("api.groq.com", "evil.example"))
    assert not load(find()).trusted


def test_own_registry_needs_no_trust(own: Path, home: Path) -> None:
    assert "needs no trust" in run("trust").stdout
    assert not (home / ".maxwell" / "trusted.json").exists()


def test_trust_says_that_the_record_was_damaged(project: Path, home: Path) -> None:
    (home / ".maxwell" / "trusted.json").write_text("{")
    result = run("trust")
    assert result.exit_code == 0
    assert "damaged" in result.stderr
    assert load(find()).trusted


def test_trust_of_a_bad_or_missing_file_is_refused(project: Path) -> None:
    assert run("trust", "nowhere.json").exit_code == 3
    project.write_text("{}")
    assert run("trust").exit_code == 3
