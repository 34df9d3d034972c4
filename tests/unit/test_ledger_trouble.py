"""What becomes of reservations whose owners died, and of books that cannot be written for a while."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Self

import msgspec
import pytest
from ledgers import (
    MONDAY,
    NAME,
    Programs,
    allow_writing,
    ended_process,
    give,
    held,
    kill_owner,
    opened,
    refuse_writing,
    run,
    settled,
    take,
    use,
    used,
    wait_until,
    warnings_of,
)

from maxwell.database.owners import Owner, this_process
from maxwell.ledger import Amount, LedgerError, NoRoom, Used
from maxwell.ledger.sqlite import LEASE_SECONDS, SQLiteLedger
from maxwell.testing.clock import FakeClock

# --- owners that died


def test_what_a_killed_program_had_not_sent_is_given_back(home: Path, programs: Programs) -> None:
    killed, other = programs(), programs()
    hold = take(killed, 60, 5, most=100)
    kill_owner(home, hold)
    take(other, 100, most=100)  # there is room at once, without waiting for the next look
    assert used(other) == held(100)
    assert not killed.send(hold)
    killed.settle(hold, Amount(60, 5))  # it was not dead after all; but what it did not send cost nothing
    assert used(killed) == used(other) == held(100)


def test_what_a_killed_program_had_sent_is_charged_in_full(home: Path, programs: Programs) -> None:
    killed, other = programs(), programs()
    hold = take(killed, 60, 5)
    killed.send(hold)
    kill_owner(home, hold)
    for _ in range(2):
        assert used(other) == settled(60, 5, estimated=60)
        programs.clock.advance(1.1)
    assert list(other.holds()) == []
    with pytest.raises(NoRoom):
        take(other, 41, most=100)
    assert not killed.send(hold)


@pytest.mark.parametrize("flush", [False, True], ids=["in memory", "written"])
@pytest.mark.parametrize("amount", [Amount(20, 2), Amount(60, 5), None], ids=["less", "all", "nothing"])
def test_a_late_word_corrects_the_charge_once(
    home: Path, programs: Programs, amount: Amount | None, flush: bool
) -> None:
    late, other = programs(), programs()
    use(other, 7, 1)
    hold = take(late, 60, 5)
    late.send(hold)
    kill_owner(home, hold)
    assert used(other) == settled(67, 6, calls=2, estimated=60)
    expected = settled(7, 1) if amount is None else settled(7 + amount.tokens, 1 + amount.nanousd, calls=2)
    for _ in range(3):
        if amount is None:
            late.release(hold)
        else:
            late.settle(hold, amount)
        if flush:
            late.flush()
        assert used(late) == expected
    late.release(hold)
    assert used(late) == expected
    late.flush()
    assert used(other) == expected


def test_a_late_word_takes_nothing_from_what_began_at_zero(home: Path, programs: Programs) -> None:
    late, other = programs(), programs()
    hold = take(late, 60)
    late.send(hold)
    kill_owner(home, hold)
    assert other.reset(NAME, MONDAY) == settled(60, estimated=60)
    use(other, 30)
    other.flush()
    late.settle(hold, Amount(10))
    assert used(late) == settled(30)
    late.flush()
    assert used(late) == settled(30)


def test_a_charge_may_be_corrected_for_two_days(home: Path, programs: Programs) -> None:
    late, other = programs(), programs()
    for days in (1, 3):
        old, new = take(late, 60), take(late, 10, name="new")
        late.send(old)
        kill_owner(home, old)
        assert old not in [found.hold for found in other.holds()]
        programs.clock.advance(days * 86400)
        kill_owner(home, new)  # what is old is forgotten when there is something to do
        assert list(other.holds()) == []
        late.settle(old, Amount(20))
        late.flush()
    assert used(other) == settled(20 + 60, calls=2, estimated=60)


@pytest.mark.parametrize("wrong", ["boot", "started", "pid"])
def test_a_process_id_alone_is_nobody(home: Path, programs: Programs, wrong: str) -> None:
    ledger = programs()
    me, ended = this_process(), ended_process()
    owner = {
        "boot": msgspec.structs.replace(me, boot="another"),
        "started": msgspec.structs.replace(me, started=me.started + 1),
        "pid": msgspec.structs.replace(me, pid=ended.pid),
    }[wrong]
    hold = take(ledger, 60)
    with opened(home) as db:
        give(db, hold, owner)
    assert used(ledger) == Used()


def test_who_cannot_be_seen_from_here_has_a_lease(home: Path, programs: Programs) -> None:
    ledger = programs()
    elsewhere = Owner(1, 5, this_process().boot, "another machine/pid:[1]")
    old, sent, mine = (take(ledger, n, most=100) for n in (60, 10, 1))
    ledger.send(sent)
    with opened(home) as db:
        for hold in (old, sent):
            give(db, hold, elsewhere)
    programs.clock.advance(LEASE_SECONDS - 1)
    with pytest.raises(NoRoom):
        take(ledger, 60, most=100)
    assert [(found.hold, found.alive) for found in ledger.holds() if found.hold != mine] == [
        (hold, None) for hold in sorted((old, sent), key=lambda hold: hold.id)
    ]
    programs.clock.advance(2)
    take(ledger, 60, most=100)
    assert used(ledger) == Used(10, 0, 61, 0, 10, 1)
    assert not ledger.send(old)


def test_a_lease_is_each_reservations_own(home: Path, programs: Programs) -> None:
    ledger = programs()
    elsewhere = Owner(1, 5, this_process().boot, "another machine/pid:[1]")
    for tokens in (60, 10):
        hold = take(ledger, tokens)
        with opened(home) as db:
            give(db, hold, elsewhere)
        programs.clock.advance(LEASE_SECONDS / 2 + 1)
    assert [found.hold.amount.tokens for found in ledger.holds()] == [10]


def test_who_runs_keeps_what_it_holds_however_long(programs: Programs) -> None:
    one, other = programs(), programs()
    hold = take(one, 60, most=100)
    one.send(hold)
    programs.clock.advance(30 * 86400)
    assert used(other) == held(60)
    with pytest.raises(NoRoom):
        take(other, 60, most=100)
    programs.clock.now -= 60 * 86400
    one.settle(hold, Amount(20))
    assert used(one) == settled(20)


# --- a file that cannot be written for a while


def test_a_warning_comes_once_and_readiness_comes_back(
    home: Path, programs: Programs, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = programs()
    ledger.ready()
    refuse_writing(home)
    ledger.book("box", MONDAY, Amount(1))

    def is_refused() -> bool:
        try:
            ledger.ready()
        except LedgerError:
            return True
        return False

    wait_until(is_refused)
    ledger.book("box", MONDAY, Amount(1))
    allow_writing(home)
    wait_until(lambda: not is_refused())
    assert used(programs(), "box") == settled(2, calls=2)
    assert [("refused" in text, "kept in memory" in text) for text in warnings_of(caplog)] == [(True, True)]


def test_readiness_comes_back_when_another_thread_writes(home: Path, programs: Programs) -> None:
    ledger = programs()
    ledger.ready()
    refuse_writing(home)

    class Mend(logging.Handler):
        """Another thread succeeds at the very moment when the background says that it failed."""

        def emit(self, record: logging.LogRecord) -> None:
            allow_writing(home)
            ledger.database.flush()
            mended.set()

    mended, handler = threading.Event(), Mend()
    logging.getLogger("maxwell").addHandler(handler)
    try:
        ledger.book("box", MONDAY, Amount(1))
        assert mended.wait(20)
    finally:
        logging.getLogger("maxwell").removeHandler(handler)
    assert used(programs(), "box") == settled(1)

    def is_ready() -> bool:
        try:
            ledger.ready()
        except LedgerError:
            return False
        return True

    wait_until(is_ready)


def test_what_could_not_be_written_is_kept_and_written_once(home: Path, programs: Programs) -> None:
    ledger = programs()
    first, second = take(ledger, 10), take(ledger, 20)
    refuse_writing(home)
    ledger.settle(first, Amount(9))
    ledger.book("free", MONDAY, Amount(5))
    for _ in range(2):
        with pytest.raises(LedgerError, match="refused"):
            ledger.flush()
        with pytest.raises(LedgerError):
            take(ledger, 1)
    ledger.settle(first, Amount(8))
    ledger.settle(second, Amount(19))
    ledger.book("free", MONDAY, Amount(6))
    expected = {NAME: settled(28, calls=2), "free": settled(11, calls=2)}
    assert ledger.usage(MONDAY) == expected
    allow_writing(home)
    ledger.flush()
    assert ledger.usage(MONDAY) == programs().usage(MONDAY) == expected


def test_what_is_booked_while_a_write_fails_is_kept_too(programs: Programs) -> None:
    ledger = programs()
    hold = take(ledger, 10)

    class Unlucky:
        """A task in whose turn others book, and which fails once."""

        failures = 1

        def apply(self, db: sqlite3.Connection) -> None:
            if self.failures:
                self.failures -= 1
                ledger.settle(hold, Amount(8))
                ledger.book("free", MONDAY, Amount(6))
                ledger.database.read("SELECT 1")
                raise sqlite3.OperationalError("bad luck")

        def merged(self, later: Self) -> Self:
            return self

    ledger.settle(hold, Amount(9))
    ledger.book("free", MONDAY, Amount(5))
    ledger.database.later("unlucky", Unlucky())
    with contextlib.suppress(LedgerError):  # unless the background was first
        ledger.flush()
    expected = {NAME: settled(9), "free": settled(11, calls=2)}
    assert ledger.usage(MONDAY) == expected
    ledger.flush()
    assert programs().usage(MONDAY) == expected


def test_what_is_looked_at_stands_still(programs: Programs) -> None:
    """Else a hold that ends in between would be counted twice, or not at all."""
    ledger, other = programs(), programs()
    hold = take(other, 10)

    def look(db: sqlite3.Connection, waiting: object) -> bool:
        before = db.execute("SELECT * FROM hold").fetchall()
        other.settle(hold, Amount(9))
        other.database.flush()
        return db.execute("SELECT * FROM hold").fetchall() == before

    assert ledger.database.look(look)
    assert used(ledger) == settled(9)


def test_who_reads_or_books_does_not_wait_for_another_writer(home: Path, programs: Programs) -> None:
    ledger = programs()
    hold = take(ledger, 10)
    with opened(home) as other, ThreadPoolExecutor(1) as threads:
        other.execute("BEGIN IMMEDIATE")
        reserving = threads.submit(take, ledger, 20)
        ledger.settle(hold, Amount(9))
        ledger.book("free", MONDAY, Amount(5))
        assert ledger.usage(MONDAY) == {NAME: settled(9), "free": settled(5)}
        assert not reserving.done()
        other.execute("ROLLBACK")
        reserving.result(20)
    assert ledger.usage(MONDAY) == {NAME: Used(9, 0, 20, 0, 0, 1), "free": settled(5)}


def test_an_amount_that_no_book_can_hold_does_not_stop_the_others(home: Path) -> None:
    with closing(SQLiteLedger(home, FakeClock())) as ledger:
        ledger.book("nonsense", MONDAY, Amount(2**63))
        use(ledger, 5)
        ledger.flush()
        assert used(ledger) == settled(5)


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_another_file_in_its_place_is_noticed(
    home: Path, programs: Programs, change: str, tmp_path: Path
) -> None:
    ledger = programs()
    use(ledger, 10)
    ledger.close()
    backup = tmp_path / "backup.db"
    backup.write_bytes((home / "ledger.db").read_bytes())
    use(ledger, 20)
    ledger.flush()
    assert used(ledger) == settled(30, calls=2)
    if change == "removed":
        (home / "ledger.db").unlink()
        # What llm_usage.json tells is all that is known.
        assert used(ledger) == settled(30, calls=0)
    else:
        backup.replace(home / "ledger.db")
        assert used(ledger).tokens in (10, 30)  # SQLite may find the rest in its log
    with opened(home) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    before = used(ledger).tokens
    use(ledger, 5)
    assert used(ledger).tokens == before + 5
    ledger.flush()
    assert used(programs()).tokens == before + 5


@pytest.mark.parametrize("books", ["MemoryLedger()", "ledger"])
def test_what_is_collected_may_book_at_any_moment(home: Path, books: str) -> None:
    """A forgotten stream settles when the garbage is collected: in any line of any thread."""
    script = f"""
import gc, random
from maxwell.ledger.memory import MemoryLedger

class Stream:
    def __init__(self):
        self.me = self  # so that only the collector finds it
    def __del__(self):
        books.book(NAME, MONDAY, Amount(1))

books = {books}
for i in range(600):
    gc.disable()
    hold = take(books, 2)
    Stream()
    gc.set_threshold(gc.get_count()[0] + random.randrange(40), 1, 1)
    gc.enable()
    books.book(NAME, MONDAY, Amount(1))
    books.settle(hold, Amount(2))
    used(books)
gc.collect()
gc.disable()
assert used(books).tokens == 4 * 600, used(books)
"""
    run(script, home)


def test_who_looks_while_others_write_does_not_take_it_for_a_fault(home: Path, programs: Programs) -> None:
    ledger, other = programs(), programs()
    kill_owner(home, take(ledger, 60))
    with other.database.write():
        assert used(ledger) == held(60)
        ledger.ready()
    programs.clock.advance(2)
    assert used(ledger) == Used()
