"""The flows under way. Those that the process leaves behind when it ends still settle their accounts."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from maxwell.ending import at_end


class Closable(Protocol):
    """A flow in a driver's hands."""

    def close(self) -> None:
        """Let it settle its accounts, and cut what it left open."""


class Cuttable(Protocol):
    """A flow that one thread runs and another one may end."""

    def let_cut(self, cut: Callable[[], None]) -> None:
        """Call `cut` when it is ended; at once where it has been."""


# Weak, because a stream that its reader drops must be closed then and there.
running: weakref.WeakSet[Closable] = weakref.WeakSet()


class _Here(threading.local):
    """What the present thread does.

    Attributes:
        sending: The flow for which it waits for a response's head.
    """

    sending: Cuttable | None = None


here = _Here()


def let_cut(cut: Callable[[], None]) -> None:
    """Tell whoever ends the flow for which this thread waits for a head how to end that wait, too."""
    if here.sending is not None:
        here.sending.let_cut(cut)


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
