from __future__ import annotations

import contextlib
import multiprocessing
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from calling import make_registry
from command_line import unreachable
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.database.file import Database
from maxwell.decision import Candidate, Decision, Request
from maxwell.errors import (
    AllAttemptsFailed,
    BackendError,
    BudgetExceeded,
    CallTimeout,
    LedgerError,
    StatusError,
    StreamBroken,
    UnknownReceipt,
)
from maxwell.explain import standing, wait_or_spend
from maxwell.receipts import Attempted, Choice, Prices, Ranked, Receipt, Refused
from maxwell.receipts.book import (
    KEPT_SECONDS,
    MOST_KEPT,
    MOST_PRUNED,
    MOST_WAITING,
    PRUNE_SECONDS,
    Batch,
    ReceiptBook,
)
from maxwell.receipts.record import Record
from maxwell.receipts.text import MOST_TEXT, without_quotes
from maxwell.registry.specs import LLMSpec
from maxwell.scheduler import decide
from maxwell.testing import FakeClock
from maxwell.types import Completion, HealthState, Requirements, Timings, Usage

PROMPT = "Tell nobody that the treasure lies under the old oak tree."
REPLY = "I shall remain as silent as that grave under the tree."
KEY = "sk-a-key-that-nobody-may-see"
MESSAGES = [{"role": "user", "content": PROMPT}]
COUNTED = Usage(13, 402, cached_tokens=8)
GUESSED = Usage(13, 5, estimated=True)

Books = Callable[..., ReceiptBook]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(tmp_path / "home", begin=lambda db: None)
    yield made
    made.close()


@pytest.fixture
def books(database: Database, fake_clock: FakeClock) -> Books:
    def make(**settings: Any) -> ReceiptBook:
        return ReceiptBook(database, fake_clock, **settings)

    return make


@pytest.fixture
def book(books: Books) -> ReceiptBook:
    return books()


def llms(*names: str, **fields: Any) -> tuple[LLMSpec, ...]:
    return make_registry(*(unreachable(name, **fields) for name in names)).llms


CHEAP, DEAR = llms("cheap")[0], llms("dear", cost_per_1k_tokens=0.5)[0]


def decision(*up: LLMSpec, down: tuple[LLMSpec, ...] = (), **needs: Any) -> Decision:
    def candidates(specs: tuple[LLMSpec, ...], state: HealthState) -> list[Candidate]:
        return [
            Candidate(spec=spec, state=state, index=i, detail="no answer") for i, spec in enumerate(specs)
        ]

    request = Request(needs=Requirements(**needs), prompt_bytes=len(PROMPT))
    return decide(candidates(up or (CHEAP,), "up") + candidates(down, "down"), request)


def completion(text: str = REPLY, name: str = "cheap", usage: Usage = COUNTED) -> Completion:
    timings = Timings(total_seconds=2.5, first_token_seconds=0.5)
    return Completion(text=text, finish_reason="stop", usage=usage, cost_usd=0.0, timings=timings, llm=name)


def call(book: ReceiptBook, chosen: Decision | None = None, messages: Any = MESSAGES) -> str:
    """A call that `CHEAP` answers; returns the receipt's id."""
    with book.chat(chosen or decision(), messages) as record:
        with record.attempt(CHEAP):
            record.used(COUNTED, 0.0)
        record.answered(completion())
    return record.id


def fail(book: ReceiptBook, error: BaseException, messages: Any = MESSAGES) -> Receipt:
    """The receipt of a call whose only attempt ends like this."""
    with contextlib.suppress(BaseException), book.chat(decision(), messages) as record, record.attempt(CHEAP):
        raise error
    return book.get(record.id)


def stored(database: Database) -> bytes:
    """Every byte of the database's files."""
    database.flush()
    files = list(database.home.iterdir())
    assert database.path in files
    return b"".join(file.read_bytes() for file in files)


def broken(partial: Completion) -> StreamBroken:
    return StreamBroken("it broke off", partial=partial, llm="cheap")


def over_budget() -> BudgetExceeded:
    resets_at = datetime(2026, 1, 16, tzinfo=UTC)
    return BudgetExceeded("cheap", left=3, needed=900, unit="tokens", resets_at=resets_at)


def test_a_receipt_tells_the_decision_and_what_became_of_it(book: ReceiptBook, fake_clock: FakeClock) -> None:
    began = fake_clock.time()
    chosen = decision(DEAR, CHEAP, down=llms("gone"), time_cost_weight=10.0, min_context=500, vision=False)
    with book.chat(chosen, MESSAGES) as record:
        with record.attempt(DEAR):
            fake_clock.advance(2.5)
            record.used(COUNTED, 0.25)
        record.answered(completion())
    receipt = book.get(record.id)
    assert (receipt.id, receipt.at, receipt.kind, receipt.seconds) == (record.id, began, "chat", 2.5)
    assert (receipt.outcome, receipt.llm, receipt.finish_reason) == ("ok", "dear", "stop")
    assert receipt.first_token_seconds == 0.5
    assert (receipt.messages, receipt.characters, receipt.images) == (1, len(PROMPT), 0)
    assert receipt.attempts == (
        Attempted(
            name="dear", outcome="ok", seconds=2.5, usage=COUNTED, usd=0.25, prices=Prices(0.5, 0.5, 0.5)
        ),
    )
    assert receipt.choice.needs == {"min_context": 500, "vision": False}
    assert (receipt.choice.by, receipt.choice.time_cost_weight) == ("score", 10.0)
    assert receipt.choice.prompt_bytes == len(PROMPT)
    assert receipt.choice.rejected == (Refused("gone", "down", "no answer"),)
    for ranked, scored in zip(receipt.choice.ranked, chosen.ranked, strict=True):
        assert ranked.name == scored.spec.name
        for term in Ranked.__struct_fields__[1:]:
            assert getattr(ranked, term) == pytest.approx(getattr(scored, term), abs=1e-6)


def test_attempts_stand_in_their_order(book: ReceiptBook, fake_clock: FakeClock) -> None:
    with book.chat(decision(DEAR, CHEAP), MESSAGES) as record:
        with contextlib.suppress(BackendError), record.attempt(DEAR):
            fake_clock.advance(10)
            raise StatusError("it has no room", llm="dear", kind="overloaded")
        fake_clock.advance(1)
        with record.attempt(CHEAP):
            fake_clock.advance(2)
            record.used(COUNTED, 0.0)
        record.answered(completion())
    receipt = book.get(record.id)
    told = [(a.name, a.outcome, a.message, a.seconds) for a in receipt.attempts]
    assert told == [("dear", "overloaded", "it has no room", 10.0), ("cheap", "ok", "", 2.0)]
    assert [a.usage for a in receipt.attempts] == [None, COUNTED]
    assert (receipt.outcome, receipt.llm, receipt.seconds, receipt.usage) == ("ok", "cheap", 13.0, COUNTED)


@pytest.mark.parametrize(
    ("error", "outcome", "message"),
    [
        (StatusError("too many", llm="cheap", kind="rate_limited"), "rate_limited", "too many"),
        (over_budget(), "budget", "cheap: daily budget has 3 tokens left"),
        (LedgerError("the disk is full"), "ledger", "the disk is full"),
        (AllAttemptsFailed([]), "failed", "no server answered"),
        (GeneratorExit(), "cancelled", ""),
        (KeyboardInterrupt(), "cancelled", ""),
        (RuntimeError(PROMPT), "failed", "RuntimeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_every_way_out_has_its_word(
    book: ReceiptBook, error: BaseException, outcome: str, message: str
) -> None:
    receipt = fail(book, error)
    [attempt] = receipt.attempts
    assert (receipt.outcome, attempt.outcome, receipt.llm) == (outcome, outcome, "")
    assert attempt.message.startswith(message)
    assert bool(attempt.message) == bool(message)


def test_a_reply_that_broke_off_is_told_as_far_as_it_came(book: ReceiptBook) -> None:
    receipt = fail(book, broken(completion("I shall")))
    assert (receipt.outcome, receipt.llm, receipt.first_token_seconds) == ("broken_stream", "cheap", 0.5)


def test_several_bookings_of_one_attempt_are_added_up(book: ReceiptBook) -> None:
    with book.embed("code", ["one", "two"]) as record, record.attempt(CHEAP):
        record.used(Usage(5, 1, cached_tokens=3, reported_usd=0.25), 0.1)
        record.used(Usage(7, 0, reasoning_tokens=2, estimated=True, reported_usd=0.5), 0.2)
    receipt = book.get(record.id)
    assert receipt.usage == Usage(12, 1, 3, 2, estimated=True, reported_usd=0.75)
    assert receipt.usd == pytest.approx(0.3)


@pytest.mark.parametrize(("asked", "by"), [(None, "default"), ("vectors", "name"), ("fast", "tag")])
def test_an_embedding_call_tells_who_was_asked_for(book: ReceiptBook, asked: str | None, by: str) -> None:
    spec = make_registry(
        {"name": "vectors", "api_base": "http://127.0.0.1:9", "model": "m", "dimension": 4, "max_context": 99}
    ).embeddings[0]
    with book.embed(asked, ["one", "three"]) as record, record.attempt(spec):
        record.used(Usage(5, 0), 0.0)
    receipt = book.get(record.id)
    assert (receipt.kind, receipt.llm, receipt.messages, receipt.characters) == ("embed", "vectors", 2, 8)
    assert (receipt.choice.by, receipt.choice.asked) == (by, asked or "")


def test_long_lists_are_cut_and_the_rest_counted(book: ReceiptBook) -> None:
    up, down = llms(*(f"up{i}" for i in range(23))), llms(*(f"down{i}" for i in range(54)))
    choice = book.get(call(book, decision(*up, down=down))).choice
    assert [ranked.name for ranked in choice.ranked] == [f"up{i}" for i in range(20)]
    assert [no.name for no in choice.rejected] == [f"down{i}" for i in range(50)]
    assert (choice.more_ranked, choice.more_rejected) == (3, 4)


def test_the_decision_kept_is_the_call_s_own(book: ReceiptBook) -> None:
    one, other = decision(CHEAP), decision(DEAR)
    ids = [call(book, chosen) for chosen in (one, one, other, one)]
    assert [book.get(id_).choice.ranked[0].name for id_ in ids] == ["cheap", "cheap", "dear", "cheap"]


def test_a_decision_taken_at_the_call_replaces_the_handle_s(book: ReceiptBook) -> None:
    with book.chat(decision(DEAR), MESSAGES) as record:
        record.decided(decision(DEAR, CHEAP, down=llms("gone")))
        record.decided(decision(CHEAP))
        with record.attempt(CHEAP):
            pass
        record.answered(completion())
    receipt = book.get(record.id)
    assert [ranked.name for ranked in receipt.choice.ranked] == ["cheap"]
    assert receipt.chosen_before == "dear"
    assert receipt.attempts[0].choice is None


def test_a_choice_that_was_confirmed_names_nobody_else(book: ReceiptBook) -> None:
    with book.chat(decision(DEAR), MESSAGES) as record:
        record.decided(decision(CHEAP))
        record.decided(decision(DEAR))
        with record.attempt(DEAR):
            pass
    assert book.get(record.id).chosen_before == ""


def test_what_was_named_stays_named_however_often_it_is_decided(book: ReceiptBook) -> None:
    named = msgspec.structs.replace(decision(CHEAP), by="name")
    with book.chat(named, MESSAGES) as record:
        record.decided(decision(CHEAP))
        with record.attempt(CHEAP):
            pass
    assert book.get(record.id).choice.by == "name"


def test_who_took_over_is_kept_with_the_attempt(book: ReceiptBook) -> None:
    first, other = decision(DEAR, CHEAP), decision(CHEAP, *llms("b", "c", "d"), down=(DEAR,))
    with book.chat(first, MESSAGES) as record:
        with contextlib.suppress(BackendError), record.attempt(DEAR):
            raise StatusError("it has no room", llm="dear", kind="overloaded")
        record.decided(other)
        with record.attempt(CHEAP):
            pass
        record.answered(completion())
    receipt = book.get(record.id)
    assert (receipt.choice, receipt.chosen_before) == (book_choice(book, first), "")
    assert receipt.attempts[0].choice is None
    took_over = receipt.attempts[1].choice
    assert took_over is not None
    assert [ranked.name for ranked in took_over.ranked] == [s.spec.name for s in other.ranked[:2]]
    assert (took_over.more_ranked, took_over.rejected, took_over.more_rejected) == (2, (), 1)


def book_choice(book: ReceiptBook, chosen: Decision) -> Choice:
    return book.get(call(book, chosen)).choice


def test_the_time_a_call_is_held_back_belongs_to_the_attempt_after_it(
    book: ReceiptBook, fake_clock: FakeClock
) -> None:
    with book.chat(decision(DEAR, CHEAP), MESSAGES) as record:
        for seconds in (1.5, 0.5):
            fake_clock.advance(seconds)
            record.held(seconds)
        with contextlib.suppress(BackendError), record.attempt(DEAR):
            fake_clock.advance(3)
            raise StatusError("it has no room", llm="dear", kind="overloaded")
        with record.attempt(CHEAP):
            fake_clock.advance(4)
        fake_clock.advance(7)
        record.held(7)
    receipt = book.get(record.id)
    assert [(a.held_seconds, a.seconds) for a in receipt.attempts] == [(2.0, 3.0), (0.0, 4.0)]
    assert (receipt.held_seconds, receipt.seconds) == (7.0, 16.0)


def test_what_is_held_back_within_an_attempt_is_not_its_own_time(
    book: ReceiptBook, fake_clock: FakeClock
) -> None:
    with book.embed("code", ["one"]) as record, record.attempt(CHEAP):
        fake_clock.advance(5)
        record.held(3)
    receipt = book.get(record.id)
    assert [(a.held_seconds, a.seconds) for a in receipt.attempts] == [(3.0, 2.0)]
    assert (receipt.held_seconds, receipt.seconds) == (0.0, 5.0)


def test_a_call_that_asked_nobody_says_why(book: ReceiptBook) -> None:
    with contextlib.suppress(BackendError), book.chat(decision(), MESSAGES) as record:
        record.held(30)
        raise CallTimeout("the time ran out while waiting for a free slot", llm="cheap", kind="timeout")
    receipt = book.get(record.id)
    assert (receipt.outcome, receipt.attempts, receipt.held_seconds) == ("timeout", (), 30.0)
    assert receipt.message == "the time ran out while waiting for a free slot"


def test_whether_to_wait_or_to_spend_is_kept_with_the_decision(book: ReceiptBook) -> None:
    pool = [
        Candidate(spec=DEAR, in_flight=3.0, slots=2, service=4.0, overhead=0.5, slowdown=2.5, completion=7.0),
        Candidate(spec=CHEAP, index=1, state="loading", ready_in=25.0),
    ]
    request = Request(needs=Requirements(), prompt_bytes=len(PROMPT))
    chosen = decide(pool, request)
    choice = book_choice(book, chosen)
    assert choice.wait_or_spend == wait_or_spend(chosen) != ""
    for ranked, scored in zip(choice.ranked, chosen.ranked, strict=True):
        for term in Ranked.__struct_fields__[1:]:
            assert getattr(ranked, term) == pytest.approx(getattr(scored, term), abs=1e-3)
    assert choice.ranked[1].state == "loading"


def test_images_are_counted_and_not_measured(book: ReceiptBook) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 1000}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, image]}]
    receipt = book.get(call(book, messages=messages))
    assert (receipt.messages, receipt.characters, receipt.images) == (1, 11, 1)


# --- what may not be kept -----------------------------------------------------------------------------------


def test_no_text_of_prompt_or_reply_reaches_the_disk(book: ReceiptBook, database: Database) -> None:
    call(book)
    fail(book, broken(completion()))
    fail(book, StatusError(f'HTTP 400, "cannot read {PROMPT}": correct it', llm="cheap", kind="bad_request"))
    fail(book, RuntimeError(PROMPT))
    with book.embed("code", [PROMPT]) as record, record.attempt(CHEAP):
        pass
    kept = stored(database)
    assert book.last() is not None
    for secret in (PROMPT, REPLY, "treasure", "old oak", "silent"):
        assert secret.encode() not in kept
    assert b"cannot read [...]" in kept


def test_text_is_kept_when_asked_for(books: Books) -> None:
    book = books(log_content=True)
    talk = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    receipt = book.get(call(book, messages=talk))
    assert receipt.prompt == f"system: Be brief.\n\nuser: {PROMPT}"
    assert receipt.reply == REPLY
    assert book.get(call(book)).prompt == PROMPT
    quoting = StatusError(f"cannot read {PROMPT}", llm="cheap", kind="bad_request")
    assert fail(book, quoting).attempts[0].message == f"cannot read {PROMPT}"
    with book.embed("code", ["one", "two"]) as record, record.attempt(CHEAP):
        pass
    assert book.get(record.id).prompt == "one\n\ntwo"


def test_keys_are_struck_out_of_kept_text(books: Books, database: Database) -> None:
    book = books(log_content=True, secrets=[KEY, f" {KEY}-longer\n", "x"])
    text = f"My keys are {KEY} and {KEY}-longer."
    with book.chat(decision(), [{"role": "user", "content": text}]) as record:
        with record.attempt(CHEAP):
            pass
        record.answered(completion(f"Your key is {KEY}"))
    receipt = book.get(record.id)
    assert receipt.prompt == "My keys are [redacted] and [redacted]."
    assert receipt.reply == "Your key is [redacted]"
    assert KEY.encode() not in stored(database)


def test_kept_text_is_cut_after_the_keys_are_struck_out(books: Books) -> None:
    book = books(log_content=True, secrets=[KEY])
    text = "a" * (MOST_TEXT - 5) + KEY + "b" * 1000
    prompt = book.get(call(book, messages=[{"role": "user", "content": text}])).prompt
    assert prompt is not None
    assert prompt.startswith("a" * (MOST_TEXT - 5) + "[reda\n[... and 1,005 more characters]")
    assert KEY[:6] not in prompt


@given(
    text=st.text(alphabet="abc \n", min_size=4, max_size=200),
    before=st.text(alphabet="xyz", max_size=30),
    after=st.text(alphabet="xyz", max_size=30),
    data=st.data(),
)
@settings(deadline=None, max_examples=300)
def test_no_longer_quotation_is_left_in_an_error(text: str, before: str, after: str, data: Any) -> None:
    prompt = " ".join(text.split())  # as errors are shown
    longest = data.draw(st.integers(0, len(prompt)))
    first = data.draw(st.integers(0, len(prompt) - longest))
    quoted = prompt[first : first + longest]
    left = without_quotes(f"{before}{quoted}{after}", [text])
    assert left.startswith(before)
    assert left.endswith(after)
    if len(quoted) >= 23 or (quoted == prompt and len(prompt) >= 4):
        assert left == f"{before}[...]{after}"


def test_all_of_a_quotation_is_struck_out() -> None:
    for shift in range(24):
        message = f"{'x' * shift}{PROMPT[5:40]}{'y' * 9}"
        assert without_quotes(message, [PROMPT]) == f"{'x' * shift}[...]{'y' * 9}"


def test_an_error_in_other_words_stays_whole() -> None:
    message = 'HTTP 503, "the server is overloaded": the server has no room now'
    assert without_quotes(message, MESSAGES) == message


# --- keeping ------------------------------------------------------------------------------------------------


def test_receipts_outlive_their_process(tmp_path: Path, book: ReceiptBook, database: Database) -> None:
    code = f"""
from pathlib import Path
from maxwell.clock import SystemClock
from maxwell.database.file import Database
from maxwell.receipts.book import ReceiptBook

book = ReceiptBook(Database(Path({str(database.home)!r}), begin=lambda db: None), SystemClock())
with book.embed("code", ["one"]) as record:
    pass
print(record.id)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert book.get(done.stdout.strip()).outcome == "ok"


def _leave_in_child(record: Record) -> None:
    record.__exit__(None, None, None)
    record._book._database.close()  # type: ignore[union-attr]


def test_a_forked_child_keeps_nothing_of_its_parent_s_call(book: ReceiptBook) -> None:
    context = multiprocessing.get_context("fork")
    with book.chat(decision(), MESSAGES) as record:
        child = context.Process(target=_leave_in_child, args=(record,))
        child.start()
        child.join(30)
        assert child.exitcode == 0
        assert book.last() is None
    assert book.last() is not None


def test_old_receipts_are_deleted_at_most_once_an_hour(
    books: Books, database: Database, fake_clock: FakeClock
) -> None:
    first = call(books())
    fake_clock.advance(KEPT_SECONDS - 60)
    book = books()
    second = call(book)
    database.flush()  # prunes, and nothing is old enough
    fake_clock.advance(120)
    call(book)
    assert book.get(first).id == first
    fake_clock.advance(PRUNE_SECONDS)
    call(book)
    with pytest.raises(UnknownReceipt):
        book.get(first)
    assert book.get(second).id == second


def test_the_oldest_beyond_the_most_are_deleted_a_part_at_a_time(
    book: ReceiptBook, database: Database, fake_clock: FakeClock
) -> None:
    extra = MOST_PRUNED + 10
    now = fake_clock.time()
    with database.write() as db:
        rows = ((f"row{i:06}", now - i, b"{}") for i in range(1, MOST_KEPT + extra + 1))
        db.executemany("INSERT INTO receipt VALUES (?, ?, ?)", rows)
    call(book)
    database.flush()
    assert count(database) == MOST_KEPT + extra + 1 - MOST_PRUNED
    latest = call(book)  # at once, for there was more
    database.flush()
    assert count(database) == MOST_KEPT
    assert book.get(latest).id == latest
    oldest, _ = database.read("SELECT MAX(id) FROM receipt WHERE id LIKE 'row%'")
    assert oldest == [(f"row{MOST_KEPT - 2:06}",)]


def count(database: Database) -> int:
    rows, _ = database.read("SELECT COUNT(*) FROM receipt")
    return int(rows[0][0])


def test_receipts_that_pile_up_are_dropped_and_counted(
    database: Database, book: ReceiptBook, caplog: pytest.LogCaptureFixture
) -> None:
    record = book.embed(None, [])
    waiting = Batch([record] * (MOST_WAITING - 1))
    for _ in range(3):
        waiting = waiting.merged(Batch([book.embed(None, [])]))
    with database.write() as db:
        waiting.apply(db)
    assert caplog.messages == ["2 receipts were not kept, because too many waited to be written"]
    assert count(database) == 2


def test_a_receipt_that_cannot_be_written_stops_nothing_else(
    book: ReceiptBook, caplog: pytest.LogCaptureFixture
) -> None:
    request = Request(needs=Requirements(tags=("\ud800",)))  # no UTF-8
    bad = call(book, Decision(ranked=(), rejected=(), request=request, by="speed"))
    good = call(book)
    assert book.get(good).id == good
    assert caplog.messages == [f"the receipt {bad} could not be kept"]
    with pytest.raises(UnknownReceipt):
        book.get(bad)


def test_lone_surrogates_in_text_do_no_harm(books: Books) -> None:
    book = books(log_content=True)
    receipt = book.get(call(book, messages=[{"role": "user", "content": "a\ud800b"}]))
    assert receipt.prompt == "a?b"


def test_without_a_database_nothing_is_kept_and_nothing_fails(fake_clock: FakeClock) -> None:
    book = ReceiptBook(None, fake_clock, log_content=True)
    assert call(book) == ""
    assert (book.last(), book.recent(5)) == (None, [])
    with pytest.raises(UnknownReceipt, match="there is none yet"):
        book.get("k3x9")


# --- finding ------------------------------------------------------------------------------------------------


def put(database: Database, id_: str, body: bytes = b'{"kind":"chat"}', at: float = 0.0) -> None:
    with database.write() as db:
        db.execute("INSERT INTO receipt VALUES (?, ?, ?)", (id_, at, body))


def test_ids_are_short_and_no_seed_repeats_them(book: ReceiptBook) -> None:
    ids = []
    for _ in range(3):
        random.seed(0)
        ids.append(call(book))
    assert len(set(ids)) == 3
    for id_ in ids:
        assert len(id_) == 8
        assert set(id_) <= set("0123456789abcdefghjkmnpqrstvwxyz")


def test_the_beginning_of_an_id_is_enough(book: ReceiptBook, database: Database) -> None:
    put(database, "k3x9q2mv")
    put(database, "k3zzzzzz")
    for wanted in ("k3x9q2mv", "k3x", " K3X9 "):
        assert book.get(wanted).id == "k3x9q2mv"


def test_misread_characters_are_understood(book: ReceiptBook, database: Database) -> None:
    put(database, "0110zzzz")
    assert book.get("OIlo").id == "0110zzzz"


def test_an_ambiguous_beginning_names_the_candidates(book: ReceiptBook, database: Database) -> None:
    for i in range(3):
        put(database, f"k3x9q2m{i}", at=i)
    with pytest.raises(UnknownReceipt, match="'k3' may be any of the receipts k3x9q2m2, k3x9q2m1, k3x9q2m0;"):
        book.get("k3")
    for i in range(3, 6):
        put(database, f"k3x9q2m{i}", at=i)
    with pytest.raises(UnknownReceipt, match=r"k3x9q2m2, \.\.\.; type more"):
        book.get("k3")


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ("k3y9", "no receipt 'k3y9'; did you mean k3x9q2mv?"),
        ("zzzzzzzz", "no receipt 'zzzzzzzz'; the latest is k3x9q2mv;"),
        ("k3x9q2mv0", "did you mean k3x9q2mv?"),
        ("k3%", "no receipt 'k3%'"),
        ("", "no receipt ''; the latest is k3x9q2mv;"),
    ],
)
def test_an_unknown_id_names_near_ones(
    book: ReceiptBook, database: Database, wanted: str, words: str
) -> None:
    put(database, "aaaaaaaa", at=1.0)
    put(database, "k3x9q2mv", at=2.0)
    with pytest.raises(UnknownReceipt) as caught:
        book.get(wanted)
    assert words in str(caught.value)


def test_the_newest_come_first(book: ReceiptBook, fake_clock: FakeClock) -> None:
    ids = []
    for seconds in (1, 1, 0):
        ids.append(call(book))
        fake_clock.advance(seconds)
    ids.append(call(book))
    assert [receipt.id for receipt in book.recent(3)] == ids[:0:-1]
    last = book.last()
    assert last is not None
    assert last.id == ids[-1]


def test_looking_makes_no_database(book: ReceiptBook, database: Database) -> None:
    assert book.last() is None
    assert not database.home.exists()


# --- versions -----------------------------------------------------------------------------------------------


def test_a_receipt_of_a_newer_version_is_read_as_far_as_it_is_known(
    book: ReceiptBook, database: Database
) -> None:
    body = {
        "kind": "video",
        "outcome": "vanished",
        "weather": "fine",
        "choice": {
            "by": "dice",
            "dice": 6,
            "ranked": [["new", 1.0, *[0] * 14, None, "asleep", True, "more"]],
            "rejected": [["old", "x", "y", 3]],
        },
        "attempts": [{"name": "new", "outcome": "vanished", "luck": 0.5}],
    }
    put(database, "k3x9q2mv", msgspec.json.encode(body))
    receipt = book.get("k3x")
    assert (receipt.kind, receipt.outcome, receipt.choice.by) == ("video", "vanished", "dice")
    assert receipt.choice.ranked[0].score == 1.0
    assert receipt.choice.rejected == (Refused("old", "x", "y"),)
    assert receipt.attempts[0].name == "new"


def test_a_receipt_of_an_older_version_lacks_what_is_new(book: ReceiptBook, database: Database) -> None:
    put(database, "k3x9q2mv", b'{"choice":{"ranked":[["old",1.5]]},"attempts":[{}]}')
    receipt = book.get("k3x")
    assert receipt.choice == Choice(ranked=(Ranked("old", 1.5),))
    assert receipt.attempts == (Attempted(),)


def test_a_receipt_from_before_loads_were_known_is_of_idle_servers(
    book: ReceiptBook, database: Database
) -> None:
    put(
        database,
        "k3x9q2mv",
        b'{"choice":{"by":"score","ranked":[["old",-3.5,0.0,4.0,0.5,0.0,50.0,100,200,4096]]}}',
    )
    [ranked] = book.get("k3x").choice.ranked
    assert (ranked.context, ranked.slowdown, ranked.slots, ranked.state) == (4096, 1.0, None, "up")
    assert standing(ranked) == ""


@pytest.mark.parametrize("body", [b"\x00", b"[]", b'{"attempts":3}', b'{"kind":"\xff"}', b""])
def test_a_receipt_that_cannot_be_read_says_so(book: ReceiptBook, database: Database, body: bytes) -> None:
    put(database, "k3x9q2mv", body, at=5.0)
    for look in (book.last, lambda: book.get("k3")):
        with pytest.raises(UnknownReceipt, match="the receipt k3x9q2mv cannot be read"):
            look()
    assert book.recent(5) == [Receipt(id="k3x9q2mv", at=5.0, kind="", outcome="unreadable")]
