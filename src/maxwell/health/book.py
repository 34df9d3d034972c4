"""The book of states: in memory, and in small files that all of a user's processes share."""

from __future__ import annotations

import contextlib
import os
import random as chance
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from maxwell.breaker import Breaker, answered, came_back, failed, phase
from maxwell.clock import Clock
from maxwell.errors import Fault
from maxwell.health.evidence import (
    NOTHING,
    Endpoint,
    Health,
    after_success,
    continued,
    current,
    is_fresh,
    is_trusted,
    is_usable,
    loading_ended,
    merged,
    stands,
    supplemented,
    tells_more,
)
from maxwell.registry.files import write_atomically
from maxwell.types import HealthState

# A call's success renews the state in memory at once, on disk at most this often.
REWRITE_SECONDS = 10.0
# Assumed pause after a 429 without Retry-After; doubled each time that it proves too short.
RATE_LIMIT_SECONDS, MOST_RATE_LIMIT_SECONDS = 5.0, 15.0
LOOK_SECONDS = 0.2  # between two looks for what other processes found out
TICK_SECONDS = 0.1  # file systems tell times no finer than this

# What a failed call says about the endpoint.
_STATE_AFTER: dict[Fault, HealthState] = {
    "refused": "down",
    "loading": "loading",
    "rate_limited": "rate_limited",
    "quota": "misconfigured",
    "auth": "misconfigured",
}

# Failures that may pass with the next request, and say that the endpoint is ill when they do not. All others
# are the request's own.
_OF_SERVER: frozenset[Fault] = frozenset(
    ("timeout", "server_error", "overloaded", "bad_reply", "broken_stream")
)

_decoder = msgspec.json.Decoder(Health)


class HealthBook:
    """Remembers every endpoint's state, in memory and in `directory`.

    Args:
        directory: Where the shared files live; None keeps everything in memory. A directory that cannot be
            written is no error: the states are then known to this process alone.
        clock: Tells the time.
        random: Chance in [0, 1), for how long breakers stay open.

    Attributes:
        own: How many requests of this user the server with that root URL has; set by whoever counts them.
    """

    def __init__(
        self, directory: Path | None, clock: Clock, *, random: Callable[[], float] = chance.random
    ) -> None:
        self._directory = directory
        self._clock = clock
        self._random = random
        self.own: Callable[[str], int] = _uncounted
        # Single assignments only, which are atomic: no lock, so none can be held across a fork.
        self._known: dict[Endpoint, Health | None] = {}
        self._written: dict[Endpoint, float] = {}
        self._claims: dict[tuple[int, Endpoint], threading.Lock] = {}
        self._looked = float("-inf")
        self._changed: int | None = None  # when the directory changed last, by its own account
        self._noticed: float | None = None  # when that was noticed; None = long enough ago

    def get(self, endpoint: Endpoint, now: float) -> Health | None:
        """The state at `now`, or None when nothing usable is known.

        No network. What other processes found out is at most 0.2 s late.
        """
        if not 0.0 <= now - self._looked < LOOK_SECONDS:
            self.look(now)
        known = self._latest(endpoint)
        if known is None or not is_usable(known, now):
            return None
        return current(known, now)

    def is_fresh(self, health: Health) -> bool:
        """Whether `health` needs no new probe yet."""
        return is_fresh(health, self._clock.time())

    def sleeps(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint was ever found asleep."""
        known = self._latest(endpoint)
        return known is not None and known.sleeps

    # --- what other processes find out

    def look(self, now: float) -> None:
        """Take over what other processes found out until `now`, and tell them what they missed."""
        self._looked = now
        if not self._has_news(now):
            return
        for endpoint in list(self._known):
            shared = self._read(endpoint)
            # Only now: another thread may have found something out while the file was read.
            both = self._known[endpoint] = merged(self._known.get(endpoint), shared, now)
            if both is not None and shared is not None and tells_more(both, shared):
                self._record(endpoint, both)

    def _has_news(self, now: float) -> bool:
        """Whether a file of the directory was replaced since the last look."""
        if self._directory is None:
            return False
        try:
            changed = os.stat(self._directory).st_mtime_ns  # noqa: PTH116 - Path.stat takes twice as long
        except OSError:
            return False
        if changed != self._changed:
            self._changed, self._noticed = changed, now
            return True
        if self._noticed is None:
            return False
        if abs(now - self._noticed) > TICK_SECONDS:
            self._noticed = None  # the next change will have another time
        return True

    # --- what probes find out

    def put(self, endpoint: Endpoint, health: Health) -> float | None:
        """Record what a probe found out, for all processes.

        What a real call met while the probe was under way stands, and so does a rate limit that still
        holds; the probe then adds what it learned of the server. A failed probe says nothing against calls
        that succeeded until a moment ago.

        Returns:
            Seconds of the loading that ended with it; None where none did, or it was not watched closely.
        """
        now = self._clock.time()
        known = self._all_known(endpoint, now)
        if is_trusted(known, health, now):
            return None
        if stands(known, health, now):
            health = supplemented(known, health)
        else:
            breaker = self._breaker_after_probe(known.breaker, health.state, now)
            failing = phase(breaker, now) != "closed"
            detail = known.detail if failing and not health.detail else health.detail
            health = replace(health, breaker=breaker, detail=detail)
        health = continued(known, health)
        self._record(endpoint, health)
        return loading_ended(known, health)

    def _breaker_after_probe(self, breaker: Breaker, state: HealthState, now: float) -> Breaker:
        """A probe moves only a breaker that refused connections have opened: it tells if there are any."""
        if state == "down":
            again = breaker.refused and phase(breaker, now) == "half_open"
            return failed(breaker, now, refused=True, draw=self._random()) if again else breaker
        return came_back(breaker, now)

    # --- what calls find out

    def note_success(self, endpoint: Endpoint) -> float | None:
        """A real call just succeeded: whatever a probe said, the endpoint is up.

        Returns:
            Seconds of the loading that ended with it; None where none did, or it was not watched closely.
        """
        now = self._clock.time()
        if not 0.0 <= now - self._looked < LOOK_SECONDS:
            self.look(now)
        old = self._latest(endpoint) or NOTHING
        health = after_success(old, now)
        due = not 0.0 <= now - self._written.get(endpoint, 0.0) <= REWRITE_SECONDS
        if old.state == "up" and health.breaker.at == old.breaker.at and not due:
            self._known[endpoint] = health
            return None
        old = self._all_known(endpoint, now)
        health = continued(old, after_success(old, now))
        self._record(endpoint, health)
        return loading_ended(old, health)

    def note_fault(
        self,
        endpoint: Endpoint,
        kind: Fault,
        detail: str,
        retry_after: float | None = None,
        *,
        at_once: bool = False,
    ) -> None:
        """A real call just failed. Faults of the request itself say only that the endpoint answers.

        Args:
            endpoint: Who was asked.
            kind: What went wrong.
            detail: That in words, without secrets.
            retry_after: Seconds the server asks to wait.
            at_once: One failure of this kind opens the breaker: the server fell silent.
        """
        now = self._clock.time()
        old = self._all_known(endpoint, now)
        if kind == "overloaded" and retry_after is not None:
            kind = "rate_limited"
        breaker = self._breaker_after(old.breaker, kind, now, at_once)
        state = _STATE_AFTER.get(kind)
        if state is not None:
            limits = old.limits
            if state == "rate_limited" and not (old.until is not None and now < old.until):
                limits += 1  # calls that were refused together count as one
            assumed = min(RATE_LIMIT_SECONDS * 2.0 ** (limits - 1), MOST_RATE_LIMIT_SECONDS)
            wait = assumed if retry_after is None else retry_after
            health = replace(
                old,
                state=state,
                at=now,
                detail=detail,
                source="call",
                until=now + wait if state == "rate_limited" else None,
                limits=limits,
                breaker=breaker,
            )
            self._record(endpoint, continued(old, health))
        elif breaker is not old.breaker:
            words = detail if phase(breaker, now) == "open" else old.detail
            self._record(endpoint, replace(old, breaker=breaker, detail=words))

    def _breaker_after(self, breaker: Breaker, kind: Fault, now: float, at_once: bool) -> Breaker:
        if kind == "refused":
            return failed(breaker, now, refused=True, draw=self._random())
        if kind in _OF_SERVER:
            return failed(breaker, now, at_once=at_once, draw=self._random())
        if kind == "loading":
            return came_back(breaker, now)
        return breaker if kind in _STATE_AFTER else answered(breaker, now)

    # --- memory and files

    def _latest(self, endpoint: Endpoint) -> Health | None:
        """What was known last, however long ago."""
        try:
            return self._known[endpoint]
        except KeyError:
            known = self._known[endpoint] = self._read(endpoint)
            return known

    def _all_known(self, endpoint: Endpoint, now: float) -> Health:
        """What this process and the others know, to the last moment."""
        return merged(self._latest(endpoint), self._read(endpoint), now) or NOTHING

    def _read(self, endpoint: Endpoint) -> Health | None:
        if self._directory is None:
            return None
        try:
            return _decoder.decode((self._directory / endpoint.file_name).read_bytes())
        except (OSError, ValueError, msgspec.MsgspecError):  # absent or damaged: not known
            return None

    def _record(self, endpoint: Endpoint, health: Health) -> None:
        self._known[endpoint] = health
        self._written[endpoint] = self._clock.time()
        if self._directory is None:
            return
        path = self._directory / endpoint.file_name
        with contextlib.suppress(OSError):  # full or read-only disk: this process still knows
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(health), mode=0o600, durable=False)

    # --- one probe at a time

    def claim(self, endpoint: Endpoint) -> contextlib.AbstractContextManager[object] | None:
        """The right to probe `endpoint`, or None while any thread or process of this user has it.

        The operating system gives it back when its holder dies.
        """
        here = self._claim_here(endpoint)  # first: a crowd of one process must not crowd at the file
        if here is None or self._directory is None:
            return here
        import filelock

        lock = filelock.FileLock(
            self._directory / (endpoint.file_name + ".lock"), timeout=0, thread_local=False
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            here.release()
            return None
        except OSError:  # a home that cannot be written: this process alone can keep order
            return here
        except BaseException:
            here.release()
            raise
        return _Held(lock, here)

    def _claim_here(self, endpoint: Endpoint) -> _Held | None:
        # A forked child has locks of its own: threads that hold its parent's are not there to release them.
        lock = self._claims.setdefault((os.getpid(), endpoint), threading.Lock())
        return _Held(lock) if lock.acquire(blocking=False) else None


def _uncounted(root: str) -> int:
    return 0


class _Held:
    """A claimed endpoint; leaving the block gives it back."""

    def __init__(self, lock: Any, here: _Held | None = None) -> None:
        self._lock = lock
        self._here = here

    def release(self) -> None:
        """Give it back."""
        self._lock.release()
        if self._here is not None:
            self._here.release()

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()
