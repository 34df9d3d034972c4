"""What waits to be written, merged by its keys; it counts from the moment it is told."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections import deque
from typing import Any, Protocol


class Task(Protocol):
    """Something to be written."""

    def apply(self, db: sqlite3.Connection) -> None:
        """Write it, in a transaction that may be rolled back and tried again."""

    def merged(self, later: Any) -> Any:
        """This task and a later one of the same key as one."""


class Waiting:
    """Tasks in their order. Safe from any thread, and from finalizers."""

    def __init__(self) -> None:
        self._told: deque[tuple[object, Task]] = deque()  # not merged yet
        self._waiting: dict[object, Task] = {}
        self._taken: dict[object, Task] = {}  # being written
        self._merging = threading.RLock()

    def __bool__(self) -> bool:
        with self._merging:
            return bool(self._told or self._waiting or self._taken)

    def tell(self, key: object, task: Task) -> None:
        """One more task; one of the same key that still waits is merged with it."""
        # A finalizer may come in between at any moment, in this very thread, with a task of the same key.
        self._told.append((key, task))

    def tasks(self) -> list[Task]:
        """What waits and is not being written."""
        self._merge()
        return list(self._waiting.values())

    def take(self) -> list[Task]:
        """What is to be written now, until `put_back` or `done`."""
        with self._merging:
            self._merge()
            self._taken, self._waiting = self._waiting, {}
            return list(self._taken.values())

    def put_back(self) -> None:
        """What was taken was not written: it waits again, before what was told meanwhile."""
        with self._merging:
            back, self._taken = self._taken, {}
            for key, task in self._waiting.items():
                known = back.get(key)
                back[key] = task if known is None else known.merged(task)
            self._waiting = back

    def done(self) -> None:
        """What was taken is written."""
        self._taken = {}

    def _merge(self) -> None:
        with self._merging, contextlib.suppress(IndexError):
            while True:
                key, task = self._told.popleft()
                known = self._waiting.pop(key, None)
                self._waiting[key] = task if known is None else known.merged(task)
