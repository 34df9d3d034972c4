"""Runs flows on the calling thread: every effect is a blocking call. Started flows get a thread each."""

from __future__ import annotations

import contextlib
import inspect
import queue
import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any

from maxwell.calls.effects import (
    Aside,
    Close,
    Emit,
    First,
    Flow,
    Gather,
    Handle,
    Perform,
    Pull,
    Send,
    Sleep,
    Start,
    Stop,
    T,
)
from maxwell.calls.running import here, running
from maxwell.calls.transport import SyncExchange, SyncTransport

MOST_THREADS = 256  # of one Gather: a thread waits for one endpoint


def run(flow: Flow[T], transport: SyncTransport) -> T:
    """Run `flow` to its end and return its result. What it emits is dropped."""
    return _drain(iterate(flow, transport))


def iterate(flow: Flow[T], transport: SyncTransport) -> Generator[Any, None, T]:
    """Run `flow`, yielding what it emits; its result is the generator's return value.

    However it ends (closed, abandoned, interrupted, failed), the flow is closed so that it can settle its
    accounts, then every flow it started is stopped, and every exchange it left open is cut.
    """
    return _drive(_Run(flow, transport))


def _drain(steps: Generator[Any, None, T]) -> T:
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def _drive(run: _Run) -> Generator[Any, None, Any]:
    """Let `run` take one step after another until it ends, here or by another thread's hand."""
    running.add(run)
    value: Any = None
    error: Exception | None = None
    try:
        while not run.is_left:
            try:
                effect = run.step(value, error)
            except StopIteration as stop:
                return stop.value
            value = error = None
            kind = type(effect)
            if kind is Emit:
                yield effect.value
            elif not run.is_left:
                try:
                    # Most effects are this one, and a call less for each piece of a reply is worth a line.
                    value = effect.exchange.read(effect.seconds) if kind is Pull else run.perform(effect)
                except Exception as caught:  # whatever an effect raises belongs to the flow
                    error = caught
        return None  # nobody asks for the result of what was stopped
    finally:
        run.close()


class _Run:
    """A flow under way.

    Attributes:
        is_left: Whether it has ended or is about to: no effect's result will be told to the flow.
        opened: Exchanges it has not closed.
        started: Flows it has started that have not ended.
        woken: Where whoever has news for a flow that waits leaves a token. A queue and no condition, because
            the garbage collector may leave one while the waiting thread holds the lock.
    """

    def __init__(self, flow: Flow[Any], transport: SyncTransport) -> None:
        self.transport = transport
        self.is_left = False
        self.opened: list[SyncExchange] = []
        self.started: set[_Started] = set()
        self.woken: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._flow = flow
        self._inside = threading.Lock()  # held while the flow itself runs
        self._cut: Callable[[], None] | None = None

    def step(self, value: Any, error: Exception | None) -> Any:
        """Hand the flow an effect's outcome; its next effect. Raises `StopIteration` with its result."""
        with self._inside:
            return self._flow.send(value) if error is None else self._flow.throw(error)

    def close(self) -> None:
        """End it, from any thread and at once. Idempotent."""
        self.is_left = True
        running.discard(self)
        try:
            # Where a thread is inside the flow, that one closes it as soon as it comes out.
            if self._inside.acquire(blocking=False):
                try:
                    self._flow.close()
                finally:
                    self._inside.release()
        finally:
            for started in list(self.started):
                started.close()
            self.woken.put(None)
            if (cut := self._cut) is not None:
                cut()
            for exchange in list(self.opened):
                exchange.close()

    def let_cut(self, cut: Callable[[], None]) -> None:
        """Call `cut` when it is closed; at once where it has been."""
        self._cut = cut
        if self.is_left:
            cut()

    def perform(self, effect: Any) -> Any:
        """Execute one effect and return its result."""
        kind = type(effect)
        if kind is Pull:
            return effect.exchange.read(effect.seconds)
        if kind is Send:
            return self._send(effect)
        if kind is Close:
            effect.exchange.close()
            return self.opened.remove(effect.exchange)
        if kind is Aside:
            return effect.work()
        if kind is Sleep:
            return self._wait((), effect.seconds)
        if kind is Perform:
            return self._perform(effect.calls)
        return self._beside(effect)

    def _beside(self, effect: Any) -> Any:
        """Execute an effect that has to do with other flows."""
        kind = type(effect)
        if kind is Gather:
            return _gather(effect, self.transport)
        if kind is Start:
            return _Started(effect.flow, self)
        if kind is First:
            return self._first(effect.handles, effect.seconds)
        if kind is Stop:
            return effect.handle.close()
        raise TypeError(f"not an effect: {effect!r}")

    def _send(self, effect: Send) -> SyncExchange:
        here.sending = self
        try:
            exchange = self.transport.send(effect.request, effect.limits)
        finally:
            here.sending = self._cut = None
        self.opened.append(exchange)
        return exchange

    def _perform(self, calls: Sequence[Callable[[], Any]]) -> list[tuple[Any, Exception | None]]:
        if any(inspect.iscoroutinefunction(call) for call in calls):
            raise TypeError("a coroutine function can only be called where there is an event loop")
        outcomes: list[tuple[Any, Exception | None]] = []
        for call in calls:
            if self.is_left:
                break
            try:
                outcomes.append((call(), None))
            except Exception as error:  # handed over as the call's outcome
                outcomes.append((None, error))
        return outcomes

    def _first(self, handles: Sequence[Handle], seconds: float | None) -> list[Handle]:
        if handles:
            self._wait(handles, seconds)
        return [handle for handle in handles if handle.done]

    def _wait(self, handles: Sequence[Handle], seconds: float | None) -> None:
        """Wait until one of `handles` has ended, `seconds` are over, or the flow is left."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self.is_left and not any([handle.done for handle in handles]):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return
            with contextlib.suppress(queue.Empty):
                self.woken.get(timeout=left)


class _Started:
    """A flow on a thread of its own. See `Handle`."""

    def __init__(self, flow: Flow[Any], parent: _Run) -> None:
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._run = _Run(flow, parent.transport)
        # Not the parent itself: it must end when its reader drops it.
        self._siblings, self._woken = parent.started, parent.woken
        self._siblings.add(self)
        try:
            threading.Thread(target=self._work, name="maxwell-call", daemon=True).start()
        except BaseException:
            self._siblings.discard(self)
            raise

    def _work(self) -> None:
        try:
            self._end(_drain(_drive(self._run)), None)
        except BaseException as error:  # handed over to whoever looks at it
            self._end(None, error)

    def close(self) -> None:
        """Stop it. What it still waits for is cut, so its thread ends, too."""
        try:
            self._run.close()
        except Exception as error:  # it failed while it settled; the others still have to be stopped
            self._end(None, error)
        else:
            self._end(None, None)

    def _end(self, result: Any, error: BaseException | None) -> None:
        if not self.done:
            self.result, self.error, self.done = result, error, True
            self._siblings.discard(self)
            self._woken.put(None)


def _gather(effect: Gather, transport: SyncTransport) -> list[Any]:
    """Run the flows on daemon threads; those that outlast the wait end by their own limits."""
    waiting: queue.SimpleQueue[tuple[int, Flow[Any]]] = queue.SimpleQueue()
    finished: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    for item in enumerate(effect.flows):
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                index, flow = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((index, run(flow, transport)))
            except Exception as error:  # handed over as the flow's result
                finished.put((index, error))

    for _ in range(min(len(effect.flows), MOST_THREADS)):
        threading.Thread(target=work, name="maxwell-gather", daemon=True).start()
    return _collect(effect, finished)


def _collect(effect: Gather, finished: queue.SimpleQueue[tuple[int, Any]]) -> list[Any]:
    """Results as they come in, until it is enough or too late."""
    results: list[Any] = [None] * len(effect.flows)
    deadline = time.monotonic() + effect.seconds
    for _ in effect.flows:
        if effect.enough():
            break
        try:
            index, result = finished.get(timeout=max(deadline - time.monotonic(), 0.0))
        except queue.Empty:
            break
        results[index] = result
    while not finished.empty():  # what came in while `enough` was asked
        index, result = finished.get()
        results[index] = result
    return results
