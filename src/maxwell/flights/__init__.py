"""Who is at which server now: the values, and the protocol that every store of them keeps.

A *flight* is one call on its way to one server, or at it. A waiting one is held back here until its turn
comes, a running one was let go. Whoever decides where a call goes sees what all others do, and the decision
is written down in the same moment: no two take the same slot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from msgspec import Struct

__all__ = ["Busy", "Flights", "Load", "Plan"]


class Load(Struct, frozen=True, gc=False):
    """What is under way at one server.

    Attributes:
        running: Calls that were let go and have not ended.
        waiting: Calls held back for it; for a flight that asks, those that came before it.
        trials: How many of the running find out whether it is well again.
        overrun: Median of elapsed / expected seconds of the running; 0.0 when none runs.
    """

    running: int = 0
    waiting: int = 0
    trials: int = 0
    overrun: float = 0.0


class Plan(Struct, frozen=True):
    """What one call is about to do.

    Attributes:
        endpoint: Root URL of the server.
        name: Entry that was chosen.
        seconds: How long it is expected to run; 0 or less, or not finite = not known.
        waiting: It is held back here and will ask again.
        trial: It finds out whether a server that failed is well again.
    """

    endpoint: str
    name: str
    seconds: float
    waiting: bool = False
    trial: bool = False


Planner = Callable[[Mapping[str, Load]], Plan | None]


class Busy(Exception):
    """Another process or thread is at the flights right now, and the caller did not want to wait."""


class Flights(Protocol):
    """All flights of one user, safe from any thread. Servers where nothing is under way have no load."""

    def loads(self) -> Mapping[str, Load]:
        """The load of every server, by endpoint, as of this moment or shortly before; never waits."""

    def place(self, id: str, plan: Planner, *, wait: bool = True) -> Plan | None:
        """Let `plan` decide what flight `id` does; nobody else decides at the same time.

        What was kept under `id` before is replaced, but a waiting flight keeps its place in the queue.
        Whatever comes of it, `leave` must be called in the end.

        Args:
            id: Unique among all flights of the user.
            plan: Is given the loads without flight `id`, and returns what that one does from now on, or None
                when it does nothing. It may be called more than once; the last answer counts. What it raises
                is raised here, and nothing changes.
            wait: Whether to wait for other processes and threads.

        Returns:
            What `plan` returned.

        Raises:
            Busy: `wait` is false and it would have had to.
        """

    def leave(self, id: str) -> None:
        """Flight `id` has ended; nothing when there is none. Cannot fail, and may be called at any moment."""
