"""The third driver: runs Maxwell's flows on virtual time. The other two block a thread or an event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maxwell.calls.effects import Aside, Close, Emit, First, Flow, Gather, Pull, Send, Sleep, Start, Stop
from scheduling.network import Network
from scheduling.world import Timer, World

_WAITS: Any = object()  # the effect's result comes later


class Task:
    """A flow under way.

    Args:
        world: Its time.
        network: Where it sends.
        flow: The flow.
        ended: Told when it is over, unless it is stopped.
        emitted: Given what it emits.

    Attributes:
        result: What it returned, once `done`.
        error: What it raised, once `done`.
        done: Whether it is over.
    """

    def __init__(
        self,
        world: World,
        network: Network,
        flow: Flow[Any],
        ended: Callable[[Task], None] | None = None,
        emitted: Callable[[Any], None] | None = None,
    ) -> None:
        self.result: Any = None
        self.error: Exception | None = None
        self.done = False
        self.told: list[Callable[[Task], None]] = [] if ended is None else [ended]
        self._world = world
        self._network = network
        self._flow = flow
        self._emitted = emitted
        self._opened: list[Any] = []
        self._started: list[Task] = []
        self._forget: Callable[[], None] | None = None  # what it waits for is of no interest any more
        self._forget = world.after(0.0, lambda: self._go_on(None, None)).cancel

    def stop(self) -> None:
        """Leave the flow, as a cancelled task does: it settles its accounts, and its exchanges are cut."""
        if self.done:
            return
        self.done = True
        self._leave()

    def _leave(self) -> None:
        if self._forget is not None:
            self._forget()
            self._forget = None
        self._flow.close()
        for exchange in self._opened:
            exchange.close()
        self._opened.clear()
        for task in self._started:
            task.stop()
        self._started.clear()

    def _go_on(self, value: Any, error: Exception | None) -> None:
        """Run the flow until it has to wait, or is over."""
        self._forget = None
        while True:
            try:
                effect = self._flow.send(value) if error is None else self._flow.throw(error)
            except StopIteration as stop:
                self._end(stop.value, None)
                return
            except Exception as raised:  # the flow's outcome
                self._end(None, raised)
                return
            value = error = None
            try:
                value = self._perform(effect)
            except Exception as caught:  # whatever an effect raises belongs to the flow
                error = caught
            if value is _WAITS:
                return

    def _end(self, result: Any, error: Exception | None) -> None:
        self.result, self.error, self.done = result, error, True
        self._leave()
        for told in list(self.told):
            told(self)

    def _perform(self, effect: Any) -> Any:
        """Execute one effect; returns its result, or `_WAITS`."""
        perform = _PERFORMED.get(type(effect))
        if perform is None:
            raise TypeError(f"not an effect: {effect!r}")
        return perform(self, effect)

    def _emit(self, effect: Emit) -> None:
        if self._emitted is not None:
            self._emitted(effect.value)

    def _sleep(self, effect: Sleep) -> Any:
        self._forget = self._world.after(effect.seconds, lambda: self._go_on(None, None)).cancel
        return _WAITS

    def _close(self, effect: Close) -> None:
        effect.exchange.close()
        self._opened.remove(effect.exchange)

    def _send(self, effect: Send) -> Any:
        self._forget = self._network.send(effect.request, effect.limits, self._sent, self._failed)
        return _WAITS

    def _sent(self, exchange: Any) -> None:
        self._opened.append(exchange)
        self._go_on(exchange, None)

    def _failed(self, error: Exception) -> None:
        self._go_on(None, error)

    def _pull(self, effect: Pull) -> Any:
        exchange = effect.exchange
        if exchange.has_news:
            return exchange.take()
        self._forget = exchange.when_news(effect.seconds, self._pulled)
        return _WAITS

    def _pulled(self, take: Callable[[], bytes]) -> None:
        try:
            piece = take()
        except Exception as error:  # belongs to the flow
            self._go_on(None, error)
        else:
            self._go_on(piece, None)

    def _start(self, effect: Start) -> Task:
        task = Task(self._world, self._network, effect.flow, self._forget_started)
        self._started.append(task)
        return task

    def _forget_started(self, task: Task) -> None:
        if task in self._started:
            self._started.remove(task)

    def _first(self, effect: First) -> Any:
        """The started flows that have ended; waits for one of them, or for the clock."""
        tasks: list[Task] = list(effect.handles)  # type: ignore[arg-type]  # ours are Tasks
        ended = [task for task in tasks if task.done]
        if ended or not tasks:
            return ended
        waiting = [True]
        limit: list[Timer] = []

        def look(_: Task | None = None) -> None:
            if waiting:
                waiting.clear()
                for timer in limit:
                    timer.cancel()
                for task in tasks:
                    if look in task.told:
                        task.told.remove(look)
                self._go_on([task for task in tasks if task.done], None)

        if effect.seconds is not None:
            limit.append(self._world.after(effect.seconds, look))
        for task in tasks:
            task.told.append(look)
        self._forget = waiting.clear
        return _WAITS

    def _gather(self, effect: Gather) -> Any:
        """Start the flows; the rest is up to them and the clock."""
        if not effect.flows or effect.enough():
            return [None] * len(effect.flows)
        tasks: list[Task] = []

        def look(_: Task | None = None) -> None:
            late = _ is None
            if waiting and (late or effect.enough() or all(t.done for t in tasks)):
                waiting.clear()
                limit.cancel()
                self._go_on([(t.error or t.result) if t.done else None for t in tasks], None)

        waiting = [True]
        limit: Timer = self._world.after(effect.seconds, look)
        tasks += [Task(self._world, self._network, flow, look) for flow in effect.flows]
        self._forget = waiting.clear
        return _WAITS


_PERFORMED: dict[type, Callable[[Task, Any], Any]] = {
    Aside: lambda _, effect: effect.work(),
    Close: Task._close,
    Emit: Task._emit,
    First: Task._first,
    Gather: Task._gather,
    Pull: Task._pull,
    Send: Task._send,
    Sleep: Task._sleep,
    Start: Task._start,
    Stop: lambda _, effect: effect.handle.stop(),
}


def run_all(world: World, tasks: list[Task]) -> None:
    """Let time pass until all `tasks` are over."""
    left = {id(task) for task in tasks if not task.done}
    for task in tasks:
        task.told.append(lambda ended: left.discard(id(ended)))
    world.run(lambda: not left)
    if left:
        raise RuntimeError(f"{len(left)} flows wait for something that never happens")
