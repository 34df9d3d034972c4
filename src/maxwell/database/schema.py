"""The user's two files: what each is for, its tables, and how a file comes to have them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from maxwell.database.damage import not_understood
from maxwell.errors import LedgerError

# Amounts of money are whole nanodollars. `estimated` is how many of `tokens` no server reported.
_LEDGER = """
CREATE TABLE day (
    name TEXT NOT NULL, day TEXT NOT NULL,
    tokens INTEGER NOT NULL, nanousd INTEGER NOT NULL, estimated INTEGER NOT NULL, calls INTEGER NOT NULL,
    PRIMARY KEY (day, name)
) WITHOUT ROWID;
CREATE TABLE hold (
    id TEXT PRIMARY KEY, name TEXT NOT NULL, day TEXT NOT NULL,
    tokens INTEGER NOT NULL, nanousd INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('held', 'sent', 'expired')), since REAL NOT NULL,
    pid INTEGER NOT NULL, started INTEGER NOT NULL, boot TEXT NOT NULL, place TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX open_hold ON hold (name, day, tokens, nanousd) WHERE state != 'expired';
CREATE TABLE receipt (id TEXT PRIMARY KEY, at REAL NOT NULL, body BLOB NOT NULL);
CREATE INDEX receipt_at ON receipt (at);
CREATE TABLE note (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
"""

_FROM_VERSION_1 = """
DROP TABLE hold;
ALTER TABLE day RENAME TO day_1;
{schema}
INSERT INTO day SELECT name, day, tokens, CAST(ROUND(usd * 1e9) AS INTEGER), 0, 0 FROM day_1;
DROP TABLE day_1;
"""

_LIVE = """
CREATE TABLE flight (
    id TEXT PRIMARY KEY, number INTEGER NOT NULL, endpoint TEXT NOT NULL,
    waiting INTEGER NOT NULL, trial INTEGER NOT NULL, seconds REAL NOT NULL, since REAL NOT NULL,
    name TEXT NOT NULL, holder INTEGER NOT NULL,
    pid INTEGER NOT NULL, started INTEGER NOT NULL, boot TEXT NOT NULL, place TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE learned (key TEXT PRIMARY KEY, name TEXT NOT NULL, at REAL NOT NULL, body BLOB NOT NULL);
"""

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^'"


class Schema(Struct, frozen=True):
    """One of the user's files.

    Attributes:
        file: Its name in the user's Maxwell directory.
        called: How messages call it.
        version: Of its tables.
        marks: Tables by which it is known as Maxwell's.
        scripts: What makes the tables from those of an earlier version; 0 = from none.
        disposable: It holds what can be seen or learned again. So nothing in it has to survive a crash of the
            machine, and one that cannot be understood is put aside and begun anew. Otherwise it is never
            replaced by itself.
        seconds: How much later what may wait is written.
        meanwhile: What becomes of that while the file cannot be written.
        without_log: What to say where it has to work without its write-ahead log; "" = nothing.
    """

    file: str
    called: str
    version: int
    marks: frozenset[str]
    scripts: dict[int, str]
    disposable: bool
    seconds: float
    meanwhile: str
    without_log: str = ""


LEDGER = Schema(
    file="ledger.db",
    called="the usage ledger",
    version=2,
    marks=frozenset(("day", "hold")),
    scripts={0: _LEDGER, 1: _FROM_VERSION_1.format(schema=_LEDGER)},
    disposable=False,
    seconds=0.05,
    meanwhile="usage is kept in memory until it can be written down",
    without_log=(
        "the ledger works without its write-ahead log, more slowly, and budgets hold only as far as that "
        "system's locks do; better set MAXWELL_HOME to a local directory"
    ),
)

# Other tables get another file name: programs of two versions would go on putting each other's file aside.
LIVE = Schema(
    file="live.db",
    called="the file of running calls",
    version=1,
    marks=frozenset(("flight", "learned")),
    scripts={0: _LIVE},
    disposable=True,
    seconds=0.02,
    meanwhile="until it can be used again each program sees its own calls only",
)


def look(db: sqlite3.Connection, path: Path, schema: Schema) -> None:
    """Raise an error when the file is not Maxwell's, or a newer Maxwell's; changes nothing.

    A `LedgerError`, or for a disposable file a `sqlite3.DatabaseError` as if it were damaged.
    """
    db.execute("BEGIN")  # another process may be making the tables: see all of its work or none
    version = _version(db)
    tables = {row[0] for row in db.execute(_TABLES)}
    db.execute("COMMIT")
    is_ours = schema.marks <= tables if version else not tables
    if schema.disposable:
        if not is_ours or version not in (0, schema.version):
            raise not_understood("another program or another version of Maxwell made it")
        return
    if not is_ours:
        raise LedgerError(
            f"{path} is another program's database; move it away, or set MAXWELL_HOME to another directory"
        )
    if version > schema.version:
        raise LedgerError(
            f"{schema.called} {path} was written by a newer Maxwell; use that one, or set MAXWELL_HOME to "
            "another directory"
        )


def prepare(
    db: sqlite3.Connection, schema: Schema, begin: Callable[[sqlite3.Connection], None] | None
) -> None:
    """Make the tables of a new file and begin its books; bring those of an older Maxwell up to date."""
    if _version(db) == schema.version:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)
        if version < schema.version:  # nobody else was first
            for statement in schema.scripts[version].split(";"):
                db.execute(statement)
            if version == 0 and begin is not None:
                begin(db)
            db.execute(f"PRAGMA user_version = {schema.version}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def touch(db: sqlite3.Connection, moment: float) -> None:
    """Change something in the ledger: that a disk is full shows only when there is something to write."""
    db.execute("INSERT OR REPLACE INTO note VALUES ('touched', ?)", (str(moment),))


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
