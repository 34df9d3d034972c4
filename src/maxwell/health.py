"""The state of each endpoint, owned here: in memory, and in small files that all of a user's processes share.

A state is *fresh* for 30 seconds and *usable* until 90; after that it counts as unknown. What a real call
met outranks what a probe saw, both ways, because the call is the thing that matters.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from maxwell.clock import Clock
from maxwell.errors import Fault
from maxwell.registry.files import write_atomically
from maxwell.types import BackendName, HealthState, ServedModel

FRESH_SECONDS = 30.0
USABLE_SECONDS = 90.0
# A call's success renews the state in memory at once, on disk at most this often.
REWRITE_SECONDS = 10.0
RATE_LIMIT_SECONDS = 5.0  # assumed pause after a 429 without Retry-After


class Endpoint(Struct, frozen=True, cache_hash=True):
    """One server as one user sees it: several entries may share it. `repr` hides the key.

    Attributes:
        root: Root URL, without `/v1`.
        backend: Server family as declared; None = to be found out.
        key: API key sent to it, or None.
    """

    root: str
    backend: BackendName | None = None
    key: str | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.root})"

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must never be shown of it."""
        return () if self.key is None else (self.key,)

    @property
    def file_name(self) -> str:
        """Name of its shared state file: a digest, so that neither URL nor key can be read from it."""
        import hashlib  # only where states are shared

        text = f"{self.root}\0{self.backend or ''}\0{self.key or ''}"
        return hashlib.sha256(text.encode()).hexdigest()[:32] + ".json"


class Health(Struct, frozen=True, kw_only=True):
    """What is known of one endpoint.

    Attributes:
        state: See `HealthState`.
        at: When this was found out, in seconds since the epoch.
        detail: What the server or the network said, for people.
        source: Whether a probe or a real call found it out.
        models: Models it says it serves; empty = not told.
        family: Server family it says it is, or "".
        slots: Requests it serves at once; None = not told.
        context: Context of one slot in tokens; None = not told.
        vision: Whether it takes images; None = not told.
        until: For `rate_limited`: when it may be asked again, in seconds since the epoch.
        seconds: How long the probe took; None for a call.
    """

    state: HealthState
    at: float
    detail: str = ""
    source: Literal["probe", "call"] = "probe"
    models: tuple[ServedModel, ...] = ()
    family: str = ""
    slots: int | None = None
    context: int | None = None
    vision: bool | None = None
    until: float | None = None
    seconds: float | None = None


_decoder = msgspec.json.Decoder(Health)


class HealthBook:
    """Remembers every endpoint's state, in memory and in `directory`.

    Args:
        directory: Where the shared files live; None keeps everything in memory. A directory that cannot be
            written is no error: the states are then known to this process alone.
        clock: Tells the time.
    """

    def __init__(self, directory: Path | None, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        # Single assignments only, which are atomic: no lock, so none can be held across a fork.
        self._known: dict[Endpoint, Health] = {}
        self._written: dict[Endpoint, float] = {}
        self._claims: dict[tuple[int, Endpoint], threading.Lock] = {}

    def get(self, endpoint: Endpoint, now: float) -> Health | None:
        """The state at `now`, or None when nothing usable is known.

        No network; reads a file when memory is not fresh.
        """
        known = self._known.get(endpoint)
        if known is not None and 0 <= now - known.at <= FRESH_SECONDS:
            return _current(known, now)
        if known is not None and not _is_usable(known, now):
            known = None
        shared = self._read(endpoint)
        if shared is not None and _is_usable(shared, now) and (known is None or shared.at > known.at):
            self._known[endpoint] = known = shared
        return None if known is None else _current(known, now)

    def is_fresh(self, health: Health) -> bool:
        """Whether `health` needs no new probe yet."""
        return 0 <= self._clock.time() - health.at <= FRESH_SECONDS

    def put(self, endpoint: Endpoint, health: Health) -> None:
        """Record what a probe found out, for all processes.

        What a real call met while the probe was under way stands, and so does a rate limit that still
        holds; the probe then adds what it learned of the server.
        """
        known = self._known.get(endpoint)
        if known is not None and known.source == "call" and _outranks(known, health):
            health = msgspec.structs.replace(
                health,
                state=known.state,
                at=max(known.at, health.at),
                detail=known.detail,
                source="call",
                until=known.until,
                models=health.models or known.models,
                family=health.family or known.family,
            )
        self._record(endpoint, health)

    def _record(self, endpoint: Endpoint, health: Health) -> None:
        self._known[endpoint] = health
        self._written[endpoint] = health.at
        if self._directory is None:
            return
        path = self._directory / endpoint.file_name
        with contextlib.suppress(OSError):  # full or read-only disk: this process still knows
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(path, msgspec.json.encode(health), mode=0o600, durable=False)

    def note_success(self, endpoint: Endpoint) -> None:
        """A real call just succeeded: whatever a probe said, the endpoint is up."""
        now = self._clock.time()
        old = self._known.get(endpoint)
        if old is None:
            health = Health(state="up", at=now, source="call")
        else:
            health = msgspec.structs.replace(old, state="up", at=now, detail="", source="call", until=None)
        self._known[endpoint] = health
        written = self._written.get(endpoint, 0.0)
        if old is None or old.state != "up" or not 0 <= now - written <= REWRITE_SECONDS:
            self._record(endpoint, health)

    def note_fault(
        self, endpoint: Endpoint, kind: Fault, detail: str, retry_after: float | None = None
    ) -> None:
        """A real call just failed. Faults of the request itself say nothing about the endpoint."""
        state = _STATE_AFTER.get(kind)
        if state is None:
            return
        now = self._clock.time()
        until = now + (RATE_LIMIT_SECONDS if retry_after is None else retry_after)
        old = self._known.get(endpoint) or Health(state=state, at=now)
        self._record(
            endpoint,
            msgspec.structs.replace(
                old,
                state=state,
                at=now,
                detail=detail,
                source="call",
                until=until if state == "rate_limited" else None,
            ),
        )

    def claim(self, endpoint: Endpoint) -> contextlib.AbstractContextManager[object] | None:
        """The right to probe `endpoint`, or None while any thread or process of this user has it.

        The operating system gives it back when its holder dies.
        """
        if self._directory is None:
            return self._claim_here(endpoint)
        import filelock

        lock = filelock.FileLock(
            self._directory / (endpoint.file_name + ".lock"), timeout=0, thread_local=False
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            return None
        except OSError:  # a home that cannot be written: this process alone can keep order
            return self._claim_here(endpoint)
        return _Held(lock)

    def _claim_here(self, endpoint: Endpoint) -> contextlib.AbstractContextManager[object] | None:
        # A forked child has locks of its own: threads that hold its parent's are not there to release them.
        lock = self._claims.setdefault((os.getpid(), endpoint), threading.Lock())
        return _Held(lock) if lock.acquire(blocking=False) else None

    def _read(self, endpoint: Endpoint) -> Health | None:
        if self._directory is None:
            return None
        try:
            return _decoder.decode((self._directory / endpoint.file_name).read_bytes())
        except (OSError, ValueError, msgspec.MsgspecError):  # absent or damaged: not known
            return None


def _current(health: Health, now: float) -> Health:
    """A rate limit that has run out is over without a probe."""
    if health.state == "rate_limited" and health.until is not None and now >= health.until:
        return msgspec.structs.replace(health, state="up", detail="", until=None)
    return health


def _is_usable(health: Health, now: float) -> bool:
    """Whether it still says anything. One from the future was written before the clock was set back."""
    if now < health.at:
        return False
    return now - health.at <= USABLE_SECONDS or (health.until is not None and now < health.until)


def _outranks(called: Health, probed: Health) -> bool:
    """Whether what a call met counts more than what a probe found: it is newer, or still holds."""
    if called.until is not None and called.at <= probed.at < called.until and probed.state == "up":
        return True
    return probed.at - (probed.seconds or 0.0) < called.at <= probed.at


class _Held:
    """A claimed endpoint; leaving the block gives it back."""

    def __init__(self, lock: object) -> None:
        self._lock = lock

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self._lock.release()  # type: ignore[attr-defined]


# What a failed call says about the endpoint. Anything not listed says nothing about it.
_STATE_AFTER: dict[Fault, HealthState] = {
    "refused": "down",
    "loading": "loading",
    "rate_limited": "rate_limited",
    "quota": "misconfigured",
    "auth": "misconfigured",
}
