"""The tables of the user's database, and how a file comes to have them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from maxwell.errors import LedgerError

_VERSION = 2

# Amounts of money are whole nanodollars. `estimated` is how many of `tokens` no server reported.
_SCHEMA = """
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

_TABLES = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite^_%' ESCAPE '^'"


def look(db: sqlite3.Connection, path: Path) -> None:
    """Raise `LedgerError` when the file is not Maxwell's, or a newer Maxwell's; changes nothing."""
    db.execute("BEGIN")  # another process may be making the tables: see all of its work or none
    version = _version(db)
    tables = {row[0] for row in db.execute(_TABLES)}
    db.execute("COMMIT")
    if (tables or version) and not (version and {"day", "hold"} <= tables):
        raise LedgerError(
            f"{path} is another program's database; move it away, or set MAXWELL_HOME to another directory"
        )
    if version > _VERSION:
        raise LedgerError(
            f"the usage ledger {path} was written by a newer Maxwell; use that one, or set MAXWELL_HOME to "
            "another directory"
        )


def prepare(db: sqlite3.Connection, begin: Callable[[sqlite3.Connection], None]) -> None:
    """Make the tables of a new file and begin its books; bring those of an older Maxwell up to date."""
    if _version(db) == _VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        version = _version(db)
        if version < _VERSION:  # nobody else was first
            script = _SCHEMA if version == 0 else _FROM_VERSION_1.format(schema=_SCHEMA)
            for statement in script.split(";"):
                db.execute(statement)
            if version == 0:
                begin(db)
            db.execute(f"PRAGMA user_version = {_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def touch(db: sqlite3.Connection, moment: float) -> None:
    """Change something: that a disk is full shows only when there is something to write."""
    db.execute("INSERT OR REPLACE INTO note VALUES ('touched', ?)", (str(moment),))


def _version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])
