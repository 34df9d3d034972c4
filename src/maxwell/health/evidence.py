"""What is known of one endpoint, and which of two pieces of evidence counts. Pure."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from maxwell.breaker import CLOSED, Breaker, newer, phase, succeeded
from maxwell.types import BackendName, HealthState, ServedModel

FRESH_SECONDS = 30.0
CLOCK_SLACK = 5.0  # seconds; another thread may have found something out after this one asked for the time
USABLE_SECONDS = 90.0
LOADING_FRESH_SECONDS = 2.0  # a loading server may be ready any moment
# So long a failed health check does not count against a call that succeeded: a server may well be slow to
# answer /health while it generates.
TRUSTED_SECONDS = 3.0
WATCHED_SECONDS = 10.0  # two looks this close tell how long a loading took


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
    """What is known of one endpoint. Moments are in seconds since the epoch.

    Attributes:
        state: See `HealthState`.
        at: When this was found out.
        detail: What the server or the network said, for people.
        source: Whether a probe or a real call found it out.
        models: Models it says it serves; empty = not told.
        family: Server family it says it is, or "".
        version: Its version as it says, or "".
        slots: Requests it serves at once; None = not told.
        context: Context of one slot in tokens; None = not told.
        vision: Whether it takes images; None = not told.
        until: For `rate_limited`: when it may be asked again.
        seconds: How long the probe took; None for a call.
        breaker: What became of the last calls (see `maxwell.breaker`).
        since: When the state began, as far as it was watched; None = not known.
        limits: How many rate limits there were in a row, without a success in between.
        loaded_in: Seconds that the last loading took which was watched; None = none was.
        busy: Requests it said it has, everybody's; None = never told.
        own: How many of these were this user's.
        busy_at: When it said so.
        sleeps: Whether it was ever found asleep: what wakes a server also keeps it awake.
    """

    state: HealthState
    at: float
    detail: str = ""
    source: Literal["probe", "call"] = "probe"
    models: tuple[ServedModel, ...] = ()
    family: str = ""
    version: str = ""
    slots: int | None = None
    context: int | None = None
    vision: bool | None = None
    until: float | None = None
    seconds: float | None = None
    breaker: Breaker = CLOSED
    since: float | None = None
    limits: int = 0
    loaded_in: float | None = None
    busy: int | None = None
    own: int = 0
    busy_at: float | None = None
    sleeps: bool = False


NOTHING = Health(state="unknown", at=0.0)


def current(health: Health, now: float) -> Health:
    """`health` at `now`: a rate limit that has run out is over without a probe."""
    if health.state == "rate_limited" and health.until is not None and now >= health.until:
        return replace(health, state="up", detail="", until=None, since=health.until)
    return health


def is_usable(health: Health, now: float) -> bool:
    """Whether it still says anything. One from the future was written before the clock was set back."""
    if now < health.at - CLOCK_SLACK:
        return False
    if now - health.at <= USABLE_SECONDS or (health.until is not None and now < health.until):
        return True
    return phase(health.breaker, now) == "open"


def is_fresh(health: Health, now: float) -> bool:
    """Whether it needs no new probe yet."""
    if health.state == "down" and health.at < (health.breaker.until or 0.0) <= now:
        return False  # nothing but a probe can tell that the box was started again
    limit = LOADING_FRESH_SECONDS if health.state == "loading" else FRESH_SECONDS
    return -CLOCK_SLACK <= now - health.at <= limit


def merged(own: Health | None, shared: Health | None, now: float) -> Health | None:
    """What this process and the others know together: of each part what happened last."""
    if own is None or shared is None:
        return shared if own is None else own
    if shared.models == own.models:
        shared = replace(shared, models=own.models)  # the same value, so that it is quick to compare
    first, second = (shared, own) if own.at > now or own.at < shared.at <= now else (own, shared)
    breaker = newer(first.breaker, second.breaker, now)
    if (second.busy_at or 0.0) > (first.busy_at or 0.0):
        return replace(with_load_of(first, second), breaker=breaker)
    return first if breaker is first.breaker else replace(first, breaker=breaker)


def tells_more(one: Health, shared: Health) -> bool:
    """Whether `one` has an event that whoever wrote `shared` did not know: both wrote at the same moment."""
    if one.breaker.at > shared.breaker.at:
        return True
    return one.at > shared.at and one.state != shared.state


def stands(known: Health, found: Health, now: float) -> bool:
    """Whether what is known counts more than what a probe found: it is newer, or still holds."""
    if known.at > now:  # the clock was set back
        return False
    if known.source == "probe":
        return known.at > found.at
    if known.until is not None and known.at <= found.at < known.until and found.state == "up":
        return True
    return known.at > found.at - (found.seconds or 0.0)


def is_trusted(known: Health, found: Health, now: float) -> bool:
    """Whether calls succeeded until a moment ago, so that a failed probe alone must not end them."""
    if found.state != "down" or (known.state, known.source) != ("up", "call"):
        return False
    return 0 <= now - known.at < TRUSTED_SECONDS and phase(known.breaker, now) == "closed"


def supplemented(known: Health, found: Health) -> Health:
    """`known`, which stands, with what a probe learned of the server."""
    return replace(
        found,
        state=known.state,
        at=max(known.at, found.at),
        detail=known.detail,
        source=known.source,
        until=known.until,
        models=found.models or known.models,
        family=found.family or known.family,
        breaker=known.breaker,
    )


def after_success(old: Health, now: float) -> Health:
    """What is known once a real call succeeded."""
    breaker = succeeded(old.breaker, now)
    return replace(old, state="up", at=now, detail="", source="call", until=None, limits=0, breaker=breaker)


def continued(old: Health, health: Health) -> Health:
    """`health`, which follows `old`, with what stays: when its state began, how long loading takes, load."""
    same = old.state == health.state and 0 <= health.at - old.at <= USABLE_SECONDS
    if health.busy is None:
        health = with_load_of(health, old)
    return replace(
        health,
        since=old.since if same and old.since is not None else health.at,
        limits=old.limits if health.source == "probe" else health.limits,
        loaded_in=loading_ended(old, health) or old.loaded_in,
        sleeps=old.sleeps or health.state == "asleep",
    )


def with_load_of(health: Health, other: Health) -> Health:
    """`health` as busy as `other`."""
    return replace(health, busy=other.busy, own=other.own, busy_at=other.busy_at)


def loading_ended(old: Health, health: Health) -> float | None:
    """Seconds of the loading that ended with `health`; None where none did, or it was not watched closely."""
    if old.state != "loading" or old.since is None or health.state not in ("up", "asleep"):
        return None
    took, unwatched = health.at - old.since, health.at - old.at
    return took if 0 <= unwatched <= max(WATCHED_SECONDS, took / 4) else None
