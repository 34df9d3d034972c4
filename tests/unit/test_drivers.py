from __future__ import annotations

import asyncio
import functools
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maxwell.calls import async_driver, sync_driver
from maxwell.calls.effects import (
    Aside,
    Close,
    Emit,
    First,
    Flow,
    Gather,
    Handle,
    Limits,
    Perform,
    Pull,
    Send,
    Sleep,
    Start,
    Stop,
    TransportError,
)
from maxwell.calls.running import let_cut
from maxwell.types import HTTPRequest

LIMITS = Limits()
CONTEXT: ContextVar[str] = ContextVar("CONTEXT")
Trace = list[str]


def to(path: str) -> Send:
    return Send(HTTPRequest("GET", f"http://fake/{path}", {}), LIMITS)


def never() -> bool:
    return False


# --- a scripted transport in two forms: what each path answers, and a trace of what was done


class Script:
    """What the fake servers answer: for each path the pieces of its body, where an exception is raised.

    A path that is missing refuses the connection, the path "silent" gives no head until it is cut; an `Event`
    among the pieces waits for it.
    """

    def __init__(self, **paths: Sequence[Any]) -> None:
        self.paths = paths
        self.trace: Trace = []

    def open(self, request: HTTPRequest) -> list[Any]:
        path = request.url.rpartition("/")[2]
        self.trace.append(f"send {path}")
        if path not in self.paths:
            raise TransportError("refused", f"no connection to {path}")
        return [path, *self.paths[path]]


class Exchange:
    """One scripted response; the async form below differs in its `read` alone."""

    status = 200
    headers: Mapping[str, str] = {}

    def __init__(self, script: Script, request: HTTPRequest) -> None:
        self.path, *self.pieces = script.open(request)
        self.trace = script.trace
        self.closed = threading.Event()

    def close(self) -> None:
        if not self.closed.is_set():
            self.trace.append(f"close {self.path}")
            self.closed.set()

    def next(self) -> Any:
        piece = self.pieces.pop(0) if self.pieces else b""
        if isinstance(piece, BaseException):
            self.trace.append(f"{type(piece).__name__} {self.path}")
            raise piece
        if isinstance(piece, bytes):
            self.trace.append(f"read {self.path} {piece.decode()}")
        return piece


class SyncExchange(Exchange):
    def read(self, seconds: float | None = None) -> bytes:
        piece = self.next()
        if isinstance(piece, bytes):
            return piece
        self.trace.append(f"wait {self.path}")
        while not piece.wait(0.002):
            if self.closed.is_set():
                self.trace.append(f"cut {self.path}")
                raise TransportError("closed", "cut while it was read")
        return b"woken"


class AsyncExchange(Exchange):
    async def read(self, seconds: float | None = None) -> bytes:
        await asyncio.sleep(0)
        piece = self.next()
        if isinstance(piece, bytes):
            return piece
        self.trace.append(f"wait {self.path}")
        while not piece.is_set():
            await asyncio.sleep(0.001)
        return b"woken"


class SyncTransport:
    def __init__(self, script: Script) -> None:
        self.script = script

    def send(self, request: HTTPRequest, limits: Limits) -> SyncExchange:
        exchange = SyncExchange(self.script, request)
        if exchange.path == "silent":
            let_cut(exchange.close)
            assert exchange.closed.wait(20)
            raise TransportError("closed", "cut before the head")
        return exchange

    def close(self) -> None:
        pass


class AsyncTransport:
    def __init__(self, script: Script) -> None:
        self.script = script

    async def send(self, request: HTTPRequest, limits: Limits) -> AsyncExchange:
        await asyncio.sleep(0)
        exchange = AsyncExchange(self.script, request)
        if exchange.path == "silent":
            try:
                await asyncio.sleep(20)
            finally:
                exchange.close()
        return exchange

    async def close(self) -> None:
        pass


# --- running a flow by either driver, to the end or up to the n-th thing it emits

Outcome = tuple[list[Any], Any]
MakeFlow = Callable[[Trace], Flow[Any]]
Run = Callable[..., Outcome]


def ended(work: Callable[[], Any]) -> Any:
    """The result of `work`, or the error it ended with in comparable form."""
    try:
        return work()
    except BaseException as error:
        return type(error), str(error)


def run_sync(make: MakeFlow, script: Script, leave_after: int | None = None) -> Outcome:
    emitted: list[Any] = []

    def work() -> Any:
        steps = sync_driver.iterate(make(script.trace), SyncTransport(script))
        while True:
            if leave_after is not None and len(emitted) >= leave_after:
                steps.close()
                return "left"
            try:
                emitted.append(next(steps))
            except StopIteration as stop:
                return stop.value

    return emitted, ended(work)


def run_async(make: MakeFlow, script: Script, leave_after: int | None = None) -> Outcome:
    emitted: list[Any] = []

    async def work() -> Any:
        results: list[Any] = []
        steps = async_driver.iterate(make(script.trace), AsyncTransport(script), results)
        async for value in steps:
            emitted.append(value)
            if leave_after is not None and len(emitted) >= leave_after:
                await steps.aclose()
                return "left"
        return results[0]

    return emitted, ended(lambda: asyncio.run(work()))


@pytest.fixture(params=["sync", "async"])
def run(request: pytest.FixtureRequest) -> Run:
    return run_sync if request.param == "sync" else run_async


# --- effects


def reading(path: str, trace: Trace) -> Flow[str]:
    """Read a body to its end, emitting its pieces; the trace tells when the flow is left."""
    try:
        exchange = yield to(path)
        text = b""
        while piece := (yield Pull(exchange)):
            yield Emit(piece)
            text += piece
        yield Close(exchange)
        return text.decode()
    finally:
        trace.append("settle")


def test_a_flow_sends_reads_emits_and_returns(run: Run) -> None:
    script = Script(a=[b"1", b"2"])
    assert run(lambda trace: reading("a", trace), script) == ([b"1", b"2"], "12")
    assert script.trace == ["send a", "read a 1", "read a 2", "read a ", "close a", "settle"]


def test_what_a_flow_emits_is_dropped_by_run() -> None:
    script = Script(a=[b"1"])
    assert sync_driver.run(reading("a", script.trace), SyncTransport(script)) == "1"
    assert asyncio.run(async_driver.run(reading("a", script.trace), AsyncTransport(script))) == "1"


def test_values_come_out_in_the_order_they_were_emitted(run: Run) -> None:
    def flow(trace: Trace) -> Flow[int]:
        for i in range(50):
            assert (yield Emit(i)) is None
            if i % 7 == 0:
                assert (yield Sleep(0)) is None
        return 50

    assert run(flow, Script()) == (list(range(50)), 50)


@pytest.mark.parametrize("value", [None, False, "", [], ValueError("a value, not raised")])
def test_any_value_may_be_emitted_and_returned(run: Run, value: Any) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        yield Emit(value)
        return value

    assert run(flow, Script()) == ([value], value)


def test_a_failed_send_is_raised_in_the_flow_which_may_go_on(run: Run) -> None:
    def flow(trace: Trace) -> Flow[str]:
        try:
            yield to("missing")
        except TransportError as error:
            trace.append(f"{error.stage}: {error}")
        return (yield from reading("b", trace))

    script = Script(b=[b"ok"])
    assert run(flow, script) == ([b"ok"], "ok")
    assert script.trace[:3] == ["send missing", "refused: no connection to missing", "send b"]


def test_a_failed_read_is_raised_in_the_flow(run: Run) -> None:
    script = Script(a=[b"1", TransportError("idle", "silence"), b"never"])
    assert run(lambda trace: reading("a", trace), script) == ([b"1"], (TransportError, "silence"))
    assert script.trace == ["send a", "read a 1", "TransportError a", "settle", "close a"]


def test_an_error_of_the_flow_is_the_callers(run: Run) -> None:
    def flow(trace: Trace) -> Flow[None]:
        yield to("a")
        raise LookupError("mine")

    script = Script(a=[])
    assert run(flow, script) == ([], (LookupError, "mine"))
    assert script.trace == ["send a", "close a"]


def test_what_is_no_effect_is_told_to_the_flow(run: Run) -> None:
    def flow(trace: Trace) -> Flow[None]:
        yield "not an effect"

    assert run(flow, Script()) == ([], (TypeError, "not an effect: 'not an effect'"))


def test_an_exchange_left_open_is_cut_at_the_end(run: Run) -> None:
    def flow(trace: Trace) -> Flow[str]:
        yield to("a")
        closed = yield to("b")
        yield Close(closed)
        yield to("c")
        return "done"

    script = Script(a=[], b=[], c=[])
    assert run(flow, script) == ([], "done")
    assert script.trace == ["send a", "send b", "close b", "send c", "close a", "close c"]


# --- leaving early


def test_leaving_settles_the_flow_and_then_cuts_its_exchange(run: Run) -> None:
    script = Script(a=[b"1", b"2", b"3"])
    assert run(lambda trace: reading("a", trace), script, leave_after=2) == ([b"1", b"2"], "left")
    assert script.trace == ["send a", "read a 1", "read a 2", "settle", "close a"]


def test_a_flow_that_fails_while_it_settles_still_has_its_exchanges_cut(run: Run) -> None:
    def flow(trace: Trace) -> Flow[None]:
        try:
            yield to("a")
            yield Emit("x")
        finally:
            raise OSError("the disk is full")

    script = Script(a=[])
    assert run(flow, script, leave_after=1) == (["x"], (OSError, "the disk is full"))
    assert script.trace == ["send a", "close a"]


def test_a_flow_that_yields_while_it_is_left_still_has_its_exchanges_cut(run: Run) -> None:
    def flow(trace: Trace) -> Flow[None]:
        try:
            yield to("a")
            yield Emit("x")
        finally:
            yield Sleep(0)

    script = Script(a=[])
    emitted, (error, _) = run(flow, script, leave_after=1)
    assert (emitted, error) == (["x"], RuntimeError)
    assert script.trace == ["send a", "close a"]


def test_an_abandoned_iteration_settles() -> None:
    script = Script(a=[b"1", b"2"])
    steps: Generator[Any, None, str] = sync_driver.iterate(reading("a", script.trace), SyncTransport(script))
    assert next(steps) == b"1"
    del steps
    gc.collect()
    assert script.trace[-2:] == ["settle", "close a"]


def test_an_abandoned_async_iteration_settles() -> None:
    script = Script(a=[b"1", b"2"])

    async def work() -> None:
        steps = async_driver.iterate(reading("a", script.trace), AsyncTransport(script), [])
        assert await anext(steps) == b"1"
        del steps
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert script.trace[-2:] == ["settle", "close a"]

    asyncio.run(work())


def test_an_interrupt_settles_and_is_not_told_to_the_flow() -> None:
    def flow(trace: Trace) -> Flow[None]:
        try:
            yield from reading("a", trace)
        except Exception:
            trace.append("caught")
            raise

    script = Script(a=[b"1", KeyboardInterrupt()])
    assert run_sync(flow, script) == ([b"1"], (KeyboardInterrupt, ""))
    assert script.trace[-3:] == ["KeyboardInterrupt a", "settle", "close a"]


@pytest.mark.parametrize("iterated", [True, False])
def test_a_cancelled_task_settles_at_once(iterated: bool) -> None:
    script = Script(a=[b"1", threading.Event()])

    async def use() -> None:
        flow = reading("a", script.trace)
        if iterated:
            async for _ in async_driver.iterate(flow, AsyncTransport(script), []):
                pass
        else:
            await async_driver.run(flow, AsyncTransport(script))

    async def work() -> None:
        task = asyncio.create_task(use())
        while "wait a" not in script.trace:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert script.trace[-3:] == ["wait a", "settle", "close a"]

    asyncio.run(work())


def test_a_flow_never_begun_does_nothing() -> None:
    script = Script(a=[])
    sync_driver.iterate(reading("a", script.trace), SyncTransport(script)).close()

    async def work() -> None:
        await async_driver.iterate(reading("a", script.trace), AsyncTransport(script), []).aclose()

    asyncio.run(work())
    assert script.trace == []


# --- the caller's own functions


def performing(*calls: Callable[[], Any]) -> MakeFlow:
    def flow(trace: Trace) -> Flow[Any]:
        try:
            return (yield Perform(calls))
        finally:
            trace.append("settle")

    return flow


def failing(error: BaseException) -> Callable[[], Any]:
    def call() -> Any:
        raise error

    return call


def test_outcomes_come_in_the_order_of_the_calls(run: Run) -> None:
    error, returned = LookupError("mine"), ValueError("a value, not raised")
    calls = [lambda: 1, failing(error), lambda: None, lambda: returned]
    outcomes = [(1, None), (None, error), (None, None), (returned, None)]
    assert run(performing(*calls), Script()) == ([], outcomes)


def test_nothing_to_perform_is_nothing_done(run: Run) -> None:
    assert run(performing(), Script()) == ([], [])


def test_without_a_loop_calls_are_made_one_after_the_other_by_the_callers_thread() -> None:
    trace: list[Any] = []

    def call(number: int) -> None:
        trace.append((number, threading.get_ident()))

    run_sync(performing(*[functools.partial(call, i) for i in range(3)]), Script())
    assert trace == [(i, threading.get_ident()) for i in range(3)]


def test_without_a_loop_a_coroutine_function_is_refused_before_anything_is_called() -> None:
    called: list[int] = []

    async def coroutine(number: int) -> None: ...

    _, (error, message) = run_sync(
        performing(lambda: called.append(1), functools.partial(coroutine, 1)), Script()
    )
    assert (error, called) == (TypeError, [])
    assert "coroutine function" in message


def test_in_coroutines_calls_run_side_by_side() -> None:
    plain, awaited = threading.Barrier(3), asyncio.Barrier(3)

    async def meet() -> int:
        return await awaited.wait()

    def disguised() -> Any:  # as some decorators make them
        return meet()

    _, outcomes = run_async(performing(*[lambda: plain.wait(20)] * 3, meet, meet, disguised), Script())
    assert sorted(outcomes) == [(i, None) for i in (0, 0, 1, 1, 2, 2)]


def test_calls_see_the_callers_context(run: Run) -> None:
    async def coroutine() -> str:
        return CONTEXT.get()

    token = CONTEXT.set("mine")
    try:
        calls: list[Callable[[], Any]] = [CONTEXT.get, *([coroutine] if run is run_async else [])]
        assert run(performing(*calls), Script()) == ([], [("mine", None)] * len(calls))
    finally:
        CONTEXT.reset(token)


@pytest.mark.parametrize("leaves", [KeyboardInterrupt(), SystemExit(3)], ids=lambda e: type(e).__name__)
def test_what_ends_the_program_is_no_outcome(run: Run, leaves: BaseException) -> None:
    script = Script()
    assert run(performing(failing(leaves)), script) == ([], (type(leaves), str(leaves)))
    assert script.trace == ["settle"]


@pytest.mark.parametrize("when", ["while the loop runs", "after it was closed"])
def test_a_cancelled_task_cancels_what_it_awaits_and_lets_threads_end(when: str) -> None:
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()
    trace: Trace = []

    def plain() -> None:
        begun.set()
        assert release.wait(20)
        ended.set()

    async def coroutine() -> None:
        try:
            await asyncio.sleep(10_000)
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise

    async def work() -> None:
        flow = performing(plain, coroutine)(trace)
        task = asyncio.create_task(async_driver.run(flow, AsyncTransport(Script())))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert trace == ["cancelled", "settle"]
        assert not ended.is_set()
        if when == "while the loop runs":
            asyncio.get_running_loop().set_exception_handler(lambda _, what: trace.append(str(what)))
            release.set()
            while "maxwell-perform" in {thread.name for thread in threading.enumerate()}:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0)
            assert trace == ["cancelled", "settle"]

    asyncio.run(work())
    release.set()
    assert ended.wait(20)


def test_what_is_stopped_makes_no_further_calls() -> None:
    begun, release = threading.Event(), threading.Event()
    called: list[int] = []

    def first() -> None:
        begun.set()
        assert release.wait(20)

    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(performing(first, lambda: called.append(2))(trace))
        yield from soon(begun.is_set)
        yield Stop(handle)
        release.set()
        for thread in threading.enumerate():
            if thread.name == "maxwell-call":
                thread.join(20)
        return called

    assert run_sync(flow, Script()) == ([], [])


# --- side by side


def gathering(
    make: Callable[[Trace], Sequence[Flow[Any]]],
    seconds: float = 20.0,
    enough: Callable[[], bool] = never,
) -> MakeFlow:
    def flow(trace: Trace) -> Flow[list[Any]]:
        found: list[Any] = yield Gather(list(make(trace)), seconds, enough)
        return found

    return flow


def returning(value: Any) -> Flow[Any]:
    yield Sleep(0)
    return value


def raising(error: Exception) -> Flow[Any]:
    yield Sleep(0)
    raise error


def waiting(path: str, trace: Trace, done: threading.Event | None = None) -> Flow[str]:
    """Read one piece, which the script holds back."""
    try:
        exchange = yield to(path)
        yield Pull(exchange)
        return path
    finally:
        trace.append(f"settle {path}")
        if done is not None:
            done.set()


def test_results_come_in_the_order_of_the_flows(run: Run) -> None:
    flows = gathering(lambda trace: [returning(i) for i in range(20)])
    assert run(flows, Script()) == ([], list(range(20)))


def test_a_flow_of_more_flows_than_threads_runs_them_all(run: Run) -> None:
    flows = gathering(lambda trace: [returning(i) for i in range(sync_driver.MOST_THREADS + 40)])
    assert run(flows, Script()) == ([], list(range(sync_driver.MOST_THREADS + 40)))


def test_nothing_to_gather_is_no_wait(run: Run) -> None:
    assert run(gathering(lambda trace: []), Script()) == ([], [])


def test_the_exception_of_a_gathered_flow_is_its_result(run: Run) -> None:
    error = LookupError("mine")
    flows = gathering(lambda trace: [returning(1), raising(error), returning(None)])
    assert run(flows, Script()) == ([], [1, error, None])


def test_what_has_not_finished_in_time_is_none_and_goes_on(run: Run) -> None:
    release, done = threading.Event(), threading.Event()
    script = Script(slow=[release])

    def flow(trace: Trace) -> Flow[list[Any]]:
        found: list[Any] = yield Gather([returning("fast"), waiting("slow", trace, done)], 0.3, never)
        assert "settle slow" not in trace
        release.set()
        while not done.is_set():  # it goes on in the background
            yield Sleep(0.005)
        return found

    assert run(flow, script) == ([], ["fast", None])
    assert script.trace.count("settle slow") == 1


def test_enough_ends_the_wait(run: Run) -> None:
    release, done = threading.Event(), threading.Event()
    script = Script(slow=[release])
    first: list[str] = []

    def note() -> Flow[str]:
        yield Sleep(0)
        first.append("fast")
        return "fast"

    def flow(trace: Trace) -> Flow[list[Any]]:
        found: list[Any] = yield Gather([waiting("slow", trace, done), note()], 60.0, lambda: bool(first))
        release.set()
        while not done.is_set():
            yield Sleep(0.005)
        return found

    emitted, (slow, fast) = run(flow, script)
    assert (emitted, slow) == ([], None)
    assert fast in ("fast", None)  # the wait may end before its result is in


def test_a_flow_that_has_finished_has_its_result_even_when_that_is_enough() -> None:
    release, finished = threading.Event(), threading.Event()
    script = Script(slow=[release])

    def note() -> Flow[str]:
        try:
            yield Sleep(0)
            return "fast"
        finally:
            finished.set()

    flow = gathering(lambda trace: [waiting("slow", trace), note()], 20.0, lambda: finished.wait(20))
    try:
        assert run_sync(flow, script) == ([], [None, "fast"])
    finally:
        release.set()


def test_no_time_at_all_starts_the_flows_and_goes_on(run: Run) -> None:
    release, done = threading.Event(), threading.Event()
    script = Script(a=[release])

    def flow(trace: Trace) -> Flow[list[Any]]:
        found: list[Any] = yield Gather([waiting("a", trace, done)], 0.0, never)
        release.set()
        while not done.is_set():
            yield Sleep(0.005)
        return found

    assert run(flow, script) == ([], [None])
    assert "settle a" in script.trace


def test_exchanges_of_gathered_flows_are_cut(run: Run) -> None:
    script = Script(a=[b"1"], b=[b"2"])
    run(gathering(lambda trace: [waiting("a", trace), waiting("b", trace)]), script)
    assert {"close a", "close b"} <= set(script.trace)


def test_gathered_flows_may_gather(run: Run) -> None:
    def inner(i: int) -> Flow[Any]:
        return (yield Gather([returning(i), returning(-i)], 20.0, never))

    assert run(gathering(lambda trace: [inner(1), inner(2)]), Script()) == ([], [[1, -1], [2, -2]])


def test_what_outlasts_its_loop_is_cancelled_and_settles() -> None:
    script = Script(slow=[threading.Event()])

    async def work() -> None:
        flow = gathering(lambda trace: [waiting("slow", trace)], 0.05)(script.trace)
        assert await async_driver.run(flow, AsyncTransport(script)) == [None]

    asyncio.run(work())
    assert script.trace[-2:] == ["settle slow", "close slow"]


def test_several_loops_one_after_another_gather() -> None:
    script = Script(slow=[threading.Event()])
    for _ in range(3):
        flow = gathering(lambda trace: [returning(1), waiting("slow", trace)], 0.05)(script.trace)
        assert asyncio.run(async_driver.run(flow, AsyncTransport(script))) == [1, None]


# --- started


def settling(trace: Trace, name: str, *effects: Any) -> Flow[None]:
    """Yield the effects, and note how the flow is left; one that is told an error notes that, too."""
    try:
        for effect in effects:
            _ = yield effect
    except Exception as error:
        trace.append(f"{name} was told {error}")
        raise
    finally:
        trace.append(f"settle {name}")


def soon(true: Callable[[], bool]) -> Flow[None]:
    for _ in range(20_000):
        if true():
            return
        yield Sleep(0.001)
    raise AssertionError("it never happened")


def begun(trace: Trace, *effects: Any) -> Flow[Handle]:
    """Start a flow that yields these effects, and wait until it is at the last one."""
    here = threading.Event()
    handle: Handle = yield Start(settling(trace, "child", *effects[:-1], Aside(here.set), effects[-1]))
    yield from soon(here.is_set)
    yield Sleep(0.01)
    return handle


def read(path: str) -> Flow[None]:
    exchange = yield to(path)
    yield Pull(exchange)


def test_a_started_flow_runs_beside_and_has_a_result(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(returning(7))
        (first,) = yield First([handle])
        assert first is handle
        return handle.done, handle.result, handle.error

    assert run(flow, Script()) == ([], (True, 7, None))


def test_the_error_of_a_started_flow_is_in_its_handle(run: Run) -> None:
    error = LookupError("mine")

    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(raising(error))
        yield First([handle])
        return handle.done, handle.result, handle.error

    assert run(flow, Script()) == ([], (True, None, error))


def test_started_flows_run_side_by_side(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        here: list[int] = []

        def child(i: int) -> Flow[int]:
            here.append(i)
            yield from soon(lambda: len(here) == 20)  # nobody ends before everybody has begun
            return i

        handles: list[Handle] = []
        for i in range(20):
            handle = yield Start(child(i))
            handles.append(handle)
        while not all(handle.done for handle in handles):
            yield First([handle for handle in handles if not handle.done])
        return [handle.result for handle in handles]

    assert run(flow, Script()) == ([], list(range(20)))


def test_first_waits_for_one_and_names_all_that_have_ended(run: Run) -> None:
    release = threading.Event()

    def flow(trace: Trace) -> Flow[Any]:
        slow: Handle = yield Start(waiting("slow", trace))
        fast: Handle = yield Start(returning(1))
        assert (yield First([slow, fast], 20.0)) == [fast]
        assert (yield First([slow, fast], 0.0)) == [fast]
        release.set()
        yield First([slow])
        return (yield First([slow, fast], 0.0)) == [slow, fast]

    assert run(flow, Script(slow=[release])) == ([], True)


def test_first_ends_with_its_time(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(waiting("slow", trace))
        at_once = yield First([handle], 0.0)
        later = yield First([handle], 0.01)
        return at_once, later, handle.done, (yield First([], None))

    assert run(flow, Script(slow=[threading.Event()])) == ([], ([], [], False, []))


def test_what_a_started_flow_emits_is_dropped(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(reading("a", trace))
        yield Emit("mine")
        yield First([handle])
        return handle.result

    assert run(flow, Script(a=[b"1", b"2"])) == (["mine"], "12")


def test_what_is_stopped_while_it_reads_is_closed_and_cut(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        exchange: list[Any] = []

        def child() -> Flow[None]:
            exchange.append((yield to("slow")))
            yield from settling(trace, "child", Pull(exchange[0]))

        handle: Handle = yield Start(child())
        yield from soon(lambda: "wait slow" in trace)
        yield Stop(handle)
        assert {"settle child", "close slow"} <= set(trace)
        return handle.done, handle.result, handle.error

    script = Script(slow=[threading.Event()])
    assert run(flow, script) == ([], (True, None, None))
    assert [t for t in script.trace if "told" in t] == []
    assert script.trace.count("settle child") == 1


@pytest.mark.parametrize("effect", [to("silent"), Sleep(10_000)], ids=["waits for a head", "sleeps"])
def test_what_is_stopped_while_it_waits_ends_at_once(run: Run, effect: Any) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        handle = yield from begun(trace, effect)
        yield Stop(handle)
        assert "settle child" in trace
        return handle.done, handle.result, handle.error

    script = Script(silent=[])
    assert run(flow, script) == ([], (True, None, None))
    assert [t for t in script.trace if "told" in t] == []
    assert script.trace.count("close silent") == script.trace.count("send silent")


def test_what_is_stopped_meanwhile_settles_at_once_and_its_work_aside_ends(run: Run) -> None:
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        assert release.wait(20)
        ended.set()

    def flow(trace: Trace) -> Flow[Any]:
        handle = yield from begun(trace, Aside(work))
        yield Stop(handle)
        seen = (handle.done, "settle child" in trace, ended.is_set())
        release.set()
        yield from soon(ended.is_set)
        return seen

    assert run(flow, Script()) == ([], (True, True, False))


def test_a_flow_stopped_before_it_began_or_after_its_end_is_left_as_it_is(run: Run) -> None:
    def flow(trace: Trace) -> Flow[Any]:
        ended: Handle = yield Start(returning(7))
        yield First([ended])
        yield Stop(ended)
        fresh: Handle = yield Start(waiting("slow", trace))
        yield Stop(fresh)
        yield Stop(fresh)
        return ended.result, fresh.done, fresh.result, fresh.error

    assert run(flow, Script(slow=[threading.Event()])) == ([], (7, True, None, None))


def test_what_fails_while_it_is_stopped_says_so_in_its_handle(run: Run) -> None:
    def child(trace: Trace) -> Flow[None]:
        try:
            yield from read("slow")
        finally:
            raise OSError("the disk is full")

    def flow(trace: Trace) -> Flow[Any]:
        handle: Handle = yield Start(child(trace))
        yield from soon(lambda: "wait slow" in trace)
        yield Stop(handle)
        assert "close slow" in trace
        return handle.done, str(handle.error)

    assert run(flow, Script(slow=[threading.Event()])) == ([], (True, "the disk is full"))


@pytest.mark.parametrize("how", ["ended", "failed", "left"])
def test_whoever_is_gone_has_stopped_what_it_started(run: Run, how: str) -> None:
    def grandchild(trace: Trace) -> Flow[None]:
        yield from settling(trace, "grandchild", Sleep(10_000))

    def child(trace: Trace) -> Flow[None]:
        yield Start(grandchild(trace))
        yield from waiting("slow", trace)

    def flow(trace: Trace) -> Flow[Any]:
        try:
            yield Start(settling(trace, "sleeper", Sleep(10_000)))
            yield Start(child(trace))
            yield from soon(lambda: "wait slow" in trace)
            yield Emit("here")
            if how == "failed":
                raise LookupError("mine")
        finally:
            trace.append("settle parent")

    script = Script(slow=[threading.Event()])
    run(flow, script, leave_after=1 if how == "left" else None)
    settled = [t for t in script.trace if t.startswith("settle")]
    assert settled[0] == "settle parent"
    assert sorted(settled[1:]) == ["settle grandchild", "settle sleeper", "settle slow"]
    assert "close slow" in script.trace


def family(trace: Trace) -> Flow[None]:
    """Start one that waits for ever, and wait for it."""
    handle: Handle = yield Start(waiting("slow", trace))
    yield from soon(lambda: "wait slow" in trace)
    yield Emit("here")
    yield from read("interrupts")
    yield First([handle])


def test_an_interrupt_stops_what_was_started() -> None:
    script = Script(slow=[threading.Event()], interrupts=[KeyboardInterrupt()])
    assert run_sync(family, script) == (["here"], (KeyboardInterrupt, ""))
    assert "settle slow" in script.trace


def test_an_abandoned_iteration_stops_what_it_started() -> None:
    script = Script(slow=[threading.Event()])
    steps: Generator[Any, None, None] = sync_driver.iterate(family(script.trace), SyncTransport(script))
    assert next(steps) == "here"
    del steps
    assert script.trace[-1] in ("close slow", "cut slow")  # without the garbage collector's help
    assert "settle slow" in script.trace


def test_an_abandoned_async_iteration_stops_what_it_started() -> None:
    script = Script(slow=[threading.Event()])

    async def work() -> None:
        steps = async_driver.iterate(family(script.trace), AsyncTransport(script), [])
        assert await anext(steps) == "here"
        del steps
        gc.collect()
        for _ in range(5):
            await asyncio.sleep(0)
        assert {"settle slow", "close slow"} <= set(script.trace)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())


def test_a_cancelled_task_stops_what_it_started_at_once() -> None:
    script = Script(slow=[threading.Event()], interrupts=[threading.Event()])

    async def work() -> None:
        task = asyncio.create_task(async_driver.run(family(script.trace), AsyncTransport(script)))
        while "wait interrupts" not in script.trace:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert {"settle slow", "close interrupts"} <= set(script.trace)
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(work())
    assert "close slow" in script.trace


def test_a_thread_inside_of_a_flow_may_be_the_one_that_drops_it() -> None:
    """As the garbage collector does, which runs in whatever thread it likes."""

    def child(trace: Trace) -> Flow[None]:
        try:
            yield from soon(lambda: bool(kept))
            kept.pop().close()
            yield to("never")
        finally:
            trace.append("settle child")

    def flow(trace: Trace) -> Flow[None]:
        yield Start(child(trace))
        yield Emit("here")

    script = Script(never=[])
    kept: list[Generator[Any, None, None]] = []
    steps = sync_driver.iterate(flow(script.trace), SyncTransport(script))
    assert next(steps) == "here"
    kept.append(steps)
    for thread in threading.enumerate():
        if thread.name == "maxwell-call":
            thread.join(20)
    assert script.trace == ["settle child"]


_LEFT_OPEN = """
from maxwell.calls import sync_driver
from maxwell.calls.effects import Emit, Sleep, Start

def child():
    try:
        yield Sleep(10_000)
    finally:
        print("settled", flush=True)

def flow():
    yield Start(child())
    yield Sleep(0.1)
    yield Emit(None)

steps = sync_driver.iterate(flow(), None)
next(steps)
"""


def test_what_was_started_settles_when_its_process_ends() -> None:
    done = subprocess.run([sys.executable, "-c", _LEFT_OPEN], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "settled\n", "")


# --- both drivers do the same

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from(["a", "b", "broken", "missing"])),
        st.tuples(st.just("pull"), st.integers(0, 2)),
        st.tuples(st.just("close"), st.integers(0, 2)),
        st.tuples(st.just("emit"), st.integers(0, 9)),
        st.tuples(st.just("sleep"), st.just(0)),
        st.tuples(st.just("gather"), st.sampled_from(["a", "broken", "missing"])),
        st.tuples(st.just("start"), st.sampled_from(["a", "broken", "missing"])),
        st.tuples(st.just("perform"), st.sampled_from(["mine", "yours"])),
        st.tuples(st.just("nonsense"), st.just(0)),
        st.tuples(st.just("raise"), st.sampled_from(["mine", "yours"])),
    ),
    max_size=10,
)


def scripted(operations: Sequence[tuple[str, Any]], catches: bool, trace: Trace) -> Flow[Any]:
    """Do one thing after another; where it `catches`, an effect that fails is noted and the flow goes on."""
    exchanges: list[Any] = []
    try:
        for what, with_ in operations:
            try:
                result = yield from step(what, with_, exchanges)
                trace.append(f"{what} gave {result}")
            except TransportError as error:
                trace.append(f"{what} failed: {error}")
                if not catches:
                    raise
        return len(exchanges)
    finally:
        trace.append("settle")


def beside(what: str, path: str) -> Flow[str]:
    if what == "gather":
        (result,) = yield Gather([reading(path, [])], 20.0, never)
        return str(result)
    (first,) = yield First([(yield Start(reading(path, [])))])
    return f"{first.result} {first.error}"


def step(what: str, with_: Any, exchanges: list[Any]) -> Flow[Any]:
    if what == "send":
        exchanges.append((yield to(with_)))
    elif what in ("pull", "close") and with_ < len(exchanges):
        if what == "pull":
            return (yield Pull(exchanges[with_], 1.0))
        yield Close(exchanges.pop(with_))
    elif what == "emit":
        yield Emit(with_)
    elif what == "sleep":
        yield Sleep(0)
    elif what in ("gather", "start"):
        return (yield from beside(what, with_))
    elif what == "perform":
        return str((yield Perform([lambda: with_, failing(LookupError(with_))])))
    elif what == "nonsense":
        yield 7
    elif what == "raise":
        raise LookupError(with_)
    return None


@settings(deadline=None, max_examples=120)
@given(operations=OPERATIONS, catches=st.booleans(), leave_after=st.sampled_from((None, None, 1, 2)))
def test_both_drivers_do_the_same(
    operations: list[tuple[str, Any]], catches: bool, leave_after: int | None
) -> None:
    outcomes = []
    for run in (run_sync, run_async):
        script = Script(a=[b"1", b"2"], b=[], broken=[b"x", TransportError("closed", "cut")])
        outcome = run(lambda trace: scripted(operations, catches, trace), script, leave_after=leave_after)
        outcomes.append((outcome, script.trace))
    assert outcomes[0] == outcomes[1]
    trace = outcomes[0][1]
    # Whatever happened, every exchange that was opened was closed.
    sent = [t.split()[1] for t in trace if t.startswith("send ") and "gave" not in t and "failed" not in t]
    opened = [path for path in sent if path != "missing"]
    assert sorted(opened) == sorted(t.split()[1] for t in trace if t.startswith("close ") and "gave" not in t)
