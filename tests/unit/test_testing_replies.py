"""Replies of the fake server that all dialects share: caps, stops, tools, constraints, embeddings."""

from __future__ import annotations

import base64
import math
import struct
from typing import Any

import pytest
from fake_http import CHAT, DIALECTS, HELLO, REPLY, STREAM, Answer, call, events, finishes, text

from maxwell.testing import FakeServer, faults
from maxwell.types import BackendName

# What all dialects share


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("stream", [False, True])
def test_caps_obeyed_with_finish_reason_length(dialect: BackendName, stream: bool) -> None:
    with FakeServer(dialect) as server:
        for key in ("max_tokens", "max_completion_tokens"):
            answer = call(server, CHAT, HELLO | {key: 2, "stream": stream})
            if stream:
                chunks = events(answer.raw)
                assert (text(chunks), finishes(chunks)) == ("Hello th", ["length"])
            else:
                choice = answer.json["choices"][0]
                assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello th", "length")


def test_caps_count_in_each_dialects_own_order() -> None:
    body = HELLO | {"max_tokens": 3, "max_completion_tokens": 2}
    with FakeServer("llamacpp") as server:
        assert call(server, CHAT, body | {"n_predict": 1}).json["usage"]["completion_tokens"] == 1
        assert call(server, CHAT, HELLO | {"max_tokens": 0}).json["usage"]["completion_tokens"] == 1
        assert call(server, CHAT, HELLO | {"max_tokens": -1}).json["usage"]["completion_tokens"] == 5
    with FakeServer("vllm", max_tokens_default=4) as server:
        assert call(server, CHAT, body).json["usage"]["completion_tokens"] == 2
        assert call(server, CHAT, HELLO).json["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("dialect", DIALECTS)
def test_generation_ends_where_the_context_does(dialect: BackendName) -> None:
    with FakeServer(dialect, context=32, reply=["tok "] * 1000) as server:
        for cap in ({}, {"max_tokens": 30}):
            reply = call(server, CHAT, HELLO | cap).json
            assert reply["usage"]["total_tokens"] == 32
            assert reply["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_reply_may_depend_on_the_request(dialect: BackendName) -> None:
    with FakeServer(dialect, reply=lambda body: body["messages"][0]["content"].upper()) as server:
        assert call(server, CHAT, HELLO).json["choices"][0]["message"]["content"] == "HELLO"
        assert text(events(call(server, CHAT, STREAM).raw)) == "HELLO"


def test_reply_function_that_raises_is_named_in_the_answer() -> None:
    def reply(body: dict[str, Any]) -> str:
        raise KeyError("mood")

    with FakeServer("llamacpp", reply=reply) as server:
        answer = call(server, CHAT, HELLO)
        assert answer.status == 500
        assert "KeyError('mood')" in answer.json["error"]["message"]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_stop_strings_end_the_reply(dialect: BackendName) -> None:
    with FakeServer(dialect) as server:
        choice = call(server, CHAT, HELLO | {"stop": ["friend", "there"]}).json["choices"][0]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello ", "stop")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_tools_are_called_in_stream_and_whole(dialect: BackendName) -> None:
    tools = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}]
    with FakeServer(dialect, tool_calls=[("get_weather", {"city": "Paris", "days": 4})]) as server:
        message = call(server, CHAT, HELLO | {"tools": tools}).json["choices"][0]
        assert message["finish_reason"] == "tool_calls"
        asked = message["message"]["tool_calls"][0]
        assert asked["function"] == {"name": "get_weather", "arguments": '{"city":"Paris","days":4}'}
        chunks = events(call(server, CHAT, STREAM | {"tools": tools}).raw)
        deltas = [c["choices"][0]["delta"] for c in chunks[:-1] if c["choices"]]
        pieces = [d["tool_calls"][0] for d in deltas if d.get("tool_calls")]
        assert pieces[0]["function"]["name"] == "get_weather"
        assert pieces[0]["id"]
        assert "".join(p["function"].get("arguments", "") for p in pieces) == '{"city":"Paris","days":4}'
        assert finishes(chunks) == ["tool_calls"]
        plain = call(server, CHAT, HELLO | {"tools": tools, "tool_choice": "none"}).json["choices"][0]
        assert plain["message"]["content"] == REPLY


GBNF = 'root ::= "yes" | "no"'
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}


@pytest.mark.parametrize(
    ("dialect", "constraint", "honoured"),
    [
        ("llamacpp", {"grammar": GBNF}, True),
        ("llamacpp", {"json_schema": {"type": "object"}}, True),
        ("llamacpp", {"response_format": SCHEMA}, True),
        ("llamacpp", {"structured_outputs": {"grammar": GBNF}}, False),
        ("vllm", {"structured_outputs": {"grammar": GBNF}}, True),
        ("vllm", {"response_format": SCHEMA}, True),
        ("vllm", {"grammar": GBNF}, False),
        ("vllm", {"guided_grammar": GBNF}, False),
        ("openai", {"response_format": SCHEMA}, True),
    ],
)
def test_constraints_are_honoured_as_the_real_server_does(
    dialect: BackendName, constraint: dict[str, Any], honoured: bool
) -> None:
    with FakeServer(dialect, constrained_reply="yes") as server:
        for _ in range(2):
            said = call(server, CHAT, HELLO | constraint).json["choices"][0]["message"]["content"]
            assert said == ("yes" if honoured else REPLY)
        server.fail(faults.IgnoreConstraints())
        said = call(server, CHAT, HELLO | constraint).json["choices"][0]["message"]["content"]
        assert said == REPLY


@pytest.mark.parametrize(("dialect", "status"), [("llamacpp", 500), ("vllm", 400), ("openai", 400)])
def test_images_need_eyes_and_cost_the_same_whatever_their_size(dialect: BackendName, status: int) -> None:
    def body(size: int) -> dict[str, Any]:
        url = "data:image/png;base64," + "A" * size
        return HELLO | {
            "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]
        }

    with FakeServer(dialect) as server:
        assert call(server, CHAT, body(10)).status == status
    with FakeServer(dialect, vision=True) as server:
        small, large = (call(server, CHAT, body(n)).json["usage"]["prompt_tokens"] for n in (10, 2_000_000))
        assert small == large > 256


# Embeddings


def vector(answer: Answer, index: int = 0) -> list[float]:
    item = answer.json["data"][index]
    assert item["index"] == index
    value = item["embedding"]
    if isinstance(value, str):
        packed = base64.b64decode(value)
        return list(struct.unpack(f"<{len(packed) // 4}f", packed))
    return [float(v) for v in value]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_embeddings_are_unit_vectors_that_depend_on_the_text_alone(dialect: BackendName) -> None:
    with FakeServer(dialect, embeddings=True, dimension=16) as server:
        one = call(server, "/v1/embeddings", {"model": "tiny", "input": "hello world"})
        many = call(server, "/v1/embeddings", {"model": "tiny", "input": ["the cat", "hello world"]})
        packed = call(
            server, "/v1/embeddings", {"model": "tiny", "input": "hello world", "encoding_format": "base64"}
        )
        assert len(vector(one)) == 16
        assert math.isclose(math.hypot(*vector(one)), 1.0, rel_tol=1e-6)
        assert vector(many, 1) == vector(one) == vector(packed)
        assert vector(many, 0) != vector(one)
        assert one.json["usage"]["prompt_tokens"] == 3
        assert ("encoding_format" in packed.json["data"][0]) == (dialect == "llamacpp")
    with FakeServer("llamacpp", embeddings=True, dimension=16) as server:
        assert vector(call(server, "/v1/embeddings", {"input": "hello world"})) == vector(one)


def test_embeddings_of_token_ids_equal_those_of_their_text() -> None:
    with FakeServer("llamacpp", embeddings=True) as server:
        ids = call(server, "/tokenize", {"content": "hello world"}).json["tokens"]
        by_text = call(server, "/v1/embeddings", {"input": "hello world"})
        for value in (ids, [ids]):
            by_ids = call(server, "/v1/embeddings", {"input": value})
            assert vector(by_ids) == vector(by_text)
            assert by_ids.json["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


def test_llamacpp_refuses_a_long_embedding_input_with_500() -> None:
    with FakeServer("llamacpp", embeddings=True, context=16) as server:
        answer = call(server, "/v1/embeddings", {"input": ["ok", "the cat " * 20]})
        assert answer.status == 500
        assert answer.json["error"] == {
            "code": 500,
            "message": "input (40 tokens) is too large to process. increase the physical batch size "
            "(current batch size: 16)",
            "type": "server_error",
        }
        assert call(server, "/v1/embeddings", {"input": "x", "model": "nope"}).json["model"] == "nope"


def test_vllm_refuses_or_truncates_a_long_embedding_input() -> None:
    body = {"model": "tiny", "input": "the cat " * 20}
    with FakeServer("vllm", embeddings=True, context=16) as server:
        answer = call(server, "/v1/embeddings", body)
        assert answer.status == 400
        assert answer.json["error"]["message"].endswith("(parameter=input_text, value=160)")
        assert answer.json["error"]["param"] == "input_text"
        for cut, count in ((-1, 16), (4, 4)):
            short = call(server, "/v1/embeddings", body | {"truncate_prompt_tokens": cut})
            assert short.json["usage"]["prompt_tokens"] == count
        same = call(server, "/v1/embeddings", {"model": "tiny", "input": "the cat the cat "})
        assert vector(same) == vector(short)
        assert call(server, "/v1/embeddings", body | {"input": "x", "dimensions": 8}).status == 400


def test_openai_shortens_vectors_on_request() -> None:
    with FakeServer("openai", dimension=32) as server:
        answer = call(server, "/v1/embeddings", {"model": "tiny", "input": "x", "dimensions": 8})
        assert len(vector(answer)) == 8
        assert math.isclose(math.hypot(*vector(answer)), 1.0, rel_tol=1e-6)
        assert call(server, "/v1/embeddings", {"model": "tiny", "input": ""}).status == 400


@pytest.mark.parametrize(
    ("dialect", "embeddings", "path", "status"),
    [
        ("llamacpp", False, "/v1/embeddings", 501),
        ("llamacpp", True, CHAT, 500),
        ("vllm", False, "/v1/embeddings", 404),
        ("vllm", True, CHAT, 404),
    ],
)
def test_the_wrong_kind_of_server_says_so(
    dialect: BackendName, embeddings: bool, path: str, status: int
) -> None:
    with FakeServer(dialect, embeddings=embeddings) as server:
        assert call(server, path, HELLO | {"input": "x"}).status == status
