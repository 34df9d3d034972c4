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

WRITE_SECONDS = 2.0  # what was learned is on its way to the file so much later
# Who calls more often than this learns from one call in so many seconds: the others would say the same.
LEAST_SECONDS = 0.05
ENOUGH = 20  # calls, before any is left out
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
        self._learned_at: dict[str, float] = {}
        self._read: dict[str, bytes] = {}  # what the file said, or was told
        self._untold: dict[str, Lesson] = {}
        self._next_read = 0.0
        if database is not None:
            database.before_close.append(self.flush)

    def learned(self, key: str) -> Learned | None:
        """What was learned of an entry, the same object until something is added; None = nothing.

        Never waits. What other processes learned is a few seconds late.
        """
        if self._database is not None and self._clock.monotonic() >= self._next_read:
            self._refresh(self._database)
        return self._known.get(key)

    def note(self, key: str, spec: LLMSpec, sample: Sample) -> None:
        """Learn from one more call. It counts at once here, and soon for all; cannot fail."""
        known, moment = self._known.get(key) or Learned(), self._clock.monotonic()
        if known.prompts.seen >= ENOUGH and 0 <= moment - self._learned_at.get(key, -1.0) < LEAST_SECONDS:
            return
        self._learned_at[key] = moment
        now = self._clock.time()
        self._known[key] = learned = learn(known, sample, spec, now)
        self._add(Lesson(self, key, spec.name, now, ((spec, sample, now),), learned, self._read.get(key)))

    def forget(self, key: str) -> None:
        """Begin anew with an entry, in all processes; cannot fail."""
        self._known.pop(key, None)
        self._add(Lesson(self, key, key.rpartition(" ")[0], self._clock.time(), (), None, anew=True))
        self.flush()

    def _add(self, lesson: Lesson) -> None:
        """Have a lesson written some time: many at once cost little more than one."""
        if self._database is None:
            return
        from maxwell.database.background import background

        before = self._untold.get(lesson.key)
        self._untold[lesson.key] = lesson if before is None else before.merged(lesson)
        background.soon(self.flush, WRITE_SECONDS)

    def flush(self) -> None:
        """Hand over to the database what it has not been told."""
        while self._untold and self._database is not None:
            key, lesson = self._untold.popitem()
            self._database.later(("learned", key), lesson)

    def told(self, key: str, body: bytes) -> None:
        """The file says this now, because this process wrote it."""
        self._read[key] = body

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
        for key, lesson in self._untold.copy().items():
            unwritten[key] = unwritten[key].merged(lesson) if key in unwritten else lesson
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
        learned: What was known here after the last of them; None = nothing.
        base: What the file had said by then, which is in that.
        anew: Forget first what the file knows.
    """

    book: SpeedBook
    key: str
    name: str
    at: float
    samples: tuple[tuple[LLMSpec, Sample, float], ...]
    learned: Learned | None
    base: bytes | None = None
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
        said = None if row is None else row[0]
        alone = self.learned is not None and not self.anew and said == self.base
        learned = self.learned if alone else self.added(_decoded(said) or Learned())
        body = to_json(learned or Learned())
        db.execute(_WRITE, (self.key, self.name, self.at, body))
        db.execute(_OLD, (self.at - KEPT_SECONDS,))
        if alone:
            self.book.told(self.key, body)
        else:  # others have learned meanwhile, too
            self.book.reread()

    def merged(self, later: Lesson) -> Lesson:
        """See `Task.merged`."""
        if later.anew:
            return later
        samples = (*self.samples, *later.samples)[-MOST_WAITING:]
        known, base = later.learned, later.base
        return Lesson(self.book, self.key, self.name, later.at, samples, known, base, self.anew)


def _decoded(body: object) -> Learned | None:
    """What the file says; None = nothing that can be understood."""
    if not isinstance(body, bytes):
        return None
    learned = from_json(body)
    return learned if learned != Learned() or body == _NOTHING else None
