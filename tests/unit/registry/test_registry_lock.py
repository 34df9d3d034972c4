"""The lock: what it says of vectors, how it is kept, when it no longer fits."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from maxwell.errors import RegistryError
from maxwell.registry import EmbeddingSpec, Registry, advise
from maxwell.registry.lock import (
    CANARIES,
    LEAST_COSINE,
    Lock,
    LockedEmbedding,
    in_spaces,
    is_same_space,
    likeness,
    lock_file,
    locked,
    misfit,
    misfits,
    read_lock,
    write_lock,
)

DIMENSION = 32
MADE = "2026-11-23T09:00:00+00:00"


def spec(name: str = "e", **fields: Any) -> EmbeddingSpec:
    fixed: dict[str, Any] = {"api_base": "http://box:1/v1", "model": "m", "dimension": DIMENSION}
    return EmbeddingSpec(name=name, max_context=512, **(fixed | fields))


def vectors(seed: int, dimension: int = DIMENSION) -> list[list[float]]:
    draw = random.Random(seed)
    return [[draw.gauss(0, 1) for _ in range(dimension)] for _ in CANARIES]


def shaken(found: list[list[float]], by: float, seed: int = 0) -> list[list[float]]:
    """The same with noise of so much of each vector's length."""
    draw = random.Random(seed)
    scale = by / math.sqrt(DIMENSION)
    return [[x + draw.gauss(0, 1) * scale * math.hypot(*v) for x in v] for v in found]


def unit(vector: list[float]) -> list[float]:
    return [x / math.hypot(*vector) for x in vector]


def of(found: list[list[float]], name: str = "e") -> LockedEmbedding:
    return locked(spec(name, dimension=len(found[0])), found, MADE)


@given(st.integers(0, 1000), st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=30)
def test_rounding_loses_nothing_that_counts(seed: int, scale: float) -> None:
    found = [[scale * x for x in v] for v in vectors(seed)]
    one = of(found)
    assert likeness(one, one) == pytest.approx(1.0, abs=1e-6)
    again = msgspec_round_trip(one)
    assert again == one
    assert likeness(one, of(shaken(found, 0.01))) > LEAST_COSINE  # as much as eight bits a weight do
    assert likeness(one, of(shaken(found, 0.1))) < LEAST_COSINE  # less than five bits do


def msgspec_round_trip(one: LockedEmbedding) -> LockedEmbedding:
    import msgspec

    return msgspec.json.decode(msgspec.json.encode(one), type=LockedEmbedding)


def test_other_models_dimensions_and_scales_are_other_spaces() -> None:
    one = vectors(1)
    assert is_same_space(of(one), of(one))
    assert not is_same_space(of(one), of(vectors(2)))
    assert not is_same_space(of(one), of(vectors(1, dimension=16)))
    assert not is_same_space(of(one), of([[2 * x for x in v] for v in one]))
    assert is_same_space(of(one), of([[1.01 * x for x in v] for v in one]))
    negated = [[-x for x in v] for v in one]
    assert likeness(of(one), of(negated)) == pytest.approx(-1.0, abs=1e-6)
    only_last = [*one[:-1], vectors(2)[-1]]
    assert not is_same_space(of(one), of(only_last))  # every text must agree


def test_vectors_of_zeros_cannot_be_locked() -> None:
    with pytest.raises(ValueError, match="e: its server gives a vector of zeros"):
        of([[0.0] * DIMENSION for _ in CANARIES])


def test_all_of_a_space_agree_with_each_other() -> None:
    # Each step is small enough, two of them are not: likeness to a neighbour is not handed on.
    pairs = [(unit(v), unit(w)) for v, w in zip(vectors(1), vectors(3), strict=True)]
    steps = [
        [unit([x + k * y for x, y in zip(v, w, strict=True)]) for v, w in pairs] for k in (0.0, 0.03, 0.06)
    ]
    a, b, c = (of(step, name) for step, name in zip(steps, "abc", strict=True))
    assert is_same_space(a, b)
    assert is_same_space(b, c)
    assert not is_same_space(a, c)
    assert [(one.name, one.space) for one in in_spaces([a, b, c])] == [("a", "a"), ("b", "a"), ("c", "c")]


def test_spaces_keep_the_order_and_are_named_after_their_first() -> None:
    found = [of(vectors(n), name) for n, name in ((1, "a"), (2, "b"), (1, "c"), (2, "d"))]
    assert [(one.name, one.space) for one in in_spaces(found)] == [
        ("a", "a"),
        ("b", "b"),
        ("c", "a"),
        ("d", "b"),
    ]
    assert in_spaces([]) == ()


def test_it_is_written_beside_the_registry_and_read_again(tmp_path: Path) -> None:
    file = lock_file(tmp_path / "lm_registry.json")
    assert file == tmp_path / "lm_registry.lock.json"
    assert lock_file(tmp_path / "other") == tmp_path / "other.lock.json"
    assert read_lock(file) is None
    lock = Lock(embeddings=in_spaces([of(vectors(1), "a")]))
    write_lock(file, lock)
    assert read_lock(file) == lock
    assert file.read_bytes().endswith(b"}\n")
    assert json.loads(file.read_text())["_lock_version"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(_lock_version=2), "is of version 2"),
        (lambda d: d["embeddings"][0].update(dimension=31), "are not whole"),
        (lambda d: d["embeddings"][0]["vectors"].pop(), "are not whole"),
        (lambda d: d["embeddings"][0].update(vectors=[]), "are not whole"),
        (lambda d: d["embeddings"][0].update(vectors=["?"] * 4), "is no lock"),
        (lambda d: d["embeddings"][0].pop("model"), "is no lock"),
        (lambda d: d.update(canaries=[]), "are not whole"),
    ],
)
def test_what_is_no_lock_is_refused(tmp_path: Path, change: Any, message: str) -> None:
    file = tmp_path / "lm_registry.lock.json"
    write_lock(file, Lock(embeddings=in_spaces([of(vectors(1), "a")])))
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    with pytest.raises(RegistryError, match=message) as caught:
        read_lock(file)
    assert "make it anew with `maxwell registry lock`" in str(caught.value)


def test_a_lock_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="cannot be read"):
        read_lock(tmp_path)


@pytest.mark.parametrize(
    ("field", "value"), [("model", "m2"), ("api_base", "http://box:2"), ("dimension", DIMENSION + 1)]
)
def test_an_entry_that_changed_does_not_fit(field: str, value: Any) -> None:
    one = of(vectors(1))
    assert misfit(one, spec()) == ""
    assert misfit(one, spec(api_base="http://box:1/")) == ""  # the same server, written otherwise
    assert misfit(one, spec(tags=("x",))) == ""
    assert misfit(one, spec(**{field: value})).startswith(f"had {field} ")


def test_misfits_and_advice_name_the_entries(tmp_path: Path) -> None:
    path = tmp_path / "lm_registry.json"
    registry = Registry(embeddings=(spec("a"), spec("b", model="new"), spec("c")), path=path)
    assert advise(registry) == []
    lock = Lock(embeddings=in_spaces([of(vectors(1), name) for name in ("a", "b", "gone")]))
    found = [(p.path, p.message) for p in misfits(lock, registry)]
    assert found == [
        ("embeddings[1]", '"b" had model "m" when it was locked; run `maxwell registry lock`'),
        ("embeddings[2]", '"c" is not in the lock; run `maxwell registry lock`'),
        ("", '"gone" is in the lock and not in the registry'),
    ]
    write_lock(lock_file(path), lock)
    assert [(p.path, p.message) for p in advise(registry)] == found
    lock_file(path).write_text("{")
    (told,) = advise(registry)
    assert told.message.startswith("its lock is no lock: ")
    assert advise(replace(registry, path=None)) == []
