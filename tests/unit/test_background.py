from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from maxwell.database.background import Background

SOON = 20.0  # seconds; a test gives up then

# Newer Pythons warn that a fork copies one thread only; that this does no harm is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


class Stage:
    """Jobs that tell when they ran, and one that keeps the thread busy until the rest is asked for."""

    def __init__(self) -> None:
        self.background = Background()
        self.ran: list[str] = []
        self.go = threading.Event()
        self.done = threading.Event()
        self.is_held = threading.Event()

    def hold(self) -> None:
        """Let the thread wait for `go`."""
        self.background.soon(self._wait, 0)
        assert self.is_held.wait(SOON)

    def _wait(self) -> None:
        self.is_held.set()
        assert self.go.wait(SOON)

    def job(self, name: str) -> Callable[[], None]:
        return lambda: self.ran.append(name)

    def finish(self) -> list[str]:
        """Let everything run that is due within 0.3 s; returns what ran, in order."""
        self.background.soon(self.done.set, 0.3)
        self.go.set()
        assert self.done.wait(SOON)
        return self.ran


def test_a_job_runs_once_however_often_it_was_asked_for() -> None:
    stage = Stage()
    stage.hold()
    job = stage.job("job")
    for _ in range(100):
        stage.background.soon(job, 0.1)
    assert stage.finish() == ["job"]


def test_a_job_runs_again_when_it_is_asked_for_again() -> None:
    stage = Stage()
    count = threading.Semaphore(0)
    for _ in range(3):
        stage.background.soon(count.release, 0)
        assert count.acquire(timeout=SOON)


def test_the_earliest_moment_asked_for_wins() -> None:
    stage = Stage()
    stage.hold()
    late, early = stage.job("late, then early"), stage.job("early, then late")
    stage.background.soon(late, 1000)
    stage.background.soon(late, 0.05)
    stage.background.soon(early, 0.05)
    stage.background.soon(early, 1000)
    assert sorted(stage.finish()) == ["early, then late", "late, then early"]


def test_jobs_run_in_the_order_they_are_due() -> None:
    stage = Stage()
    stage.hold()
    for name, within in (("third", 0.15), ("first", 0.05), ("second", 0.1), ("never", 1000)):
        stage.background.soon(stage.job(name), within)
    assert stage.finish() == ["first", "second", "third"]


def test_what_is_asked_for_while_the_thread_waits_is_not_kept_waiting() -> None:
    stage = Stage()
    stage.background.soon(stage.job("never"), 1000)
    done = threading.Event()
    stage.background.soon(done.set, 0)
    assert done.wait(SOON)


@pytest.mark.parametrize("failure", [ValueError("so it goes"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_job_that_fails_does_not_stop_the_others(
    failure: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    stage = Stage()

    def fail() -> None:
        raise failure

    stage.hold()
    stage.background.soon(fail, 0)
    stage.background.soon(stage.job("other"), 0.01)
    with caplog.at_level(logging.ERROR, "maxwell"):
        assert stage.finish() == ["other"]
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == [failure]


def test_a_job_may_ask_for_itself_again() -> None:
    stage = Stage()
    done = threading.Event()

    def job() -> None:
        stage.ran.append("job")
        if len(stage.ran) < 3:
            stage.background.soon(job, 0)
        else:
            done.set()

    stage.background.soon(job, 0)
    assert done.wait(SOON)
    assert stage.ran == ["job"] * 3


def test_nothing_is_started_before_a_job_is_asked_for() -> None:
    before = threading.active_count()
    Background()
    assert threading.active_count() == before


def test_one_thread_runs_the_jobs_of_all_threads() -> None:
    stage = Stage()
    ran_in: set[int] = set()
    count = threading.Semaphore(0)

    def ask() -> None:
        def job() -> None:
            ran_in.add(threading.get_ident())
            count.release()

        stage.background.soon(job, 0)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert count.acquire(timeout=SOON)
    for thread in threads:
        thread.join()
    assert len(ran_in) == 1


def test_a_finalizer_may_ask_while_its_own_thread_is_asking() -> None:
    """Garbage collection runs finalizers at any moment, in whatever thread is running."""
    stage = Stage()
    count = threading.Semaphore(0)

    class Job:
        def __init__(self, on_hash: Callable[[], None] | None = None) -> None:
            self.on_hash = on_hash

        def __hash__(self) -> int:
            if self.on_hash is not None and threading.current_thread() is asking:
                on_hash, self.on_hash = self.on_hash, None
                on_hash()
            return 1

        def __call__(self) -> None:
            count.release()

    asking = threading.Thread(
        target=lambda: stage.background.soon(Job(lambda: stage.background.soon(Job(), 0)), 0), daemon=True
    )
    asking.start()
    asking.join(SOON)
    assert not asking.is_alive()
    assert count.acquire(timeout=SOON)
    assert count.acquire(timeout=SOON)


class Owner:
    def __init__(self, failure: str) -> None:
        self.ran = threading.Event()
        self.failure = failure

    def work(self) -> None:
        self.ran.set()
        if self.failure:
            raise ValueError(self.failure)


@pytest.mark.parametrize("failure", ["", "so it goes"])
def test_an_idle_thread_keeps_no_owner_of_a_job_alive(failure: str) -> None:
    logging.disable()  # a log record keeps the frames of its exception, and pytest keeps the record
    try:
        stage = Stage()
        owner = Owner(failure)
        has_run, gone = owner.ran, weakref.ref(owner)
        stage.background.soon(owner.work, 0)
        del owner
        assert has_run.wait(SOON)
        deadline = time.monotonic() + SOON
        while gone() is not None:
            assert time.monotonic() < deadline, gc.get_referrers(gone())
            time.sleep(0.005)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own_thread_and_none_of_the_jobs() -> None:
    from maxwell.database.background import background

    read, write = os.pipe()

    def tell_that_it_ran() -> None:
        os.write(write, f"{os.getpid()}\n".encode())

    background.soon(tell_that_it_ran, 0.5)
    pid = os.fork()
    if pid == 0:
        signal.setitimer(signal.ITIMER_REAL, SOON)
        done = threading.Event()
        background.soon(done.set, 1.0)  # by then the parent's would have run here, too
        os._exit(0 if done.wait(SOON) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(write)
    with os.fdopen(read) as told:
        assert told.read() == f"{os.getpid()}\n"
