"""What others than this user's processes on this machine do at the servers, as these tell now and then."""

from __future__ import annotations

from maxwell.calls.moment import NO_OTHERS, Others
from maxwell.health import Health
from maxwell.queueing import dispatchers, stale_count


class Outside:
    """Keeps what was sent to each server since it was last asked how busy it is."""

    def __init__(self) -> None:
        # Single assignments only: threads may lose a count, and none outlasts a health check.
        self._sent: dict[str, tuple[float, int]] = {}
        # By server: requests of everybody, and of us, when it was asked.
        self._seen: dict[
            str, tuple[int, int]
        ] = {}

    def sent(self, root: str) -> None:
        """A request goes to that server."""
        at, count = self._sent.get(root, (0.0, 0))
        self._sent[root] = (at, count + 1)

    def at(self, root: str, health: Health, slots: int | None, service: float, now: float) -> Others:
        """Who else is probably at that server now."""
        if health.busy is None or health.busy_at is None:
            return NO_OTHERS
        at, sent = self._sent.get(root, (0.0, 0))
        if at != health.busy_at:
            self._seen[root] = (health.busy, health.own)
            self._sent[root], sent = (health.busy_at, 0), 0
        theirs = health.busy - health.own
        if theirs <= 0:
            return NO_OTHERS
        age = max(now - health.busy_at, 0.0)
        return Others(stale_count(theirs, age, slots, service, sent, self._dispatchers()), age)

    def _dispatchers(self) -> float:
        """How many send work as this one does, by what all servers told together."""
        seen = list(self._seen.values())
        return dispatchers(sum(busy for busy, _ in seen), max(sum(own for _, own in seen), 1))
