"""Runs flows on the running event loop: every effect is awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from maxwell.calls.effects import Aside, Close, Emit, Flow, Gather, Pull, Send, Sleep, T
from maxwell.calls.running import running
from maxwell.calls.transport import AsyncExchange, AsyncTransport

# The loop holds tasks weakly; those that outlast their Gather are held here until they end.
_background: set[asyncio.Task[Any]] = set()


async def run(flow: Flow[T], transport: AsyncTransport) -> T:
    """Run `flow` to its end and return its result. What it emits is dropped.

    A cancelled task closes the flow, so that it can settle its accounts, and cuts its exchanges.
    """
    results: list[T] = []
    async with contextlib.aclosing(iterate(flow, transport, results)) as steps:
        async for _ in steps:
            pass
    return results[0]


async def iterate(
    flow: Flow[Any], transport: AsyncTransport, results: list[Any]
) -> AsyncGenerator[Any, None]:
    """Run `flow`, yielding what it emits; its result is appended to `results`.

    However it ends (closed, abandoned, cancelled, failed), the flow is closed and its exchanges are cut.
    """
    opened: list[AsyncExchange] = []
    running.add(flow)
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as stop:
                results.append(stop.value)
                return
            value = error = None
            if type(effect) is Emit:
                yield effect.value
                continue
            try:
                value = await _perform(effect, transport, opened)
            except Exception as caught:  # whatever an effect raises belongs to the flow
                error = caught
    finally:
        _leave(flow, opened)


async def _perform(effect: Any, transport: AsyncTransport, opened: list[AsyncExchange]) -> Any:
    """Execute one effect and return its result."""
    kind = type(effect)
    if kind is Pull:
        return await effect.exchange.read(effect.seconds)
    if kind is Send:
        exchange = await transport.send(effect.request, effect.limits)
        opened.append(exchange)
        return exchange
    if kind is Close:
        effect.exchange.close()
        opened.remove(effect.exchange)
        return None
    if kind is Aside:
        return await asyncio.get_running_loop().run_in_executor(None, effect.work)
    if kind is Gather:
        return await _gather(effect, transport)
    if kind is Sleep:
        return await asyncio.sleep(effect.seconds)
    raise TypeError(f"not an effect: {effect!r}")


def _leave(flow: Flow[Any], opened: list[AsyncExchange]) -> None:
    """Close the flow, then whatever it left open; needs no await, so it works while a task is cancelled."""
    running.discard(flow)
    try:
        flow.close()
    finally:
        for exchange in opened:
            exchange.close()


async def _gather(effect: Gather, transport: AsyncTransport) -> list[Any]:
    """Run the flows as tasks; those that outlast the wait go on as long as the loop does."""
    tasks = [asyncio.ensure_future(run(flow, transport)) for flow in effect.flows]
    _background.update(tasks)
    for task in tasks:
        task.add_done_callback(_finished)
    deadline = asyncio.get_running_loop().time() + effect.seconds
    pending = set(tasks)
    while pending and not effect.enough():
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            break
        _, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
    return [_result(task) if task.done() else None for task in tasks]


def _finished(task: asyncio.Task[Any]) -> None:
    _background.discard(task)
    if not task.cancelled():
        task.exception()  # looked at, so that asyncio does not report it as forgotten


def _result(task: asyncio.Task[Any]) -> Any:
    if task.cancelled():
        return None
    return task.exception() or task.result()
