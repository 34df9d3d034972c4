"""What went wrong with the user's database, in words that say what to do; a damaged file is never lost."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import stat
import time
from functools import lru_cache
from pathlib import Path

from maxwell.errors import LedgerError

log = logging.getLogger("maxwell")

_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
# What an open connection does not get over when the file is well again. On a full disk it is kept: the file
# could not even be opened again there to be read.
_LASTING = (*_DAMAGE, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database; they go with it
_LEDGER = "the usage ledger"
_ASIDE_SECONDS = 2.0  # for which another process is waited for that puts the same file aside


class SetAside(LedgerError):
    """A disposable file could not be understood. It is out of the way; the next use begins a new one."""


def _code(error: BaseException) -> int:
    """SQLite's primary result code, 0 for other errors."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether another process or thread holds a lock."""
    return _code(error) in _BUSY


def is_damage(error: BaseException) -> bool:
    """Whether the file is not, or no longer wholly, a database."""
    return _code(error) in _DAMAGE


def is_lasting(error: BaseException) -> bool:
    """Whether the file must be opened anew before it can be used again."""
    return _code(error) in _LASTING


def check(db: sqlite3.Connection) -> None:
    """Look at every page. Raises `sqlite3.DatabaseError` when one is damaged."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise not_understood(" ".join(found.replace("***", "").split()))


def not_understood(words: str) -> sqlite3.DatabaseError:
    """The error of a file that is damaged, or as good as that."""
    error = sqlite3.DatabaseError(words)
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


def set_aside(path: Path, seen: tuple[int, int], error: BaseException) -> bool:
    """Rename a damaged disposable file, in the place of one that was renamed before.

    Args:
        path: The file.
        seen: Device and inode of the one that is damaged; another one is left alone.
        error: What is wrong with it.

    Returns:
        Whether it is out of the way, by whoever's hand.
    """
    import filelock

    try:
        with filelock.FileLock(path.with_name(f".{path.name}.lock"), timeout=_ASIDE_SECONDS):
            found = path.stat()
            if (found.st_dev, found.st_ino) == seen:
                for end in BESIDE:  # first: no new file may stand beside an old log for a moment
                    Path(f"{path}{end}").unlink(missing_ok=True)
                path.replace(f"{path}.damaged")
                log.warning(
                    "%s is damaged (%s) and begun anew; it is kept as %s.damaged", path, error, path.name
                )
    except FileNotFoundError:
        return True
    except (OSError, filelock.Timeout):
        return False
    return True


def explain(path: Path, error: BaseException, called: str = _LEDGER) -> str:
    """One sentence on why the database at `path` cannot be used. Keeps a copy of a damaged ledger."""
    if is_damage(error) and called == _LEDGER:
        return (
            f"{called} {path} is damaged ({error}); {_kept(path)}; "
            "`maxwell usage rebuild` begins it anew from llm_usage.json"
        )
    return f"{called} {path} cannot be used: {_words(path, error)}"


def _words(path: Path, error: BaseException) -> str:
    code, number = _code(error), error.errno if isinstance(error, OSError) else None
    if is_busy(error):
        return "another process keeps it locked; wait for it to end"
    if code == sqlite3.SQLITE_FULL or number in _FULL:
        return "the disk is full; make room on it"
    if code == sqlite3.SQLITE_IOERR:  # so it calls a used-up quota too
        return f"the disk is full, a quota is used up or the disk fails ({error}); make room on it"
    if number in (errno.EMFILE, errno.ENFILE):
        return "too many files are open; let this program open fewer at once, or raise its limit (ulimit -n)"
    if _is_directory(path):
        return "it is a directory; move that away"
    if code == sqlite3.SQLITE_READONLY or number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"it cannot be written{_whose(path)}; set MAXWELL_HOME to a directory of your own"
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"it cannot be opened{_whose(path)}; set MAXWELL_HOME to a directory of your own"
    if isinstance(error, OSError):
        return f"{error.strerror}; set MAXWELL_HOME to a directory that can be written"
    return f"{error}; move the file away, or set MAXWELL_HOME to another directory"


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _whose(path: Path) -> str:
    """ " (it belongs to ann)" where the file or its directory is another user's."""
    for place in (path, path.parent):
        try:
            owner = place.stat().st_uid
        except OSError:
            continue
        if hasattr(os, "geteuid") and owner != os.geteuid():
            return f" ({place} belongs to {_user(owner)})"
    return ""


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _kept(path: Path) -> str:
    """Copy the damaged file aside, once a day at most; returns where it is, in words.

    Other processes may go on writing to its sound parts: each of its states would be another file.
    """
    try:
        return _copied(path, path.stat().st_ino, time.strftime("%Y%m%d"))
    except OSError as error:
        return f"no copy could be kept ({error.strerror})"


@lru_cache(maxsize=16)  # what is opened here stays open
def _copied(path: Path, inode: int, day: str) -> str:
    copy = path.with_name(f"{path.stem}.damaged-{day}-{inode}{path.suffix}")
    temporary = copy.with_name(f".{copy.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    try:
        if not copy.exists():
            # To close it would take away the locks that SQLite holds on this file in this process.
            source = os.open(path, os.O_RDONLY)
            target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(source, "rb", closefd=False) as old, os.fdopen(target, "wb") as new:
                shutil.copyfileobj(old, new)
            temporary.replace(copy)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        return f"no copy could be kept ({error.strerror})"
    return f"a copy is kept as {copy.name}"
