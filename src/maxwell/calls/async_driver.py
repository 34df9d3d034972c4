"""Runs flows on the running event loop: every effect is awaited. Started flows get a task each."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

from maxwell.calls.effects import (
    Aside,
    Close,
    Emit,
    First,
    Flow,
    Gather,
    Perform,
    Pull,
    Send,
    Sleep,
    Start,
    Stop,
    T,
)
from maxwell.calls.running import running
from maxwell.calls.transport import AsyncExchange, AsyncTransport

# The loop holds tasks weakly; those that outlast their Gather are held here until they end.
_background: set[asyncio.Task[Any]] = set()


async def run(flow: Flow[T], transport: AsyncTransport) -> T:
    """Run `flow` to its end and return its result. What it emits is dropped.

    A cancelled task closes the flow, so that it can settle its accounts, and cuts its exchanges.
    """
    result: T = await _drain(_Run(flow, transport))
    return result


def iterate(flow: Flow[Any], transport: AsyncTransport, results: list[Any]) -> AsyncGenerator[Any, None]:
    """Run `flow`, yielding what it emits; its result is appended to `results`.

    However it ends (closed, abandoned, cancelled, failed), the flow is closed, the flows it started are
    stopped and its exchanges are cut.
    """
    return _drive(_Run(flow, transport), results)


async def _drain(run: _Run) -> Any:
    results: list[Any] = []
    async with contextlib.aclosing(_drive(run, results)) as steps:
        async for _ in steps:
            pass
    return results[0]


async def _drive(run: _Run, results: list[Any]) -> AsyncGenerator[Any, None]:
    """Let `run` take one step after another until it ends."""
    running.add(run.flow)  # not the run: exchanges cannot be cut once their loop stands still
    value: Any = None
    error: Exception | None = None
    try:
        while True:
            try:
                effect = run.flow.send(value) if error is None else run.flow.throw(error)
            except StopIteration as stop:
                results.append(stop.value)
                return
            value = error = None
            if type(effect) is Emit:
                yield effect.value
                continue
            try:
                value = await run.perform(effect)
            except Exception as caught:  # whatever an effect raises belongs to the flow
                error = caught
    finally:
        run.close()


class _Run:
    """A flow under way.

    Attributes:
        opened: Exchanges it has not closed.
        started: Flows it has started that have not ended.
    """

    def __init__(self, flow: Flow[Any], transport: AsyncTransport) -> None:
        self.flow = flow
        self.transport = transport
        self.opened: list[AsyncExchange] = []
        self.started: set[_Started] = set()

    def close(self) -> None:
        """End it; needs no await, so it works while a task is cancelled. Idempotent."""
        running.discard(self.flow)
        try:
            self.flow.close()
        finally:
            for started in list(self.started):
                started.close()
            for exchange in self.opened:
                exchange.close()

    async def perform(self, effect: Any) -> Any:
        """Execute one effect and return its result."""
        kind = type(effect)
        if kind is Pull:
            return await effect.exchange.read(effect.seconds)
        if kind is Send:
            exchange = await self.transport.send(effect.request, effect.limits)
            self.opened.append(exchange)
            return exchange
        if kind is Close:
            effect.exchange.close()
            return self.opened.remove(effect.exchange)
        if kind is Aside:
            return await asyncio.get_running_loop().run_in_executor(None, effect.work)
        if kind is Sleep:
            return await asyncio.sleep(effect.seconds)
        if kind is Perform:
            return await _perform(effect.calls)
        return await self._beside(effect)

    async def _beside(self, effect: Any) -> Any:
        """Execute an effect that has to do with other flows."""
        kind = type(effect)
        if kind is Gather:
            return await _gather(effect, self.transport)
        if kind is Start:
            return _Started(effect.flow, self)
        if kind is First:
            return await _first(effect.handles, effect.seconds)
        if kind is Stop:
            return await effect.handle.stop()
        raise TypeError(f"not an effect: {effect!r}")


class _Started:
    """A flow in a task of its own. See `Handle`."""

    def __init__(self, flow: Flow[Any], parent: _Run) -> None:
        self.result: Any = None
        self.error: BaseException | None = None
        self._run = _Run(flow, parent.transport)
        # Not the parent itself: it must end when its reader drops it.
        siblings = parent.started
        siblings.add(self)
        self.task = asyncio.ensure_future(self._work())
        self.task.add_done_callback(lambda _: siblings.discard(self))

    @property
    def done(self) -> bool:
        """See `Handle`."""
        return self.task.done()

    async def _work(self) -> None:
        try:
            self.result = await _drain(self._run)
        except Exception as error:  # handed over to whoever looks at it
            self.error = error

    def close(self) -> None:
        """Let it settle now and be gone with the loop's next turns; never raises."""
        try:
            self._run.close()
        except Exception as error:  # it failed while it settled; the others still have to be stopped
            self.error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self.task.cancel()

    async def stop(self) -> None:
        """Stop it and wait until it is gone."""
        if not self.done:
            self.close()
            await asyncio.wait([self.task])


async def _perform(calls: Sequence[Callable[[], Any]]) -> list[tuple[Any, Exception | None]]:
    """Call them all at once; when this is cancelled, so is each of them that is awaited."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_outcome(call)) for call in calls]
    return [task.result() for task in tasks]


async def _outcome(call: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        # What looks like a plain function may still return something to await.
        result = call() if inspect.iscoroutinefunction(call) else await _on_thread(call)
        return (await result if inspect.isawaitable(result) else result), None
    except Exception as error:  # handed over as the call's outcome
        return None, error


async def _on_thread(call: Callable[[], Any]) -> Any:
    """Call it on a thread of its own, in the task's context.

    Not in the loop's executor: calls that take long would keep `Aside` waiting, and the books with it.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()
    context = contextvars.copy_context()

    def work() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = context.run(call)
        except BaseException as caught:  # raised anew where it is awaited
            error = caught
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, (result, error))

    def tell(outcome: tuple[Any, BaseException | None]) -> None:
        if not ended.done():
            ended.set_result(outcome)

    threading.Thread(target=work, name="maxwell-perform").start()
    result, error = await ended
    if error is not None:
        raise error
    return result


async def _first(handles: Sequence[_Started], seconds: float | None) -> list[_Started]:
    if handles:
        tasks = [handle.task for handle in handles]
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return [handle for handle in handles if handle.done]


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
