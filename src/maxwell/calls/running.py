"""The flows under way. Those that the process leaves behind when it ends still settle their accounts."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

from maxwell.calls.effects import Flow
from maxwell.ending import at_end

# Weak, because a stream that its reader drops must be closed then and there.
running: weakref.WeakSet[Flow[Any]] = weakref.WeakSet()


def _leave() -> None:
    while running:
        try:
            flow = running.pop()
        except KeyError:  # the last one has ended meanwhile
            return
        # One that a thread is inside of cannot be closed; it still waits for its server.
        with contextlib.suppress(ValueError, RuntimeError):
            flow.close()


at_end(_leave, early=True)
