"""Where an entry's routes lie, and which key goes there."""

from __future__ import annotations

import json

import pytest
from worlds import World

from maxwell.registry.endpoints import api_key, key_problem, openai_url, root
from maxwell.registry.load import decode
from maxwell.registry.specs import LLMSpec, Registry


@pytest.mark.parametrize(
    ("base", "expected_root", "chat"),
    [
        ("http://box:8080", "http://box:8080", "http://box:8080/v1/chat"),
        ("http://box:8080/", "http://box:8080", "http://box:8080/v1/chat"),
        ("http://box:8080/v1", "http://box:8080", "http://box:8080/v1/chat"),
        ("http://box:8080/v1/", "http://box:8080", "http://box:8080/v1/chat"),
        ("https://host/llm/v1", "https://host/llm", "https://host/llm/v1/chat"),
        ("https://host/api/paas/v4", "https://host/api/paas/v4", "https://host/api/paas/v4/chat"),
        ("https://host/v1beta/openai/", "https://host/v1beta/openai", "https://host/v1beta/openai/chat"),
        ("http://v2.lan:80", "http://v2.lan:80", "http://v2.lan:80/v1/chat"),
        ("http://box/vault", "http://box/vault", "http://box/vault/v1/chat"),
    ],
)
def test_routes_lie_under_v1_unless_the_base_names_a_version(
    base: str, expected_root: str, chat: str
) -> None:
    assert root(base) == expected_root
    assert openai_url(base, "/chat") == chat
    assert openai_url(root(base), "/chat") == chat


def spec(**fields: str) -> LLMSpec:
    entry = World("http://127.0.0.1:1", "").llm("one") | fields
    return decode(json.dumps({"llms": [entry]}).encode(), "file").llms[0]


CLOUD = {"api_base": "https://api.openai.com"}


def test_the_openai_key_goes_to_openai_over_tls_only() -> None:
    environ = {"OPENAI_API_KEY": "sk-canary"}
    assert api_key(spec(**CLOUD), Registry(), environ) == "sk-canary"
    for base in (
        "http://api.openai.com",
        "https://api.openai.com.evil.example",
        "https://example.com",
        "http://box",
    ):
        assert api_key(spec(api_base=base), Registry(), environ) is None


def test_a_named_variable_replaces_it_and_needs_a_trusted_registry() -> None:
    own = spec(api_base="https://example.com", api_key_env="CLOUD_KEY")
    environ = {"CLOUD_KEY": "sk-canary"}
    assert api_key(own, Registry(), environ) == "sk-canary"
    untrusted = Registry(project=True, trusted=False)
    assert api_key(own, untrusted, environ) is None
    assert "maxwell trust" in (key_problem(own, untrusted, environ) or "")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("sk-fine", None),
        ("sk-with-a-newline-at-its-end\n", None),
        ("", "OPENAI_API_KEY is not set"),
        ("sk-canary-\nin-two-lines", "OPENAI_API_KEY holds a character"),
        ("sk-canary-ключ", "OPENAI_API_KEY holds a character"),
    ],
)
def test_a_key_that_cannot_be_sent_is_named_and_not_shown(value: str, problem: str | None) -> None:
    said = key_problem(spec(**CLOUD), Registry(), {"OPENAI_API_KEY": value})
    assert (said is None) == (problem is None)
    assert problem is None or problem in (said or "")
    assert "canary" not in (said or "")
