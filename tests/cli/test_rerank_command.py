from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from command_line import one_line

from maxwell.testing import FakeServer
from maxwell.testing.fixtures import FakeServers, WriteRegistry

DOCUMENTS = ["a cold dog", "the warm cat", "nothing"]

Run = Callable[..., Result]


@pytest.fixture
def server(fake_server: FakeServers, write_registry: WriteRegistry) -> FakeServer:
    server = fake_server(reranker=True)
    write_registry(server.reranker_entry("r", tags=["default"]))
    return server


def test_prints_the_best_first(server: FakeServer, run: Run) -> None:
    result = run("rerank", "warm cat", *DOCUMENTS)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["SCORE", "PLACE", "DOCUMENT"]
    assert [line.split(maxsplit=2)[2] for line in lines[1:]] == ["the warm cat", "a cold dog", "nothing"]


def test_reads_lines_and_prints_json(server: FakeServer, run: Run) -> None:
    result = run("rerank", "warm cat", "--top", "2", "--json", input="\r\n".join(DOCUMENTS) + "\n")
    found = json.loads(result.stdout)
    assert (found["name"], [one["index"] for one in found["results"]]) == ("r", [1, 0])
    assert found["results"][0] == {"index": 1, "score": 1.0, "document": "the warm cat"}


def test_says_what_is_missing(server: FakeServer, run: Run) -> None:
    for args in (("rerank", "q"), ("rerank", " ", "d")):
        result = run(*args, input="")
        assert result.exit_code == 2
        assert "document" in one_line(result) or "query" in one_line(result)
    result = run("rerank", "q", "d", "--name", "rr")
    assert result.exit_code == 4
    assert "no reranker 'rr'" in one_line(result)


def test_list_check_and_usage_show_rerankers(server: FakeServer, run: Run) -> None:
    run("rerank", "warm cat", *DOCUMENTS)
    (listed,) = json.loads(run("list", "--json").stdout)
    assert (listed["kind"], listed["name"], listed["state"]) == ("reranker", "r", "up")
    checked = json.loads(run("check", "--json").stdout)
    assert [(e["name"], e["kind"], e["verdict"]) for e in checked["entries"]] == [("r", "reranker", "ok")]
    (used,) = json.loads(run("usage", "--json").stdout)["entries"]
    assert (used["name"], used["kind"], used["calls"]) == ("r", "reranker", 1)
    assert "a reranking call" in run("why").stdout
    assert "no reranker was named" in run("why").stdout
    assert "Rerankers\n  r: " in run("registry", "show").stdout
    assert "1 reranker" in run("registry", "check").stdout
    (shown,) = json.loads(run("registry", "show", "--json").stdout)["rerankers"]
    assert shown["name"] == "r"
