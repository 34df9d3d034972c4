from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from command_line import one_line

from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]


@pytest.fixture
def server(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    """A fake embedding server in a registry of one, named tiny."""
    server = fake_server("llamacpp", embeddings=True, dimension=8, context=32)
    write_registry(server.embedding_entry("tiny", tags=["default"]))
    return server


def vectors(result: Result) -> list[list[float]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_prints_one_json_array_a_line_when_piped(run: Run, server: FakeServer) -> None:
    one, two = vectors(run("embed", "first text", "second text"))
    assert len(one) == len(two) == 8
    assert one != two
    assert vectors(run("embed", "first text")) == [one]


def test_reads_one_text_from_stdin(run: Run, server: FakeServer) -> None:
    expected = vectors(run("embed", "first\nsecond"))
    assert vectors(run("embed", "-", input="first\nsecond\n")) == expected
    assert vectors(run("embed", input="first\nsecond\n")) == expected


def test_reads_a_text_from_each_line(run: Run, server: FakeServer) -> None:
    expected = vectors(run("embed", "first", "second"))
    assert vectors(run("embed", "--lines", input="first\r\nsecond\r\n")) == expected
    assert vectors(run("embed", "--lines", "-", input="first\nsecond")) == expected


def test_json_tells_who_made_them(run: Run, server: FakeServer) -> None:
    told = json.loads(run("embed", "--json", "a", "b").stdout)
    assert (told["name"], told["dimension"], len(told["vectors"])) == ("tiny", 8, 2)
    assert told["model"]


def test_a_terminal_gets_a_summary(on_terminal: OnTerminal, server: FakeServer) -> None:
    code, shown = on_terminal("embed", "some\ntext", NO_COLOR="1")
    assert code == 0
    assert "tiny: 1 vector of 8 numbers" in shown
    assert "some text" in shown
    assert "norm " in shown
    assert len(shown.splitlines()) == 3


def test_name_may_be_a_tag(run: Run, fake_server: FakeServers, write_registry: WriteRegistry) -> None:
    small = fake_server(embeddings=True, dimension=4)
    large = fake_server(embeddings=True, dimension=16)
    write_registry(small.embedding_entry("small"), large.embedding_entry("large", tags=["code"]))
    assert len(vectors(run("embed", "--name", "code", "x"))[0]) == 16
    assert len(vectors(run("embed", "--name", "small", "x"))[0]) == 4


def test_an_unknown_name_suggests_near_ones(run: Run, server: FakeServer) -> None:
    result = run("embed", "--name", "tinny", "x")
    assert result.exit_code == 4
    assert one_line(result) == "no embedding 'tinny'; did you mean tiny?"


def test_too_long_a_text_is_refused_or_cut(run: Run, server: FakeServer) -> None:
    long = "many words " * 100
    result = run("embed", long)
    assert result.exit_code == 1
    assert one_line(result).startswith("tiny: text 0")
    assert len(vectors(run("embed", "--truncate", long))) == 1


def test_another_dimension_than_declared_is_an_error(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server(embeddings=True, dimension=8).embedding_entry("tiny", dimension=9))
    result = run("embed", "x")
    assert result.exit_code == 1
    assert "set dimension to 8" in one_line(result)


def test_a_failed_call_ends_with_1(run: Run, server: FakeServer) -> None:
    server.fail(faults.ServerError(500), times=None)
    result = run("embed", "x")
    assert result.exit_code == 1
    assert one_line(result).startswith("tiny: ")


def test_no_embedding_declared_ends_with_4(
    run: Run, fake_server: FakeServers, write_registry: WriteRegistry
) -> None:
    write_registry(fake_server().llm_entry("chat"))
    result = run("embed", "x")
    assert result.exit_code == 4
    assert one_line(result) == "no embedding can be chosen: the registry declares none"


@pytest.mark.parametrize(
    ("args", "stdin", "words"),
    [
        (["embed", ""], b"", "the text is empty"),
        (["embed", "a", ""], b"", "text 2 is empty"),
        (["embed"], b"", "the text is empty"),
        (["embed", "--lines"], b"a\n\nb\n", "line 2 is empty"),
        (["embed", "--lines", "a"], b"", "--lines reads stdin; leave TEXT out"),
        (["embed", "-"], b"\xff", "stdin is not UTF-8 (byte 0xff at offset 0)"),
        (["embed", "--timeout", "nan", "a"], b"", "nan is not a number"),
    ],
)
def test_wrong_usage_ends_with_2(
    run: Run, server: FakeServer, args: list[str], stdin: bytes, words: str
) -> None:
    result = run(*args, input=stdin)
    assert result.exit_code == 2
    assert words in one_line(result)
    assert server.requests == []
