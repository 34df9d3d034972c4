"""What the registry's lock is made of: the vectors that each embedding makes of the canaries, now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from msgspec import Struct

from maxwell.calls.effects import Flow
from maxwell.calls.embed import embed
from maxwell.calls.entries import Entry
from maxwell.calls.select import choose_embedding
from maxwell.calls.state import PoolState
from maxwell.errors import MaxwellError
from maxwell.registry.lock import CANARIES, LockedEmbedding, locked
from maxwell.registry.specs import EmbeddingSpec

# Told before each entry: its name, how many were asked before it, how many there are.
Progress = Callable[[str, int, int], None]


class Canaries(Struct, frozen=True):
    """What one embedding made of the canaries.

    Attributes:
        name: The entry.
        found: Its vectors, in no space yet; None where it could not be asked.
        problem: Why not, or "".
    """

    name: str
    found: LockedEmbedding | None = None
    problem: str = ""


def embed_canaries(
    state: PoolState, texts: Sequence[str] = CANARIES, progress: Progress | None = None
) -> Flow[list[Canaries]]:
    """Have every embedding of the registry embed the canaries, one after another; booked like any call."""
    shown = []
    for done, entry in enumerate(state.embeddings):
        if progress is not None:
            progress(entry.spec.name, done, len(state.embeddings))
        shown.append((yield from _canaries(state, entry, texts)))
    return shown


def _canaries(state: PoolState, entry: Entry, texts: Sequence[str]) -> Flow[Canaries]:
    spec, name = entry.spec, entry.spec.name
    assert isinstance(spec, EmbeddingSpec)
    made = datetime.fromtimestamp(state.clock.time(), UTC).isoformat(timespec="seconds")
    try:
        yield from choose_embedding(state, name)
        # Without `spaces`: whatever was recorded before.
        vectors = yield from embed(state, entry, texts, asked=name)
        return Canaries(name, locked(spec, vectors, made))
    except (MaxwellError, ValueError) as error:
        words = str(error).removeprefix("no embedding can be chosen: ").removeprefix(f"{name}: ")
        return Canaries(name, problem=words)
