"""The state of each endpoint, owned here: in memory, and in small files that all of a user's processes share.

A state is *fresh* for 30 seconds and *usable* until 90; after that it counts as unknown. What a real call
met outranks what a probe saw, both ways, because the call is the thing that matters.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
from msgspec import Struct

from maxwell.clock import Clock
from maxwell.errors import Fault
from maxwell.types import BackendName, HealthState, ServedModel

if TYPE_CHECKING:
    from collections.abc import Iterable

FRESH_SECONDS = 30.0
USABLE_SECONDS = 90.0
# A call's success renews the state in memory at once, on disk at most this often.
REWRITE_SECONDS = 10.0
RATE_LIMIT_SECONDS = 5.0  # assumed pause after a 429 without Retry-After


class Endpoint(Struct, frozen=True):
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

    def get(self, endpoint: Endpoint, now: float) -> Health | None:
        """The state at `now`, or None when nothing usable is known.

        No network; reads a file when memory is not fresh.
        """
        known = self._known.get(endpoint)
        if known is not None and 0 <= now - known.at <= FRESH_SECONDS:
            return self._current(known, now)
        shared = self._read(endpoint)
        if shared is not None and (known is None or shared.at > known.at):
            self._known[endpoint] = known = shared
        if known is None or not 0 <= now - known.at <= USABLE_SECONDS:
            return None
        return self._current(known, now)

    def is_fresh(self, health: Health) -> bool:
        """Whether `health` needs no new probe yet."""
        return 0 <= self._clock.time() - health.at <= FRESH_SECONDS

    @staticmethod
    def _current(health: Health, now: float) -> Health:
        """A rate limit that has run out is over without a probe."""
        if health.state == "rate_limited" and health.until is not None and now >= health.until:
            return msgspec.structs.replace(health, state="up", detail="", until=None)
        return health

    def put(self, endpoint: Endpoint, health: Health) -> None:
        """Record what was found out, for all processes."""
        self._known[endpoint] = health
        self._written[endpoint] = health.at
        self._write(endpoint, health)

    def note_success(self, endpoint: Endpoint) -> None:
        """A real call just succeeded: whatever a probe said, the endpoint is up."""
        now = self._clock.time()
        old = self._known.get(endpoint)
        if old is None:
            health = Health(state="up", at=now, source="call")
        else:
            health = msgspec.structs.replace(old, state="up", at=now, detail="", source="call", until=None)
        self._known[endpoint] = health
        if old is None or old.state != "up" or now - self._written.get(endpoint, 0.0) > REWRITE_SECONDS:
            self.put(endpoint, health)

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
        self.put(
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
            return contextlib.nullcontext()
        import filelock

        lock = filelock.FileLock(
            self._directory / (endpoint.file_name + ".lock"), timeout=0, thread_local=False
        )
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            return None
        except OSError:  # a home that cannot be written: probing twice is better than not at all
            return contextlib.nullcontext()
        return _Held(lock)

    def endpoints(self) -> Iterable[tuple[Endpoint, Health]]:
        """Everything known to this process."""
        return list(self._known.items())

    def _read(self, endpoint: Endpoint) -> Health | None:
        if self._directory is None:
            return None
        try:
            return _decoder.decode((self._directory / endpoint.file_name).read_bytes())
        except (OSError, msgspec.DecodeError):  # absent, half-written by an older version: not known
            return None

    def _write(self, endpoint: Endpoint, health: Health) -> None:
        if self._directory is None:
            return
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(health))
            Path(temporary).replace(self._directory / endpoint.file_name)
        except OSError:  # full or read-only disk: this process still knows
            return


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
