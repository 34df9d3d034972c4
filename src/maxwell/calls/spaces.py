"""Vector spaces: which embeddings may stand in for each other, and whether their servers still show it.

What the registry's lock records is proved at the first use of an entry in a process, and again after a
while, after a failure, and when its server lists other models: a model that was swapped behind a name would
fill an index with vectors that nothing in it can be compared with.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from maxwell.calls.entries import Entry
from maxwell.clock import Clock
from maxwell.errors import BackendError, RegistryError, VectorSpaceChanged
from maxwell.health import Health
from maxwell.registry.lock import (
    LEAST_COSINE,
    Lock,
    LockedEmbedding,
    likeness,
    lock_file,
    locked,
    misfit,
    read_lock,
)
from maxwell.registry.specs import EmbeddingSpec

log = logging.getLogger("maxwell")

PROVEN_SECONDS = 600.0  # after which an entry is asked again; one request of a few dozen tokens
REFUSED_SECONDS = 60.0  # for which an entry of the wrong vectors is not thought of as another's substitute

_Stamp = tuple[int, int, int]
_UNSEEN: _Stamp = (0, 0, 0)


class _Proof(NamedTuple):
    """When an entry's vectors were last seen to be right, and what its server listed then."""

    at: float
    models: frozenset[str]


class _Locked(NamedTuple):
    """A lock as it was read, with the records that fit the registry, by name."""

    stamp: _Stamp | None
    canaries: tuple[str, ...] = ()
    records: Mapping[str, LockedEmbedding] = MappingProxyType({})


class Spaces:
    """The vector spaces of one registry, by the lock beside it. Safe from any thread.

    Args:
        registry: The registry's file; None = it has no lock.
        embeddings: Its embeddings.
        clock: Tells how much time has passed.
    """

    def __init__(self, registry: Path | None, embeddings: Sequence[Entry], clock: Clock) -> None:
        self._file = None if registry is None else lock_file(registry)
        self._embeddings = embeddings
        self._clock = clock
        self._read = _Locked(None)
        self._proofs: dict[str, _Proof] = {}
        self._refused: dict[str, float] = {}
        self._proving: dict[str, object] = {}
        self._failures: dict[str, tuple[float, BackendError]] = {}

    @property
    def canaries(self) -> tuple[str, ...]:
        """The texts that prove a space."""
        return self._now().canaries

    def recorded(self, entry: Entry) -> LockedEmbedding | None:
        """What the lock records of the entry; None where it does not, or of another model, server or size."""
        return self._now().records.get(entry.spec.name)

    def others(self, entry: Entry) -> list[Entry]:
        """Who is recorded to make vectors of the same space, in registry order."""
        records = self._now().records
        one = records.get(entry.spec.name)
        if one is None:
            return []
        return [e for e in self._embeddings if e is not entry and _space(records, e) == one.space]

    def one_space(self, entries: Sequence[Entry]) -> tuple[list[Entry], list[Entry]]:
        """Those of the first entry's space, and the rest; all are as one where the lock does not know it."""
        records = self._now().records
        space = _space(records, entries[0])
        mine = [e for e in entries if space is None or _space(records, e) == space]
        return mine, [e for e in entries if e not in mine]

    # --- proofs

    def must_prove(self, entry: Entry, health: Health | None) -> bool:
        """Whether the entry's vectors have to be looked at before they are used."""
        if self.recorded(entry) is None:
            return False
        proof = self._proofs.get(entry.spec.name)
        if proof is None or not 0.0 <= self._clock.monotonic() - proof.at < PROVEN_SECONDS:
            return True
        return bool(health is not None and health.models and _listed(health) != proof.models)

    def compare(self, entry: Entry, vectors: Sequence[Sequence[float]], health: Health | None) -> None:
        """Keep that the entry is proved. Raises `VectorSpaceChanged` where its vectors are others."""
        one = self.recorded(entry)
        if one is None:  # the lock was taken away meanwhile
            return
        assert isinstance(entry.spec, EmbeddingSpec)
        try:
            alike = likeness(one, locked(entry.spec, vectors, ""))
        except ValueError:  # zeros, or beyond all bounds
            alike = 0.0
        if alike < LEAST_COSINE:
            raise self.refuse(entry, f"cosine {alike:.4f}, at least {LEAST_COSINE} was expected")
        self._refused.pop(entry.spec.name, None)
        models = frozenset[str]() if health is None else _listed(health)
        self._proofs[entry.spec.name] = _Proof(self._clock.monotonic(), models)

    def refuse(self, entry: Entry, detail: str) -> VectorSpaceChanged:
        """The error for an entry whose vectors are wrong; it is no substitute for a while."""
        name = entry.spec.name
        error = VectorSpaceChanged(name, detail)
        self._refused[name] = self._clock.monotonic()
        self._proofs.pop(name, None)
        log.warning("%s", error)
        return error

    def forget(self, entry: Entry) -> None:
        """Its server has failed: it may come back with another model."""
        self._proofs.pop(entry.spec.name, None)

    def is_refused(self, entry: Entry) -> bool:
        """Whether its vectors were wrong a short while ago."""
        at = self._refused.get(entry.spec.name)
        return at is not None and 0.0 <= self._clock.monotonic() - at < REFUSED_SECONDS

    def begin(self, entry: Entry, mark: object) -> bool:
        """Whether the call with that mark is to prove the entry; else another one is at it."""
        return self._proving.setdefault(_here(entry), mark) is mark

    def end(self, entry: Entry) -> None:
        """It has been proved, or not."""
        self._proving.pop(_here(entry), None)

    def note_failure(self, entry: Entry, error: BackendError) -> None:
        """Keep why its vectors could not be looked at, for calls that wait for that."""
        self._failures[_here(entry)] = (self._clock.monotonic(), error)

    def failure(self, entry: Entry, since: float) -> BackendError | None:
        """A failure to look at its vectors after `since`, as an exception of the caller's own."""
        at, error = self._failures.get(_here(entry), (since, None))
        if error is None or at <= since:
            return None
        mine = type(error).__new__(type(error), *error.args)
        mine.__dict__.update(vars(error))
        return mine

    # --- the file

    def _now(self) -> _Locked:
        """What the lock on the disk says now."""
        stamp = None if self._file is None else _stamp(self._file)
        if self._read.stamp != stamp:
            lock = None if self._file is None else _loaded(self._file)
            self._read = _Locked(stamp, lock.canaries, self._fitting(lock)) if lock else _Locked(stamp)
            self._proofs.clear()
            self._refused.clear()
        return self._read

    def _fitting(self, lock: Lock) -> dict[str, LockedEmbedding]:
        """The records of entries that are still what they were."""
        records = {one.name: one for one in lock.embeddings}
        found = {}
        for entry in self._embeddings:
            one = records.get(entry.spec.name)
            assert isinstance(entry.spec, EmbeddingSpec)
            if one is not None and not misfit(one, entry.spec):
                found[one.name] = one
        return found


def _stamp(file: Path) -> _Stamp | None:
    """What changes when the file does; None where there is none."""
    try:
        seen = file.stat()
    except FileNotFoundError:
        return None
    except OSError:  # reading it will say why
        return _UNSEEN
    return seen.st_mtime_ns, seen.st_size, seen.st_ino


def _loaded(file: Path) -> Lock | None:
    try:
        return read_lock(file)
    except RegistryError as error:
        log.warning("%s; until then no embedding stands in for another", error)
        return None


def _space(records: Mapping[str, LockedEmbedding], entry: Entry) -> str | None:
    one = records.get(entry.spec.name)
    return None if one is None else one.space


def _here(entry: Entry) -> str:
    """The entry in this process: in a forked child nobody goes on with what the parent has begun."""
    return f"{os.getpid()} {entry.spec.name}"


def _listed(health: Health) -> frozenset[str]:
    return frozenset([model.id for model in health.models])
