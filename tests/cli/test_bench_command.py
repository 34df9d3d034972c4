from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from command_line import MAXWELL, one_line, unreachable, unstyled

from maxwell.testing import FakeServer, faults
from maxwell.testing.fixtures import FakeServers, WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]
LONG = ["word "] * 400


@pytest.fixture
def box(fake_server: FakeServers) -> FakeServer:
    return fake_server(tokens_per_sec=400, reply=LONG, slots=4)


@pytest.fixture
def registry(box: FakeServer, fake_server: FakeServers, write_registry: WriteRegistry) -> Path:
    paid = fake_server("openai", tokens_per_sec=400, reply=LONG)
    return write_registry(
        box.llm_entry("local", capabilities={"speed_tokens_per_sec": 50.0}),
        paid.llm_entry("paid", cost_per_1k_tokens=0.005),
        paid.llm_entry("limited", daily_budget_tokens=1_000_000),
        unreachable("gone"),
    )


def answering(answer: str, *args: str) -> tuple[int, str]:
    """Run a command line on a terminal where a person gives this answer to its first question."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    process = subprocess.Popen([*MAXWELL, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the program has ended
                break
            if not piece:
                break
            shown += piece
            if b"[y/N]: " in shown and answer:
                os.write(ours, f"{answer}\n".encode())
                answer = ""
        return process.wait(timeout=60), unstyled(shown.decode()).replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def lines(result: Result) -> list[list[str]]:
    return [line.split() for line in result.stdout.splitlines()]


# --- who is measured


def test_what_is_free_and_up_is_measured(run: Run, registry: Path) -> None:
    result = run("bench")
    assert result.exit_code == 0
    heading, *rows = lines(result)
    assert heading == ["NAME", "WHAT", "MEASURED", "SPREAD", "DECLARED", "UNIT", "NOTE"]
    assert [row[:2] for row in rows] == [["local", "writing"], ["local", "reading"], ["local", "first"]]
    assert float(rows[0][2]) == pytest.approx(400, rel=0.2)
    assert rows[0][4:6] == ["50", "tokens/s"]
    assert "times faster than declared" in result.stdout
    told = result.stderr.splitlines()
    assert told[0] == "paid costs money: `maxwell bench paid` measures it"
    assert told[1] == "limited has a budget: `maxwell bench limited` measures it"
    assert told[2] == "gone is down: not measured"
    assert told[3] == "measuring local"
    assert told[4].startswith("10 calls, ")
    assert result.stdout.isascii()


def test_nothing_to_measure_is_a_failure(run: Run, write_registry: WriteRegistry) -> None:
    write_registry(unreachable("gone"))
    result = run("bench")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "there is nothing to measure"


def test_an_unknown_name_is_said_before_anything_is_called(run: Run, registry: Path, box: FakeServer) -> None:
    result = run("bench", "local", "locle")
    assert result.exit_code == 4
    assert "no LLM 'locle'; did you mean local?" in one_line(result)
    assert box.requests_to("/v1/chat/completions") == []


def test_one_that_cannot_be_used_is_an_error_as_of_any_command(run: Run, registry: Path) -> None:
    result = run("bench", "gone")
    assert result.exit_code == 4
    assert "cannot connect" in result.stderr


def test_one_that_fails_does_not_stop_the_others(run: Run, registry: Path) -> None:
    result = run("bench", "gone", "local")
    assert result.exit_code == 1
    rows = lines(result)[1:]
    assert [row[0] for row in rows] == ["gone", "gone", "gone", "local", "local", "local"]
    assert "cannot connect" in result.stdout
    assert float(rows[3][2]) == pytest.approx(400, rel=0.2)


def test_several_replies_at_once(run: Run, registry: Path) -> None:
    told = json.loads(run("bench", "local", "--load", "--json").stdout)
    [entry] = told
    assert [level["replies"] for level in entry["at_once"]] == [2, 4]
    assert all(level["speed_tokens_per_sec"]["count"] == level["replies"] for level in entry["at_once"])


def test_json_tells_everything(run: Run, registry: Path) -> None:
    [entry] = json.loads(run("bench", "local", "--json").stdout)
    speed = entry["speed_tokens_per_sec"]
    assert speed["measured"] == pytest.approx(400, rel=0.2)
    assert (speed["declared"], speed["count"]) == (50.0, 3)
    assert speed["low"] <= speed["measured"] <= speed["high"]
    assert entry["prefill_tokens_per_sec"]["declared"] is None
    assert entry["prefill_tokens_per_sec"].keys() == speed.keys()
    assert (entry["name"], entry["calls"], entry["cost_usd"], entry["error"]) == ("local", 10, 0.0, None)


# --- money


@pytest.mark.parametrize("name", ["paid", "limited"])
def test_money_is_never_spent_unasked(run: Run, registry: Path, name: str) -> None:
    result = run("bench", name)
    assert result.exit_code == 2
    assert f"measuring {name} takes " in one_line(result)
    assert "nobody can be asked here; --yes goes on without asking" in one_line(result)
    assert json.loads(run("usage", "--json").stdout)["total"]["calls"] == 0


def test_the_most_it_can_cost_is_named_and_asked_for(registry: Path) -> None:
    code, shown = answering("n", "bench", "paid")
    assert code == 1
    assert "Measuring paid takes " in shown
    assert " tokens and $0." in shown
    assert "nothing was called" in shown
    code, shown = answering("y", "bench", "paid")
    assert code == 0
    assert "10 calls, " in shown
    assert ", $0.0" in shown


def test_yes_does_not_ask(run: Run, registry: Path) -> None:
    result = run("bench", "paid", "--yes")
    assert result.exit_code == 0
    assert " at most" in result.stderr
    assert lines(result)[1][0] == "paid"


# --- writing


def test_the_registry_is_corrected(run: Run, registry: Path) -> None:
    before = registry.read_text()
    result = run("bench", "local", "--write", "--yes")
    assert result.exit_code == 0
    told = result.stderr.split(f"{registry}:\n")[1].splitlines()
    assert told[0].startswith("  local: speed_tokens_per_sec from 50 to ")
    assert told[-1].startswith("wrote ")
    after = registry.read_text()
    measured = json.loads(after)["llms"][0]["capabilities"]["speed_tokens_per_sec"]
    assert measured == pytest.approx(400, rel=0.2)
    assert measured == float(f"{measured:.3g}")
    pairs = zip(before.split(","), after.split(","), strict=False)
    changed = [(old, new) for old, new in pairs if old != new]
    assert changed[0] == (changed[0][0], changed[0][0].replace("50.0", f"{measured:g}"))


def test_writing_is_asked_for(registry: Path) -> None:
    before = registry.read_text()
    code, shown = answering("n", "bench", "local", "--write")
    assert code == 1
    assert "nothing was written" in shown
    assert registry.read_text() == before
    code, shown = answering("y", "bench", "local", "--write")
    assert code == 0
    assert "\nwrote " in shown
    assert registry.read_text() != before


def test_writing_where_nobody_can_be_asked_is_refused_at_once(
    run: Run, registry: Path, box: FakeServer
) -> None:
    result = run("bench", "local", "--write")
    assert result.exit_code == 2
    assert "--write asks before it writes" in one_line(result)
    assert box.requests_to("/v1/chat/completions") == []


def test_what_was_not_measured_is_not_written(run: Run, registry: Path, box: FakeServer) -> None:
    before = registry.read_text()
    box.fail(faults.SlowFirstByte(0.0), times=5, path="/v1/chat")
    box.fail(faults.Status(500), times=None, path="/v1/chat")
    result = run("bench", "local", "--write", "--yes")
    assert result.exit_code == 1
    assert "HTTP 500" in result.stdout
    assert "there is nothing to write" in result.stderr
    assert registry.read_text() == before


# --- leaving


def test_ctrl_c_keeps_what_was_measured(
    start: Callable[..., subprocess.Popen[bytes]], registry: Path, box: FakeServer
) -> None:
    process = start("bench", "local", "--write", "--yes")
    box.wait_requests(8, timeout=30)  # the health checks, and some calls
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"interrupted" in out
    assert b"interrupted; nothing was written" in err
    assert b"local" in out
    assert '"speed_tokens_per_sec": 50.0' in registry.read_text()


def test_a_terminal_shows_how_far_it_is(on_terminal: OnTerminal, registry: Path) -> None:
    code, shown = on_terminal("bench", "local", columns=80)
    assert code == 0
    assert "measuring local, 4 of 10: long reply" in unstyled(shown)
    assert "times faster than declared" in unstyled(shown)
