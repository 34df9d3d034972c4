from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from command_line import MAXWELL, one_line, unreachable, unstyled

from maxwell.clock import SystemClock
from maxwell.ledger import Amount, Limit
from maxwell.ledger.days import budget_day, zone
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing.fixtures import WriteRegistry

Run = Callable[..., Result]
OnTerminal = Callable[..., tuple[int, str]]

# A zone where it is about noon, so that no test runs across midnight.
_EAST = 12 - datetime.now(UTC).hour
NOON = f"Etc/GMT{-_EAST:+d}" if _EAST else "UTC"
TODAY = budget_day(time.time(), zone(NOON))
VECTORS = {
    "name": "vectors",
    "api_base": "http://127.0.0.1:9",
    "model": "e",
    "dimension": 8,
    "max_context": 100,
}


def ago(days: int) -> date:
    return TODAY - timedelta(days)


@pytest.fixture
def registry(write_registry: WriteRegistry) -> Path:
    return write_registry(
        unreachable("local"),
        unreachable("tokens", cost_per_1k_tokens=0.005, daily_budget_tokens=10_000),
        unreachable("money", cost_per_1k_tokens=0.01, daily_budget_usd=0.5),
        unreachable("both", cost_per_1k_tokens=0.01, daily_budget_usd=0.5, daily_budget_tokens=7000),
        VECTORS,
        budget_timezone=NOON,
    )


@pytest.fixture
def home(registry: Path) -> Path:
    return registry.parent


@pytest.fixture
def ledger(home: Path) -> Iterator[SQLiteLedger]:
    with closing(SQLiteLedger(home, SystemClock())) as ledger:
        yield ledger


Book = Callable[..., None]


@pytest.fixture
def book(ledger: SQLiteLedger) -> Book:
    def book(name: str, tokens: int, nanousd: int = 0, day: date = TODAY, *, estimated: bool = False) -> None:
        ledger.book(name, day, Amount(tokens, nanousd), estimated=estimated)
        ledger.flush()

    return book


def rows(text: str) -> dict[str, dict[str, str]]:
    """A piped table's cells by the name in the first column, then by the heading."""
    heading, *lines = text.splitlines()
    titles = re.split(r"  +", heading)
    cells = [re.split(r"  +", line.strip()) for line in lines]
    return {row[0]: dict(zip(titles, row, strict=False)) for row in cells}


def typed(answer: str, *args: str) -> tuple[int, str]:
    """Runs a command line on a terminal where somebody types `answer`: (exit code, all that was shown)."""
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    env = {**os.environ, "COLUMNS": "100", "TERM": "xterm-256color"}
    with subprocess.Popen([*MAXWELL, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the program has closed the terminal
                break
            if not piece:
                break
            shown += piece
        process.wait(timeout=60)
    os.close(ours)
    return process.returncode, unstyled(shown.decode().replace("\r\n", "\n"))


# ---- today


def test_a_fresh_home_shows_zeros_and_stays_as_it_is(run: Run, home: Path) -> None:
    before = sorted(home.iterdir())
    for args in ((), ("--days", "30"), ("--json",), ("holds",), ("reset", "local"), ("rebuild",)):
        result = run("usage", *args)
        assert (result.exit_code, result.stderr) == (0, ""), args
    shown = rows(run("usage").stdout)
    assert list(shown) == ["local", "tokens", "money", "both", "vectors", "TOTAL"]
    assert [shown["tokens"][title] for title in ("TOKENS", "MONEY", "LEFT", "CALLS")] == [
        "0",
        "$0",
        "10,000 tokens",
        "0",
    ]
    assert sorted(home.iterdir()) == before


def test_shows_what_was_used_and_what_is_left(run: Run, book: Book) -> None:
    book("local", 1200)
    book("local", 34)
    book("tokens", 4000, 20_000_000)
    book("both", 3000, 30_000_000)
    book("vectors", 5)
    book("tokens", 9999, 1, ago(1))
    result = run("usage")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.isascii()
    shown = rows(result.stdout)
    assert shown["local"]["TOKENS"] == "1,234"
    assert (shown["local"]["CALLS"], shown["local"]["LEFT"], shown["local"]["BUDGET"]) == (
        "2",
        "unlimited",
        "-",
    )
    assert (shown["tokens"]["LEFT"], shown["tokens"]["BUDGET"]) == ("6,000 tokens", "10,000 tokens")
    assert (shown["money"]["LEFT"], shown["money"]["BUDGET"]) == ("$0.50", "$0.50")
    assert shown["both"]["LEFT"] == "4,000 tokens, $0.47"
    assert re.fullmatch(r"\d+ h( \d+ min)?|\d+ min", shown["both"]["RESETS IN"])
    assert shown["local"]["RESETS IN"] == "-"
    assert list(shown)[-1] == "TOTAL"
    assert (shown["TOTAL"]["TOKENS"], shown["TOTAL"]["MONEY"], shown["TOTAL"]["CALLS"]) == (
        "8,239",
        "$0.05",
        "5",
    )


def test_a_spent_budget_is_said_and_red(run: Run, on_terminal: OnTerminal, book: Book) -> None:
    book("tokens", 10_500)
    book("both", 10, 500_000_000)
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["LEFT"], shown["tokens"]["NOTE"]) == ("0 tokens", "budget used up")
    assert (shown["both"]["LEFT"], shown["both"]["NOTE"]) == ("6,990 tokens, $0", "budget used up")
    assert shown["money"]["NOTE"] == "-"
    assert "\x1b[31m0 tokens" in on_terminal("usage", columns=160)[1]


def test_what_running_calls_hold_is_shown_and_not_left(run: Run, ledger: SQLiteLedger) -> None:
    ledger.reserve("tokens", TODAY, Amount(4000, 20_000_000), Limit())
    ledger.reserve("money", TODAY, Amount(50_000, 500_000_000), Limit())
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["HELD"], shown["tokens"]["LEFT"]) == ("4,000 tokens, $0.02", "6,000 tokens")
    assert (shown["money"]["LEFT"], shown["money"]["NOTE"]) == (
        "$0",
        "all that is left is held by running calls",
    )
    assert shown["TOTAL"]["HELD"] == "54,000 tokens, $0.52"


def test_estimates_are_said(run: Run, book: Book) -> None:
    book("local", 1200, estimated=True)
    book("local", 5)
    shown = rows(run("usage").stdout)
    assert shown["local"]["NOTE"] == shown["TOTAL"]["NOTE"] == "1,200 tokens estimated"
    assert "1,200 tokens estimated" in run("usage", "--days", "2").stdout


def test_names_that_the_registry_lacks_stand_last(run: Run, book: Book) -> None:
    book("aged", 50, 7_000_000)
    shown = rows(run("usage").stdout)
    assert list(shown)[-2:] == ["aged", "TOTAL"]
    assert (shown["aged"]["TOKENS"], shown["aged"]["LEFT"]) == ("50", "-")
    assert shown["aged"]["NOTE"] == "not in the registry"
    assert shown["TOTAL"]["MONEY"] == "$0.007"


def test_tokens_of_an_earlier_file_have_no_known_price(run: Run, home: Path) -> None:
    (home / "llm_usage.json").write_text(json.dumps({"tokens": {str(TODAY): 1500}, "local": {str(TODAY): 7}}))
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["TOKENS"], shown["tokens"]["NOTE"]) == ("1,500", "price of 1,500 tokens unknown")
    assert (shown["local"]["TOKENS"], shown["local"]["NOTE"]) == ("7", "-")
    assert "price of 1,500 tokens unknown" in run("usage", "--days", "3").stdout


def test_one_entry_alone(run: Run, book: Book) -> None:
    book("local", 1)
    book("aged", 5, day=ago(300))
    assert list(rows(run("usage", "--name", "local").stdout)) == ["local"]
    assert rows(run("usage", "--name", "aged").stdout)["aged"]["TOKENS"] == "0"
    assert [
        entry["name"] for entry in json.loads(run("usage", "--name", "local", "--json").stdout)["entries"]
    ] == ["local"]


def test_a_name_that_is_only_held_is_known(run: Run, ledger: SQLiteLedger) -> None:
    ledger.reserve("elsewhere", ago(1), Amount(5), Limit())
    assert rows(run("usage", "--name", "elsewhere").stdout)["elsewhere"]["TOKENS"] == "0"


@pytest.mark.parametrize(
    "args", [("--name", "lokal"), ("reset", "lokal"), ("--days", "3", "--name", "lokal")]
)
def test_an_unknown_name_is_an_error_that_helps(run: Run, registry: Path, args: tuple[str, ...]) -> None:
    result = run("usage", *args)
    assert (result.exit_code, result.stdout) == (4, "")
    assert "did you mean local?" in one_line(result)


def test_a_name_like_none_gets_the_names_there_are(run: Run, registry: Path) -> None:
    assert "there is local, tokens, money, both, vectors" in one_line(run("usage", "--name", "xyzzy"))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--json", "--csv"), "either --json or --csv"),
        (("--days", "0"), "--days"),
        (("hold",), "did you mean holds?"),
        (("local",), "--name local shows one entry"),
        (("--json", "holds"), "options of holds stand after its name"),
    ],
)
def test_wrong_usage_is_told_in_one_line(run: Run, registry: Path, args: tuple[str, ...], words: str) -> None:
    result = run("usage", *args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in one_line(result)


def test_a_damaged_ledger_is_an_error_that_says_what_to_do(run: Run, home: Path) -> None:
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    for args in ((), ("--days", "3"), ("holds",), ("reset", "local", "--yes")):
        result = run("usage", *args)
        assert (result.exit_code, result.stdout) == (5, "")
        assert "maxwell usage rebuild" in one_line(result)


# ---- several days


def test_days_without_use_are_shown_between_days_with_use(run: Run, book: Book) -> None:
    book("local", 1, day=ago(40))
    book("local", 1000, day=ago(5))
    book("tokens", 500, 2_500_000, day=ago(2))
    days, totals = run("usage", "--days", "30").stdout.split("\n\n")
    shown = rows(days)
    assert list(shown) == [f"{ago(n):%Y-%m-%d %a}" for n in range(5, -1, -1)]
    assert [row["TOKENS"] for row in shown.values()] == ["1,000", "0", "0", "500", "0", "0"]
    assert list(rows(totals)) == ["local", "tokens", "TOTAL"]
    assert rows(totals)["TOTAL"] == {
        "NAME": "TOTAL",
        "TOKENS": "1,500",
        "MONEY": "$0.0025",
        "CALLS": "2",
        "NOTE": "-",
    }


def test_bars_are_as_long_as_the_days_are_great(run: Run, on_terminal: OnTerminal, book: Book) -> None:
    book("local", 1_000_000, day=ago(2))
    book("local", 505_000, day=ago(1))
    book("local", 1)
    piped = [line.split()[-1] for line in run("usage", "--days", "3").stdout.splitlines()[1:4]]
    assert piped == ["#" * 40, "#" * 20, "#"]
    _, shown = on_terminal("usage", "--days", "3", columns=100)
    assert [line.split()[-1] for line in unstyled(shown).splitlines()[1:4]] == ["█" * 40, "█" * 20 + "▏", "▏"]
    _, shown = on_terminal("usage", "--days", "3", columns=100, PYTHONIOENCODING="ascii")
    assert [line.split()[-1] for line in unstyled(shown).splitlines()[1:4]] == piped


@pytest.mark.parametrize("args", [(), ("--days", "9"), ("holds",)])
@pytest.mark.parametrize("columns", [45, 60, 80, 120])
def test_a_terminal_of_any_width_shows_everything(
    on_terminal: OnTerminal, book: Book, ledger: SQLiteLedger, columns: int, args: tuple[str, ...]
) -> None:
    book("both", 6_999, 123_456_789, estimated=True)
    book("local", 1_234_567, day=ago(8))
    ledger.reserve("both", TODAY, Amount(1, 1), Limit())
    code, shown = on_terminal("usage", *args, columns=columns)
    assert code == 0
    lines = unstyled(shown).splitlines()
    assert max(map(len, lines)) <= columns
    flat = " ".join(unstyled(shown).split())
    words = {
        (): (
            "6,999",
            "$0.123",
            "0 tokens, $0.377",
            "7,000 tokens, $0.50",
            "1 token",
            "6,999 tokens estimated",
        ),
        ("--days", "9"): ("1,234,567", "both", "TOTAL", "6,999 tokens estimated"),
        ("holds",): ("held", "$0.000000001", str(TODAY), f"process {os.getpid()}"),
    }[args]
    assert [word for word in words if word not in flat] == []


def test_one_entry_over_several_days(run: Run, book: Book) -> None:
    book("local", 10, day=ago(3))
    book("money", 20, day=ago(1))
    days, totals = run("usage", "--days", "9", "--name", "money").stdout.split("\n\n")
    assert [row["TOKENS"] for row in rows(days).values()] == ["20", "0"]
    assert list(rows(totals)) == ["money"]
    assert run("usage", "--days", "2", "--name", "local").stdout == "local used nothing in the last 2 days\n"


def test_nothing_used_is_one_line(run: Run, registry: Path) -> None:
    assert run("usage", "--days", "30").stdout == "nothing was used in the last 30 days\n"
    assert run("usage", "--days", "1").stdout == "nothing was used today\n"


def test_days_that_are_yet_to_come_are_not_hidden(run: Run, book: Book) -> None:
    book("local", 3)
    book("local", 4, day=date(9999, 12, 31))
    days, totals = run("usage", "--days", "2").stdout.split("\n\n")
    assert [row["TOKENS"] for row in rows(days).values()] == ["3", "4"]
    assert rows(totals)["TOTAL"]["TOKENS"] == "7"


# ---- for programs

AMOUNTS = (1, 300_000_000, 100_000_000, 200_000_000, 1_000_000_001, 123_456_789_012_345, 0)


def test_csv_is_exact(run: Run, book: Book) -> None:
    for back, nanousd in enumerate(AMOUNTS):
        book("money", back + 1, nanousd, ago(back), estimated=back == 0)
    book('with "quotes", and commas', 5, 5)
    text = run("usage", "--days", "30", "--csv").stdout
    found = list(csv.DictReader(io.StringIO(text)))
    assert list(found[0]) == ["day", "name", "tokens", "usd", "estimated_tokens", "calls"]
    money = {row["day"]: row for row in found if row["name"] == "money"}
    for back, nanousd in enumerate(AMOUNTS):
        row = money[str(ago(back))]
        assert Decimal(row["usd"]) * 10**9 == nanousd
        assert re.fullmatch(r"\d+(\.\d*[1-9])?", row["usd"])
        assert (row["tokens"], row["calls"]) == (str(back + 1), "1")
    assert money[str(TODAY)]["estimated_tokens"] == "1"
    assert [row["usd"] for row in found if row["name"].startswith("with")] == ["0.000000005"]
    assert len(found) == len(AMOUNTS) + 1


def test_csv_of_today_has_every_entry(run: Run, book: Book) -> None:
    book("aged", 5)
    found = list(csv.DictReader(io.StringIO(run("usage", "--csv").stdout)))
    assert [(row["day"], row["name"], row["tokens"], row["usd"]) for row in found] == [
        (str(TODAY), name, "5" if name == "aged" else "0", "0")
        for name in ("local", "tokens", "money", "both", "vectors", "aged")
    ]


@pytest.mark.parametrize("nanousd", AMOUNTS)
def test_json_is_exact(run: Run, book: Book, nanousd: int) -> None:
    book("money", 7, nanousd)
    told = json.loads(run("usage", "--json").stdout, parse_float=Decimal)
    entry = next(entry for entry in told["entries"] if entry["name"] == "money")
    assert entry["usd"] * 10**9 == told["total"]["usd"] * 10**9 == nanousd
    assert entry["usd_left"] * 10**9 == 500_000_000 - nanousd
    told = json.loads(run("usage", "--days", "5", "--json").stdout, parse_float=Decimal)
    assert told["days"][-1]["usd"] * 10**9 == told["total"]["usd"] * 10**9 == nanousd


def test_json_of_today(run: Run, book: Book, ledger: SQLiteLedger) -> None:
    book("both", 100, 1_000_000, estimated=True)
    book("aged", 5)
    ledger.reserve("both", TODAY, Amount(20, 3_000_000), Limit())
    told: dict[str, Any] = json.loads(run("usage", "--json").stdout)
    assert told["day"] == str(TODAY)
    assert datetime.fromisoformat(told["resets_at"]).date() == TODAY + timedelta(1)
    assert 0 < told["resets_in_seconds"] < 86400
    entries = {entry["name"]: entry for entry in told["entries"]}
    assert entries["both"] == {
        "name": "both",
        "kind": "llm",
        "tokens": 100,
        "usd": 0.001,
        "estimated_tokens": 100,
        "calls": 1,
        "held_tokens": 20,
        "held_usd": 0.003,
        "daily_budget_tokens": 7000,
        "daily_budget_usd": 0.5,
        "tokens_left": 6880,
        "usd_left": 0.496,
    }
    assert (entries["vectors"]["kind"], entries["aged"]["kind"]) == ("embedding", None)
    assert (entries["local"]["tokens_left"], entries["local"]["usd_left"]) == (None, None)
    assert (told["total"]["tokens"], told["total"]["held_tokens"]) == (105, 20)


def test_json_of_several_days_has_each_of_them(run: Run, book: Book) -> None:
    book("local", 5, day=ago(2))
    book("aged", 6, 1_000_000)
    told: dict[str, Any] = json.loads(run("usage", "--days", "4", "--json").stdout)
    assert (told["since"], told["until"]) == (str(ago(3)), str(TODAY))
    assert [(day["day"], day["tokens"]) for day in told["days"]] == [
        (str(ago(3)), 0),
        (str(ago(2)), 5),
        (str(ago(1)), 0),
        (str(TODAY), 6),
    ]
    assert told["days"][3]["entries"] == [
        {"name": "aged", "tokens": 6, "usd": 0.001, "estimated_tokens": 0, "calls": 1}
    ]
    assert [(entry["name"], entry["kind"], entry["tokens"]) for entry in told["entries"]] == [
        ("local", "llm", 5),
        ("aged", None, 6),
    ]
    assert told["total"] == {"tokens": 11, "usd": 0.001, "estimated_tokens": 0, "calls": 2}


# ---- holds

_HOLDER = """
import os, sys
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.ledger import Amount, Limit
from maxwell.ledger.sqlite import SQLiteLedger
ledger = SQLiteLedger(Path(os.environ["LEDGER"]), SystemClock())
day = date.fromisoformat(os.environ["DAY"])
ledger.send(ledger.reserve("tokens", day, Amount(1500, 7_500_000), Limit()))
ledger.reserve("money", day, Amount(2000, 20_000_000), Limit())
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds two reservations, one of them sent."""
    (home / "nightly.py").write_text(_HOLDER)
    command = [sys.executable, "nightly.py", "--key", "sk-abcdefghijklmnopqrstuvwxyz123456"]
    env = {**os.environ, "LEDGER": str(home), "DAY": str(TODAY)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=home, env=env, stdin=pipe, stdout=pipe) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            yield process
        finally:
            process.kill()


def test_holds_of_a_living_process(run: Run, home: Path) -> None:
    with holder(home) as process:
        result = run("usage", "holds")
        shown = rows(result.stdout)
        told = json.loads(run("usage", "holds", "--json").stdout)
    assert (shown["tokens"]["STATE"], shown["money"]["STATE"]) == ("sent", "held")
    assert (shown["tokens"]["TOKENS"], shown["tokens"]["MONEY"]) == ("1,500", "$0.0075")
    assert shown["tokens"]["DAY"] == str(TODAY)
    assert re.fullmatch(
        rf"process {process.pid}: python[\d.]* nightly.py --key \(hidden\)", shown["tokens"]["OWNER"]
    )
    assert [
        (hold["name"], hold["state"], hold["tokens"], hold["usd"], hold["pid"], hold["alive"])
        for hold in told
    ] == [
        ("tokens", "sent", 1500, 0.0075, process.pid, True),
        ("money", "held", 2000, 0.02, process.pid, True),
    ]
    assert all(0 <= hold["age_seconds"] < 60 for hold in told)
    assert "sk-abc" not in str(told)


def test_holds_of_a_killed_process_end(run: Run, home: Path) -> None:
    with holder(home) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    result = run("usage", "holds")
    assert (result.exit_code, result.stdout) == (0, "no open reservations\n")
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["TOKENS"], shown["tokens"]["NOTE"]) == ("1,500", "1,500 tokens estimated")
    assert (shown["money"]["TOKENS"], shown["money"]["HELD"]) == ("0", "-")


def test_holds_need_no_registry(run: Run, home: Path) -> None:
    (home / "lm_registry.json").unlink()
    assert run("usage", "holds", "--json").stdout == "[]\n"


def test_an_owner_that_cannot_be_seen_from_here_is_said_to_be_elsewhere(
    run: Run, ledger: SQLiteLedger
) -> None:
    ledger.reserve("tokens", TODAY, Amount(5), Limit())
    with ledger.database.write() as db:
        db.execute("UPDATE hold SET pid = 42, place = 'another machine/pid:[1]'")
    owner = rows(run("usage", "holds").stdout)["tokens"]["OWNER"]
    assert owner == "process 42 on another machine or in another container"


# ---- reset


def test_reset_lets_today_begin_at_zero(run: Run, book: Book, home: Path) -> None:
    book("tokens", 10_000, 50_000_000)
    book("tokens", 77, 1, ago(1))
    book("local", 5)
    result = run("usage", "reset", "tokens", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "tokens used 10,000 tokens and $0.05 in 1 call today" in result.stdout
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["TOKENS"], shown["tokens"]["LEFT"]) == ("0", "10,000 tokens")
    assert shown["local"]["TOKENS"] == "5"
    projected = json.loads((home / "llm_usage.json").read_text())
    assert projected == {"tokens": {str(ago(1)): 77}, "local": {str(TODAY): 5}}


def test_reset_asks_on_a_terminal(run: Run, book: Book) -> None:
    book("tokens", 600)
    code, shown = typed("n\n", "usage", "reset", "tokens")
    assert (code, "600 tokens" in shown, "Let tokens begin at zero? [y/N]" in shown) == (1, True, True)
    assert "nothing was changed" in shown
    assert rows(run("usage").stdout)["tokens"]["TOKENS"] == "600"
    code, shown = typed("y\n", "usage", "reset", "tokens")
    assert (code, "begins at zero" in shown) == (0, True)
    assert rows(run("usage").stdout)["tokens"]["TOKENS"] == "0"


def test_reset_changes_nothing_where_nobody_can_be_asked(run: Run, book: Book) -> None:
    book("tokens", 600)
    result = run("usage", "reset", "tokens", input="y\n")
    assert result.exit_code == 2
    assert "--yes" in one_line(result)
    assert rows(run("usage").stdout)["tokens"]["TOKENS"] == "600"


def test_reset_leaves_open_reservations_and_says_so(run: Run, book: Book, ledger: SQLiteLedger) -> None:
    book("tokens", 600)
    hold = ledger.reserve("tokens", TODAY, Amount(4000, 2_000_000), Limit())
    result = run("usage", "reset", "tokens", "-y")
    assert "1 open reservation of 4,000 tokens, $0.002 stays" in result.stdout
    assert rows(run("usage").stdout)["tokens"]["HELD"] == "4,000 tokens, $0.002"
    ledger.settle(hold, Amount(10, 1))
    ledger.flush()
    assert rows(run("usage").stdout)["tokens"]["TOKENS"] == "10"


def test_reset_of_an_unused_entry_asks_nothing(run: Run, book: Book) -> None:
    book("tokens", 600)
    result = run("usage", "reset", "local")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "there is nothing to reset" in result.stdout


def test_reset_of_a_name_that_only_stands_in_the_books(run: Run, book: Book) -> None:
    book("aged", 600)
    assert run("usage", "reset", "aged", "--yes").exit_code == 0
    assert "aged" not in run("usage").stdout


# ---- rebuild


def test_rebuild_leaves_a_sound_ledger_alone(run: Run, book: Book, home: Path) -> None:
    book("tokens", 600)
    result = run("usage", "rebuild", "--yes")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "is sound; there is nothing to rebuild" in result.stdout
    assert rows(run("usage").stdout)["tokens"]["TOKENS"] == "600"


def test_rebuild_begins_new_books_from_the_projection(
    run: Run, book: Book, ledger: SQLiteLedger, home: Path
) -> None:
    book("tokens", 600, 3_000_000)
    ledger.close()
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    (home / "lm_registry.json").rename(home / "away.json")
    result = run("usage", "rebuild", "--yes")
    assert (result.exit_code, result.stderr) == (0, "nothing could be read in the damaged file\n")
    assert "recovered 1 daily total from llm_usage.json\n" in result.stdout
    assert "their money is not known and counts as $0, also today's\n" in result.stdout
    moved = [
        Path(line.removeprefix("moved aside: "))
        for line in result.stdout.splitlines()
        if "moved aside" in line
    ]
    assert b"garbage" in moved[0].read_bytes()
    (home / "away.json").rename(home / "lm_registry.json")
    shown = rows(run("usage").stdout)
    assert (shown["tokens"]["TOKENS"], shown["tokens"]["MONEY"]) == ("600", "$0")
    assert shown["tokens"]["NOTE"] == "price of 600 tokens unknown"


def test_rebuild_keeps_the_money_that_can_be_read(run: Run, ledger: SQLiteLedger, home: Path) -> None:
    for back in range(1500):
        ledger.book("tokens", ago(back), Amount(100, 7))
        ledger.book("aged", ago(back), Amount(100, 7))
    ledger.close()
    size = (home / "ledger.db").stat().st_size
    os.truncate(home / "ledger.db", size * 2 // 3)
    result = run("usage", "rebuild", "--yes")
    assert result.exit_code == 0, result.output
    lost = re.search(r"of ([\d,]+) of them the money is not known", result.stdout)
    assert lost is not None
    assert 0 < int(lost[1].replace(",", "")) < 3000
    total = json.loads(run("usage", "--days", "1500", "--json").stdout, parse_float=Decimal)["total"]
    assert total["tokens"] == 300_000
    assert total["usd"] * 10**9 == (3000 - int(lost[1].replace(",", ""))) * 7


@pytest.mark.parametrize(
    ("broken", "words"), [(None, "llm_usage.json is missing"), ("{", "llm_usage.json cannot be understood")]
)
def test_rebuild_says_when_the_projection_was_no_help(
    run: Run, home: Path, broken: str | None, words: str
) -> None:
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    if broken is not None:
        (home / "llm_usage.json").write_text(broken)
    result = run("usage", "rebuild", "--yes")
    assert result.exit_code == 0, result.output
    assert words in result.stderr
    assert "the new books are empty" in result.stdout
    kept = [path.read_text() for path in home.glob("llm_usage.replaced-*.json")]
    assert kept == ([] if broken is None else [broken])
    assert run("usage").exit_code == 0


def test_rebuild_keeps_open_reservations(run: Run, home: Path) -> None:
    with holder(home) as process:
        with closing(SQLiteLedger(home, SystemClock())) as ledger:
            for back in range(400):
                ledger.book("aged", ago(back), Amount(1))
        with closing(sqlite3.connect(home / "ledger.db")) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        with (home / "ledger.db").open("r+b") as file:
            file.seek(-4096, os.SEEK_END)
            file.write(b"garbage " * 512)
        result = run("usage", "rebuild", "--yes")
        assert " and 2 open reservations from llm_usage.json and the damaged file" in result.stdout
        told = json.loads(run("usage", "holds", "--json").stdout)
    assert [(hold["name"], hold["pid"]) for hold in told] == [("tokens", process.pid), ("money", process.pid)]


def test_rebuild_asks_first(run: Run, home: Path) -> None:
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    assert run("usage", "rebuild").exit_code == 2
    code, shown = typed("n\n", "usage", "rebuild")
    assert (code, "is damaged: file is not a database" in " ".join(shown.split())) == (1, True)
    assert (home / "ledger.db").read_bytes().startswith(b"garbage")
    code, shown = typed("y\n", "usage", "rebuild")
    assert (code, "moved aside" in shown) == (0, True)
    assert run("usage").exit_code == 0
