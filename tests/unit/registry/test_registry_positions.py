from __future__ import annotations

import json

import pytest

from maxwell.registry.positions import NotJSON, scan

TEXT = '{\n  "a": [1, "zwei\\n", {"b": null}],\n\t"ü" : -1.5e3\n}\n'


def test_values_stand_where_they_stand() -> None:
    document = scan(TEXT)
    assert document.value == json.loads(TEXT)
    for where, span in document.values.items():
        value = document.value
        for step in where:
            value = value[step]
        assert json.loads(TEXT[span.start : span.end]) == value
    assert (document.values[("a",)].line, document.values[("a",)].column) == (2, 8)
    assert (document.values[("a", 2, "b")].line, document.values[("a", 2, "b")].column) == (2, 28)
    assert (document.values[("ü",)].line, document.values[("ü",)].column) == (3, 8)


def test_keys_stand_where_they_stand() -> None:
    keys = scan(TEXT).keys
    assert {where: TEXT[s.start : s.end] for where, s in keys.items()} == {
        ("a",): '"a"',
        ("a", 2, "b"): '"b"',
        ("ü",): '"ü"',
    }
    assert (keys[("ü",)].line, keys[("ü",)].column) == (3, 2)


def test_columns_count_characters_and_lines_count_line_feeds() -> None:
    document = scan('{"日本": 1,\r\n "\U0001f600": 2, "c": 3}')
    assert document.keys[("c",)][2:] == (2, 10)
    assert document.values[("日本",)][2:] == (1, 8)


def test_byte_order_mark_takes_no_column() -> None:
    document = scan('\ufeff{"a": 1}')
    assert document.values[()] == (1, 9, 1, 1)
    assert document.values[("a",)][2:] == (1, 7)


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("", (1, 1), "empty"),
        (" \n ", (2, 2), "empty"),
        ("{", (1, 2), "ends in the middle"),
        ('{"a"', (1, 5), "colon"),
        ('{"a" 1}', (1, 6), "colon"),
        ('{"a": }', (1, 7), "a value is expected"),
        ('{"a": 1,\n}', (1, 8), 'a comma may not stand before "}"'),
        ("[1, 2,]", (1, 6), 'a comma may not stand before "]"'),
        ('{"a": 1\n "b": 2}', (2, 2), "a comma"),
        ("[1 2]", (1, 4), "a comma"),
        ("[,]", (1, 2), "a value is expected"),
        ("{} {}", (1, 4), "ends before this"),
        ("{'a': 1}", (1, 2), "double quotes"),
        ("{a: 1}", (1, 2), "a key in double quotes"),
        ("['a']", (1, 2), "double quotes"),
        ("{\n  // a remark\n}", (2, 3), "no comments"),
        ("[1 # a remark\n]", (1, 4), "no comments"),
        ("[/* x */ 1]", (1, 2), "no comments"),
        ("[True]", (1, 2), '"true"'),
        ("[None]", (1, 2), '"null"'),
        ("[nil]", (1, 2), "a value is expected"),
        ("[01]", (1, 3), "a comma"),
        ("[.5]", (1, 2), "a value is expected"),
        ("[+1]", (1, 2), "a value is expected"),
        ("[-]", (1, 2), "a value is expected"),
        ("[1.]", (1, 3), "a comma"),
        ('["a]', (1, 2), "no closing quote"),
        ('["a\nb"]', (1, 4), "line break"),
        (r'["C:\dev"]', (1, 5), "written twice"),
        (r'["C:\users"]', (1, 6), "written twice"),
        ("[\xa01]", (1, 2), "a value is expected"),
        ("[١]", (1, 2), "a value is expected"),
        ("\x00", (1, 1), "a value is expected"),
    ],
)
def test_says_where_and_why_it_is_not_json(text: str, place: tuple[int, int], message: str) -> None:
    with pytest.raises(NotJSON, match=message) as caught:
        scan(text)
    assert (caught.value.line, caught.value.column) == place


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 66 + "]" * 66])
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(NotJSON, match="nested deeper"):
        scan(text)


def test_duplicate_keys_are_faults_at_the_later_place() -> None:
    document = scan('{"a": 1,\n "b": {"a": 2},\n "a": 3, "a": 4}')
    assert document.value == {"a": 4, "b": {"a": 2}}
    assert [(f.kind, f.where, f.line, f.column) for f in document.faults] == [
        ("duplicate", ("a",), 3, 2),
        ("duplicate", ("a",), 3, 10),
    ]
    assert "line 1" in document.faults[0].message


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity"])
def test_numbers_json_does_not_have_are_faults(word: str) -> None:
    document = scan(f'{{"a": {word}}}')
    assert repr(document.value) == repr(json.loads(f'{{"a": {word}}}'))
    assert [(f.kind, f.where) for f in document.faults] == [("literal", ("a",))]


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 5000, "-" + "9" * 301])
def test_numbers_out_of_range_are_faults(number: str) -> None:
    assert [f.kind for f in scan(f"[{number}]").faults] == ["range"]


def test_half_a_surrogate_pair_is_a_fault() -> None:
    assert [f.kind for f in scan(r'["\ud83d\ude00", "\ud83d"]').faults] == ["surrogate"]
