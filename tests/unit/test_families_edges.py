"""Families where a server is hostile, or another one by now."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_families import (
    CLOUD,
    FAMILIES,
    INFINITY,
    INFINITY_UNDER_V1,
    KEY,
    LLAMA_CPP_PYTHON,
    LLAMACPP,
    OLLAMA,
    ROOT,
    SGLANG,
    TEI,
    TGI,
    TRANSFORMERS,
    VLLM,
    Answer,
    Recorded,
    found,
    ok,
)

from maxwell.backends import get_backend
from maxwell.calls.probe import probe
from maxwell.calls.sync_driver import run
from maxwell.health import Endpoint, Health, HealthBook
from maxwell.testing import FakeClock
from maxwell.types import BackendName

SILENT = Recorded({"/health": ok(""), "/v1/models": ok('{"data":[{"id":"m","owned_by":"somebody"}]}')})
TELLING = [
    LLAMACPP, VLLM, LLAMA_CPP_PYTHON, INFINITY, INFINITY_UNDER_V1, OLLAMA, SGLANG, TGI, TEI, CLOUD, SILENT,
]  # fmt: skip


class Box:
    """One address at which one server follows another."""

    def __init__(self, backend: BackendName | None = None, home: Path | None = None) -> None:
        self.clock = FakeClock()
        self.book = HealthBook(home, self.clock)
        self.endpoint = Endpoint(ROOT, backend, KEY)

    def now(self, server: Recorded) -> Health:
        self.clock.advance(40)
        return run(probe(self.endpoint, self.book, self.clock, self.clock.time()), server)


def said(health: Health) -> Health:
    """Without what differs from one look to the next."""
    return msgspec.structs.replace(health, at=0.0, seconds=None, since=None, busy_at=None)


@pytest.mark.parametrize("declared", ["llamacpp", "vllm", "openai", None])
def test_a_box_restarted_with_another_server_is_that_one(declared: BackendName | None) -> None:
    for before in TELLING:
        for after in TELLING:
            box = Box(declared)
            box.now(before)
            assert said(box.now(after)) == said(found(after, backend=declared))


def test_a_family_is_forgotten_with_its_paths() -> None:
    # It is asked for SGLang's own path first, and cannot list its models either.
    box = Box()
    assert box.now(SGLANG).family == "sglang"
    assert (box.now(TRANSFORMERS).state, box.now(TRANSFORMERS).state) == ("down", "up")
    assert box.now(TRANSFORMERS).family == ""


@pytest.mark.parametrize(
    "answer",
    [(0, {}, b""), (401, {}, b""), (429, {}, b""), (500, {}, b""), (502, {}, b"<html>"), (503, {}, b"")],
    ids=lambda answer: str(answer[0]),
)
def test_a_family_outlasts_every_trouble(answer: Answer) -> None:
    for server, family in ((VLLM, "vllm"), (OLLAMA, "ollama"), (SGLANG, "sglang")):
        for lost in (["/health", "/get_model_info", "/v1/models"], ["/health", "/get_model_info"]):
            box = Box()
            box.now(server)
            ill = Recorded({**server.answers, **dict.fromkeys(lost, answer)})
            assert box.now(ill).family == family


@pytest.mark.parametrize(
    "version", ["0.11.0rc1", "0.10.2+cpu", "v0.9", "", "0", "0.", "-1.2", "٣.١", "1e9.9"]
)
def test_no_version_is_too_odd(version: str) -> None:
    codec = get_backend("vllm", family="vllm", version=version)
    assert type(codec).__name__ == ("OldVLLMBackend" if version in ("0.10.2+cpu", "v0.9") else "VLLMBackend")


def test_states_of_an_older_maxwell_are_understood(tmp_path: Path) -> None:
    box = Box(home=tmp_path)
    old = {"state": "up", "at": box.clock.time(), "models": [{"id": "m"}], "unheard_of": {"by": "anybody"}}
    (tmp_path / box.endpoint.file_name).write_text(json.dumps(old))
    health = box.book.get(box.endpoint, box.clock.time())
    assert health is not None
    assert (health.state, health.family, health.version) == ("up", "", "")
    assert health.models[0].id == "m"
    assert box.now(OLLAMA).family == "ollama"


KEYS = [
    "data", "id", "owned_by", "aliases", "meta", "n_ctx", "n_embd", "max_model_len", "status", "value",
    "model_id", "model_type", "max_input_length", "max_total_tokens", "models", "name", "context_length",
    "version", "error", "default_generation_settings", "total_slots", "modalities", "vision", "build_info",
    "is_sleeping", "message", "permissions",
]  # fmt: skip
PATHS = [
    "/health", "/v1/models", "/models", "/info", "/props", "/slots", "/version", "/metrics", "/api/ps",
    "/get_model_info",
]  # fmt: skip
WORDS = st.sampled_from(
    ["m", "me", "library", "vllm", "infinity", "\x00", "\u202e", "x" * 300, "0.9", 10**40, -1]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=8,
)
CARDS = st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), max_size=3)
BODIES = (
    st.binary(max_size=30)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | CARDS.map(lambda cards: json.dumps({"data": cards}).encode())
    | st.sampled_from([b"[" * 50_000, b'{"a":' * 50_000, b"\xff\xfe", b'{"data":[{"id":"\\ud800"}]}'])
)
ANSWERS = st.tuples(
    st.sampled_from([200, 200, 200, 404, 500, 503, 429, 401, 302]),
    st.sampled_from([{}, {"server": "llama.cpp"}, {"content-type": "text/html"}]),
    BODIES,
)


@settings(deadline=None, max_examples=150)
@given(
    st.fixed_dictionaries(dict.fromkeys(PATHS, ANSWERS)),
    st.sampled_from(["llamacpp", "vllm", "openai", None]),
    st.sampled_from(["", *FAMILIES]),
)
def test_whatever_a_server_says_a_health_check_ends_in_a_state(
    answers: dict[str, Answer], declared: BackendName | None, known: str
) -> None:
    box = Box(declared)
    box.book.put(box.endpoint, Health(state="up", at=box.clock.time(), family=known))
    health = box.now(Recorded(answers))
    assert health.version.isprintable()
    assert health.family in ("", "openai", *FAMILIES)
    assert msgspec.json.decode(msgspec.json.encode(health), type=Health) == health  # as it is shared
    get_backend("openai", family=health.family, version=health.version)
