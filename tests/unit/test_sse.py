from __future__ import annotations

import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls.sse import MAX_EVENT, SSEParser

# Streams made of the bytes that mean something, so that hypothesis meets every rule often.
TOKENS = st.sampled_from(
    [
        *(b"data:", b"data: ", b"data", b"da", b":", b" ", b"x", b"{}", b"\xef\xbb\xbf", b"\x00\xff"),
        *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\n\r\n"),
        *(
            b"data: a\n\n",
            b"data: {}\n\ndata: b\n\n",
            b"data: a\r\n",
            b"event: e\n",
            b"id: 1",
            b"retry: 3\r\n",
            b": p",
        ),
    ]
)
STREAMS = st.lists(TOKENS, max_size=30).map(b"".join)


def parse(*pieces: bytes) -> tuple[list[bytes], bytes | None]:
    parser = SSEParser()
    events = [event for piece in pieces for event in parser.feed(piece)]
    return events, parser.end()


def plainly(stream: bytes) -> list[bytes]:
    """The standard's rules, written for clarity: split into lines, then gather."""
    if stream.startswith(b"\xef\xbb\xbf"):
        stream = stream[3:]
    lines = re.split(rb"\r\n|\r|\n", stream)[:-1]  # what follows the last line end is no line yet
    events: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        name, _, value = line.partition(b":")
        if not line:
            events.append(b"\n".join(data))
            data = []
        elif name == b"data":
            data.append(value.removeprefix(b" "))
    return [e for e in events if e]


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(stream) + 1) for p in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None, max_examples=300)
@given(STREAMS)
def test_reads_a_stream_as_the_standard_says(stream: bytes) -> None:
    assert parse(stream)[0] == plainly(stream)


@settings(deadline=None, max_examples=300)
@given(STREAMS, st.lists(st.integers(0, 10_000), max_size=12))
def test_any_cut_of_a_stream_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    assert parse(*cut(stream, places)) == parse(stream)


@settings(deadline=None, max_examples=300)
@given(STREAMS | st.binary(max_size=60))
def test_any_bytes_one_by_one_give_the_same_events(stream: bytes) -> None:
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == parse(stream)


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b'data: {"a":1}\n\n', [b'{"a":1}']),
        (b"data: a\n\ndata: b\n\ndata: [DONE]\n\n", [b"a", b"b", b"[DONE]"]),
        (b"data:a\n\n", [b"a"]),  # the space is optional
        (b"data:  a \n\n", [b" a "]),  # and only one belongs to the syntax
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\ndata:\ndata: b\n\n", [b"a\n\nb"]),
        (b"data\n\n", []),
        (b"data: \n\n", []),  # nothing to say
        (b"data: a\n\ndata: \n\ndata: b\n\n", [b"a", b"b"]),
        (b": keep-alive\n\n", []),
        (b": ping - 2026-11-22\r\n\r\ndata: a\r\n\r\n", [b"a"]),  # llama-cpp-python: CRLF and a dated comment
        (b"data: a\n: inside\ndata: b\n\n", [b"a\nb"]),
        (b"data: a\n\n: ping\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\r\ndata: b\r\n\r\n", [b"a\nb"]),
        (b"data: a\rdata: b\n\n", [b"a\nb"]),
        (b"\n\xef\xbb\xbfdata: a\n\n", []),
        (b"data: a\r\n\ndata: b\n\r\n", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [b"a"]),  # only the first bytes can be a byte order mark
        (b"event: message\nid: 7\nretry: 10\ndata: a\n\n", [b"a"]),
        (b"event: ping\n\n", []),
        (b"DATA: a\n\n", []),
        (b"database: a\n\n", []),
        (b" data: a\n\n", []),
        (b"data: a\n\n\n\n\ndata: b\n\n", [b"a", b"b"]),
        (b"\n\n", []),
        (b"data: \xff\x00\n\n", [b"\xff\x00"]),
        (b"data: data: a\n\n", [b"data: a"]),
        ("data: a\x0bb\u2028c\x85\n\n".encode(), ["a\x0bb\u2028c\x85".encode()]),  # no line ends here
        (b'{"error":"not a stream"}\n', []),
    ],
)
def test_odd_streams(stream: bytes, events: list[bytes]) -> None:
    assert parse(stream) == (events, None)
    assert parse(*(stream[i : i + 1] for i in range(len(stream)))) == (events, None)


@pytest.mark.parametrize(
    ("stream", "rest"),
    [
        (b"data: a", b"a"),
        (b"data: a\n", b"a"),
        (b"data: a\r", b"a"),
        (b"data: a\ndata: b", b"a\nb"),
        (b"data: [DONE]", b"[DONE]"),
        (b"\xef\xbb\xbfdata: a", b"a"),
        (b"data: done\n\ndata: a", b"a"),
        (b"data: a\n\n", None),
        (b"data:", None),
        (b": comment", None),
        (b"da", None),
        (b"", None),
    ],
)
def test_end_gives_the_event_without_its_blank_line(stream: bytes, rest: bytes | None) -> None:
    assert parse(stream)[1] == rest


def test_end_gives_it_once() -> None:
    parser = SSEParser()
    parser.feed(b"data: a")
    assert (parser.end(), parser.end()) == (b"a", None)


def test_an_event_comes_as_soon_as_its_blank_line_does() -> None:
    parser = SSEParser()
    assert parser.feed(b"data: a\r\n\r") == [b"a"]
    assert parser.feed(b"") == []
    assert parser.feed(b"\ndata: b\n\n") == [b"b"]


@pytest.mark.parametrize("piece", [1 << 16, MAX_EVENT * 2])
def test_takes_an_event_at_the_limit(piece: int) -> None:
    stream = b"data: " + b"x" * MAX_EVENT + b"\n\n"
    events, rest = parse(*(stream[i : i + piece] for i in range(0, len(stream), piece)))
    assert ([len(e) for e in events], rest) == ([MAX_EVENT], None)


@pytest.mark.parametrize("piece", [1 << 16, MAX_EVENT * 2])
@pytest.mark.parametrize(
    "stream",
    [
        b"data: " + b"x" * (MAX_EVENT + 1) + b"\n\n",
        b"data: " + b"x" * (MAX_EVENT // 2) + b"\ndata: " + b"x" * (MAX_EVENT // 2) + b"\n",
        b": " + b"x" * (MAX_EVENT + 100),
        b"x" * (MAX_EVENT + 100) + b"\n",
    ],
    ids=["one line", "two lines", "comment", "no protocol"],
)
def test_refuses_an_event_above_the_limit(stream: bytes, piece: int) -> None:
    pieces = [stream[i : i + piece] for i in range(0, len(stream), piece)]
    with pytest.raises(ValueError, match="16 MiB"):
        list(map(SSEParser().feed, pieces))  # while it is still coming, not at its end
