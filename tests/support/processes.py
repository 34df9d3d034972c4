"""Forked children, for tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

import pytest

can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's /proc")

SOON = 20.0  # seconds; a child that has not ended by then hangs


def fork(work: Callable[[], object], seconds: float = SOON) -> int:
    """Run `work` in a forked child and return its process id; it is killed when it hangs."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            work()
            status = 0
        finally:
            os._exit(status)
    return pid


def ended(pid: int) -> int:
    """Exit status of a child, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
