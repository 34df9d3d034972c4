from __future__ import annotations

import json
from collections.abc import Callable

from click.testing import Result
from command_line import one_line, unreachable

from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]


def test_counts_for_who_would_be_asked(
    fake_server: FakeServers, write_registry: WriteRegistry, run: Run
) -> None:
    server = fake_server(context=1000)
    write_registry(server.llm_entry("a"), fake_server("openai").llm_entry("b", tier="premium"))
    result = run("tokens", "--name", "a", "why", "so")
    assert result.exit_code == 0
    (one,) = json.loads(run("tokens", "--name", "a", "--json", "why", "so").stdout)
    assert (one["name"], one["exact"], one["context"]) == ("a", True, 1000)
    assert one["share"] == one["tokens"] / 1000
    wanted = (
        f"{one['tokens']} tokens for a, {one['share']:.1%} of its context of 1,000 (counted by its server)"
    )
    assert result.stdout == wanted + "\n"
    assert " tokens for " in run("tokens", input="why so").stdout


def test_a_prompt_that_fits_nobody_is_counted(
    fake_server: FakeServers, write_registry: WriteRegistry, run: Run
) -> None:
    small, large = fake_server(context=100), fake_server(context=200)
    write_registry(small.llm_entry("small"), large.llm_entry("large"))
    (one,) = json.loads(run("tokens", "--json", input="x" * 8000).stdout)
    assert (one["name"], one["exact"]) == ("large", True)
    assert one["share"] > 10


def test_all_are_listed_and_estimates_marked(
    fake_server: FakeServers, write_registry: WriteRegistry, run: Run
) -> None:
    write_registry(fake_server().llm_entry("a"), fake_server("openai").llm_entry("b"), unreachable("c"))
    result = run("tokens", "--all", "why")
    rows = [line.split(maxsplit=4) for line in result.stdout.splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows] == [
        ("a", "counted by its server"),
        ("b", "estimated"),
        ("c", "estimated"),
    ]
    assert run("tokens", "--name", "b", "why").stdout.startswith("about ")


def test_wrong_usage_is_told(write_registry: WriteRegistry, run: Run) -> None:
    write_registry(unreachable("c"))
    result = run("tokens", "--all", "--name", "c", "why")
    assert result.exit_code == 2
    assert "not both" in one_line(result)
    assert run("tokens", "--name", "d", "why").exit_code == 4
