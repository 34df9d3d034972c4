"""What the llama.cpp codec sends, held by a real llama.cpp whose model writes noise."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import urllib3
from jsonschema import Draft202012Validator

from maxwell.backends import decode_chunk, get_backend
from maxwell.local.server import LocalServer
from maxwell.registry.specs import Capabilities, LLMSpec
from maxwell.types import ChatCall, Constraint

pytestmark = pytest.mark.real

TIMES = 200

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": -9, "maximum": 99}, "y": {"type": "boolean"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}
NESTED = {
    "type": "object",
    "properties": {
        "kind": {"type": "string", "enum": ["city", "river", 'mountain "K2"']},
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "at": {"$ref": "#/$defs/point"},
        "tags": {"type": "array", "items": {"enum": ["old", "new", 3, None]}, "minItems": 1, "maxItems": 3},
        "near": {"anyOf": [{"$ref": "#/$defs/point"}, {"type": "null"}]},
    },
    "required": ["kind", "name", "at", "tags", "near"],
    "additionalProperties": False,
    "$defs": {"point": POINT},
}
GRAMMAR = r"""
root ::= "move " side ("," " "? side){0,2} "."  # a comment
side ::= [a-h] [1-8] ("+" | "#")?
"""
CHOICES = ("yes", "no", "maybe", 'not "now"', "né\n")
REGEX = r"[A-Z]{2}-\d{3,4}(?: (?:draft|final))?"

CONSTRAINTS: dict[str, tuple[Constraint, Callable[[str], bool]]] = {
    "json_schema": (Constraint("json_schema", NESTED), lambda text: obeys(NESTED, text)),
    "grammar": (
        Constraint("grammar", GRAMMAR),
        lambda text: re.fullmatch(r"move [a-h][1-8][+#]?(, ?[a-h][1-8][+#]?){0,2}\.", text) is not None,
    ),
    "choices": (Constraint("choices", CHOICES), lambda text: text in CHOICES),
    "regex": (Constraint("regex", REGEX), lambda text: re.fullmatch(REGEX, text) is not None),
}

# Some of them are sent as schemas, some as grammars, since the server's own converter passes over a keyword.
SCHEMAS: list[dict[str, Any]] = [
    {"type": "integer", "minimum": -120, "maximum": 7},
    {"type": "integer", "exclusiveMinimum": 1005, "maximum": 20000},
    {"type": "integer", "minimum": 1000},
    {"type": "integer", "maximum": -5},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 7},
    {"type": "number", "minimum": 3, "maximum": 17},
    {"type": ["integer", "null"], "minimum": 5, "maximum": 6},
    {"type": "string", "pattern": "^[A-Z]{2}\\d{2}$"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "minLength": 2, "maxLength": 4},
    {"type": "string", "enum": ["a", "b", 1]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "minItems": 2, "maxItems": 2},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3},
    {"type": "object", "properties": {"a": {"type": "null"}, "b": {"type": "boolean"}}, "required": ["b"]},
    {"oneOf": [{"type": "boolean"}, {"type": "null"}]},
    {"allOf": [POINT]},
]


class Said(NamedTuple):
    text: str
    reasoning: str
    tools: list[str]
    finish_reason: str


def obeys(schema: dict[str, Any], text: str) -> bool:
    try:
        return bool(Draft202012Validator(schema).is_valid(json.loads(text)))
    except ValueError:
        return False


class Client:
    """Asks a server in the codec's words."""

    def __init__(self, server: LocalServer) -> None:
        self._pool = urllib3.PoolManager(retries=False)
        self._codec = get_backend("llamacpp")
        capabilities = Capabilities(max_tokens=256, max_context=2048, speed_tokens_per_sec=100.0)
        self._spec = LLMSpec(
            name="tiny",
            api_base=server.url,
            model="tiny.gguf",
            backend="llamacpp",
            capabilities=capabilities,
            default_temperature=1.5,
        )

    def ask(self, seed: int = 0, **fields: Any) -> Said:
        messages = [{"role": "user", "content": "Hello"}]
        fields = {"max_tokens": 512, "seed": seed} | fields
        request = self._codec.chat(self._spec, ChatCall(messages=messages, **fields), None)
        headers = request.headers | {"connection": "close"}  # the server ends idle connections when it likes
        reply = self._pool.request("POST", request.url, body=request.body, headers=headers)
        assert reply.status == 200, reply.data
        events = [line[6:] for line in reply.data.splitlines() if line.startswith(b"data: {")]
        chunks = [decode_chunk(event) for event in events]
        choices = [choice for chunk in chunks for choice in chunk.choices or ()]
        deltas = [choice.delta for choice in choices if choice.delta is not None]
        calls = [call for delta in deltas for call in delta.tool_calls or ()]
        names = [call.function.name for call in calls if call.function and call.function.name]
        text = "".join(delta.content or "" for delta in deltas)
        thought = "".join(delta.reasoning_content or "" for delta in deltas)
        finish = [choice.finish_reason for choice in choices if choice.finish_reason]
        return Said(text, thought, names, finish[-1])

    def close(self) -> None:
        self._pool.clear()


@pytest.fixture(scope="module")
def client(llama_server: LocalServer) -> Iterator[Client]:
    client = Client(llama_server)
    yield client
    client.close()


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_every_reply_obeys(client: Client, kind: str) -> None:
    constraint, is_obeyed = CONSTRAINTS[kind]
    said = [client.ask(seed, constraint=constraint) for seed in range(TIMES)]
    assert {reply.finish_reason for reply in said} == {"stop"}
    assert [reply.text for reply in said if not is_obeyed(reply.text)] == []
    assert len({reply.text for reply in said}) > 2  # so it is not one text that happens to obey


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_every_keyword_is_held_whichever_way_it_is_sent(client: Client, schema: dict[str, Any]) -> None:
    constraint = Constraint("json_schema", schema)
    said = [client.ask(seed, constraint=constraint) for seed in range(40)]
    assert {reply.finish_reason for reply in said} == {"stop"}
    assert [reply.text for reply in said if not obeys(schema, reply.text)] == []


@pytest.mark.parametrize("kind", CONSTRAINTS)
def test_a_reply_that_is_cut_off_says_so(client: Client, kind: str) -> None:
    constraint, is_obeyed = CONSTRAINTS[kind]
    said = [client.ask(seed, constraint=constraint, max_tokens=2) for seed in range(10)]
    assert all(reply.finish_reason == "length" for reply in said if not is_obeyed(reply.text))


# --- tools

WEATHER, TIME = (
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {"at": {"enum": ["Oslo", "Rome"]}},
                "required": ["at"],
            },
        },
    }
    for name in ("weather", "time")
)


def test_the_chosen_tool_is_called(start_llama: Any) -> None:
    client = Client(start_llama("tools", context=2048))
    said = [client.ask(seed, tools=[WEATHER, TIME], tool_choice=choice).tools for seed in range(5)
            for choice in ({"type": "function", "function": {"name": "time"}}, "required")]  # fmt: skip
    client.close()
    assert said[::2] == [["time"]] * 5
    assert {name for names in said[1::2] for name in names} <= {"weather", "time"}


# --- thinking

# Opens the model's turn with a thought, unless told not to; as long as the template it takes the place of.
THINKING = b"""
{%- for message in messages %}
{%- if message.role == 'assistant' and message.reasoning_content is string %}
{{- '<|im_start|>assistant\\n<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}
{{- message.content }}
{{- '<|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n<think>\\n' }}
{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""


@pytest.fixture(scope="module")
def thinker(tiny_models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    model = tiny_models["fast"].read_bytes()
    start, end = model.index(b"{%- if tools %}"), model.rindex(b"{%- endif %}") + len(b"{%- endif %}")
    template = b"{#" + b" " * (end - start - len(THINKING) - 4) + b"#}" + THINKING
    path = tmp_path_factory.mktemp("thinking") / "tiny-thinking.gguf"
    path.write_bytes(model[:start] + template + model[end:])
    with LocalServer(path, context=2048) as server:
        client = Client(server)
        yield client
        client.close()


def test_a_thinker_thinks(thinker: Client) -> None:
    said = thinker.ask(max_tokens=40)
    assert said.reasoning
    assert said.text == ""


def test_thinking_is_switched_off(thinker: Client) -> None:
    said = thinker.ask(max_tokens=40, reasoning_effort="none")
    assert said.text
    assert said.reasoning == ""


def test_thinking_keeps_to_its_room(thinker: Client) -> None:
    said = thinker.ask(max_tokens=100, reasoning_effort="low", thinking_tokens=10)
    assert said.reasoning
    assert said.text


@pytest.mark.parametrize("kind", ["grammar", "choices", "regex"])
def test_a_grammar_holds_the_reply_and_not_the_thinking(thinker: Client, kind: str) -> None:
    constraint, is_obeyed = CONSTRAINTS[kind]
    said = [thinker.ask(seed, constraint=constraint, thinking_tokens=10) for seed in range(10)]
    assert [reply for reply in said if not is_obeyed(reply.text) or reply.reasoning] == []


def test_a_schema_holds_the_reply_after_thinking(thinker: Client) -> None:
    constraint = Constraint("json_schema", NESTED)
    said = [
        thinker.ask(seed, constraint=constraint, reasoning_effort="low", thinking_tokens=10)
        for seed in range(10)
    ]
    assert [reply for reply in said if not obeys(NESTED, reply.text) or not reply.reasoning] == []
