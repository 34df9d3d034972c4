"""`llm_usage.json`: what is taken over from it once, and how it follows the books."""

from __future__ import annotations

import os
import sqlite3
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import filelock
import pytest
from ledgers import (
    MONDAY,
    NAME,
    TUESDAY,
    Programs,
    opened,
    projection,
    settled,
    take,
    use,
    used,
    wait_until,
    warnings_of,
)

from maxwell.clock import SystemClock
from maxwell.ledger import Amount, LedgerError, NoRoom
from maxwell.ledger.sqlite import SQLiteLedger


@pytest.fixture
def file(home: Path) -> Path:
    return home / "llm_usage.json"


def litter(home: Path) -> list[str]:
    return [found.name for found in home.iterdir() if found.suffix == ".tmp"]


# --- it follows the books


def test_it_shows_tokens_by_name_and_day(home: Path, programs: Programs) -> None:
    ledger = programs()
    ledger.settle(take(ledger, 10, 500), Amount(8, 250))
    use(ledger, 9, day=TUESDAY)
    ledger.book("box", TUESDAY, Amount(3))
    take(ledger, 1000)  # a hold is not usage
    ledger.flush()
    assert projection(home) == {NAME: {"2026-01-12": 8, "2026-01-13": 9}, "box": {"2026-01-13": 3}}
    ledger.reset(NAME, MONDAY)
    ledger.flush()
    assert projection(home) == {NAME: {"2026-01-13": 9}, "box": {"2026-01-13": 3}}
    assert litter(home) == []


def test_it_is_written_soon_without_being_asked_for(home: Path, programs: Programs, file: Path) -> None:
    ledger = programs()
    use(ledger, 10)
    wait_until(file.exists)
    assert projection(home) == {NAME: {"2026-01-12": 10}}
    ledger.book(NAME, MONDAY, Amount(5))
    wait_until(lambda: bool(projection(home) == {NAME: {"2026-01-12": 15}}))


def test_it_always_parses_and_never_goes_back(home: Path, programs: Programs, file: Path) -> None:
    ledgers = [programs() for _ in range(3)]
    stop = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not stop.is_set():
            if file.exists():
                seen.append(projection(home)[NAME]["2026-01-12"])

    def write(ledger: SQLiteLedger) -> None:
        for _ in range(15):
            use(ledger, 1)
            ledger.flush()

    with ThreadPoolExecutor(4) as threads:
        reading = threads.submit(read)
        for writing in [threads.submit(write, ledger) for ledger in ledgers]:
            writing.result()
        wait_until(lambda: bool(seen) and seen[-1] == 45)
        stop.set()
        reading.result()
    assert seen == sorted(seen)


def test_it_is_right_when_all_have_closed(tmp_path: Path) -> None:
    def work(ledger: SQLiteLedger, together: threading.Barrier) -> None:
        use(ledger, 1)
        together.wait()
        use(ledger, 1)
        ledger.close()

    with ThreadPoolExecutor(4) as threads:
        for i in range(10):
            home, together = tmp_path / str(i), threading.Barrier(4, timeout=20)
            ledgers = [SQLiteLedger(home, SystemClock()) for _ in range(4)]
            for done in [threads.submit(work, ledger, together) for ledger in ledgers]:
                done.result()
            assert projection(home) == {NAME: {"2026-01-12": 8}}


def test_flushing_waits_for_a_write_that_is_under_way(home: Path, programs: Programs, file: Path) -> None:
    """Else a program could end, and with it the thread that writes, before the file is right."""
    ledger = programs()
    ledger.ready()
    with filelock.FileLock(home / ".llm_usage.json.lock", thread_local=False) as lock:
        use(ledger, 10)
        wait_until(background_waits_for_the_lock)
        letting_go = threading.Timer(0.2, lock.release, [True])
        letting_go.start()
        ledger.flush()
        assert projection(home) == {NAME: {"2026-01-12": 10}}
        letting_go.join()


def background_waits_for_the_lock() -> bool:
    background = [thread for thread in threading.enumerate() if thread.name == "maxwell-background"]
    frame = sys._current_frames().get(background[0].ident or 0) if background else None
    while frame is not None:
        if Path(frame.f_code.co_filename).parent == Path(filelock.__file__).parent:
            return True
        frame = frame.f_back
    return False


def test_only_looking_writes_none(programs: Programs, file: Path) -> None:
    ledger = programs()
    ledger.usage(MONDAY)
    assert list(ledger.holds()) == []
    ledger.close()
    assert not file.exists()


def test_one_that_is_right_is_not_written_again(programs: Programs, file: Path) -> None:
    one, other = programs(), programs()
    use(one, 10)
    one.flush()
    before = file.stat()
    other.release(take(other, 5))
    other.flush()
    after = file.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_one_that_was_removed_comes_back(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = programs()
    use(ledger, 10)
    ledger.flush()
    file.unlink()
    use(ledger, 1)
    ledger.flush()
    assert projection(home) == {NAME: {"2026-01-12": 11}}
    assert warnings_of(caplog) == []


def test_one_that_cannot_be_written_loses_no_books(home: Path, programs: Programs, file: Path) -> None:
    ledger = programs()
    use(ledger, 10)
    ledger.database.flush()
    file.mkdir()
    with pytest.raises(LedgerError, match=r"llm_usage\.json cannot be written"):
        ledger.flush()
    assert litter(home) == []
    assert used(programs()) == settled(10)
    file.rmdir()
    ledger.close()
    assert projection(home) == {NAME: {"2026-01-12": 10}}


# --- a hand in it


def test_a_hand_in_it_has_no_effect_and_is_told_once(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, other = programs(), programs()
    use(ledger, 10)
    ledger.flush()
    for edit, text in enumerate(('{"gpt-4o": {"2026-01-12": 1}}', "not even JSON"), 1):
        file.write_text(text)
        for one in (ledger, other, ledger):
            use(one, 1)
            one.flush()
        assert projection(home) == {NAME: {"2026-01-12": 10 + 3 * edit}}
        assert len(warnings_of(caplog)) == edit
        assert "llm_usage.json was changed by hand" in warnings_of(caplog)[-1]
    assert used(programs()).tokens == 16


@pytest.mark.parametrize("crashes", [1, 2, 3])
def test_a_crash_before_the_file_is_replaced_is_no_hand(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture, crashes: int
) -> None:
    ledger = programs()
    use(ledger, 10)
    ledger.flush()
    former = file.read_bytes()
    for _ in range(crashes):
        use(ledger, 1)
        ledger.flush()
        file.write_bytes(former)  # as if it had been killed after its note and before the rename
    for one in (programs(), ledger):
        one.book("box", MONDAY, Amount(1))
        one.flush()
    assert warnings_of(caplog) == []
    assert projection(home) == {NAME: {"2026-01-12": 10 + crashes}, "box": {"2026-01-12": 2}}


def test_what_it_will_be_is_noted_before_it_is(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In the other order a crash in between would look like a hand."""
    ledger = programs()
    use(ledger, 10)
    ledger.flush()
    use(ledger, 1)
    with opened(home) as db:
        db.execute("CREATE TRIGGER refuse BEFORE INSERT ON note BEGIN SELECT RAISE(ABORT, 'refused'); END")
        with pytest.raises(LedgerError, match="refused"):
            ledger.flush()
        assert projection(home) == {NAME: {"2026-01-12": 10}}
        db.execute("DROP TRIGGER refuse")
    use(ledger, 1)
    ledger.flush()
    assert projection(home) == {NAME: {"2026-01-12": 12}}
    assert not [warning for warning in warnings_of(caplog) if "by hand" in warning]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_directory_that_cannot_be_written_is_no_hand(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = programs()
    use(ledger, 10)
    ledger.flush()
    home.chmod(0o500)
    for _ in range(4):
        use(ledger, 1)
        with pytest.raises(LedgerError, match="cannot be written"):
            ledger.flush()
    home.chmod(0o700)
    ledger.flush()
    assert not [warning for warning in warnings_of(caplog) if "by hand" in warning]
    assert projection(home) == {NAME: {"2026-01-12": 14}}


# --- usage from before there was a ledger


def test_earlier_usage_is_taken_over_once(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    file.write_text('{"gpt-4o": {"2026-01-12": 90, "2026-01-11": 5}, "box": {}}')
    ledger = programs()
    with pytest.raises(NoRoom):
        take(ledger, 11, most=100)
    use(ledger, 1)
    ledger.close()
    assert projection(home) == {NAME: {"2026-01-11": 5, "2026-01-12": 91}}
    assert warnings_of(caplog) == []
    file.write_text('{"gpt-4o": {"2026-01-12": 1}}')
    assert used(programs()) == settled(91)


def test_earlier_usage_is_taken_over_where_an_opening_was_cut_off(
    home: Path, programs: Programs, file: Path
) -> None:
    # A program killed in its first moments leaves an empty file behind.
    home.mkdir()
    file.write_text('{"gpt-4o": {"2026-01-12": 90}}')
    (home / "ledger.db").touch()
    with pytest.raises(NoRoom):
        take(programs(), 11, most=100)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"gpt-4o": 5}',
        b'{"gpt-4o": {"yesterday": 5}}',
        b'{"gpt-4o": {"2026-01-12": "5"}}',
        b'{"gpt-4o": {"2026-01-12": 5.5}}',
        b'{"gpt-4o": {"2026-01-12": -5}}',
        b'{"gpt-4o": {"2026-01-12": 1e99}}',
        b'{"gpt-4o\xff": {"2026-01-12": 5}}',
        '{"gpt-4o": {"2026-01-12": 5}}'.encode("utf-16"),
    ],
)
def test_wrong_usage_stops_everything_until_it_is_mended(
    home: Path, programs: Programs, file: Path, text: bytes
) -> None:
    home.mkdir()
    file.write_bytes(text)
    ledger = programs()
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"llm_usage\.json.*mend it or move it away"):
            take(ledger, 1, most=100)
        with pytest.raises(LedgerError):
            ledger.ready()
        with pytest.raises(LedgerError):
            programs().usage(MONDAY)
    ledger.book("box", MONDAY, Amount(1))  # is kept
    with pytest.raises(LedgerError):
        ledger.flush()
    assert file.read_bytes() == text
    file.write_text('{"gpt-4o": {"2026-01-12": 90}}')
    assert used(ledger).tokens == 90
    ledger.flush()
    assert projection(home) == {NAME: {"2026-01-12": 90}, "box": {"2026-01-12": 1}}


def test_what_cannot_be_read_is_named(programs: Programs, file: Path) -> None:
    file.mkdir(parents=True)
    with pytest.raises(LedgerError, match=r"llm_usage\.json"):
        take(programs(), 10)


# --- ledgers of other versions

VERSION_1 = """
CREATE TABLE day (
    name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (name, day)
) WITHOUT ROWID;
CREATE TABLE hold (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, day TEXT NOT NULL, tokens INTEGER NOT NULL, usd REAL NOT NULL,
    pid INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO day VALUES ('gpt-4o', '2026-01-12', 90, 0.1), ('gpt-4o', '2026-01-11', 5, 0.3);
INSERT INTO day VALUES ('box', '2026-01-12', 7, 0);
INSERT INTO hold VALUES ('id', 'gpt-4o', '2026-01-12', 1000, 0.5, 1);
PRAGMA user_version = 1;
"""


def test_an_older_ledger_is_brought_up_to_date(
    home: Path, programs: Programs, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        db.executescript(f"PRAGMA journal_mode = WAL; {VERSION_1}")
    older = {"box": {"2026-01-12": 7}, NAME: {"2026-01-11": 5, "2026-01-12": 90}}
    file.write_text(str(older).replace("'", '"'))
    ledger = programs()
    assert ledger.usage(MONDAY) == {
        NAME: settled(90, 100_000_000, calls=0),
        "box": settled(7, calls=0),
    }
    use(ledger, 1, 1)
    ledger.flush()
    older[NAME]["2026-01-12"] += 1
    assert projection(home) == older
    assert used(programs()) == settled(91, 100_000_001)
    assert warnings_of(caplog) == []  # an earlier Maxwell's hand is no hand


def test_many_may_bring_it_up_to_date_at_once(tmp_path: Path) -> None:
    def work(home: Path) -> None:
        with closing(SQLiteLedger(home, SystemClock())) as ledger:
            use(ledger, 1)

    with ThreadPoolExecutor(6) as threads:
        for i in range(8):
            home = tmp_path / str(i)
            home.mkdir()
            with closing(sqlite3.connect(home / "ledger.db")) as db:
                db.executescript(VERSION_1)
            list(threads.map(work, [home] * 6))
            assert projection(home)[NAME] == {"2026-01-11": 5, "2026-01-12": 96}


def test_a_newer_ledger_is_refused(home: Path, programs: Programs) -> None:
    home.mkdir()
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        db.executescript("CREATE TABLE day (x); CREATE TABLE hold (x); PRAGMA user_version = 3;")
    before = (home / "ledger.db").read_bytes()
    ledger = programs()
    for ask in (
        ledger.ready,
        ledger.flush,
        ledger.holds,
        lambda: take(ledger, 1),
        lambda: ledger.usage(MONDAY),
    ):
        ledger.book("box", MONDAY, Amount(1))
        with pytest.raises(
            LedgerError, match=r"ledger\.db was written by a newer Maxwell; use that one"
        ) as no:
            ask()
        assert "\n" not in str(no.value)
        assert str(no.value).count(". ") == 0
    with opened(home) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        assert db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone() == (2,)
    assert len(before) == len((home / "ledger.db").read_bytes())
    (home / "ledger.db").unlink()
    ledger.flush()
    assert used(ledger, "box").tokens == 5
