"""The registry's lock: which embeddings make vectors of one space, proven by texts that each has embedded.

`lm_registry.lock.json` stands beside the registry and is committed with it. It holds no secret: names,
models, addresses, and the vectors of a few fixed texts, the canaries.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct, field

from maxwell.errors import Problem, RegistryError
from maxwell.registry.endpoints import root
from maxwell.registry.files import write_atomically
from maxwell.registry.specs import EmbeddingSpec, Registry
from maxwell.registry.wording import shown

VERSION = 1

# Short, for models that read little; of several kinds, because two models may agree on one of them.
CANARIES = (
    "A cat slept on the warm stones by the harbour.",
    "def area(r): return 3.14159 * r ** 2",
    "Der Zug nach Köln fährt heute später.",
    "今日は雨です",
)

# On BERTs of 2 to 12 layers f16, bf16 and q8_0 stayed within 0.9995 of the same model in f32; q5_0 fell below
# 0.997, q4_0 below 0.98, and another model is near 0. Between the two nobody is let in: an index that was
# spoilt cannot be mended.
LEAST_COSINE = 0.999
MOST_BYTES = 64 * 1024 * 1024  # of the file; hundreds of embeddings take less
# Where one server scales its vectors to length 1 and the other does not, products cannot be compared.
MOST_STRETCH = 1.02

_NOTE = "Written by `maxwell registry lock`. Commit it with the registry."


class LockedEmbedding(Struct, frozen=True, kw_only=True):
    """One embedding as it was when it was locked.

    Attributes:
        name: The entry.
        model: Its model, as declared then.
        api_base: Its server's root.
        dimension: Length of a vector.
        space: Name of the first entry of its vector space.
        made: When its canaries were embedded, ISO 8601 in UTC.
        lengths: The length of each canary's vector.
        vectors: Each canary's vector scaled to length 1, as little-endian halves (IEEE 754 binary16).
    """

    name: str
    model: str
    api_base: str
    dimension: int
    space: str = ""
    made: str = ""
    lengths: tuple[float, ...] = ()
    vectors: tuple[bytes, ...] = ()


class Lock(Struct, frozen=True, kw_only=True):
    """What the file holds.

    Attributes:
        note: For whoever opens the file.
        version: Of this format.
        canaries: The texts.
        embeddings: Who embedded them, in registry order.
    """

    note: str = field(default=_NOTE, name="_note")
    version: int = field(default=VERSION, name="_lock_version")
    canaries: tuple[str, ...] = CANARIES
    embeddings: tuple[LockedEmbedding, ...] = ()


def lock_file(registry: Path) -> Path:
    """Where the lock of a registry file stands: `lm_registry.lock.json` beside `lm_registry.json`."""
    return registry.with_name(f"{registry.name.removesuffix('.json')}.lock.json")


def read_lock(path: Path) -> Lock | None:
    """The lock in a file; None where there is none.

    Raises:
        RegistryError: It cannot be read, or is none of ours.
    """
    try:
        seen = path.stat()
        if stat.S_ISFIFO(seen.st_mode) or seen.st_size > MOST_BYTES:  # reading it might never end
            raise _unusable(path, "is no lock: it is no file, or far too large")
        lock = msgspec.json.decode(path.read_bytes(), type=Lock)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _unusable(path, f"cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise _unusable(path, f"is no lock: {error}") from None
    if lock.version != VERSION:
        raise _unusable(path, f"is of version {lock.version}, this Maxwell knows {VERSION}")
    firsts: dict[str, LockedEmbedding] = {}
    for one in lock.embeddings:
        sizes = {len(vector) for vector in one.vectors}
        if sizes != {2 * one.dimension} or not len(one.vectors) == len(one.lengths) == len(lock.canaries):
            raise _unusable(path, f"is no lock: the vectors of {shown(one.name)} are not whole")
        first = firsts.setdefault(one.space, one)
        if first is not one and not is_same_space(first, one):  # as after a merge of two versions
            names = f"{shown(first.name)} and {shown(one.name)}"
            raise _unusable(path, f"says that {names} share a space, but records other vectors")
    return lock


def _unusable(path: Path, why: str) -> RegistryError:
    return RegistryError(str(path), [Problem("", f"{why}; make it anew with `maxwell registry lock`")])


def write_lock(path: Path, lock: Lock) -> None:
    """Replace the file whole; a symbolic link stays one, and its target is written.

    Raises:
        RegistryError: It cannot be written; the old one is untouched.
    """
    text = msgspec.json.format(msgspec.json.encode(lock), indent=2)
    try:
        write_atomically(Path(os.path.realpath(path)), text + b"\n")
    except OSError as error:
        problem = Problem("", f"cannot be written: {error.strerror or error}")
        raise RegistryError(str(path), [problem]) from None


def locked(spec: EmbeddingSpec, vectors: Sequence[Sequence[float]], made: str) -> LockedEmbedding:
    """An entry with the canaries' vectors, in no space yet.

    Raises:
        ValueError: A vector is all zeros, or too long; of such nothing can be told.
    """
    lengths = [math.hypot(*vector) for vector in vectors]
    if not all(0.0 < length < math.inf for length in lengths):
        raise ValueError(
            f"{spec.name}: its server gives a vector of zeros or without bounds; does it serve embeddings?"
        )
    return LockedEmbedding(
        name=spec.name,
        model=spec.model,
        api_base=root(spec.api_base),
        dimension=spec.dimension,
        made=made,
        lengths=tuple([float(f"{length:.6g}") for length in lengths]),
        vectors=tuple([_packed(v, length) for v, length in zip(vectors, lengths, strict=True)]),
    )


def likeness(one: LockedEmbedding, other: LockedEmbedding) -> float:
    """The least cosine of the canaries' vectors; 0 where dimension or scale differ."""
    if one.dimension != other.dimension or len(one.vectors) != len(other.vectors):
        return 0.0
    for mine, theirs in zip(one.lengths, other.lengths, strict=True):
        if max(mine, theirs) > MOST_STRETCH * min(mine, theirs):
            return 0.0
    pairs = zip(one.vectors, other.vectors, strict=True)
    return min((_cosine(_unpacked(a), _unpacked(b)) for a, b in pairs), default=0.0)


def is_same_space(one: LockedEmbedding, other: LockedEmbedding) -> bool:
    """Whether vectors of the two can be compared."""
    return likeness(one, other) >= LEAST_COSINE


def in_spaces(found: Sequence[LockedEmbedding]) -> tuple[LockedEmbedding, ...]:
    """Each with its space, named after the first of it: all of a space are pairwise the same."""
    spaces: list[list[LockedEmbedding]] = []
    for one in found:
        home = next((space for space in spaces if all(is_same_space(one, other) for other in space)), None)
        if home is None:
            spaces.append(home := [])
        home.append(msgspec.structs.replace(one, space=home[0].name if home else one.name))
    order = {one.name: i for i, one in enumerate(found)}
    return tuple(sorted((one for space in spaces for one in space), key=lambda one: order[one.name]))


def misfit(one: LockedEmbedding, spec: EmbeddingSpec) -> str:
    """In what an entry is not the one that was locked, or ""."""
    pairs = (
        ("model", one.model, spec.model),
        ("api_base", one.api_base, root(spec.api_base)),
        ("dimension", one.dimension, spec.dimension),
    )
    changed = [(key, then) for key, then, now in pairs if then != now]
    return f"had {changed[0][0]} {shown(changed[0][1])} when it was locked" if changed else ""


def misfits(lock: Lock, registry: Registry) -> list[Problem]:
    """Where the lock does not fit the registry; for what does not fit it counts for nothing."""
    recorded = {one.name: one for one in lock.embeddings}
    problems = []
    for index, spec in enumerate(registry.embeddings):
        one = recorded.pop(spec.name, None)
        words = "is not in the lock" if one is None else misfit(one, spec)
        if words:
            hint = f"{shown(spec.name)} {words}; run `maxwell registry lock`"
            problems.append(Problem(f"embeddings[{index}]", hint))
    gone = [Problem("", f"{shown(name)} is in the lock and not in the registry") for name in recorded]
    return problems + gone


def _packed(vector: Sequence[float], length: float) -> bytes:
    return struct.pack(f"<{len(vector)}e", *[x / length for x in vector])


def _unpacked(vector: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(vector) // 2}e", vector)


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    lengths = math.hypot(*one) * math.hypot(*other)
    # What a damaged file holds may be no number.
    return math.fsum(map(float.__mul__, one, other)) / lengths if 0.0 < lengths < math.inf else 0.0
