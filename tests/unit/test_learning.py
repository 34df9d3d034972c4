from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from databases import SOON, wait_until
from live import FILE, locked

from maxwell.database.file import Database
from maxwell.database.schema import LIVE
from maxwell.errors import LedgerError
from maxwell.learning import (
    ENOUGH,
    KEPT_SECONDS,
    LEAST_SECONDS,
    MOST_WAITING,
    READ_SECONDS,
    SpeedBook,
    key_of,
)
from maxwell.registry.specs import Capabilities, EmbeddingSpec, LLMSpec
from maxwell.speed import Learned, Sample, learn, to_json
from maxwell.testing.clock import FakeClock


def llm(name: str = "qwen", api_base: str = "http://box:8080/v1", model: str = "qwen.gguf") -> LLMSpec:
    return LLMSpec(
        name=name,
        api_base=api_base,
        model=model,
        backend="llamacpp",
        capabilities=Capabilities(max_context=8192, max_tokens=2048, speed_tokens_per_sec=50),
        default_temperature=0.5,
    )


SPEC = llm()
KEY = key_of(SPEC)


def sample(tokens: int = 100) -> Sample:
    return Sample(total_seconds=2.0, first_token_seconds=0.5, prompt_tokens=300, completion_tokens=tokens)


class Programs:
    """Opens books in one home, as as many programs would."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.clock = FakeClock()
        self.databases: list[Database] = []
        self.books: list[SpeedBook] = []

    def __call__(self) -> SpeedBook:
        self.databases.append(Database(self.home, LIVE))
        self.books.append(SpeedBook(self.databases[-1], self.clock))
        return self.books[-1]

    def flush(self, number: int) -> None:
        """What waits in one of them is written."""
        self.books[number].flush()
        self.databases[number].flush()

    def write(self) -> None:
        """All that waits is written, and what was read before is old."""
        for number in range(len(self.books)):
            self.flush(number)
        self.clock.advance(READ_SECONDS)

    def close(self) -> None:
        for database in self.databases:
            database.close()


@pytest.fixture
def books(home: Path) -> Iterator[Programs]:
    with closing(Programs(home)) as several:
        yield several


def seen(book: SpeedBook, key: str = KEY) -> int:
    """How many samples it has learned from."""
    learned = book.learned(key)
    return 0 if learned is None else learned.replies.seen


def rows(home: Path) -> dict[str, bytes]:
    with closing(sqlite3.connect(home / FILE, timeout=SOON)) as db:
        return dict(db.execute("SELECT key, body FROM learned"))


def is_written(database: Database) -> bool:
    try:
        database.flush()
    except LedgerError:
        return False
    return True


def put(home: Path, body: object, key: str = KEY) -> None:
    with closing(sqlite3.connect(home / FILE, isolation_level=None, timeout=SOON)) as db:
        db.execute("INSERT OR REPLACE INTO learned VALUES (?, 'qwen', 0, ?)", (key, body))


# --- keys


def test_an_entry_that_points_elsewhere_begins_anew() -> None:
    others = [llm(api_base="http://box:9090/v1"), llm(model="other.gguf"), llm("fast")]
    assert len({KEY, *map(key_of, others)}) == 4
    assert key_of(msgspec.structs.replace(SPEC, api_base="http://box:8080/", tags=("new",))) == KEY
    assert KEY.startswith("qwen ")
    assert "box" not in KEY


def test_embeddings_have_keys_too() -> None:
    spec = EmbeddingSpec(name="e", api_base="http://box:8080/v1", model="e5", dimension=3, max_context=512)
    assert key_of(spec).startswith("e ")


# --- one process


@pytest.fixture(params=["memory", "file"])
def book(request: pytest.FixtureRequest, books: Programs) -> SpeedBook:
    return books() if request.param == "file" else SpeedBook(None, books.clock)


def test_nothing_is_known_at_first(book: SpeedBook) -> None:
    assert book.learned(KEY) is None
    assert book.all() == {}


def test_what_is_noted_counts_at_once(book: SpeedBook, books: Programs) -> None:
    book.note(KEY, SPEC, sample())
    assert book.learned(KEY) == learn(Learned(), sample(), SPEC, books.clock.time())
    book.note(KEY, SPEC, sample())
    assert seen(book) == 2
    assert book.learned("another") is None
    assert book.all() == {KEY: book.learned(KEY)}


def test_the_same_object_stands_for_the_same_knowledge(book: SpeedBook, books: Programs) -> None:
    book.note(KEY, SPEC, sample())
    first = book.learned(KEY)
    books.write()
    assert book.learned(KEY) is first
    book.note("another", SPEC, sample())
    books.write()
    assert book.learned(KEY) is first
    book.note(KEY, SPEC, sample())
    assert book.learned(KEY) is not first


def test_what_is_forgotten_begins_anew(book: SpeedBook, books: Programs) -> None:
    book.note(KEY, SPEC, sample())
    books.write()
    book.note(KEY, SPEC, sample())
    book.forget(KEY)
    assert book.learned(KEY) is None
    books.write()
    assert book.learned(KEY) is None
    assert book.all() == {}
    book.note(KEY, SPEC, sample())
    book.forget(KEY)
    book.note(KEY, SPEC, sample())
    assert seen(book) == 1
    books.write()
    wait_until(lambda: seen(book) == 1)


# --- several


def test_programs_learn_from_each_other(books: Programs) -> None:
    one, two = books(), books()
    for book in (one, two, one):
        book.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: (seen(one), seen(two), seen(books())) == (3, 3, 3))
    assert one.learned(KEY) == two.learned(KEY)


def test_what_others_learned_is_looked_at_every_few_seconds(books: Programs) -> None:
    one, two = books(), books()
    assert seen(two) == 0
    one.note(KEY, SPEC, sample())
    books.flush(0)
    assert seen(two) == 0
    books.clock.advance(READ_SECONDS)
    wait_until(lambda: seen(two) == 1)


def test_what_others_learned_comes_with_what_is_written_here(books: Programs) -> None:
    one, two = books(), books()
    assert seen(two) == 0
    one.note(KEY, SPEC, sample())
    books.flush(0)
    two.note(KEY, SPEC, sample())
    books.flush(1)
    wait_until(lambda: seen(two) == 2)


def test_what_waits_here_is_not_lost_when_others_have_written(home: Path, books: Programs) -> None:
    one, two = books(), books()
    assert seen(one) == 0
    two.note(KEY, SPEC, sample())
    books.flush(1)
    with locked(home):
        one.note(KEY, SPEC, sample())
        assert seen(one) == 1
        books.clock.advance(READ_SECONDS)
        wait_until(lambda: seen(one) == 2)
    books.write()
    wait_until(lambda: (seen(one), seen(two)) == (2, 2))


def test_what_one_forgets_all_forget(books: Programs) -> None:
    one, two = books(), books()
    one.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: seen(two) == 1)
    one.forget(KEY)
    books.write()
    wait_until(lambda: (two.learned(KEY), books().learned(KEY)) == (None, None))
    two.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: (seen(one), seen(two)) == (1, 1))


def test_many_threads_learn_at_once(books: Programs) -> None:
    book = books()

    def work() -> None:
        for _ in range(20):
            books.clock.advance(2 * LEAST_SECONDS)
            book.note(KEY, SPEC, sample())
            book.learned(KEY)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
    books.write()
    assert 20 <= seen(book) <= 80  # of samples at the same moment one may be lost
    wait_until(lambda: seen(books()) == seen(book))


def test_who_calls_all_the_time_learns_from_some_calls(books: Programs) -> None:
    book = books()
    for _ in range(ENOUGH + 30):
        book.note(KEY, SPEC, sample())
    assert seen(book) == ENOUGH
    books.clock.advance(2 * LEAST_SECONDS)
    book.note(KEY, SPEC, sample())
    assert seen(book) == ENOUGH + 1


def test_what_nobody_else_changed_is_written_as_it_is_known(home: Path, books: Programs) -> None:
    book = books()
    for _ in range(3):
        book.note(KEY, SPEC, sample())
        books.write()
    assert seen(book) == 3
    assert rows(home)[KEY] == to_json(book.learned(KEY) or Learned())


def test_what_is_noted_is_on_disk_soon_and_at_the_end(home: Path, books: Programs) -> None:
    book = books()
    book.note(KEY, SPEC, sample())
    wait_until(lambda: (home / FILE).exists() and seen(SpeedBook(books.databases[0], books.clock)) == 1)
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_learning import *
from maxwell.clock import SystemClock

SpeedBook(Database(Path(sys.argv[1]), LIVE), SystemClock()).note(KEY, SPEC, sample())
"""
    environ = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", script, str(home)], check=True, timeout=60, env=environ)
    assert seen(books()) == 2


# --- trouble


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"[1]", b'{"generation": "fast"}', "text", 7])
def test_a_damaged_body_is_ignored_and_written_anew(home: Path, books: Programs, body: object) -> None:
    book = books()
    book.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: seen(book) == 1)
    put(home, body)
    books.clock.advance(READ_SECONDS)
    wait_until(lambda: seen(book) == 1)
    assert books().learned(KEY) is None
    book.note(KEY, SPEC, sample())
    books.write()
    assert seen(book) == 2
    assert rows(home) == {KEY: to_json(book.learned(KEY) or Learned())}


def test_nobody_waits_for_a_locked_file(home: Path, books: Programs) -> None:
    one, two = books(), books()
    one.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: seen(two) == 1)
    with locked(home):
        books.clock.advance(READ_SECONDS)
        two.note(KEY, SPEC, sample())
        assert (seen(one), seen(two)) == (1, 2)
    books.write()
    wait_until(lambda: (seen(one), seen(two)) == (2, 2))


@pytest.mark.parametrize("wal", [True, False])
def test_where_the_file_cannot_be_used_a_process_learns_alone(home: Path, wal: bool) -> None:
    home.mkdir()
    (home / FILE).mkdir()
    clock = FakeClock()
    with closing(Database(home, LIVE, wal=wal)) as database:
        book = SpeedBook(database, clock)
        for _ in range(MOST_WAITING + 10):
            book.note(KEY, SPEC, sample())
            clock.advance(1)
        assert seen(book) == MOST_WAITING + 10
        book.flush()
        (home / FILE).rmdir()
        database.flush()
        clock.advance(READ_SECONDS)
        assert seen(book) == seen(SpeedBook(database, clock)) == MOST_WAITING + 10


def test_a_damaged_file_takes_away_nothing_that_is_known_here(home: Path, books: Programs) -> None:
    book = books()
    book.note(KEY, SPEC, sample())
    books.write()
    wait_until(lambda: seen(book) == 1)
    for file in home.iterdir():
        file.unlink()
    (home / FILE).write_bytes(b"my diary, and nothing else " * 400)
    books.clock.advance(READ_SECONDS)
    wait_until(lambda: seen(book) == 1)
    book.note(KEY, SPEC, sample())
    wait_until(lambda: seen(book) == 2)
    book.flush()
    wait_until(lambda: is_written(books.databases[0]))
    assert KEY in rows(home)
    assert (home / f"{FILE}.damaged").exists()


def test_what_was_not_used_for_months_is_forgotten(home: Path, books: Programs) -> None:
    book = books()
    book.note("old", SPEC, sample())
    books.write()
    books.clock.advance(KEPT_SECONDS)
    book.note(KEY, SPEC, sample())
    books.write()
    assert set(rows(home)) == {KEY}
