from __future__ import annotations

import io
import logging
import os
import pwd
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from databases import (
    SHORT,
    SOON,
    Add,
    add,
    assert_sound,
    is_ready,
    locked,
    make,
    run,
    total,
    wait_until,
    written,
)

from maxwell.database.file import BUSY_SECONDS, Database
from maxwell.errors import LedgerError


@pytest.fixture
def open_home() -> Iterator[Path]:
    """A directory that other users may enter, unlike pytest's."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


# --- locked by another process


def test_a_lock_that_lasts_is_an_error_to_writers_alone(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(make(home, patience=SHORT)) as database, caplog.at_level(logging.WARNING, "maxwell"):
        add(database, 1)
        with locked(home):
            for _ in range(2):
                with pytest.raises(LedgerError, match="another process keeps it locked; wait for it to end"):
                    add(database, 50)
            for _ in range(100):
                database.later("a", Add(1))
            assert total(database) == 101
            with pytest.raises(LedgerError, match="keeps it locked"):
                database.ready()
            wait_until(lambda: bool(caplog.records))
            with pytest.raises(LedgerError, match="keeps it locked"):
                database.flush()
            assert total(database) == 101
        wait_until(lambda: written(home) == 101)
        database.ready()
        add(database, 1)
        assert [record.message for record in caplog.records] == [
            f"the usage ledger {database.path} cannot be used: another process keeps it locked; wait for it "
            "to end; usage is kept in memory until it can be written down"
        ]


def test_a_lock_that_is_released_in_time_is_waited_for(home: Path) -> None:
    with closing(make(home, patience=SOON)) as database:
        add(database)
        with locked(home):
            writing = threading.Thread(target=add, args=(database, 10))
            writing.start()
            assert total(database) == 1  # nobody who reads waits for it
            writing.join(SHORT)
            assert writing.is_alive()
        writing.join(SOON)
        assert total(database) == 11


def test_a_lock_on_a_file_that_is_not_open_yet(home: Path) -> None:
    home.mkdir()
    (home / "ledger.db").touch()
    with closing(make(home, patience=SHORT)) as database:
        with locked(home):
            for attempt in (database.ready, lambda: total(database), lambda: add(database)):
                with pytest.raises(LedgerError, match="keeps it locked"):
                    attempt()
        add(database)
        assert total(database) == 1


def test_a_database_is_patient_for_some_seconds() -> None:
    assert 2 <= BUSY_SECONDS <= 10


def test_it_is_ready_again_as_soon_as_nothing_is_in_the_way(home: Path) -> None:
    (home / "ledger.db").mkdir(parents=True)
    with closing(make(home)) as database:
        with pytest.raises(LedgerError, match="it is a directory"):
            database.ready()
        (home / "ledger.db").rmdir()
        with pytest.raises(LedgerError, match="it is a directory"):
            database.ready()  # it is not tried at every call
        wait_until(lambda: is_ready(database))
        assert written(home) == 0


def test_who_is_ready_has_written_something(home: Path) -> None:
    """A full disk shows only then."""
    with closing(make(home, wal=False)) as database:
        database.ready()
        database.close()
        before = (home / "ledger.db").read_bytes()
        database.ready()
        assert (home / "ledger.db").read_bytes() != before


# --- full disks


def test_a_full_disk_is_said_and_what_was_booked_is_written_later(home: Path) -> None:
    script = """
limit = lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
logging.basicConfig(format="%(message)s")
ledger = SQLiteLedger(home, SystemClock())
reserve = lambda: ledger.reserve("paid", day, Amount(10, 0), no_limit)
hold = reserve()
limit(0)
for _ in range(3):
    message = fails(reserve)
    assert "the disk is full" in message and str(home / "ledger.db") in message, message
for _ in range(100):
    ledger.book("free", day, Amount(1, 0))
ledger.settle(hold, Amount(7, 0))
assert "the disk is full" in fails(ledger.ready)
assert "the disk is full" in fails(ledger.flush)
time.sleep(2.5)  # a failing attempt or two of the background
used = ledger.usage(day)
assert (used["free"].tokens, used["paid"].tokens, used["paid"].held_tokens) == (100, 7, 0), used
limit(resource.RLIM_INFINITY)
wait_until(lambda: not ledger.database._waiting)
ledger.ready()
reserve()
"""
    warned = run(script, home)
    assert warned.count("usage is kept in memory until it can be written down") == 1
    assert "Traceback" not in warned
    with closing(sqlite3.connect(home / "ledger.db")) as db:
        assert db.execute("SELECT name, tokens FROM day ORDER BY name").fetchall() == [
            ("free", 100),
            ("paid", 7),
        ]
        assert db.execute("SELECT tokens, state FROM hold").fetchall() == [(10, "held")]
    assert_sound(home)


def test_a_disk_that_is_full_from_the_beginning(home: Path) -> None:
    script = """
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
database = make()
assert "the disk is full" in fails(database.ready)
database.later("a", Add(3))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
wait_until(lambda: is_ready(database))
"""
    run(script, home)
    assert written(home) == 3


@contextmanager
def small_disk(place: Path, *options: str) -> Iterator[Path]:
    """A file system of 512 kB of its own."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join(("size=512k", *options)), "none", str(place)]
    if sys.platform != "linux" or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets us mount nothing")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_disk_that_runs_full_and_gets_room_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, closing(make(disk / "maxwell")) as database:
        add(database, 1)
        fill(disk / "other")
        done = 0
        while is_written(database, done):  # the log may have some room left
            done += 1
        database.later("a", Add(10))
        assert total(database) == 11
        with pytest.raises(LedgerError, match="the disk is full"):
            database.ready()
        (disk / "other").unlink()
        wait_until(lambda: is_ready(database) and written(disk / "maxwell") == 11)
        assert database.read("SELECT COUNT(*) FROM note WHERE key != 'touched'")[0] == [(done,)]
        assert_sound(disk / "maxwell")


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        write_for_ever(stream)


def write_for_ever(stream: io.RawIOBase) -> None:
    while True:
        stream.write(bytes(1024))


def is_written(database: Database, number: int) -> bool:
    try:
        with database.write() as db:
            db.execute("INSERT INTO note VALUES (?, ?)", (number, "x" * 4000))
    except LedgerError as error:
        message = str(error)
    else:
        return True
    assert "the disk is full" in message
    return False


def test_a_disk_that_becomes_read_only(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, closing(make(disk / "maxwell")) as database:
        add(database, 1)
        database.close()
        remount(disk, "ro")
        database.later("a", Add(10))
        for attempt in (database.ready, lambda: add(database)):
            with pytest.raises(LedgerError, match=r"cannot be (opened|written); set MAXWELL_HOME"):
                attempt()
        remount(disk, "rw")
        wait_until(lambda: is_ready(database))
        assert total(database) == 11


def remount(disk: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)


def test_too_many_open_files_are_said_to_be_that(home: Path) -> None:
    script = """
database = make()
used = len(os.listdir("/proc/self/fd"))
resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, 4096))
message = fails(database.ready)
assert "too many files are open" in message, message
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
wait_until(lambda: is_ready(database))
"""
    if sys.platform != "linux":
        pytest.skip("needs Linux's /proc")
    run(script, home)


def test_where_no_thread_can_be_had_the_next_transaction_writes_what_waits(open_home: Path) -> None:
    script = """
become_nobody()
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
database = make()
database.later("a", Add(3))
database.later("b", Add(4))
assert threading.active_count() == 1
with database.write() as db:
    Add(10).apply(db)
assert database.read("SELECT tokens FROM day") == ([(17,)], [])
"""
    give(open_home)
    run(script, open_home)


# --- homes that cannot be used


@pytest.mark.parametrize(
    "place", ["/proc/maxwell", "/sys/maxwell", "/dev/null/maxwell", "/proc/1/x/y/maxwell"]
)
def test_a_home_that_cannot_be_made_is_said(place: str) -> None:
    if not Path(place).parents[-2].exists():
        pytest.skip(f"no {place} here")
    with closing(make(Path(place))) as database:
        for attempt in (database.ready, lambda: add(database), lambda: total(database)):
            with pytest.raises(
                LedgerError, match=rf"the usage ledger {place}/ledger\.db cannot be used: .+; set"
            ):
                attempt()


def test_a_missing_home_is_made(tmp_path: Path) -> None:
    home = tmp_path / "a" / "b" / "c"
    with closing(make(home)) as database:
        add(database)
    assert written(home) == 1


def give(place: Path) -> None:
    """Give a directory to whoever the programs below run as."""
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)


@pytest.mark.parametrize("wal", [True, False])
def test_a_home_that_cannot_be_written_is_said(open_home: Path, wal: bool) -> None:
    script = f"""
become_nobody()
home.chmod(0o500)
new = make(wal={wal})
for attempt in (new.ready, lambda: new.read("SELECT 1")):
    message = fails(attempt)
    assert "it cannot be written; set MAXWELL_HOME to a directory of your own" in message, message
home.chmod(0o700)
database = make(wal={wal})
database.ready()
database.close()
home.chmod(0o500)
message = fails(database.ready)
assert "set MAXWELL_HOME to a directory of your own" in message, message
database.later("a", Add(3))
home.chmod(0o700)
(home / "ledger.db").chmod(0o400)
other = make(wal={wal})
message = fails(other.ready)
assert "it cannot be written; set MAXWELL_HOME" in message, message
for file in home.iterdir():
    file.chmod(0o600)
wait_until(lambda: is_ready(database) and is_ready(other))
database.close()
other.close()
"""
    give(open_home)
    run(script, open_home)
    assert written(open_home) == 3


def test_the_ledger_of_one_user_is_closed_to_another(open_home: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    script = """
become_nobody()
for place in (home / "private", home / "open"):
    database = Database(place, begin=lambda db: None)
    for attempt in (database.ready, lambda: database.read("SELECT 1")):
        message = fails(attempt)
        assert f"cannot be used: it cannot be" in message, message
        assert f"belongs to {sys.argv[2]}); set MAXWELL_HOME to a directory of your own" in message, message
for file in (home / "open").iterdir():
    try:
        file.read_bytes()
    except PermissionError:
        continue
    raise AssertionError(file)
"""
    with closing(make(open_home / "private")) as private, closing(make(open_home / "open")) as public:
        add(private)
        add(public)
        public.home.chmod(0o777)  # as when MAXWELL_HOME is a directory that all may use
        assert {p.name for p in public.home.iterdir()} == {"ledger.db", "ledger.db-wal", "ledger.db-shm"}
        run(script, open_home, pwd.getpwuid(0).pw_name)
        add(private)
        add(public)


def test_what_another_user_left_in_ones_home_is_said(open_home: Path) -> None:
    """As after `sudo`."""
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    with closing(make(open_home)) as database:
        add(database)
    open_home.chmod(0o700)
    give(open_home)
    script = """
become_nobody()
message = fails(make().ready)
assert f"({home / 'ledger.db'} belongs to {sys.argv[2]})" in message, message
"""
    run(script, open_home, pwd.getpwuid(0).pw_name)
