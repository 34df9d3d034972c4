"""The fixtures, the clock and the tokenizer that `maxwell.testing` gives to users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.testing import FakeClock, FakeServer
from maxwell.testing.tokens import Tokenizer

pytest_plugins = ["pytester"]

USER_TEST = """
import os
import socket
import urllib.request
from pathlib import Path

import msgspec
import pytest

from maxwell.registry.specs import RegistryFile

seen = []

def test_home(maxwell_home, monkeypatch):
    assert Path.home() == maxwell_home
    assert Path.cwd() != maxwell_home and not list(Path.cwd().iterdir())
    assert not {"OPENAI_API_KEY", "MAXWELL_REGISTRY", "MAXWELL_HOME"} & set(os.environ)

def test_server(fake_server, write_registry):
    server = fake_server("vllm", model="m", reply="hi")
    other = fake_server(embeddings=True)
    entries = [server.llm_entry("a"), server.llm_entry("b")]
    path = write_registry(entries, other.embedding_entry("e"), budget_timezone="Europe/Oslo")
    assert path == Path.home() / ".maxwell" / "lm_registry.json"
    registry = msgspec.json.decode(path.read_bytes(), type=RegistryFile)
    assert [s.name for s in registry.llms] == ["a", "b"]
    assert [s.name for s in registry.embeddings] == ["e"]
    assert registry.budget_timezone == "Europe/Oslo"
    with urllib.request.urlopen(server.url + "/health") as response:
        assert response.status == 200
    seen.append(server)

def test_server_is_closed_after_its_test():
    port = int(seen[0].url.rsplit(":", 1)[1])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1).close()

def test_clock(fake_clock):
    before = fake_clock.monotonic()
    fake_clock.advance(30)
    assert fake_clock.monotonic() - before == 30
"""


def test_fixtures_work_in_a_users_test_file(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-real")
    monkeypatch.setenv("MAXWELL_REGISTRY", "/nowhere.json")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    pytester.makeconftest('pytest_plugins = ["maxwell.testing.fixtures"]')
    pytester.makepyfile(USER_TEST)
    result = pytester.runpytest_subprocess("-q", "-W", "error", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)


def test_importing_the_fake_server_loads_neither_pytest_nor_aiohttp() -> None:
    code = "import sys, maxwell.testing; print(sorted({'pytest', 'aiohttp'} & set(sys.modules)))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[]"


def test_subprocess_can_use_the_server() -> None:
    code = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1] + '/health').read().decode())"
    with FakeServer("llamacpp") as server:
        done = subprocess.run(
            [sys.executable, "-c", code, server.url], capture_output=True, text=True, check=True
        )
        assert json.loads(done.stdout) == {"status": "ok"}
        with urllib.request.urlopen(server.url + "/v1/models") as response:
            assert response.status == 200


def test_clock_stands_still_until_advanced() -> None:
    clock = FakeClock()
    assert clock.now == clock.time() == datetime(2026, 1, 15, 12, tzinfo=UTC).timestamp()
    before = clock.monotonic()
    clock.advance(90.5)
    assert clock.monotonic() - before == 90.5
    assert clock.as_datetime() == datetime(2026, 1, 15, 12, 1, 30, 500_000, tzinfo=UTC)
    assert clock.as_datetime(timezone(timedelta(hours=2))).hour == 14


def test_clock_keeps_monotonic_time_when_the_wall_clock_is_set() -> None:
    clock = FakeClock(datetime(2026, 3, 29, 0, 59, tzinfo=UTC))
    before = clock.monotonic()
    clock.now -= 3600
    assert clock.monotonic() == before
    with pytest.raises(ValueError, match="cannot be advanced by -1"):
        clock.advance(-1)
    with pytest.raises(ValueError, match="needs a time zone"):
        FakeClock(datetime(2026, 1, 1))  # noqa: DTZ001 - that is the point


@settings(deadline=None, max_examples=60)
@given(st.text(), st.integers(1, 9))
def test_tokens_join_to_the_text_again(text: str, size: int) -> None:
    tokenizer = Tokenizer(size)
    tokens = tokenizer.split(text)
    assert "".join(tokens) == text
    assert tokenizer.count(text) == len(tokens) == len(tokenizer.encode(text))
    assert tokenizer.decode(tokenizer.encode(text)) == text
    for token in tokens:
        assert token
        assert len(token) == 1 or len(token.encode("utf-8", "surrogatepass")) <= size


def test_tokens_of_plain_text_are_easily_counted() -> None:
    tokenizer = Tokenizer(4)
    assert tokenizer.split("Hello there") == ["Hell", "o th", "ere"]
    assert tokenizer.split("") == []
    assert tokenizer.split("äöü") == ["äö", "ü"]
    assert Tokenizer(2).split("a世b") == ["a", "世", "b"]
