"""Which process something belongs to, and whether that process still runs.

A process id alone is given again to others. With the time its process started and the id of the boot it is
unique on a machine; the process namespace tells containers apart that share a home directory.
"""

from __future__ import annotations

import os
import socket
from functools import lru_cache
from pathlib import Path

from msgspec import Struct

_ENDED = -1  # in the place of a start


class Owner(Struct, frozen=True):
    """A process.

    Attributes:
        pid: Its process id.
        started: When it started, in the system's own count; 0 = the system does not tell.
        boot: Id of the boot it runs in; "" = the system does not tell.
        place: Machine and process namespace that its `pid` counts in.
    """

    pid: int
    started: int
    boot: str
    place: str

    @property
    def machine(self) -> str:
        """The machine's part of `place`."""
        return self.place.partition("/")[0]


def this_process() -> Owner:
    """The running process."""
    return _owner(os.getpid())


@lru_cache(maxsize=1)  # a forked child has another pid
def _owner(pid: int) -> Owner:
    return Owner(pid, max(_started(pid), 0), _read("/proc/sys/kernel/random/boot_id"), _place())


def is_alive(owner: Owner) -> bool | None:
    """Whether `owner` runs; None where that cannot be seen from here."""
    here = this_process()
    if owner == here:
        return True
    if owner.machine != here.machine:
        return None
    if owner.boot and here.boot and owner.boot != here.boot:
        return False
    if owner.place != here.place:
        return None
    started = _started(owner.pid)
    if started == _ENDED:
        return False
    if owner.started and started:
        return owner.started == started
    return None if _exists(owner.pid) else False


def command(owner: Owner) -> str:
    """The command line of a living owner, or "" where the system does not tell."""
    return _read(f"/proc/{owner.pid}/cmdline").replace("\0", " ").strip() if is_alive(owner) else ""


def _started(pid: int) -> int:
    """Ticks from the boot to the start of a process; `_ENDED` for a zombie, 0 = the system does not tell."""
    if not _has_own_proc():
        return 0
    text = _read(f"/proc/{pid}/stat")
    # "pid (name) state ppid ...": the name may hold anything, blanks and brackets too.
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return 0
    # A zombie has ended, though its parent has not looked yet.
    return _ENDED if fields[0] in ("Z", "X", "x") else int(fields[19])


def _has_own_proc() -> bool:
    """Whether /proc counts processes as this one does; a sandbox may show that of its host."""
    try:
        return Path("/proc/self").readlink().name == str(os.getpid())
    except OSError:
        return False


def _exists(pid: int) -> bool:
    if os.name == "nt":  # there os.kill ends the process
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        return True
    return True


def _place() -> str:
    # Copies of one disk image share a machine id, so the name counts too.
    machine = f"{_read('/etc/machine-id')}@{socket.gethostname()}".replace("/", "_")
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:
        namespace = ""
    return f"{machine}/{namespace}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_owner.cache_clear)  # a child may count in another namespace
