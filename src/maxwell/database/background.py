"""One daemon thread a process for what may wait a moment, so that no call has to wait for it."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue

log = logging.getLogger("maxwell")

Job = Callable[[], None]


class Background:
    """Runs jobs a little later, each once however often it was asked for meanwhile.

    A finalizer may ask for a job at any moment, in a thread that is just asking for one: therefore asking
    takes no lock, and only the thread itself changes what is due.
    """

    def __init__(self) -> None:
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin as a forked child: the jobs are the parent's, and so is the thread."""
        self._asked: SimpleQueue[tuple[Job, float]] = SimpleQueue()
        self._due: dict[Job, float] = {}
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def soon(self, job: Job, within: float) -> None:
        """Run `job` in at most `within` seconds, unless the process ends before."""
        due = time.monotonic() + within
        if self._due.get(job, float("inf")) <= due:
            return
        self._asked.put((job, due))
        if self._thread is None:
            self._start()

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # it is being started
        try:
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="maxwell-background", daemon=True)
                self._thread.start()
        except RuntimeError:  # no thread can be had now, or any more: the process is ending
            self._thread = None
        finally:
            self._starting.release()

    def _work(self) -> None:
        while True:
            job = self._next()
            try:
                job()
            except BaseException:  # one job's failure must not stop the others
                log.exception("a background job failed")
            del job  # what it belongs to may be let go of while this thread waits

    def _next(self) -> Job:
        """The job that is due first, once it is."""
        while True:
            now = time.monotonic()
            first = min(self._due, key=self._due.__getitem__, default=None)
            if first is not None and self._due[first] <= now:
                del self._due[first]
                return first
            self._listen(None if first is None else self._due[first] - now)

    def _listen(self, seconds: float | None) -> None:
        """Wait for the next job that is asked for, at most so long; None = for ever."""
        try:
            job, due = self._asked.get(timeout=seconds)
        except Empty:
            return
        self._due[job] = min(due, self._due.get(job, due))


background = Background()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=background.start_afresh)
