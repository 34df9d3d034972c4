from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from maxwell.database.owners import Owner, command, is_alive, this_process

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")
TELL = """
import sys, msgspec
from maxwell.database.owners import this_process
print(msgspec.json.encode(this_process()).decode(), flush=True)
sys.stdin.read()
"""


class Child:
    """A process that has told who it is and waits for the end of its input."""

    def __init__(self, *wrapper: str, script: str = TELL, **options: str) -> None:
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,  # type: ignore[call-overload]
        )
        assert self.process.stdout is not None
        self.owner = msgspec.json.decode(self.process.stdout.readline(), type=Owner)

    def wait(self) -> None:
        self.process.communicate()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()


@pytest.fixture
def child() -> Iterator[Child]:
    with Child() as running:
        yield running


def changed(owner: Owner, **fields: object) -> Owner:
    return msgspec.structs.replace(owner, **fields)


def test_this_process_is_alive() -> None:
    owner = this_process()
    assert owner.pid == os.getpid()
    assert is_alive(owner) is True
    assert this_process() is owner


@on_linux
def test_who_this_process_is_comes_from_the_system() -> None:
    owner = this_process()
    assert owner.started > 0
    assert owner.boot == Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    assert owner.place.endswith(f"/{Path('/proc/self/ns/pid').readlink()}")
    assert socket.gethostname() in owner.machine
    assert owner.place.count("/") == 1


@on_linux
def test_another_process_is_alive_until_it_ends(child: Child) -> None:
    assert child.owner.pid == child.process.pid
    assert is_alive(child.owner) is True
    child.wait()
    assert is_alive(child.owner) is False


@on_linux
def test_a_killed_process_is_dead(child: Child) -> None:
    child.process.kill()
    child.process.wait()
    assert is_alive(child.owner) is False


@on_linux
def test_a_zombie_is_dead(child: Child) -> None:
    child.process.kill()
    os.waitid(os.P_PID, child.process.pid, os.WEXITED | os.WNOWAIT)
    assert (
        Path(f"/proc/{child.process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        == "Z"
    )
    assert is_alive(child.owner) is False


@on_linux
def test_a_process_that_was_given_the_same_id_is_another(child: Child) -> None:
    assert is_alive(changed(child.owner, started=child.owner.started + 1)) is False
    assert is_alive(changed(this_process(), started=this_process().started - 1)) is False


@on_linux
def test_who_ran_before_the_machine_was_restarted_is_dead(child: Child) -> None:
    assert is_alive(changed(child.owner, boot="11111111-2222-3333-4444-555555555555")) is False


@on_linux
def test_another_machine_cannot_be_seen_from_here(child: Child) -> None:
    namespace = child.owner.place.partition("/")[2]
    assert is_alive(changed(child.owner, place=f"elsewhere/{namespace}")) is None
    assert is_alive(changed(child.owner, place=f"elsewhere/{namespace}", boot="other")) is None
    assert is_alive(changed(child.owner, place="")) is None


@on_linux
def test_another_process_namespace_cannot_be_seen_from_here(child: Child) -> None:
    assert is_alive(changed(child.owner, place=f"{child.owner.machine}/pid:[1]")) is None


@on_linux
def test_a_boot_that_is_not_known_tells_nothing(child: Child) -> None:
    assert is_alive(changed(child.owner, boot="")) is True
    child.wait()
    assert is_alive(changed(child.owner, boot="")) is False


@on_linux
def test_without_a_known_start_an_id_that_is_in_use_tells_nothing(child: Child) -> None:
    assert is_alive(changed(child.owner, started=0)) is None
    child.wait()
    assert is_alive(changed(child.owner, started=0)) is False


@pytest.mark.parametrize("pid", [2**22 + 1, 2**31, 2**40, 2**62])
def test_an_id_that_no_process_can_have_is_dead(pid: int) -> None:
    assert is_alive(changed(this_process(), pid=pid)) is False


# A name of up to 15 bytes that looks like the end of itself, followed by another state and start.
NAMED = """
import ctypes, sys, msgspec
ctypes.CDLL(None).prctl(15, {name!r}, 0, 0, 0)
from maxwell.database.owners import this_process
print(msgspec.json.encode(this_process()).decode(), flush=True)
sys.stdin.read()
"""


@on_linux
@pytest.mark.parametrize(
    "name", [b"a b c", b"x) Z 1 (y", b") Z 0 0 0 0", b"((()", b"a\nb) X 9", b"\xff\xfe) Z"]
)
def test_a_name_may_hold_blanks_and_brackets(name: bytes) -> None:
    with Child(script=NAMED.format(name=name)) as child:
        comm = Path(f"/proc/{child.process.pid}/comm").read_bytes()
        assert comm == name + b"\n"
        assert is_alive(child.owner) is True
        assert child.owner.started > this_process().started
        child.process.kill()
        child.process.wait()
        assert is_alive(child.owner) is False


@on_linux
def test_a_forked_child_is_another_process() -> None:
    mine = this_process()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, 20)
        os.write(write, msgspec.json.encode(this_process()))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as told:
        owner = msgspec.json.decode(told.read(), type=Owner)
    assert owner.pid == pid
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert is_alive(owner) is False  # a zombie
    os.waitpid(pid, 0)
    assert is_alive(owner) is False
    assert (owner.boot, owner.place) == (mine.boot, mine.place)
    assert this_process() == mine


def in_namespace(*options: str) -> list[str]:
    """A command that begins a process namespace; skips where the machine does not let us."""
    wrapper = ["unshare", "--pid", "--fork", *options]
    try:
        done = subprocess.run([*wrapper, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr!r}")
    return wrapper


ASK = """
import sys, msgspec
from maxwell.database.owners import Owner, is_alive
print(is_alive(msgspec.json.decode(sys.argv[1], type=Owner)))
"""


@on_linux
def test_a_process_in_a_container_cannot_be_seen_from_outside_nor_the_other_way() -> None:
    with Child(*in_namespace("--mount-proc")) as child:
        assert child.owner.pid == 1
        assert child.owner.started > 0
        assert is_alive(child.owner) is None
        outside = msgspec.json.encode(this_process()).decode()
        asked = subprocess.run(
            [*in_namespace("--mount-proc"), sys.executable, "-c", ASK, outside],
            capture_output=True,
            text=True,
            check=True,
        )
        assert asked.stdout == "None\n"


@on_linux
def test_where_proc_shows_other_processes_no_start_is_believed() -> None:
    """A sandbox may count processes on its own and show its host's /proc: process 1 is another there."""
    with Child(*in_namespace()) as child:
        assert child.owner.pid == 1
        assert child.owner.started == 0


AS_NOBODY = """
import os, sys, msgspec
from maxwell.database.owners import Owner, is_alive
owner = msgspec.json.decode(sys.argv[1], type=Owner)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
for _ in sys.stdin:
    print(is_alive(owner), is_alive(msgspec.structs.replace(owner, started=0)), flush=True)
"""


@on_linux
def test_of_another_users_process_it_is_known_whether_it_runs(child: Child) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    asking = [sys.executable, "-c", AS_NOBODY, msgspec.json.encode(child.owner).decode()]
    with subprocess.Popen(
        asking, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as nobody:
        assert nobody.stdin is not None
        assert nobody.stdout is not None
        nobody.stdin.write("\n")
        nobody.stdin.flush()
        assert nobody.stdout.readline() == "True None\n"
        child.wait()
        nobody.stdin.write("\n")
        nobody.stdin.flush()
        assert nobody.stdout.readline() == "False False\n"


@on_linux
def test_the_command_of_a_living_owner_is_told() -> None:
    with Child() as child:
        assert sys.executable in command(child.owner)
        assert command(changed(child.owner, started=1)) == ""
        child.wait()
        assert command(child.owner) == ""
    assert command(changed(this_process(), place="elsewhere/")) == ""
