"""What others than this user's processes on this machine do at the servers, as these tell now and then."""

from __future__ import annotations

from collections import deque

from maxwell.calls.moment import NO_OTHERS, Others
from maxwell.health import Health
from maxwell.queueing import dispatchers, stale_count

MOST_SENT = 256  # requests to one server that are remembered
FADING = 0.98  # of what servers told counts one answer later
OTHERS_SEND = 1.5  # senders, from which there are surely others


class Outside:
    """Keeps what was sent to each server since it was last asked how busy it is."""

    def __init__(self) -> None:
        self._asked: dict[str, float] = {}  # when it was last asked
        self._sent: dict[str, deque[float]] = {}  # when requests went to it
        self._busy = self._own = 0.0  # requests of everybody, and of us, that servers told; older ones fade

    def sent(self, root: str, now: float) -> None:
        """A request goes to that server."""
        self._sent.setdefault(root, deque(maxlen=MOST_SENT)).append(now)

    def at(self, root: str, health: Health, slots: int | None, service: float, now: float) -> Others:
        """Who else is probably at that server now."""
        if health.busy is None or health.busy_at is None:
            return NO_OTHERS
        if self._asked.get(root) != health.busy_at:
            self._busy = FADING * self._busy + health.busy
            self._own = FADING * self._own + health.own
            self._asked[root] = health.busy_at
        theirs, senders = max(health.busy - health.own, 0), self._dispatchers()
        if not theirs and senders < OTHERS_SEND:
            return NO_OTHERS
        # Where others send work, a server that was idle when it was asked is no safer guess than a busy one.
        age = max(now - health.busy_at, 0.0)
        # What was sent longer ago than a request usually takes has ended, here and at the others.
        since = max(health.busy_at, now - service)
        sent = sum([at >= since for at in tuple(self._sent.get(root, ()))])
        return Others(stale_count(theirs, age, slots, service, sent, senders), age)

    def _dispatchers(self) -> float:
        """How many send work as this one does, by what all servers told together."""
        return dispatchers(self._busy, max(self._own, 1.0))
