"""Keeps receipts in the user's database and finds them again."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import msgspec

from maxwell.clock import Clock
from maxwell.decision import Decision
from maxwell.errors import UnknownReceipt
from maxwell.receipts import Choice, Receipt
from maxwell.receipts.record import Record
from maxwell.receipts.text import fit_to_keep
from maxwell.types import Message

if TYPE_CHECKING:
    import sqlite3

    from maxwell.database.file import Database

log = logging.getLogger("maxwell")

KEPT_SECONDS = 30 * 86400.0
MOST_KEPT = 100_000
PRUNE_SECONDS = 3600.0
MOST_PRUNED = 1_000  # in one transaction: other processes wait for it

MOST_WAITING = 20_000  # receipts, while the database cannot be written; some 20 MB
_ROWS = 300  # in one statement

MOST_RANKED = 20
MOST_REJECTED = 50

_MISREAD = str.maketrans("oilu", "011v")  # what an id has none of
_COMPARED = 1_000  # ids that a mistyped one is compared with
_FOUND = 4  # shown of several

_NEWEST = "SELECT id, at, body FROM receipt ORDER BY at DESC, rowid DESC LIMIT ?"
_OF_PREFIX = "SELECT id, at, body FROM receipt WHERE id >= ? AND id < ? ORDER BY at DESC, rowid DESC LIMIT ?"
_OLD = "DELETE FROM receipt WHERE rowid IN (SELECT rowid FROM receipt WHERE at < ? ORDER BY at LIMIT ?)"
_TOO_MANY = """
DELETE FROM receipt WHERE rowid IN
    (SELECT rowid FROM receipt ORDER BY at DESC, rowid DESC LIMIT ? OFFSET ?)
"""


class ReceiptBook:
    """The receipts of one user.

    Args:
        database: Where they are kept; None = nowhere.
        clock: Tells the time.
        log_content: Whether to keep the text of prompts and replies too.
        secrets: Keys that must not be kept with them.

    Attributes:
        keeps: Whether anything is kept.
    """

    def __init__(
        self,
        database: Database | None,
        clock: Clock,
        *,
        log_content: bool = False,
        secrets: Iterable[str] = (),
    ) -> None:
        self.clock = clock
        self.log_content = log_content and database is not None
        self.keeps = database is not None
        self._database = database
        self._secrets = tuple(secrets)
        self._rendered: tuple[Decision, Choice] | None = None
        self._prune_at = clock.monotonic()

    def chat(self, decision: Decision, messages: Sequence[Message]) -> Record:
        """A chat call begins."""
        return Record(self, "chat", messages, decision=decision)

    def embed(self, asked: str | None, texts: Sequence[str]) -> Record:
        """An embedding call begins; `asked` is the name or tag that the caller asked for."""
        return Record(self, "embed", texts, asked=asked)

    def rerank(self, asked: str | None, query: str, documents: Sequence[str]) -> Record:
        """A reranking call begins; `asked` is the name or tag that the caller asked for."""
        return Record(self, "rerank", [query, *documents], asked=asked)

    def keep(self, record: Record) -> None:
        """Have the receipt of a call that has ended written soon; costs no disk write."""
        database = self._database
        if database is None:
            return
        database.later("receipts", Batch([record]))
        now = self.clock.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + PRUNE_SECONDS
            database.later("prune receipts", Pruning(self))

    def prune(self, db: sqlite3.Connection) -> None:
        """Delete what is too old or too much; where that is a lot, the next call goes on with it."""
        old = db.execute(_OLD, (self.clock.time() - KEPT_SECONDS, MOST_PRUNED)).rowcount
        excess = db.execute(_TOO_MANY, (MOST_PRUNED, MOST_KEPT)).rowcount
        if max(old, excess) >= MOST_PRUNED:
            self._prune_at = self.clock.monotonic()

    def rendered(self, decision: Decision) -> Choice:
        """`decision` as it is kept. A handle that is called again and again has the same one each time."""
        latest = self._rendered
        if latest is None or latest[0] is not decision:
            choice = Choice.of(decision, most_ranked=MOST_RANKED, most_rejected=MOST_REJECTED)
            # Encoded at once: it goes into each receipt as it stands.
            raw = msgspec.Raw(msgspec.json.encode(choice))
            self._rendered = latest = (decision, cast(Choice, raw))
        return latest[1]

    def fit_to_keep(self, text: str) -> str:
        """`text` without keys, and of bearable length."""
        return fit_to_keep(text, self._secrets)

    def get(self, prefix: str) -> Receipt:
        """The receipt whose id begins like this. Raises `UnknownReceipt`, or `LedgerError`."""
        wanted = prefix.strip().lower().translate(_MISREAD)
        rows = self._rows(_OF_PREFIX, (wanted, wanted + "~", _FOUND + 1)) if wanted else []
        if not rows:
            raise UnknownReceipt(f"no receipt {prefix!r}; {self._hint(wanted)}")
        if len(rows) > 1:
            found = ", ".join(row[0] for row in rows[:_FOUND]) + (", ..." if len(rows) > _FOUND else "")
            raise UnknownReceipt(f"{prefix!r} may be any of the receipts {found}; type more of it")
        return _decoded(rows[0])

    def last(self) -> Receipt | None:
        """The newest receipt. Raises `UnknownReceipt` where it cannot be read, or `LedgerError`."""
        rows = self._rows(_NEWEST, (1,))
        return _decoded(rows[0]) if rows else None

    def recent(self, most: int) -> list[Receipt]:
        """The newest receipts, newest first; those that cannot be read say so. Raises `LedgerError`."""
        return [_decoded_if_possible(row) for row in self._rows(_NEWEST, (most,))]

    def _rows(self, query: str, parameters: Sequence[Any]) -> list[Any]:
        """What is found, what still waited included; a database that is not there is not made."""
        database = self._database
        if database is None:
            return []
        database.flush()
        return database.read(query, parameters)[0] if database.path.exists() else []

    def _hint(self, wanted: str) -> str:
        import difflib  # only for a mistake

        ids = [row[0] for row in self._rows(_NEWEST, (_COMPARED,))]
        if not ids:
            return "there is none yet, every call leaves one"
        starts = {id_[: len(wanted)]: id_ for id_ in reversed(ids)} if wanted else {}
        near = [starts[start] for start in difflib.get_close_matches(wanted, starts, n=3, cutoff=0.7)]
        meant = f"did you mean {' or '.join(near)}?" if near else f"the latest is {ids[0]};"
        return f"{meant} `maxwell why --list` shows more"


class Batch:
    """Receipts that are written together. See `database.file.Task`.

    In few statements, because at each one other threads take their turn, and a busy one keeps it.
    """

    def __init__(self, records: list[Record]) -> None:
        self._records = records
        self._dropped = 0

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        rows = [row for record in self._records if (row := record.row()) is not None]
        for start in range(0, len(rows), _ROWS):
            some = rows[start : start + _ROWS]
            places = ", ".join(["(?, ?, ?)"] * len(some))
            db.execute(f"INSERT OR REPLACE INTO receipt VALUES {places}", list(chain.from_iterable(some)))  # noqa: S608
        if self._dropped:
            log.warning("%d receipts were not kept, because too many waited to be written", self._dropped)

    def merged(self, later: Batch) -> Batch:
        """See `Task.merged`. What waits is bounded."""
        room = MOST_WAITING - len(self._records)
        self._records += later._records[:room]
        self._dropped += later._dropped + max(len(later._records) - room, 0)
        return self


class Pruning:
    """Deletes receipts that need not be kept any longer. See `database.file.Task`."""

    def __init__(self, book: ReceiptBook) -> None:
        self._book = book

    def apply(self, db: sqlite3.Connection) -> None:
        """See `Task.apply`."""
        self._book.prune(db)

    def merged(self, later: Pruning) -> Pruning:
        """See `Task.merged`."""
        return later


def _decoded(row: Sequence[Any]) -> Receipt:
    id_, at, body = row
    try:
        receipt = msgspec.json.decode(body, type=Receipt)
    except (msgspec.MsgspecError, ValueError, TypeError) as error:
        raise UnknownReceipt(
            f"the receipt {id_} cannot be read ({error}); another version of Maxwell may have written it"
        ) from error
    return msgspec.structs.replace(receipt, id=id_, at=at)


def _decoded_if_possible(row: Sequence[Any]) -> Receipt:
    try:
        return _decoded(row)
    except UnknownReceipt:
        return Receipt(id=row[0], at=row[1], kind="", outcome="unreadable")
