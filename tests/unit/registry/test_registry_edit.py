from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maxwell.errors import RegistryError
from maxwell.registry import add_entry, is_trusted, remove_entry, rewrite, set_field, trust
from maxwell.registry.load import digest_of

DATA = Path(__file__).parents[2] / "data"
SPEC = (DATA / "spec_registry.json").read_text(encoding="utf-8")

EMBEDDING = {"name": "new", "api_base": "http://localhost:1", "model": "m", "dimension": 8, "max_context": 9}
FOUR = """\
{
    "_note":   "mine",
    "llms": [],
    "embeddings": [
        {"name": "a", "api_base": "http://h", "model": "m", "dimension": 1, "max_context": 1},

        {"name": "b", "api_base": "http://h", "model": "m", "dimension": 1, "max_context": 1}
    ]
}"""


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MAXWELL_HOME", raising=False)


def test_entry_is_added_as_its_neighbours_are_written() -> None:
    added = add_entry(SPEC, "embeddings", {**EMBEDDING, "tags": ["a", "b"], "_own": {"k": [1, 2]}})
    new = """,
    {
      "name": "new",
      "api_base": "http://localhost:1",
      "model": "m",
      "dimension": 8,
      "max_context": 9,
      "tags": ["a", "b"],
      "_own": {
        "k": [1, 2]
      }
    }"""
    at = SPEC.rindex("\n  ],")
    assert added == SPEC[:at] + new + SPEC[at:]


def test_entry_on_one_line_stays_on_one_line() -> None:
    added = add_entry(FOUR, "embeddings", EMBEDDING)
    at = FOUR.rindex("\n    ]")
    # Separated as the last two are, blank line included.
    assert added == FOUR[:at] + ",\n\n        " + json.dumps(EMBEDDING) + FOUR[at:]


def test_first_entry_of_an_empty_list_is_indented_as_the_file_is() -> None:
    added = add_entry(FOUR, "llms", {"name": "n", "capabilities": {"a": 1}})
    new = """[
        {
            "name": "n",
            "capabilities": {
                "a": 1
            }
        }
    ]"""
    assert added == FOUR.replace('"llms": []', f'"llms": {new}')


def test_missing_list_is_added() -> None:
    added = add_entry('{\n\t"llms": []\n}\n', "embeddings", {"name": "n"})
    assert added == '{\n\t"llms": [],\n\t"embeddings": [\n\t\t{\n\t\t\t"name": "n"\n\t\t}\n\t]\n}\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"llms":[]}', '{"llms":[{"name":"n","tags":["a","b"]}]}'),
        ('{"llms": []}', '{"llms": [{"name": "n", "tags": ["a", "b"]}]}'),
        ('{"llms": [ ]}', '{"llms": [{"name": "n", "tags": ["a", "b"]}]}'),
        ('{"llms": [{"name": "a"}]}', '{"llms": [{"name": "a"}, {"name": "n", "tags": ["a", "b"]}]}'),
        ('{"llms":[{"name":"a"}]}', '{"llms":[{"name":"a"},{"name":"n","tags":["a","b"]}]}'),
        ('{"x-a":1}', '{"x-a":1,"llms":[{"name":"n","tags":["a","b"]}]}'),
    ],
)
def test_compact_files_stay_compact(text: str, expected: str) -> None:
    assert add_entry(text, "llms", {"name": "n", "tags": ["a", "b"]}) == expected


def test_empty_object_is_spread_over_lines() -> None:
    assert add_entry("{}", "llms", {"name": "n"}) == '{\n  "llms": [\n    {\n      "name": "n"\n    }\n  ]\n}'


@pytest.mark.parametrize("edit", ["add", "set", "remove"])
def test_line_ends_and_byte_order_mark_stay(edit: str) -> None:
    text = "\ufeff" + SPEC.replace("\n", "\r\n")
    if edit == "add":
        after = add_entry(text, "llms", {"name": "n", "capabilities": {}})
    elif edit == "set":
        after = set_field(text, ("llms", 0, "x-new"), {"a": 1})
    else:
        after = remove_entry(text, "qwen-vl-4b")
    assert after.startswith("\ufeff{\r\n")
    assert after.count("\n") == after.count("\r\n")
    assert after.endswith("}\r\n")


def test_adding_an_existing_name_is_refused() -> None:
    with pytest.raises(RegistryError, match='"qwen-embed-4b" is the name of an entry already'):
        add_entry(SPEC, "llms", {"name": "qwen-embed-4b"})


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"llms": 5}', '{"llms": [], "llms": []}', "[" * 10_000, "NaN"]
)
def test_text_that_is_no_registry_is_refused(text: str) -> None:
    with pytest.raises(RegistryError):
        add_entry(text, "llms", {"name": "n"})


def test_field_is_replaced_in_place() -> None:
    after = set_field(SPEC, ("llms", 0, "capabilities", "speed_tokens_per_sec"), 31.5)
    assert after == SPEC.replace('"speed_tokens_per_sec": 25', '"speed_tokens_per_sec": 31.5')


@pytest.mark.parametrize("value", [None, True, 0.1, "C:\\dev\\ü", ["a", "b"], [], {}])
def test_field_takes_any_value_and_the_windows_path_stays(value: Any) -> None:
    after = set_field(SPEC, ("llms", 1, "x-value"), value)
    assert json.loads(after)["llms"][1]["x-value"] == value
    assert r'"model": "C:\\dev\\Qwen3-Coder-30B-A3B-Instruct-Q5_K_M.gguf"' in after
    assert json.loads(after)["llms"][0] == json.loads(SPEC)["llms"][0]


def test_missing_field_is_added_last() -> None:
    after = set_field(SPEC, ("llms", 0, "daily_budget_tokens"), 5)
    assert after == SPEC.replace(
        '"tier": "free"\n    },', '"tier": "free",\n      "daily_budget_tokens": 5\n    },', 1
    )
    assert set_field(FOUR, ("embeddings", 0, "tags"), ["x"]) == FOUR.replace(
        '"max_context": 1},', '"max_context": 1, "tags": ["x"]},', 1
    )


def test_list_is_replaced_on_one_line() -> None:
    after = set_field(SPEC, ("llms", 0, "tags"), ["x", "y"])
    assert after == SPEC.replace('["reasoning", "high-context", "coding"]', '["x", "y"]')


@pytest.mark.parametrize(
    "path", [("llms", 5, "tags"), ("llms", 5), ("none", "tags"), ("llms", 0, "name", "x")]
)
def test_field_without_a_home_is_refused(path: tuple[str | int, ...]) -> None:
    with pytest.raises(RegistryError, match="has no place"):
        set_field(SPEC, path, 1)


def test_entries_are_removed_with_their_comma() -> None:
    first, second = json.loads(SPEC)["llms"]
    without_first = remove_entry(SPEC, "qwen-coder-30b")
    without_second = remove_entry(SPEC, "qwen-vl-4b")
    assert json.loads(without_first)["llms"] == [second]
    assert json.loads(without_second)["llms"] == [first]
    start, end = SPEC.index('{\n      "name": "qwen-coder'), SPEC.index('{\n      "name": "qwen-vl')
    assert without_first == SPEC[:start] + SPEC[end:]
    start, end = SPEC.index(',\n    {\n      "name": "qwen-vl'), SPEC.index('\n  ],\n  "embeddings"')
    assert without_second == SPEC[:start] + SPEC[end:]


def test_removing_the_only_entry_leaves_an_empty_list() -> None:
    assert '"embeddings": [],' in remove_entry(SPEC, "qwen-embed-4b")


def test_adding_and_removing_gives_the_old_text_back() -> None:
    assert remove_entry(add_entry(SPEC, "llms", {"name": "n"}), "n") == SPEC


def test_removing_an_unknown_entry_suggests_a_near_one() -> None:
    with pytest.raises(RegistryError, match=r'no entry named "qwen-vl-4"; did you mean "qwen-vl-4b"\?'):
        remove_entry(SPEC, "qwen-vl-4")


def test_rewrite_writes_the_valid_result(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_text(SPEC)
    rewrite(path, lambda text: add_entry(text, "embeddings", EMBEDDING))
    assert path.read_text() == add_entry(SPEC, "embeddings", EMBEDDING)


def test_rewrite_creates_file_and_directory(tmp_path: Path) -> None:
    path = tmp_path / "a" / ".maxwell" / "lm_registry.json"
    rewrite(path, lambda text: add_entry(text, "embeddings", EMBEDDING))
    assert json.loads(path.read_text()) == {"llms": [], "embeddings": [EMBEDDING], "_schema_version": "1.0"}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: remove_entry(text, "nobody"),
        lambda text: text[:-10],
        lambda text: set_field(text, ("llms", 0, "max_contxt"), 1),
        lambda text: set_field(text, ("llms", 0, "cost_per_1k_tokens"), float("nan")),
        lambda text: text.replace("reasoning", "\ud800", 1),
    ],
)
def test_rewrite_never_writes_an_invalid_registry(tmp_path: Path, change: Any) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_text(SPEC)
    with pytest.raises(RegistryError) as caught:
        rewrite(path, change)
    assert caught.value.file == str(path)
    assert path.read_text() == SPEC
    assert {p.name for p in tmp_path.iterdir()} <= {"lm_registry.json", ".lm_registry.json.lock", "home"}


def test_rewrite_of_a_broken_file_names_its_problems(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_bytes(b'{"llms": ["\xff"]}')
    with pytest.raises(RegistryError, match="not UTF-8"):
        rewrite(path, lambda text: text)
    with pytest.raises(RegistryError, match="cannot be read"):
        rewrite(tmp_path, lambda text: text)


def test_rewrite_keeps_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_text(SPEC)
    path.chmod(0o640)
    rewrite(path, lambda text: remove_entry(text, "qwen-vl-4b"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_rewrite_keeps_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "dotfiles").mkdir()
    target = tmp_path / "dotfiles" / "registry.json"
    target.write_text(SPEC)
    link = tmp_path / "lm_registry.json"
    link.symlink_to(target)
    rewrite(link, lambda text: remove_entry(text, "qwen-vl-4b"))
    assert link.is_symlink()
    assert target.read_text() == remove_entry(SPEC, "qwen-vl-4b")


def test_rewrite_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    path.write_text(SPEC)
    inode = path.stat().st_ino
    rewrite(path, lambda text: text)
    assert path.stat().st_ino == inode


def test_rewrite_keeps_line_ends_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    before = b"\xef\xbb\xbf" + SPEC.replace("\n", "\r\n").encode()
    path.write_bytes(before)
    rewrite(path, lambda text: set_field(text, ("llms", 0, "tier"), "premium"))
    assert path.read_bytes() == before.replace(b'"tier": "free"', b'"tier": "premium"', 1)


def test_rewrite_carries_trust_to_the_new_content(tmp_path: Path) -> None:
    home = tmp_path / "home" / ".maxwell"
    path = tmp_path / "lm_registry.json"
    path.write_text(SPEC)
    rewrite(path, lambda text: remove_entry(text, "qwen-vl-4b"))
    assert not is_trusted(path, digest_of(path.read_bytes()), home)
    trust(path, digest_of(path.read_bytes()), home)
    rewrite(path, lambda text: set_field(text, ("x-note",), "mine"))
    assert is_trusted(path, digest_of(path.read_bytes()), home)


def test_rewrite_without_permission_is_a_registry_error(tmp_path: Path) -> None:
    path = tmp_path / "closed" / "lm_registry.json"
    path.parent.mkdir()
    path.write_text(SPEC)
    path.parent.chmod(0o500)
    if os.access(path.parent, os.W_OK):
        pytest.skip("this user writes everywhere")
    try:
        with pytest.raises(RegistryError, match="cannot be written"):
            rewrite(path, lambda text: remove_entry(text, "qwen-vl-4b"))
    finally:
        path.parent.chmod(0o700)
    assert path.read_text() == SPEC


def test_processes_do_not_lose_each_others_edits(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    code = (
        "import sys; from pathlib import Path; from maxwell.registry import add_entry, rewrite\n"
        "for i in range(5):\n"
        "    entry = {'name': f'{sys.argv[2]}-{i}', 'api_base': 'http://h', 'model': 'm', 'dimension': 1,"
        " 'max_context': 1}\n"
        "    rewrite(Path(sys.argv[1]), lambda text: add_entry(text, 'embeddings', entry))\n"
    )
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", code, str(path), str(number)], env=environ)
        for number in range(4)
    ]
    assert [process.wait(timeout=60) for process in running] == [0, 0, 0, 0]
    names = {entry["name"] for entry in json.loads(path.read_text())["embeddings"]}
    assert names == {f"{number}-{i}" for number in range(4) for i in range(5)}
