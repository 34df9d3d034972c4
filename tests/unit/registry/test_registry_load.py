from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maxwell.errors import Problem, RegistryError
from maxwell.registry import Located, decode, load, trust

DATA = Path(__file__).parents[2] / "data"
SPEC = (DATA / "spec_registry.json").read_bytes()


def valid() -> Any:
    return {
        "llms": [
            {
                "name": "a",
                "api_base": "http://localhost:8080",
                "model": "/models/a.gguf",
                "backend": "llamacpp",
                "capabilities": {"max_tokens": 100, "max_context": 1000, "speed_tokens_per_sec": 25},
                "default_temperature": 0.3,
                "tags": ["fast"],
            }
        ],
        "embeddings": [
            {"name": "e", "api_base": "https://h/v1", "model": "m", "dimension": 8, "max_context": 512}
        ],
    }


def problems(data: bytes | str | Any) -> list[Problem]:
    if isinstance(data, str):
        data = data.encode()
    elif not isinstance(data, bytes):
        data = json.dumps(data).encode()
    with pytest.raises(RegistryError) as caught:
        decode(data, "f.json")
    assert caught.value.file == "f.json"
    assert caught.value.problems
    return caught.value.problems


def test_specified_example_loads_unchanged() -> None:
    decoded = decode(SPEC, "f.json")
    assert decoded.llms[0].model == "C:\\dev\\Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"
    assert [spec.name for spec in decoded.llms] == ["qwen-coder-30b", "qwen-vl-4b"]
    assert decoded.llms[0].capabilities.speed_tokens_per_sec == 25
    assert decoded.embeddings[0].specialized_for == ("code", "natural")
    assert decoded.llms[1].daily_budget_tokens is None


@pytest.mark.parametrize(
    "model", ["C:\\models\\a b.gguf", "/m/a.gguf", "org/Model:tag", "\\\\box\\share\\m", "模型"]
)
def test_model_names_survive(model: str) -> None:
    value = valid()
    value["llms"][0]["model"] = model
    assert decode(json.dumps(value).encode(), "f").llms[0].model == model


@pytest.mark.parametrize(
    "name", ["gpt-4o", "a/b", "Qwen 3 (local)", "模型", "é", "name:with@signs#1", "-", "\U0001f999"]
)
def test_names_hold_anything_printable(name: str) -> None:
    value = valid()
    value["llms"][0]["name"] = name
    assert decode(json.dumps(value).encode(), "f").llms[0].name == name


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:8000",
        "http://100.116.54.128:11434",
        "https://api.openai.com/v1",
        "https://api.openai.com/v1/",
        "https://host.example/prefix/llm/v1",
        "https://generativelanguage.googleapis.com/v1beta/openai/",
        "http://[::1]:8080",
        "http://[fe80::1%25eth0]:8080/v1",
        "HTTP://box_1.local",
        "http://models",
        "https://host.example/models",
    ],
)
def test_base_urls_of_every_kind_are_accepted(url: str) -> None:
    value = valid()
    value["llms"][0]["api_base"] = url
    assert decode(json.dumps(value).encode(), "f").llms[0].api_base == url


@pytest.mark.parametrize("zone", ["Europe/Berlin", "UTC", "America/Argentina/Buenos_Aires"])
def test_time_zones_are_accepted(zone: str) -> None:
    assert decode(json.dumps(valid() | {"budget_timezone": zone}).encode(), "f").budget_timezone == zone


def test_byte_order_mark_is_accepted() -> None:
    assert decode(b"\xef\xbb\xbf" + SPEC, "f") == decode(SPEC, "f")
    assert problems(b"\xef\xbb\xbf{ 1}")[0].column == 3


def test_own_keys_are_accepted_anywhere() -> None:
    value = valid()
    plain = decode(json.dumps(value).encode(), "f")
    for place in (value, value["llms"][0], value["llms"][0]["capabilities"], value["embeddings"][0]):
        place["_note"] = {"max_contxt": [1, {"name": "a"}]}
        place["x-owner"] = 10**50
    value["llms"][0]["_schema_version"] = "mine"
    assert decode(json.dumps(value).encode(), "f") == plain


def test_what_is_under_own_keys_is_the_users_business_as_long_as_it_is_json() -> None:
    text = json.dumps(valid())[:-1] + ', "_x": {"a": 1, "a": 1e999, "b": "\\ud800"}}'
    assert decode(text.encode(), "f").llms
    assert problems(text.replace("1e999", "NaN"))[0].path == "_x.a"


def test_one_empty_list_is_no_problem() -> None:
    for kind in ("llms", "embeddings"):
        assert decode(json.dumps(valid() | {kind: []}).encode(), "f")
        value = valid()
        del value[kind]
        assert decode(json.dumps(value).encode(), "f")


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        (b"", (1, 1), "empty"),
        (b'{\n "llms": [],\n}', (2, 12), "comma"),
        (b'{"llms": [\n{"model": "C:\\dev"}]}', (2, 14), "written twice"),
        (b'{\n "a\xc3\xa9": "\xff"}', (2, 9), "not UTF-8: byte 0xff at offset 11"),
        ('{"llms": []}'.encode("utf-16"), (1, 1), "UTF-16"),
        (b"[]", (1, 1), "holds a list; a registry is an object"),
        (b'\n "text"', (2, 2), "a registry is an object"),
        (b"null", (1, 1), "a registry is an object"),
        (b"{}", (1, 1), "declares no model"),
        (b'{"llms": [], "embeddings": []}', (1, 1), "declares no model"),
        (b'{"llms": null, "embeddings": []}', (1, 10), "is null; allowed: a list"),
        (b"[" * 200_000, (1, 66), "nested deeper"),
        (b'{"_x": ' + b"[" * 200_000, (1, 72), "nested deeper"),
        (b'{"llms": ' + b"9" * 5000 + b"}", (1, 10), "too large"),
    ],
)
def test_whole_files_that_are_wrong(data: bytes, place: tuple[int, int], message: str) -> None:
    found = problems(data)[0]
    assert message in found.message
    assert (found.line, found.column) == place


def put(*path: str | int) -> Callable[[Any, Any], None]:
    def change(value: Any, new: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = new

    return change


LLM = ("llms", 0)
CAN = ("llms", 0, "capabilities")
EMBEDDING = ("embeddings", 0)

# The place that is changed, what is put there, the path of the problem, what its message says.
CORPUS: list[tuple[tuple[str | int, ...], Any, str, str]] = [
    # keys
    ((*CAN, "max_contxt"), 1, "llms[0].capabilities.max_contxt", 'did you mean "max_context"?'),
    ((*LLM, "API_BASE"), 1, "llms[0].API_BASE", 'did you mean "api_base"?'),
    ((*LLM, "daily-budget-tokens"), 1, "llms[0].daily-budget-tokens", 'did you mean "daily_budget_tokens"?'),
    ((*LLM, "base_url"), "x", "llms[0].base_url", 'did you mean "api_base"?'),
    ((*LLM, "max_context"), 1, "llms[0].max_context", '"max_context" belongs in the entry\'s "capabilities"'),
    ((*LLM, "n_ctx"), 1, "llms[0].n_ctx", '"max_context" belongs in the entry\'s "capabilities"'),
    ((*CAN, "tags"), [], "llms[0].capabilities.tags", "belongs in an entry of"),
    ((*CAN, "budget_timezone"), "UTC", "llms[0].capabilities.budget_timezone", "belongs in the top level"),
    ((*LLM, "dimension"), 1, "llms[0].dimension", 'belongs in an entry of "embeddings"'),
    ((*EMBEDDING, "tier"), "free", "embeddings[0].tier", 'belongs in an entry of "llms"'),
    (("models",), [], "models", 'did you mean "llms"?'),
    (("schema_version",), "1.0", "schema_version", 'did you mean "_schema_version"?'),
    ((*LLM, "zzz"), 1, "llms[0].zzz", "allowed here: name, api_base"),
    ((*LLM, "api_key"), "sk-canary", "llms[0].api_key", "api_key_env"),
    ((*LLM, "a b\n"), 1, 'llms[0]["a b\\u000a"]', "unknown key"),
    # types
    (
        (*CAN, "max_tokens"),
        "100",
        "llms[0].capabilities.max_tokens",
        'is "100"; allowed: a whole number, 1 or more',
    ),
    ((*CAN, "max_tokens"), "100", "llms[0].capabilities.max_tokens", "without quotes"),
    ((*CAN, "max_tokens"), 100.0, "llms[0].capabilities.max_tokens", "without the decimal point"),
    ((*CAN, "max_tokens"), True, "llms[0].capabilities.max_tokens", "is true; allowed: a whole number"),
    ((*CAN, "max_tokens"), None, "llms[0].capabilities.max_tokens", "is null; allowed: a whole number"),
    ((*CAN, "vision"), "true", "llms[0].capabilities.vision", "true or false; write it without quotes"),
    ((*CAN, "vision"), 1, "llms[0].capabilities.vision", "is 1; allowed: true or false"),
    (
        (*CAN, "speed_tokens_per_sec"),
        "fast",
        "llms[0].capabilities.speed_tokens_per_sec",
        'is "fast"; allowed: a number',
    ),
    ((*LLM, "capabilities"), [], "llms[0].capabilities", "is a list; allowed: an object"),
    ((*LLM, "tags"), "fast", "llms[0].tags", "square brackets"),
    ((*LLM, "tags"), ["a", 5], "llms[0].tags[1]", "is 5; allowed: text"),
    ((*LLM, "name"), 5, "llms[0].name", "is 5; allowed: text"),
    ((*LLM, "default_temperature"), None, "llms[0].default_temperature", "is null"),
    ((*LLM, "daily_budget_tokens"), 1.5, "llms[0].daily_budget_tokens", "a whole number, 0 or more, or null"),
    (("llms",), {"a": {}}, "llms", "is an object; allowed: a list"),
    (("llms", 0), "a", "llms[0]", 'is "a"; allowed: an object'),
    (("_schema_version",), 1.0, "_schema_version", 'allowed: "1.0"'),
    (("_schema_version",), "2.0", "_schema_version", 'is "2.0"; allowed: "1.0"'),
    (("$schema",), 5, "$schema", "allowed: text"),
    # ranges
    (
        (*CAN, "max_context"),
        0,
        "llms[0].capabilities.max_context",
        "is 0; allowed: a whole number, 1 or more",
    ),
    ((*CAN, "speed_tokens_per_sec"), 0, "llms[0].capabilities.speed_tokens_per_sec", "more than 0"),
    ((*CAN, "slots"), 0, "llms[0].capabilities.slots", "1 or more, or null"),
    (
        (*LLM, "default_temperature"),
        1.5,
        "llms[0].default_temperature",
        "is 1.5; allowed: a number from 0 to 1",
    ),
    ((*LLM, "default_temperature"), -0.1, "llms[0].default_temperature", "from 0 to 1"),
    (
        (*LLM, "cost_per_1k_tokens"),
        -0.01,
        "llms[0].cost_per_1k_tokens",
        "is -0.01; allowed: a number, 0 or more",
    ),
    ((*LLM, "cost_per_1k_prompt_tokens"), -1, "llms[0].cost_per_1k_prompt_tokens", "0 or more, or null"),
    ((*LLM, "cost_per_1k_tokens"), float("nan"), "llms[0].cost_per_1k_tokens", "NaN"),
    ((*LLM, "cost_per_1k_tokens"), float("inf"), "llms[0].cost_per_1k_tokens", "Infinity"),
    ((*LLM, "cost_per_1k_tokens"), 10**400, "llms[0].cost_per_1k_tokens", "too large"),
    ((*LLM, "daily_budget_tokens"), -1, "llms[0].daily_budget_tokens", "0 or more"),
    ((*LLM, "daily_budget_tokens"), 10**30, "llms[0].daily_budget_tokens", "too large"),
    ((*CAN, "max_context"), 2**53 + 1, "llms[0].capabilities.max_context", "too large"),
    ((*LLM, "timeout_seconds"), 0, "llms[0].timeout_seconds", "more than 0"),
    ((*EMBEDDING, "dimension"), 0, "embeddings[0].dimension", "1 or more"),
    # words
    ((*LLM, "backend"), "llama.cpp", "llms[0].backend", 'did you mean "llamacpp"?'),
    ((*LLM, "backend"), "ollama", "llms[0].backend", 'allowed: "llamacpp", "openai", "vllm"'),
    ((*LLM, "tier"), "Free", "llms[0].tier", 'did you mean "free"?'),
    ((*LLM, "tier"), None, "llms[0].tier", "is null"),
    ((*EMBEDDING, "backend"), "x", "embeddings[0].backend", 'allowed: "llamacpp", "openai", "vllm", null'),
    # texts
    ((*LLM, "name"), "", "llms[0].name", "is empty"),
    ((*LLM, "name"), " \t", "llms[0].name", "blank"),
    ((*LLM, "name"), "a\n", "llms[0].name", "U+000A"),
    (
        (*LLM, "name"),
        "a\x1b[31m",
        "llms[0].name",
        'is "a\\u001b[31m": holds the unprintable character U+001B',
    ),
    ((*LLM, "name"), "a\u202e", "llms[0].name", "U+202E"),
    ((*LLM, "name"), "a ", "llms[0].name", "ends with a space"),
    ((*LLM, "name"), "\ud800", "llms[0].name", "surrogate"),
    ((*LLM, "model"), "", "llms[0].model", "is empty"),
    ((*LLM, "model"), "C:\temp\new.gguf", "llms[0].model", "a backslash is written twice"),
    ((*LLM, "tags"), ["fast", ""], "llms[0].tags[1]", "is empty"),
    ((*LLM, "tags"), ["fast "], "llms[0].tags[0]", "ends with a space"),
    ((*EMBEDDING, "specialized_for"), [" "], "embeddings[0].specialized_for[0]", "blank"),
    (
        (*EMBEDDING, "name"),
        "a",
        "embeddings[0].name",
        '"a" is already the name of llms[0]; usage is booked by name',
    ),
    # hosts and keys
    ((*LLM, "api_base"), "", "llms[0].api_base", "is empty"),
    ((*LLM, "api_base"), "localhost:8080", "llms[0].api_base", 'did you mean "http://localhost:8080"?'),
    ((*LLM, "api_base"), "ftp://host", "llms[0].api_base", "must begin with http:// or https://"),
    ((*LLM, "api_base"), "http://", "llms[0].api_base", "name a host"),
    ((*LLM, "api_base"), "http:///v1", "llms[0].api_base", "name a host"),
    ((*LLM, "api_base"), "http://h:99999", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "http://h:x", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "http://[::1", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "http://a b", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), " http://a", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "http://a\n", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "https://аpi.openai.com", "llms[0].api_base", "plain ASCII"),
    ((*LLM, "api_base"), "https://evil.example\\.openai.com", "llms[0].api_base", "not a URL"),
    ((*LLM, "api_base"), "http://h?a=canary", "llms[0].api_base", "query or fragment"),
    ((*LLM, "api_base"), "http://h/v1#canary", "llms[0].api_base", "query or fragment"),
    ((*LLM, "api_base"), "http://h/v1?", "llms[0].api_base", "query or fragment"),
    ((*LLM, "api_base"), "http://me:canary@h", "llms[0].api_base", "no user name or password"),
    ((*LLM, "api_base"), "http://me:can/ary@h", "llms[0].api_base", "no user name or password"),
    ((*LLM, "api_base"), "me:canary@h:80", "llms[0].api_base", "no user name or password"),
    (
        (*LLM, "api_base"),
        "http://h/v1/chat/completions",
        "llms[0].api_base",
        'leave "/chat/completions" away',
    ),
    (
        (*EMBEDDING, "api_base"),
        "http://h/v1/embeddings/",
        "embeddings[0].api_base",
        'leave "/embeddings" away',
    ),
    ((*LLM, "api_key_env"), "sk-canary", "llms[0].api_key_env", "not the name of an environment variable"),
    ((*LLM, "api_key_env"), "hf_canary0canary", "llms[0].api_key_env", "not the name"),
    ((*LLM, "api_key_env"), "canary0canary0canary0canary0", "llms[0].api_key_env", "not the name"),
    ((*LLM, "api_key_env"), "MY KEY", "llms[0].api_key_env", "not the name"),
    # what fits together
    ((*CAN, "max_tokens"), 2000, "llms[0].capabilities.max_tokens", "more than max_context, 1000"),
    ((*LLM, "daily_budget_usd"), 5, "llms[0].daily_budget_usd", "has no price"),
    (("budget_timezone",), "Europe/Berln", "budget_timezone", 'did you mean "Europe/Berlin"?'),
    (("budget_timezone",), "berlin", "budget_timezone", 'did you mean "Europe/Berlin"?'),
    (("budget_timezone",), "Mars/Olympus", "budget_timezone", "not an IANA time zone"),
    (("budget_timezone",), "../../etc/passwd", "budget_timezone", "not an IANA time zone"),
    (("budget_timezone",), "America", "budget_timezone", "not an IANA time zone"),
    (("budget_timezone",), "a\x00b", "budget_timezone", "not an IANA time zone"),
    (("budget_timezone",), "", "budget_timezone", "not an IANA time zone"),
]


@pytest.mark.parametrize(("place", "new", "path", "message"), CORPUS)
def test_every_mistake_is_told_at_its_place(
    place: tuple[str | int, ...], new: Any, path: str, message: str
) -> None:
    value = valid()
    put(*place)(value, new)
    text = json.dumps(value, indent=1)
    told = problems(text)
    mine = [p for p in told if p.path == path]
    assert len(mine) == 1, told
    assert message in mine[0].message
    assert "canary" not in str(told)
    line = text.split("\n")[mine[0].line - 1]
    last = place[-1]
    assert isinstance(last, int) or json.dumps(last) in line or line.startswith(" " * len(place))
    assert mine[0].column >= len(line) - len(line.lstrip()) + 1


@pytest.mark.parametrize(
    ("where", "key"),
    [
        (("llms", 0), k)
        for k in ("name", "api_base", "model", "backend", "capabilities", "default_temperature")
    ]
    + [(("llms", 0, "capabilities"), k) for k in ("max_tokens", "max_context", "speed_tokens_per_sec")]
    + [(("embeddings", 0), k) for k in ("name", "api_base", "model", "dimension", "max_context")],
)
def test_every_required_field_is_missed(where: tuple[Any, ...], key: str) -> None:
    value = valid()
    place = value
    for step in where:
        place = place[step]
    del place[key]
    (problem,) = problems(value)
    assert f'lacks "{key}"' in problem.message


@pytest.mark.parametrize("place", [("llms", 0), ("llms", 0, "capabilities"), ("embeddings", 0), ()])
def test_duplicate_keys_are_told_with_the_first_place(place: tuple[Any, ...]) -> None:
    text = json.dumps(valid(), indent=1)
    value: Any = valid()
    for step in place:
        value = value[step]
    key = next(iter(value))
    at = text.index(f'"{key}"', text.index(f'"{place[0]}"') if place else 0)
    text = text[:at] + f'"{key}": {json.dumps(value[key])}, ' + text[at:]
    told = [p for p in problems(text) if "given before" in p.message]
    assert len(told) == 1
    assert "at line" in told[0].message


def test_all_problems_come_at_once_in_file_order() -> None:
    value = valid()
    value["llms"][0]["api_base"] = "nowhere"
    value["llms"][0]["capabilities"]["max_contxt"] = 1
    value["llms"][0]["default_temperature"] = 3
    value["embeddings"][0]["name"] = "a"
    value["embeddings"][0]["dimension"] = 0
    value["budget_timezone"] = "Berlin"
    told = problems(json.dumps(value, indent=2))
    assert [p.path for p in told] == [
        "llms[0].api_base",
        "llms[0].capabilities.max_contxt",
        "llms[0].default_temperature",
        "embeddings[0].name",
        "embeddings[0].dimension",
        "budget_timezone",
    ]
    assert [p.line for p in told] == sorted(p.line for p in told)
    assert "first is at line 4" in told[3].message


def test_problem_lines_are_exact() -> None:
    text = '{"llms": [],\n "embeddings": [\n  {"name": "e", "dimensoin": 5}]}'
    with pytest.raises(RegistryError) as caught:
        decode(text.encode(), "reg.json")
    assert caught.value.lines() == [
        'reg.json:3:3: embeddings[0]: lacks "api_base" (Base URL of the API, with or without /v1)',
        'reg.json:3:3: embeddings[0]: lacks "model" (Model name)',
        'reg.json:3:3: embeddings[0]: lacks "dimension" (Length of a vector)',
        'reg.json:3:3: embeddings[0]: lacks "max_context" (Most tokens of one input)',
        'reg.json:3:17: embeddings[0].dimensoin: unknown key; did you mean "dimension"?',
    ]


def test_long_values_are_shortened_and_stay_on_one_line() -> None:
    value = valid()
    value["llms"][0]["backend"] = "x\n" * 5000
    (problem,) = problems(value)
    assert len(problem.message) < 300
    assert "\n" not in problem.message


@pytest.mark.parametrize("key", ["Authorization", "x_api_key", "password", "sk-canary-canary", "token"])
def test_secrets_never_show(key: str) -> None:
    value = valid()
    value["llms"][0][key] = "canary"
    value["llms"][0]["backend"] = "sk-canary-canary"
    value["llms"][0]["tier"] = "Bearer canarycanary"
    value["embeddings"][0]["name"] = value["llms"][0]["name"] = "sk-canary-canary"
    text = str(RegistryError("f", problems(value)))
    assert "canary" not in text
    assert "(hidden)" in text


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "HF_TOKEN_2", "hf_token_personal", "_K", "key2"])
def test_names_of_environment_variables_are_accepted(name: str) -> None:
    value = valid()
    value["llms"][0]["api_key_env"] = name
    assert decode(json.dumps(value).encode(), "f").llms[0].api_key_env == name


@pytest.mark.parametrize("kind", ["plain", "byte order mark", "own keys"])
def test_thousand_valid_entries_take_the_fast_path_only(tmp_path: Path, kind: str) -> None:
    one = json.loads(SPEC)["llms"][0]
    path = tmp_path / "big.json"
    mine = {"_note": "mine"} if kind == "own keys" else {}
    text = json.dumps({"llms": [one | mine | {"name": f"n{i}"} for i in range(1000)]})
    path.write_text(text, encoding="utf-8-sig" if kind == "byte order mark" else "utf-8")
    code = (
        "import sys; from pathlib import Path; from maxwell.registry import load;"
        "assert len(load(Path(sys.argv[1])).llms) == 1000;"
        "slow = {'maxwell.registry.complaints', 'jsonschema', 'filelock', sys.argv[2]};"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    thorough = "-" if kind == "own keys" else "maxwell.registry.diagnose"
    done = subprocess.run(
        [sys.executable, "-c", code, path, thorough], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_load_records_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_bytes(SPEC)
    loaded = load(path)
    assert (loaded.path, loaded.project, loaded.trusted) == (path, False, True)
    assert loaded.digest == hashlib.sha256(SPEC).hexdigest()
    assert len(loaded.llms) == 2


def test_project_file_is_trusted_only_after_trust(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_bytes(SPEC)
    located = Located(path, project=True)
    environ = {"MAXWELL_HOME": str(tmp_path / "mx")}
    first = load(located, environ=environ)
    assert (first.project, first.trusted) == (True, False)
    trust(path, first.digest, tmp_path / "mx")
    assert load(located, environ=environ).trusted
    path.write_bytes(SPEC + b"\n")
    assert not load(located, environ=environ).trusted


@pytest.mark.parametrize("kind", ["directory", "missing", "dangling", "null"])
def test_unreadable_file_is_a_registry_error(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a\0b" if kind == "null" else "lm_registry.json")
    if kind == "directory":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(RegistryError, match="cannot be read") as caught:
        load(path)
    assert caught.value.file == str(path)


def test_file_without_permission_is_a_registry_error(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_bytes(SPEC)
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    with pytest.raises(RegistryError, match="Permission denied"):
        load(path)
