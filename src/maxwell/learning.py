"""What calls taught about each entry, owned here: in memory, and in a file that all the processes share.

It is evidence, not a fact: what cannot be written or read costs nobody a call.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from maxwell.clock import Clock
from maxwell.errors import LedgerError
from maxwell.registry.endpoints import root
from maxwell.registry.specs import LLMSpec, Spec
from maxwell.speed import Learned, Sample, from_json, learn, to_json

if TYPE_CHECKING:
    import sqlite3

    from maxwell.database.file import Database

READ_SECONDS = 5.0  # what other processes learned is looked at this often
KEPT_SECONDS = 90 * 86400.0  # since the latest call
MOST_WAITING = 100  # samples of one entry, while they cannot be written

_NOTHING = to_json(Learned())  # what was forgotten on purpose
_ALL = "SELECT key, body FROM learned"
_ONE = "SELECT body FROM learned WHERE key = ?"
_WRITE = "INSERT OR REPLACE INTO learned (key, name, at, body) VALUES (?, ?, ?, ?)"
_OLD = "DELETE FROM learned WHERE at < ?"


def key_of(spec: Spec) -> str:
    """What is learned of `spec` is kept under this key: an entry that points elsewhere begins anew."""
    return f"{spec.name} {_digest(root(spec.api_base), spec.model)}"


@lru_cache(maxsize=1024)
def _digest(endpoint: str, model: str) -> str:
    import hashlib

    return hashlib.sha256(f"{endpoint}\0{model}".encode()).hexdigest()[:16]


USUAL = "*"  # the key of what the calls of all entries together teach


class SpeedBook:
    """What was learned of every entry.

    Args:
        database: The file that all processes of the user share; None = only memory.
        clock: Tells the time.
    """

    def __init__(self, database: Database | None, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        # Single assignments only, which are atomic: no lock, so none can be held across a fork. Where two
        # threads come in between each other, the file has both.
        self._known: dict[str, Learned] = {}
        self._read: dict[str, bytes] = {}  # what the file said
        self._next_read = 0.0

    def learned(self, key: str) -> Learned | None:
        """What was learned of an entry, the same object until something is added; None = nothing.

        Never waits. What other processes learned is a few seconds late.
        """
        if self._database is not None and self._clock.monotonic() >= self._next_read:
            self._refresh(self._database)
        return self._known.get(key)

    def note(self, key: str, spec: LLMSpec, sample: Sample) -> None:
        """Learn from one more call. It counts at once here, and soon for all; cannot fail."""
        now = self._clock.time()
        self._known[key] = learn(self._known.get(key) or Learned(), sample, spec, now)
        if self._database is not None:
            self._database.later(("learned", key), Lesson(self, key, spec.name, now, ((spec, sample, now),)))

    def forget(self, key: str) -> None:
        """Begin anew with an entry, in all processes; cannot fail."""
        self._known.pop(key, None)
        if self._database is not None:
            name = key.rpartition(" ")[0]
            self._database.later(("learned", key), Lesson(self, key, name, self._clock.time(), (), anew=True))

    def all(self) -> dict[str, Learned]:
        """What was learned of every entry, by key."""
        if self._database is not None:
            self._refresh(self._database)
        return dict(self._known)

    def reread(self) -> None:
        """Look into the file at the next question."""
        self._next_read = 0.0

    def _refresh(self, database: Database) -> None:
        from maxwell.database.patience import Locked

        try:
            rows, waiting = database.read_at_once(_ALL)
        except Locked:
            return
        except LedgerError:
            rows, waiting = [], []
        self._next_read = self._clock.monotonic() + READ_SECONDS
        unwritten = {task.key: task for task in waiting if isinstance(task, Lesson)}
        for key, body in rows:
            if body != self._read.get(key):
                self._read[key] = body
                self._take(key, body, unwritten.get(key))

    def _take(self, key: str, body: bytes, lesson: Lesson | None) -> None:
        """Know what the file says of an entry, and what is not in it yet."""
        learned = _decoded(body)
        if learned is None:
            return
        if lesson is not None:
            learned = lesson.added(learned)
        if learned == Learned():
            self._known.pop(key, None)
        elif learned != self._known.get(key):
            self._known[key] = learned


class Lesson(Struct, frozen=True):
    """What is to be added to what the file knows of one entry.

    Attributes:
        book: Who adds it.
        key: Of the entry.
        name: Of the entry, for people who look into the file.
        at: When it was learned.
        samples: Calls as they went: (entry, sample, when), the oldest first.
        anew: Forget first what the file knows.
    """

    book: SpeedBook
    key: str
    name: str
    at: float
    samples: tuple[tuple[LLMSpec, Sample, float], ...]
    anew: bool = False

    def added(self, learned: Learned) -> Learned:
        """`learned` with the samples."""
        if self.anew:
            learned = Learned()
        for spec, sample, now in self.samples:
            learned = learn(learned, sample, spec, now)
        return learned

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        row: Sequence[Any] | None = db.execute(_ONE, (self.key,)).fetchone()
        before = None if row is None else _decoded(row[0])
        body = to_json(self.added(before or Learned()))
        db.execute(_WRITE, (self.key, self.name, self.at, body))
        db.execute(_OLD, (self.at - KEPT_SECONDS,))
        self.book.reread()

    def merged(self, later: Lesson) -> Lesson:
        """See `Task.merged`."""
        if later.anew:
            return later
        samples = (*self.samples, *later.samples)[-MOST_WAITING:]
        return Lesson(self.book, self.key, self.name, later.at, samples, self.anew)


def _decoded(body: object) -> Learned | None:
    """What the file says; None = nothing that can be understood."""
    if not isinstance(body, bytes):
        return None
    learned = from_json(body)
    return learned if learned != Learned() or body == _NOTHING else None
