from __future__ import annotations

import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import pytest

from maxwell.errors import LedgerError
from maxwell.ledger import Amount, Limit, Used
from maxwell.ledger.rebuild import damage, rebuild
from maxwell.ledger.sqlite import SQLiteLedger
from maxwell.testing.clock import FakeClock

TODAY = date(2026, 1, 15)
NOW = FakeClock().time()
PAGE = 4096


def books(home: Path) -> SQLiteLedger:
    return SQLiteLedger(home, FakeClock())


def fill(home: Path, *, names: int = 6, days: int = 400) -> dict[date, dict[str, Used]]:
    """Books of several pages, and their projection."""
    with closing(books(home)) as ledger:
        for back in range(days):
            for number in range(names):
                amount = Amount(1000 + back, 7 * (back + number))
                ledger.book(f"llm-{number}", TODAY - timedelta(back), amount, estimated=back % 3 == 0)
        ledger.flush()
        return ledger.history(date.min)


def history(home: Path) -> dict[date, dict[str, Used]]:
    with closing(books(home)) as ledger:
        return ledger.history(date.min)


def tokens(books: dict[date, dict[str, Used]]) -> dict[str, dict[str, int]]:
    """The books as `llm_usage.json` has them."""
    found: dict[str, dict[str, int]] = {}
    for day, used in books.items():
        for name, amount in used.items():
            found.setdefault(name, {})[day.isoformat()] = amount.tokens
    return found


def projected(home: Path) -> object:
    return json.loads((home / "llm_usage.json").read_text(encoding="utf-8"))


def overwrite(file: Path, start: int = 0, end: int | None = None) -> None:
    data = bytearray(file.read_bytes())
    end = len(data) if end is None else end
    data[start:end] = (b"not a database " * len(data))[: end - start]
    file.write_bytes(data)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path


def test_sound_books_are_left_alone(home: Path) -> None:
    before = fill(home, days=2)
    assert damage(home) == ""
    with pytest.raises(LedgerError, match="is sound"):
        rebuild(home, NOW)
    assert history(home) == before
    assert not list(home.glob("*replaced*"))


def test_no_books_are_not_damaged_ones(home: Path) -> None:
    assert damage(home) == ""
    assert damage(home / "nowhere") == ""
    assert list(home.iterdir()) == []


def test_books_in_use_are_sound(home: Path) -> None:
    with closing(books(home)) as ledger:
        ledger.reserve("a", TODAY, Amount(5), Limit(10))
        with ledger.database.write() as db:
            db.execute("UPDATE day SET tokens = 0")
            assert damage(home) == ""


def test_a_ledger_that_cannot_be_looked_at_is_not_called_damaged(home: Path) -> None:
    (home / "ledger.db").mkdir()
    with pytest.raises(LedgerError, match="cannot be used"):
        damage(home)


def test_an_overwritten_file_is_replaced_by_what_the_projection_tells(home: Path) -> None:
    before = fill(home, days=30)
    projection = projected(home)
    overwrite(home / "ledger.db")
    garbage = (home / "ledger.db").read_bytes()
    assert "not a database" in damage(home)
    told = rebuild(home, NOW)
    assert (told.projection, told.totals, told.read, told.holds) == ("used", 180, 0, 0)
    assert projected(home) == projection == tokens(history(home))
    assert history(home)[TODAY]["llm-0"] == Used(before[TODAY]["llm-0"].tokens)
    kept = [path for path in told.moved if path.suffix == ".db"]
    assert [path.read_bytes() for path in kept] == [garbage]
    assert damage(home) == ""


@pytest.mark.parametrize("part", [0.35, 0.6, 0.9])
def test_money_is_kept_where_a_truncated_file_can_be_read(home: Path, part: float) -> None:
    before = fill(home)
    size = (home / "ledger.db").stat().st_size
    os.truncate(home / "ledger.db", int(size * part) // PAGE * PAGE)
    told = rebuild(home, NOW)
    after = history(home)
    assert tokens(after) == tokens(before) == projected(home)
    with_money = [(day, name) for day, used in after.items() for name, amount in used.items() if amount.calls]
    assert 0 < len(with_money) == told.read < told.totals == 2400
    assert all(after[day][name] == before[day][name] for day, name in with_money)


def test_a_bad_page_in_the_middle_costs_that_page(home: Path) -> None:
    before = fill(home)
    pages = (home / "ledger.db").stat().st_size // PAGE
    middle = pages // 2 * PAGE
    overwrite(home / "ledger.db", middle, middle + PAGE)
    assert damage(home)
    told = rebuild(home, NOW)
    assert told.totals - 2 * 2400 // pages < told.read < told.totals
    assert tokens(history(home)) == tokens(before)


def test_a_bad_page_is_got_round_without_a_projection(home: Path) -> None:
    before = fill(home)
    (home / "llm_usage.json").unlink()
    pages = (home / "ledger.db").stat().st_size // PAGE
    overwrite(home / "ledger.db", pages // 2 * PAGE, (pages // 2 + 1) * PAGE)
    told = rebuild(home, NOW)
    assert 2400 - 2 * 2400 // pages < told.totals < 2400
    after = history(home)
    assert all(before[day][name] == used for day, books in after.items() for name, used in books.items())


def test_rows_between_bad_pages_are_looked_for_by_what_the_projection_names(home: Path) -> None:
    fill(home)
    pages = (home / "ledger.db").stat().st_size // PAGE
    for page in (pages // 3, 2 * pages // 3):
        overwrite(home / "ledger.db", page * PAGE, (page + 1) * PAGE)
    assert rebuild(home, NOW).read > 2400 - 4 * 2400 // pages


@pytest.mark.parametrize("broken", [None, "{", "[]", '{"a": 5}', '{"a": {"2026-01-15": -1}}', "\xff"])
def test_a_missing_or_broken_projection_is_told_and_never_lost(home: Path, broken: str | None) -> None:
    before = fill(home)
    file = home / "llm_usage.json"
    file.unlink()
    if broken is not None:
        file.write_text(broken, encoding="latin-1")
    size = (home / "ledger.db").stat().st_size
    os.truncate(home / "ledger.db", size // 2 // PAGE * PAGE)
    told = rebuild(home, NOW)
    assert told.projection == ("missing" if broken is None else "broken")
    after = history(home)
    assert told.totals == told.read == sum(map(len, after.values())) > 0
    assert all(before[day][name] == used for day, books in after.items() for name, used in books.items())
    assert projected(home) == tokens(after)
    kept = [path.read_text(encoding="latin-1") for path in told.moved if path.suffix == ".json"]
    assert kept == ([] if broken is None else [broken])


def test_nothing_readable_at_all_begins_empty_books(home: Path) -> None:
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    (home / "llm_usage.json").write_text("garbage")
    told = rebuild(home, NOW)
    assert (told.projection, told.totals) == ("broken", 0)
    assert history(home) == {}
    assert sorted(path.suffix for path in told.moved) == [".db", ".json"]


def test_the_larger_count_is_taken(home: Path) -> None:
    before = fill(home)
    told = projected(home)
    assert isinstance(told, dict)
    yesterday = str(TODAY - timedelta(1))
    told["llm-0"] = {str(TODAY): 5, yesterday: 5_000_000}
    (home / "llm_usage.json").write_text(json.dumps(told))
    pages = (home / "ledger.db").stat().st_size // PAGE
    overwrite(home / "ledger.db", (pages - 1) * PAGE)
    rebuild(home, NOW)
    after = history(home)
    assert after[TODAY]["llm-0"] == before[TODAY]["llm-0"]
    assert after[TODAY - timedelta(1)]["llm-0"].tokens == 5_000_000
    assert after[TODAY - timedelta(1)]["llm-0"].nanousd == before[TODAY - timedelta(1)]["llm-0"].nanousd


def test_what_only_the_write_ahead_log_holds_is_read(home: Path) -> None:
    script = """
import os, signal, sys
from datetime import date
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.ledger import Amount
from maxwell.ledger.sqlite import SQLiteLedger
ledger = SQLiteLedger(Path(sys.argv[1]), SystemClock())
ledger.book("late", date(2026, 1, 15), Amount(77, 88))
ledger.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    fill(home)
    done = subprocess.run([sys.executable, "-c", script, str(home)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert (home / "ledger.db-wal").stat().st_size > 0
    size = (home / "ledger.db").stat().st_size
    overwrite(home / "ledger.db", size // 2, size // 2 + 2 * PAGE)
    told = rebuild(home, NOW)
    assert history(home)[TODAY]["late"] == Used(77, 88, 0, 0, 0, 1)
    assert any(path.name.endswith(".db-wal") for path in told.moved)
    assert not (home / "ledger.db-wal").exists() or not (home / "ledger.db-wal").stat().st_size


def test_open_reservations_go_on(home: Path) -> None:
    fill(home)
    with closing(books(home)) as ledger:
        hold = ledger.reserve("llm-0", TODAY, Amount(50, 60), Limit())
        assert ledger.send(hold)
    # The last page holds the rows of the last days; the reservation is on another one.
    pages = (home / "ledger.db").stat().st_size // PAGE
    overwrite(home / "ledger.db", (pages - 1) * PAGE)
    assert damage(home)
    assert rebuild(home, NOW).holds == 1
    with closing(books(home)) as ledger:
        before = ledger.usage(TODAY)["llm-0"]
        assert (before.held_tokens, before.held_nanousd) == (50, 60)
        ledger.settle(hold, Amount(5, 6))
        ledger.flush()
        after = ledger.usage(TODAY)["llm-0"]
    assert (after.tokens - before.tokens, after.nanousd - before.nanousd, after.held_tokens) == (5, 6, 0)


def test_a_process_that_knew_the_damaged_file_goes_on_with_the_new_one(home: Path) -> None:
    fill(home, days=3)
    with closing(books(home)) as ledger:
        ledger.usage(TODAY)
        overwrite(home / "ledger.db")
        rebuild(home, NOW)
        before = ledger.usage(TODAY)["llm-0"].tokens
        ledger.book("llm-0", TODAY, Amount(5))
        ledger.flush()
    assert history(home)[TODAY]["llm-0"].tokens == before + 5


def test_two_rebuilds_at_once_make_one(home: Path) -> None:
    before = fill(home, days=30)
    overwrite(home / "ledger.db")
    outcomes: list[object] = []

    def run() -> None:
        try:
            outcomes.append(rebuild(home, NOW).totals)
        except LedgerError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["int", "str", "str"]
    assert all("is sound" in outcome for outcome in outcomes if isinstance(outcome, str))
    assert tokens(history(home)) == tokens(before)


def test_files_moved_in_the_same_second_do_not_replace_one_another(home: Path) -> None:
    for content in (b"one" * 1000, b"two" * 1000):
        (home / "ledger.db").write_bytes(content)
        rebuild(home, NOW)
    kept = {path.read_bytes()[:3] for path in home.glob("ledger.replaced-*.db")}
    assert kept == {b"one", b"two"}


def test_rows_that_cannot_be_are_not_believed(home: Path) -> None:
    fill(home, days=100)
    (home / "llm_usage.json").unlink()
    with closing(sqlite3.connect(home / "ledger.db", isolation_level=None)) as db:
        for row in [
            ("a", "2026-01-99", 1, 1, 1, 1),
            ("b", "2026-01-15", -1, 1, 1, 1),
            ("c", "2026-01-15", b"x", 1, 1, 1),
        ]:
            db.execute("INSERT INTO day VALUES (?, ?, ?, ?, ?, ?)", row)
    pages = (home / "ledger.db").stat().st_size // PAGE
    overwrite(home / "ledger.db", (pages - 1) * PAGE)
    rebuild(home, NOW)
    names = {name for used in history(home).values() for name in used}
    assert names
    assert not names & {"a", "b", "c"}


def test_where_no_new_books_can_be_written_the_damaged_ones_stay(home: Path) -> None:
    (home / "ledger.db").write_bytes(b"garbage" * 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as on a full disk
    try:
        with pytest.raises(LedgerError, match="cannot be used"):
            rebuild(home, NOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in home.iterdir()) == [".llm_usage.json.lock", "ledger.db"]
    assert (home / "ledger.db").read_bytes().startswith(b"garbage")
