"""Runs flows on the calling thread: every effect is a blocking call."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator
from typing import Any

from maxwell.calls.effects import Aside, Close, Emit, Flow, Gather, Pull, Send, Sleep, T
from maxwell.calls.running import running
from maxwell.calls.transport import SyncExchange, SyncTransport

MOST_THREADS = 256  # of one Gather: a thread waits for one endpoint


def run(flow: Flow[T], transport: SyncTransport) -> T:
    """Run `flow` to its end and return its result. What it emits is dropped."""
    steps = iterate(flow, transport)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def iterate(flow: Flow[T], transport: SyncTransport) -> Generator[Any, None, T]:
    """Run `flow`, yielding what it emits; its result is the generator's return value.

    However it ends (closed, abandoned, interrupted, failed), the flow is closed so that it can settle its
    accounts, and then every exchange it left open is cut.
    """
    opened: list[SyncExchange] = []
    running.add(flow)
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                result: T = stop.value
                return result
            value = error = None
            if type(effect) is Emit:
                yield effect.value
                continue
            try:
                value = _perform(effect, transport, opened)
            except Exception as caught:  # whatever an effect raises belongs to the flow
                error = caught
    finally:
        running.discard(flow)
        try:
            flow.close()
        finally:
            for exchange in opened:
                exchange.close()


def _perform(effect: Any, transport: SyncTransport, opened: list[SyncExchange]) -> Any:
    """Execute one effect and return its result."""
    kind = type(effect)
    if kind is Pull:
        return effect.exchange.read(effect.seconds)
    if kind is Send:
        exchange = transport.send(effect.request, effect.limits)
        opened.append(exchange)
        return exchange
    if kind is Close:
        effect.exchange.close()
        opened.remove(effect.exchange)
        return None
    if kind is Aside:
        return effect.work()
    if kind is Gather:
        return _gather(effect, transport)
    if kind is Sleep:
        return time.sleep(effect.seconds)
    raise TypeError(f"not an effect: {effect!r}")


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
