"""Constraints on a real vLLM with random weights: every reply obeys, or the call says that it cannot.

On both of its engines; nobody can ask a server which one it has.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from calling import Calls
from msgspec import json
from real_vllm import RealVLLM, ask, chat_entry

from maxwell.constraints import constraint_of, violation
from maxwell.errors import ConstraintBroken, ReplyCutOff, StatusError

WILD: dict[str, Any] = {"temperature": 1.5, "max_tokens": 1200}

ORDER = {
    "type": "object",
    "properties": {
        "status": {"enum": ["new", "paid", "sent"]},
        "customer": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 12},
                "vip": {"type": "boolean"},
                "score": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
            },
            "required": ["name", "vip", "score"],
            "additionalProperties": False,
        },
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "sku": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
                    "size": {"$ref": "#/$defs/size"},
                },
                "required": ["sku", "size"],
                "additionalProperties": False,
            },
            "minItems": 1,
            "maxItems": 2,
        },
    },
    "required": ["status", "customer", "items"],
    "additionalProperties": False,
    "$defs": {"size": {"enum": ["S", "M", "L", 42]}},
}
ARITHMETIC = """
# sums of sums, three levels deep at most
root ::= sum " = " number
sum ::= term (" " [+*] " " term){1,3}
term ::= number | "(" number " - " number ")"
number ::= "0" | [1-9] [0-9]{0,3}
"""
CHOICES = ["yes", "no", "not sure", 'say "yes"', "back\\slash", "two\nlines", "Grüße", "yes, but"]
REGEX = r"(?:GET|POST|DELETE) /v[12]/[a-z]{2,8}(?:/\d{1,4})?(?:\?q=\w+)? HTTP/1\.[01]"

TWO_HUNDRED: dict[str, dict[str, Any]] = {
    "json_schema": {"json_schema": ORDER},
    "grammar": {"grammar": ARITHMETIC},
    "choices": {"choices": CHOICES},
    "regex": {"regex": REGEX},
}


def replies(calls: Calls, number: int, **constraint: Any) -> list[str]:
    """What so many calls at once gave, with a seed each."""

    async def main() -> list[str]:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm("v")
            asked = (lm.generate("Hello", seed=seed, **constraint, **WILD) for seed in range(number))
            return await asyncio.gather(*asked)

    return asyncio.run(main())


def calls_to(server: RealVLLM, home: Path) -> Calls:
    return Calls(home, chat_entry(server, capabilities={"max_tokens": 1500, "slots": 4}))


@pytest.mark.parametrize("kind", TWO_HUNDRED)
def test_200_of_200_obey(engine_server: RealVLLM, tmp_path: Path, kind: str) -> None:
    asked = TWO_HUNDRED[kind]
    said = replies(calls_to(engine_server, tmp_path), 200, **asked)
    constraint = constraint_of(**asked)
    assert constraint is not None
    broken = [(text, why) for text in said if (why := violation(constraint, text))]
    assert (len(said), broken) == (200, [])
    # The weights are random: nothing but the constraint made them obey.
    assert len(set(said)) > (4 if kind == "choices" else 100)


# --- whatever is asked: held, or refused before the server is asked


# By the option of a call that asks for it, and a name.
_TABLES: dict[str, dict[str, Any]] = json.decode(Path(__file__).with_name("asked.json").read_bytes())
ASKED: dict[str, dict[str, Any]] = {
    f"{option}: {name}": {option: value} for option, table in _TABLES.items() for name, value in table.items()
}
# What one of the engines passes over in silence, and Maxwell cannot write down as a grammar.
REFUSED = {
    f"json_schema: {name}"
    for name in (
        "multipleOf a fraction",
        "pattern, not anchored",
        "pattern and length",
        "uniqueItems",
        "contains",
        "patternProperties",
        "propertyNames",
        "dependentRequired",
        "anyOf beside a type",
        "anyOf of requireds",
        "oneOf that overlap",
        "allOf of two",
        "not",
        "if, then",
        "a reference and a bound",
    )
}


@pytest.mark.parametrize("name", ASKED)
def test_what_is_asked_is_held_or_refused(engine_server: RealVLLM, tmp_path: Path, name: str) -> None:
    calls = calls_to(engine_server, tmp_path)
    if name in REFUSED:
        before = told_requests(engine_server)
        with pytest.raises(StatusError) as caught:
            calls.ask("generate", name="v", **ASKED[name], **WILD)
        assert caught.value.kind == "unsupported"
        assert told_requests(engine_server) == before
        return
    constraint = constraint_of(**ASKED[name])
    assert constraint is not None
    assert [violation(constraint, text) for text in replies(calls, 5, **ASKED[name])] == [""] * 5


def told_requests(server: RealVLLM) -> int:
    """Chat requests that reached the server so far."""
    return server.log().count("POST /v1/chat/completions")


# --- a server that ignores the constraint


class _Impostor(BaseHTTPRequestHandler):
    """Passes everything on to the server, but for the version, which it says is an old one."""

    upstream = ""

    def do_GET(self) -> None:
        answer = ask(self.upstream, self.path)
        old = self.path == "/version"
        self._answer(answer.status, dict(answer.headers), b'{"version":"0.10.2"}' if old else answer.data)

    def do_POST(self) -> None:
        body = json.decode(self.rfile.read(int(self.headers["content-length"])))
        answer = ask(self.upstream, self.path, body)
        self._answer(answer.status, dict(answer.headers), answer.data)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", headers.get("content-type", "application/json"))
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture
def impostor(chat_server: RealVLLM) -> Iterator[str]:
    """URL of the real server under an old version's name."""
    handler = type("Handler", (_Impostor,), {"upstream": chat_server.url})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("kind", TWO_HUNDRED)
def test_an_old_spelling_is_ignored_with_a_200_and_that_is_caught(
    chat_server: RealVLLM, impostor: str, tmp_path: Path, kind: str
) -> None:
    calls = Calls(tmp_path, chat_entry(chat_server, api_base=impostor))
    calls.warm()
    with calls.pool() as pool:
        health = pool.health()[0].health
        assert health is not None
        assert health.version == "0.10.2"
        lm = pool.get_lm("v")
        for seed in range(3):
            with pytest.raises(ConstraintBroken) as caught:
                lm.generate(
                    "Hello", seed=seed, temperature=1.0, max_tokens=30, stop=["a"], **TWO_HUNDRED[kind]
                )
            assert caught.value.violation
            assert caught.value.completion.usage.completion_tokens > 0


def test_a_reply_that_is_cut_off_is_not_taken_for_whole(calls: Calls) -> None:
    with calls.pool() as pool, pytest.raises(ReplyCutOff):
        pool.get_lm().generate("Hello", json_schema=ORDER, max_tokens=5)
