"""Reading any file ends in a registry or in a RegistryError; edits touch nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.errors import RegistryError
from maxwell.registry import RegistryFile, add_entry, decode, remove_entry, set_field
from maxwell.registry.positions import Document, NotJSON, scan

SPEC = (Path(__file__).parents[2] / "data" / "spec_registry.json").read_bytes()
EXAMPLE = json.loads(SPEC)

quick = settings(deadline=None, max_examples=100)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["sk-abcdefgh12345", "http://u:p@h", "1", "true", "\ud800", "\x1b[0m", "Europe/Berlin", 10**400]
    )
)
known_keys = st.sampled_from(
    sorted({*EXAMPLE, *EXAMPLE["llms"][0], *EXAMPLE["llms"][0]["capabilities"], *EXAMPLE["embeddings"][0]})
)
keys = (
    known_keys
    | st.sampled_from(["_own", "x-own", "api_key_env", "budget_timezone", "$schema"])
    | st.text(max_size=5)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=15,
)
white = st.sampled_from([None, 0, 1, 2, "\t", "\r\n "])


def outcome(data: bytes) -> RegistryFile | None:
    """The registry, or None after a RegistryError that is fit to be printed."""
    try:
        return decode(data, "f.json")
    except RegistryError as error:
        lines = error.lines()
    assert lines
    for line in lines:
        assert line.isprintable()
        assert line.startswith("f.json:")
    return None


@given(st.binary(max_size=200))
@quick
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    assert outcome(data) is None


@given(st.text(alphabet='{}[]":,\\ \n-+.0123456789eEtrufalsn_x', max_size=60))
@quick
def test_anything_like_json_decodes_or_is_refused(text: str) -> None:
    outcome(text.encode())


@given(values)
@quick
def test_any_json_value_decodes_or_is_refused(value: Any) -> None:
    outcome(json.dumps(value).encode())


@given(st.dictionaries(known_keys, values, max_size=8), st.sampled_from(["llms", "embeddings"]))
@quick
def test_any_entry_decodes_or_is_refused(entry: dict[str, Any], kind: str) -> None:
    outcome(json.dumps({kind: [entry, entry]}).encode())


def places(value: Any, where: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(value, dict | list):
        return [where]
    members = value.items() if isinstance(value, dict) else enumerate(value)
    return [where, *(place for key, child in members for place in places(child, (*where, key)))]


@given(st.sampled_from(places(EXAMPLE)[1:]), values | st.just(...), keys)
@quick
def test_any_mutation_of_a_valid_file_decodes_or_is_refused(
    place: tuple[Any, ...], new: Any, key: str
) -> None:
    value = copy.deepcopy(EXAMPLE)
    parent = value
    for step in place[:-1]:
        parent = parent[step]
    if new is ...:
        del parent[place[-1]]
    else:
        parent[place[-1]] = new
    if isinstance(parent, dict):
        parent.setdefault(key, new if new is not ... else 1)
    outcome(json.dumps(value).encode())


@given(st.integers(0, len(SPEC) - 1), st.integers(0, 12), st.binary(max_size=6))
@quick
def test_any_damage_to_a_valid_file_decodes_or_is_refused(at: int, cut: int, put: bytes) -> None:
    outcome(SPEC[:at] + put + SPEC[at + cut :])


@given(st.data())
@quick
def test_cut_files_are_refused(data: st.DataObject) -> None:
    end = data.draw(st.integers(0, len(SPEC.rstrip()) - 1))
    assert outcome(SPEC[:end]) is None


@given(values, white, st.booleans())
@quick
def test_positions_agree_with_the_standard_library(value: Any, indent: Any, ascii_only: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    document = scan(text)
    if not any(fault.kind == "range" for fault in document.faults):
        assert repr(document.value) == repr(json.loads(text))
    assert set(document.values) == set(places(document.value))
    for where, span in document.values.items():
        inner = document.value
        for step in where:
            inner = inner[step]
        assert repr(scan(text[span.start : span.end]).value) == repr(inner)
        before = text[: span.start]
        assert span.line == before.count("\n") + 1
        assert span.column == len(before) - before.rfind("\n")
    for where, span in document.keys.items():
        assert json.loads(text[span.start : span.end]) == where[-1]


@given(st.text(alphabet='{}[]":,\\ \n-+.0123456789eEtrufalsnNIity_x', max_size=30))
@quick
def test_scanner_and_standard_library_accept_the_same_texts(text: str) -> None:
    try:
        expected = json.loads(text)
    except ValueError:
        with pytest.raises(NotJSON):
            scan(text)
    else:
        document = scan(text)
        assert document.faults or repr(document.value) == repr(expected)


def at(value: Any, where: tuple[Any, ...]) -> Any:
    for step in where:
        value = value[step]
    return value


def spliced(before: str, after: str) -> tuple[int, int]:
    """How many characters at the beginning and at the end are the same."""
    head = 0
    while head < min(len(before), len(after)) and before[head] == after[head]:
        head += 1
    tail = 0
    while tail < min(len(before), len(after)) - head and before[-1 - tail] == after[-1 - tail]:
        tail += 1
    return head, tail


def rendered(value: Any, indent: Any, *, crlf: bool) -> str:
    text = json.dumps(value, indent=indent, ensure_ascii=False)
    return text.replace("\n", "\r\n") if crlf else text


def objects(document: Document) -> list[tuple[Any, ...]]:
    return [where for where in document.values if isinstance(at(document.value, where), dict)]


@given(st.dictionaries(st.text(max_size=5), plain, max_size=4), plain, white, st.booleans(), st.data())
@quick
def test_set_field_changes_that_field_only(
    value: Any, new: Any, indent: Any, crlf: bool, data: st.DataObject
) -> None:
    text = rendered(value, indent, crlf=crlf)
    document = scan(text)
    parent = data.draw(st.sampled_from(objects(document)))
    key = data.draw(st.sampled_from([*at(value, parent)]) if at(value, parent) else st.just("k")) + data.draw(
        st.sampled_from(["", "'"])
    )
    after = set_field(text, (*parent, key), new)
    expected = copy.deepcopy(value)
    at(expected, parent)[key] = new
    assert json.loads(after) == expected
    assert list(at(json.loads(after), parent)) == list(at(expected, parent))
    span = document.values.get((*parent, key))
    if span:
        assert (after[: span.start], after[len(after) - len(text) + span.end :]) == (
            text[: span.start],
            text[span.end :],
        )
    elif at(value, parent):
        head, tail = spliced(text, after)
        assert head + tail == len(text)


entry_lists = st.lists(st.dictionaries(st.text(max_size=4), plain, max_size=3), max_size=4).map(
    lambda listed: [entry | {"name": f"n{index}"} for index, entry in enumerate(listed)]
)


@given(entry_lists, entry_lists, white, st.booleans(), st.sampled_from(["llms", "embeddings"]), plain)
@quick
def test_add_and_remove_change_that_entry_only(
    llms: Any, embeddings: Any, indent: Any, crlf: bool, kind: Any, extra: Any
) -> None:
    value = {"_note": extra, "llms": llms, "embeddings": [e | {"name": "e" + e["name"]} for e in embeddings]}
    text = rendered(value, indent, crlf=crlf)
    added = add_entry(text, kind, {"name": "new", "x": extra})
    expected = copy.deepcopy(value)
    expected[kind].append({"name": "new", "x": extra})
    assert json.loads(added) == expected
    head, tail = spliced(text, added)
    assert head + tail == len(text)
    removed = remove_entry(added, "new")
    assert json.loads(removed) == value
    assert removed == text
    for entry in value[kind]:
        after = remove_entry(text, entry["name"])
        assert json.loads(after) == value | {kind: [other for other in value[kind] if other != entry]}
        head, tail = spliced(text, after)
        assert head + tail >= len(after)
