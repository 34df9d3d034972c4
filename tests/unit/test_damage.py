from __future__ import annotations

import errno
import os
import pwd
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from databases import make, run

from maxwell.database.damage import check, explain, is_busy, is_damage, not_understood, set_aside
from maxwell.database.file import Database
from maxwell.errors import LedgerError

Harm = Callable[[Path], None]


@pytest.fixture
def file(home: Path) -> Path:
    """A sound database of many pages, without anything beside it."""
    database = make(home)
    with closing(database), database.write() as db:
        fill(db)
    assert sorted(p.name for p in home.iterdir()) == ["ledger.db"]
    return home / "ledger.db"


def fill(db: sqlite3.Connection) -> None:
    rows = [(f"entry {n:05}", "2026-01-12", n, 0, 0, 1) for n in range(5000)]
    db.executemany("INSERT INTO day VALUES (?, ?, ?, ?, ?, ?)", rows)


def sum_of(database: Database) -> int:
    rows, _ = database.read("SELECT SUM(tokens) FROM day")
    return int(rows[0][0] or 0)


def use(database: Database) -> None:
    """Read everything, and write."""
    sum_of(database)
    with database.write() as db:
        db.execute("UPDATE day SET tokens = tokens + 1")


def overwrite_header(file: Path) -> None:
    put(file, 0, b"my diary, and nothing else" * 4)


def write_garbage_in_the_middle(file: Path) -> None:
    put(file, file.stat().st_size // 2 // 4096 * 4096, os.urandom(8192))


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def truncate_to_an_odd_size(file: Path) -> None:
    os.truncate(file, 1000)


def be_something_else(file: Path) -> None:
    file.write_bytes(b"PK\x03\x04" + bytes(5000))


def put(file: Path, offset: int, data: bytes) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)


HARMS = [
    overwrite_header,
    write_garbage_in_the_middle,
    truncate,
    truncate_to_an_odd_size,
    be_something_else,
]
damaged_by = pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.__name__)


@damaged_by
def test_a_damaged_file_is_named_kept_and_left_alone(file: Path, harm: Harm) -> None:
    harm(file)
    data = file.read_bytes()
    with closing(make(file.parent)) as database:
        for _ in range(3):
            with pytest.raises(LedgerError) as caught:
                use(database)
    message = str(caught.value)
    assert f"the usage ledger {file} is damaged (" in message
    assert "`maxwell usage rebuild` begins it anew from llm_usage.json" in message
    copies = list(file.parent.glob("*damaged*"))
    assert [copy.read_bytes() for copy in copies] == [data]
    assert f"a copy is kept as {copies[0].name};" in message
    assert file.read_bytes() == data
    assert copies[0].stat().st_mode & 0o777 == 0o600
    assert {p.name for p in file.parent.iterdir()} - {"ledger.db-wal", "ledger.db-shm"} == {
        "ledger.db",
        copies[0].name,
    }


@damaged_by
def test_several_programs_keep_one_copy(file: Path, harm: Harm) -> None:
    harm(file)
    for _ in range(3):
        with closing(make(file.parent)) as database, pytest.raises(LedgerError):
            use(database)
    assert len(list(file.parent.glob("*damaged*"))) == 1


def test_a_copy_that_is_kept_is_not_replaced_by_another_program(file: Path) -> None:
    write_garbage_in_the_middle(file)
    data = file.read_bytes()
    with closing(make(file.parent)) as database, pytest.raises(LedgerError):
        use(database)
    put(file, 0, b"more harm")
    run("assert 'is damaged' in fails(lambda: make().read('SELECT * FROM day'))", file.parent)
    assert [copy.read_bytes() for copy in file.parent.glob("*damaged*")] == [data]


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
def test_copies_that_fail_leave_nothing_behind(file: Path) -> None:
    overwrite_header(file)
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
database = make()
for _ in range(20):
    assert "no copy could be kept (File too large)" in fails(lambda: database.read("SELECT 1"))
found = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
assert found.count(str(home / "ledger.db")) <= 1, found
"""
    run(script, file.parent)
    assert [p.name for p in file.parent.iterdir()] == ["ledger.db"]


@damaged_by
def test_a_sound_file_in_its_place_is_used_by_the_same_program(file: Path, harm: Harm) -> None:
    sound = file.read_bytes()
    harm(file)
    with closing(make(file.parent)) as database:
        with pytest.raises(LedgerError):
            use(database)
        file.unlink()
        file.write_bytes(sound)
        use(database)
        assert sum_of(database) == sum(range(5000)) + 5000


@damaged_by
def test_a_file_that_was_mended_in_its_place_is_used_again(file: Path, harm: Harm) -> None:
    sound = file.read_bytes()
    harm(file)
    with closing(make(file.parent)) as database:
        with pytest.raises(LedgerError):
            use(database)
        file.write_bytes(sound)
        use(database)
        assert sum_of(database) == sum(range(5000)) + 5000


@damaged_by
def test_no_file_in_its_place_begins_a_new_one(file: Path, harm: Harm) -> None:
    harm(file)
    with closing(make(file.parent)) as database:
        with pytest.raises(LedgerError):
            use(database)
        file.unlink()
        use(database)
        assert sum_of(database) == 0


def test_a_second_damage_of_another_file_is_kept_too(file: Path) -> None:
    sound = file.read_bytes()
    aside = file.with_name("aside")
    with closing(make(file.parent)) as database:
        overwrite_header(file)
        with pytest.raises(LedgerError):
            use(database)
        file.rename(aside)  # so that the new file cannot get the number of the old one
        file.write_bytes(sound)
        use(database)
        database.close()
        truncate(file)
        with pytest.raises(LedgerError):
            use(database)
    assert len(list(file.parent.glob("*damaged*"))) == 2


def test_damage_that_was_seen_once_is_not_forgotten(file: Path) -> None:
    """Who reads only sound pages later must not think that all is well."""
    write_garbage_in_the_middle(file)
    with closing(make(file.parent)) as database:
        with database.write() as db:  # the first page is sound
            db.execute("INSERT INTO note VALUES ('a', 'b')")
        database.ready()
        with pytest.raises(LedgerError, match="is damaged"):
            sum_of(database)
        for _ in range(2):
            with pytest.raises(LedgerError, match="is damaged"):
                database.ready()
            with pytest.raises(LedgerError, match="is damaged"), database.write():
                pass


@pytest.mark.parametrize("harm", [write_garbage_in_the_middle, truncate])
def test_a_file_that_is_damaged_while_it_is_open(file: Path, harm: Harm) -> None:
    with closing(make(file.parent)) as database:
        database.read("SELECT 1 FROM note")
        harm(file)
        data = file.read_bytes()
        with pytest.raises(LedgerError, match="is damaged"):
            use(database)
    assert [copy.read_bytes() for copy in file.parent.glob("*damaged*")] == [data]
    assert file.read_bytes() == data


def test_an_empty_file_is_a_new_database(home: Path) -> None:
    home.mkdir()
    (home / "ledger.db").touch()
    with closing(make(home)) as database:
        use(database)
        assert sum_of(database) == 0


def test_a_directory_in_its_place(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    with closing(make(home)) as database:
        for attempt in (lambda: sum_of(database), database.ready):
            with pytest.raises(
                LedgerError, match=r"ledger\.db cannot be used: it is a directory; move that away"
            ):
                attempt()
        (home / "ledger.db").rmdir()
        use(database)


def test_a_file_in_the_place_of_the_home(home: Path) -> None:
    home.write_text("not a directory")
    with closing(make(home)) as database:
        with pytest.raises(LedgerError, match="cannot be used: File exists; set MAXWELL_HOME to a directory"):
            database.ready()
        home.unlink()
        use(database)


def test_where_no_copy_can_be_kept_that_is_said(tmp_path: Path) -> None:
    words = explain(tmp_path / "ledger.db", sqlite_error(sqlite3.SQLITE_CORRUPT))
    assert "no copy could be kept (No such file or directory); `maxwell usage rebuild`" in words
    assert list(tmp_path.iterdir()) == []


def test_only_the_file_that_was_seen_to_be_damaged_is_put_aside(tmp_path: Path) -> None:
    """Another process may have been quicker, and the file that is there now is a new one."""
    file, error = tmp_path / "live.db", not_understood("so it goes")
    for name in ("live.db", "live.db-wal", "live.db-shm"):
        (tmp_path / name).write_text("damaged")
    seen = (file.stat().st_dev, file.stat().st_ino)
    assert set_aside(file, (seen[0], seen[1] + 1), error)
    assert (tmp_path / "live.db-wal").exists()
    assert set_aside(file, seen, error)
    assert {p.name for p in tmp_path.iterdir() if p.suffix != ".lock"} == {"live.db.damaged"}
    assert set_aside(file, seen, error)
    assert not set_aside(tmp_path / "live.db.damaged" / "no directory", seen, error)


def test_a_copy_takes_no_lock_away(file: Path) -> None:
    """Closing a file takes away every lock that this process has on it, SQLite's too."""
    with closing(make(file.parent)) as first:
        use(first)
        error = sqlite3.DatabaseError("so it goes")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        before = locks_on(file)
        assert before
        assert "a copy is kept" in explain(file, error)
        assert locks_on(file) == before


def locks_on(file: Path) -> list[str]:
    """The lines of /proc/locks on it."""
    try:
        lines = Path("/proc/locks").read_text(encoding="ascii").splitlines()
    except OSError:
        pytest.skip("this system does not list locks")
    return [line.partition(":")[2] for line in lines if f":{file.stat().st_ino} " in line]


def sqlite_error(code: int, text: str = "so it goes") -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY), "another process keeps it locked; wait for it to end"),
        (sqlite_error(sqlite3.SQLITE_BUSY_RECOVERY), "another process keeps it locked"),
        (sqlite_error(sqlite3.SQLITE_FULL), "the disk is full; make room on it"),
        (sqlite_error(sqlite3.SQLITE_IOERR_WRITE), "the disk is full, a quota is used up or the disk fails"),
        (sqlite_error(sqlite3.SQLITE_READONLY_DIRECTORY), "it cannot be written; set MAXWELL_HOME"),
        (sqlite_error(sqlite3.SQLITE_CANTOPEN), "it cannot be opened; set MAXWELL_HOME"),
        (
            sqlite_error(sqlite3.SQLITE_ERROR, "no such table: day"),
            "no such table: day; move the file away",
        ),
        (OSError(errno.ENOSPC, "x"), "the disk is full; make room on it"),
        (OSError(errno.EDQUOT, "x"), "the disk is full; make room on it"),
        (OSError(errno.EROFS, "x"), "it cannot be written; set MAXWELL_HOME to a directory of your own"),
        (OSError(errno.EMFILE, "x"), "too many files are open; "),
        (OSError(errno.ENOTDIR, "Not a directory"), "Not a directory; set MAXWELL_HOME"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(getattr(value, "sqlite_errorcode", value)),
)
def test_each_reason_says_what_to_do(tmp_path: Path, error: Exception, words: str) -> None:
    path = tmp_path / "ledger.db"
    assert explain(path, error).startswith(f"the usage ledger {path} cannot be used: {words}")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_another_users_file_is_said_to_be_theirs(file: Path) -> None:
    nobody = pwd.getpwuid(65534).pw_name
    error = sqlite_error(sqlite3.SQLITE_CANTOPEN)
    assert "belongs to" not in explain(file, error)
    os.chown(file, 65534, 65534)
    assert f"it cannot be opened ({file} belongs to {nobody});" in explain(file, error)
    os.chown(file, 4711, 4711)
    assert f"({file} belongs to user 4711);" in explain(file, error)
    os.chown(file, 0, 0)
    os.chown(file.parent, 65534, 65534)
    assert f"({file.parent} belongs to {nobody});" in explain(file, error)


def test_what_is_damage_and_what_is_a_lock() -> None:
    for code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT_INDEX):
        assert is_damage(sqlite_error(code))
        assert not is_busy(sqlite_error(code))
    for code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_BUSY_SNAPSHOT):
        assert is_busy(sqlite_error(code))
        assert not is_damage(sqlite_error(code))
    assert not is_damage(OSError(sqlite3.SQLITE_CORRUPT, "x"))
    assert not is_busy(ValueError())


def test_every_page_is_looked_at(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        check(db)
    write_garbage_in_the_middle(file)
    with closing(sqlite3.connect(file)) as db, pytest.raises(sqlite3.DatabaseError) as caught:
        check(db)
    assert is_damage(caught.value)
    assert "\n" not in str(caught.value)
