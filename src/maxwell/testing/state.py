"""What a fake server remembers and what it has been told: shared by its thread and the tests'."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Literal

from maxwell.testing.faults import Fault
from maxwell.types import Usage

Condition = Literal["up", "loading", "asleep"]
_KEPT = 10_000


@dataclass(eq=False)
class Recorded:
    """One request as it arrived.

    Attributes:
        method: HTTP method.
        path: Path without the query.
        query: The query as it stood in the URL, "" when there was none.
        headers: Request headers, names in lower case.
        body: Parsed JSON, or None when there was none or it is not JSON.
        fault: The fault this request met, or None.
        aborted: Whether the client went away before the end of the response.
        finished: Set when the server is done with it, whichever way.
    """

    method: str
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    fault: Fault | None = None
    aborted: bool = False
    finished: threading.Event = field(default_factory=threading.Event, repr=False)


@dataclass
class _Armed:
    fault: Fault
    left: int | None
    path: str | None


class State:
    """Records, meters and armed faults. Every method may be called from any thread."""

    def __init__(self, generation_paths: frozenset[str]) -> None:
        self._generation_paths = generation_paths
        self._changed = threading.Condition()
        self._armed: list[_Armed] = []
        self._requests: deque[Recorded] = deque(maxlen=_KEPT)
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self.condition: Condition = "up"
        self.stopping = False
        self.connections = 0
        self.in_flight = 0
        self.max_in_flight = 0

    def arm(self, fault: Fault, times: int | None, path: str | None) -> None:
        """Let the next `times` requests on `path` meet `fault`."""
        with self._changed:
            self._armed.append(_Armed(fault, times, path))

    def disarm(self) -> None:
        """Forget every armed fault."""
        with self._changed:
            self._armed.clear()

    def take_fault(self, path: str) -> Fault | None:
        """The fault that a request on `path` meets; it counts as met."""
        if not self._armed:
            return None
        with self._changed:
            for armed in self._armed:
                if not self._matches(armed.path, path):
                    continue
                if armed.left is not None:
                    armed.left -= 1
                    if not armed.left:
                        self._armed.remove(armed)
                return armed.fault
        return None

    def _matches(self, wanted: str | None, path: str) -> bool:
        if wanted is None:
            return path in self._generation_paths
        return wanted == "*" or path.startswith(wanted)

    def begin(self, recorded: Recorded) -> None:
        """A request has arrived."""
        with self._changed:
            self._requests.append(recorded)
            if self._generates(recorded):
                self.in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self.in_flight)
            self._changed.notify_all()

    def finish(self, recorded: Recorded, *, aborted: bool = False) -> None:
        """The server is done with a request. Only the first call counts."""
        with self._changed:
            if recorded.finished.is_set():
                return
            recorded.aborted = aborted and not self.stopping
            if self._generates(recorded):
                self.in_flight -= 1
            recorded.finished.set()
            self._changed.notify_all()

    def _generates(self, recorded: Recorded) -> bool:
        return recorded.path in self._generation_paths

    def book(self, prompt: int, completion: int) -> None:
        """Meter tokens."""
        with self._changed:
            self._prompt_tokens += prompt
            self._completion_tokens += completion

    def requests(self) -> list[Recorded]:
        """The requests so far, oldest first."""
        with self._changed:
            return list(self._requests)

    def usage(self) -> Usage:
        """Tokens metered so far."""
        with self._changed:
            return Usage(prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)

    def wait_requests(self, count: int, timeout: float) -> list[Recorded]:
        """Wait until `count` requests have arrived."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._requests) >= count, timeout):
                raise TimeoutError(f"{len(self._requests)} requests of {count} arrived within {timeout} s")
            return list(self._requests)

    def wait_aborted(self, timeout: float) -> Recorded:
        """Wait until a request was aborted."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._first_aborted() is not None, timeout):
                raise TimeoutError(f"no request was aborted within {timeout} s")
            aborted = self._first_aborted()
        assert aborted is not None
        return aborted

    def _first_aborted(self) -> Recorded | None:
        return next((r for r in self._requests if r.aborted), None)
