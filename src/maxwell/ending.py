"""What is still to be done when the process ends, in multiprocessing's children too."""

from __future__ import annotations

import atexit
import logging
import multiprocessing.process
import multiprocessing.util
from collections.abc import Callable

log = logging.getLogger("maxwell")

_works: list[Callable[[], None]] = []


def at_end(work: Callable[[], None], *, early: bool = False) -> None:
    """Call `work` when the process ends; before what was asked for so far when `early`."""
    _works.insert(0 if early else len(_works), work)


def _end() -> None:
    for work in _works:
        try:
            work()
        except Exception:  # the others still have to be done
            log.exception("something could not be finished at the end of the process")


def _in_worker(_: object = None) -> None:
    # multiprocessing's children end without atexit.
    multiprocessing.util.Finalize(None, _end, exitpriority=1)


atexit.register(_end)
multiprocessing.util.register_after_fork(_in_worker, _in_worker)
if multiprocessing.process.parent_process() is not None:  # imported by such a child, after it was forked
    _in_worker()
