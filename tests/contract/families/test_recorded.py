"""The recordings are whole, and whoever plays them says what he was asked in vain."""

from __future__ import annotations

import json
from typing import Any

import pytest
import urllib3
from recorded import FAMILIES, Asked, Replay, matches, recordings

from maxwell.backends.refusals import refusal

CHAT = "/v1/chat/completions"
KEYS = {"of", "method", "path", "asked", "when", "kind", "status", "headers", "body", "changed", "end"}


def post(url: str, body: Any) -> urllib3.BaseHTTPResponse:
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("POST", url + CHAT, json=body, timeout=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recording_says_where_it_is_from_and_is_whole(family: str) -> None:
    found = recordings(family)
    assert found["server"]
    assert found["version"]
    assert found["recorded"] == "2026-11-22"
    for exchanges in found["servers"].values():
        for one in exchanges:
            assert one.keys() <= KEYS
            assert one["of"]
            assert ("body" in one) == (one.get("end") != "close")
            assert "…" not in one.get("body", "")
            if "json" in one.get("headers", {}).get("content-type", ""):
                json.loads(one["body"])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_recorded_refusal_is_an_error_of_its_kind(family: str) -> None:
    """Also those that calls do not meet, since Maxwell knows better than to ask."""
    for exchanges in recordings(family)["servers"].values():
        for one in exchanges:
            if "kind" in one:
                error = refusal(one["status"], one["headers"], one["body"].encode(), "x", secrets=["sekret"])
                assert (error.kind, error.status) == (one["kind"], one["status"]), (one["of"], one["body"])


def test_a_request_that_nothing_answers_fails_the_test() -> None:
    told = r"infinity: embedding: nothing is recorded that answers\n  POST /v1/chat/completions .*Hi"
    with pytest.raises(AssertionError, match=told), Replay("infinity", "embedding") as replay:
        assert post(replay.url, {"model": "Hi"}).status == 400


def test_a_stream_comes_byte_for_byte_or_with_other_line_ends() -> None:
    wanted = next(e for e in recordings("transformers")["servers"]["chat"] if "stream" in e["of"])
    for crlf in (False, True):
        with Replay("transformers", "chat", crlf=crlf) as replay:
            reply = post(replay.url, {"stream": True})
        body = wanted["body"].replace("\n", "\r\n") if crlf else wanted["body"]
        assert (reply.status, reply.data.decode()) == (200, body)
        assert reply.headers["content-type"] == wanted["headers"]["content-type"]


def test_a_stream_that_was_cut_has_no_end() -> None:
    with Replay("llama-cpp-python", "cut") as replay, pytest.raises(urllib3.exceptions.ProtocolError):
        post(replay.url, {"stream": True})


def test_a_connection_that_was_closed_gives_no_answer() -> None:
    with Replay("llama-cpp-python", "chat") as replay, pytest.raises(urllib3.exceptions.ProtocolError):
        post(replay.url, {"grammar": "garbage ((("})


@pytest.mark.parametrize(
    ("when", "is_answer"),
    [
        ({}, True),
        ({"fields": {"a": 1}}, True),
        ({"fields": {"a": 2}}, False),
        ({"fields": {"a": "*"}}, True),
        ({"fields": {"b.c": [1]}}, True),
        ({"fields": {"b.d": "*"}}, False),
        ({"fields": {"b.d": None}}, True),
        ({"contains": '"c"'}, True),
        ({"contains": '"d"'}, False),
        ({"longer": 10}, True),
        ({"longer": 100}, False),
        ({"key": "k"}, True),
        ({"key": "other"}, False),
        ({"key": "not k"}, False),
        ({"key": "not other"}, True),
    ],
)
def test_what_answers(when: dict[str, Any], is_answer: bool) -> None:
    asked = Asked("POST", CHAT, "k", json.dumps({"a": 1, "b": {"c": [1]}}).encode())
    assert matches({"method": "POST", "path": CHAT, "when": when}, asked) == is_answer
    assert not matches({"method": "GET", "path": CHAT, "when": when}, asked)
