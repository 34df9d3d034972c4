"""`maxwell registry lock`: write down which embeddings make the same vectors, or check what is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from maxwell.cli.render import Cell, Column, hint, plural, print_json, say, table
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.errors import RegistryError
from maxwell.lm_pool import LLMPool
from maxwell.registry.lock import (
    LEAST_COSINE,
    Lock,
    LockedEmbedding,
    in_spaces,
    is_same_space,
    likeness,
    lock_file,
    misfit,
    misfits,
    read_lock,
    write_lock,
)
from maxwell.registry.specs import EmbeddingSpec, Registry

if TYPE_CHECKING:
    from maxwell.calls.locking import Canaries

_EPILOG = """\b
Examples:
  maxwell registry lock
  maxwell registry lock --check

\b
Exit codes:
  0  every embedding is locked, or is as it was locked
  1  some embedding could not be asked and has no record, or --check found
     another state of things
  3  the registry is missing or wrong, or its lock is
"""
_COLUMNS = (
    Column("NAME"),
    Column("SPACE"),
    Column("COSINE", right=True),
    Column("DIMENSION", right=True),
    Column("NOTE", beneath="{}", always=True),
)


class Line(NamedTuple):
    """What is said of one embedding.

    Attributes:
        name: The entry.
        locked: As it stands in the lock; None where it does not.
        cosine: How like it is to the first of its space, or with --check to its own record; None = not known.
        note: What has to be said of it.
        well: Whether nothing has to be done about it.
    """

    name: str
    locked: LockedEmbedding | None
    cosine: float | None
    note: str
    well: bool


@click.command("lock", epilog=_EPILOG)
@click.option("--check", is_flag=True, help="Write nothing; compare the lock with registry and servers.")
@json_option
@registry_option
@click.pass_context
def lock_command(ctx: click.Context, check: bool, as_json: bool, registry: str | None) -> None:
    """Write down which embeddings make the same vectors.

    Each embedding is asked for the vectors of four short texts. Those that agree (cosine 0.999 at least, for
    every text) share a vector space: where one fails, another of its space takes the texts. What is written
    to lm_registry.lock.json beside the registry is also what later vectors are compared with, so that a model
    that was swapped is refused before it spoils an index. Commit the file with the registry.
    """
    with LLMPool.from_registry(registry) as pool:
        path = pool.registry.path
        assert path is not None
        file = lock_file(path)
        before = _read(file, check)
        texts = before.canaries if check and before is not None else Lock().canaries
        asks = not check or before is not None
        found = []
        if asks:
            pool.health(refresh=True)  # one that was down a moment ago is asked again, too
            found = pool.embed_canaries(texts, progress=_tell)
        specs = {spec.name: spec for spec in pool.embeddings}
        if check:
            lines = _compared(found, before, specs)
            problems = _problems(before, pool.registry)
        else:
            lines = _written(file, found, before, specs)
            problems = []
    well = not problems and all(line.well for line in lines)
    if as_json:
        print_json(_as_json(file, lines, problems, well))
    else:
        _show(file, lines, problems, check)
    if not well:
        from maxwell.cli.app import EXIT_FAILED

        ctx.exit(EXIT_FAILED)


def _tell(name: str, done: int, total: int) -> None:
    hint(f"embedding the texts with {name}, {done + 1} of {total}")


def _read(file: Path, check: bool) -> Lock | None:
    """The lock as it is. One that cannot be read is only in the way of --check: the other makes it anew."""
    try:
        return read_lock(file)
    except RegistryError as error:
        if check:
            raise
        hint(f"{error}: it is replaced")
        return None


def _problems(before: Lock | None, registry: Registry) -> list[str]:
    if before is None:
        return ["there is no lock; make one with `maxwell registry lock`"] if registry.embeddings else []
    return [problem.message for problem in misfits(before, registry)]


def _written(
    file: Path, found: Sequence[Canaries], before: Lock | None, specs: dict[str, EmbeddingSpec]
) -> list[Line]:
    """Write the lock; what could not be asked keeps the record it has, if that still fits."""
    old = _fitting(before, specs)
    kept = [one.found or old.get(one.name) for one in found]
    lock = Lock(embeddings=in_spaces([one for one in kept if one is not None]))
    if lock.embeddings:
        write_lock(file, lock)
    recorded = {one.name: one for one in lock.embeddings}
    lines = []
    for one in found:
        record = recorded.get(one.name)
        cosine = None if record is None else likeness(record, recorded[record.space])
        note = _note(one, record, old.get(one.name))
        lines.append(Line(one.name, record, cosine, note, record is not None))
    return lines


def _fitting(before: Lock | None, specs: dict[str, EmbeddingSpec]) -> dict[str, LockedEmbedding]:
    """What the lock recorded of entries as they are; vectors of other texts cannot be compared."""
    if before is None or before.canaries != Lock().canaries:
        return {}
    return {
        one.name: one for one in before.embeddings if one.name in specs and not misfit(one, specs[one.name])
    }


def _note(one: Canaries, record: LockedEmbedding | None, old: LockedEmbedding | None) -> str:
    if one.problem:
        kept = f"; it keeps its record of {_day(record)}" if record is not None else ""
        return f"could not be asked: {one.problem}{kept}"
    if old is not None and record is not None and not is_same_space(old, record):
        return f"makes other vectors than on {_day(old)}: what was embedded until then must be embedded anew"
    return ""


def _day(record: LockedEmbedding) -> str:
    return record.made[:10]


def _compared(found: Sequence[Canaries], before: Lock | None, specs: dict[str, EmbeddingSpec]) -> list[Line]:
    """How each embedding that the lock knows is now."""
    recorded = {} if before is None else {one.name: one for one in before.embeddings}
    lines = []
    for one in found:
        record = recorded.get(one.name)
        if record is None or misfit(record, specs[one.name]):
            continue  # told as a problem of the file
        if one.found is None:
            lines.append(Line(one.name, record, None, f"could not be asked: {one.problem}", False))
            continue
        cosine = likeness(record, one.found)
        note = "" if cosine >= LEAST_COSINE else f"makes other vectors than on {_day(record)}"
        lines.append(Line(one.name, record, cosine, note, not note))
    return lines


def _show(file: Path, lines: Sequence[Line], problems: Sequence[str], check: bool) -> None:
    if lines:
        table(_COLUMNS, [_row(line) for line in lines])
        say()
    for problem in problems:
        say(problem, "yellow")
    spaces = len({line.locked.space for line in lines if line.locked is not None})
    if not lines and not problems:
        say("the registry declares no embedding: there is nothing to lock")
    elif not check:
        wrote = f"{file}: " if spaces else f"{file} was not written: "
        locked = sum(line.locked is not None for line in lines)
        say(f"{wrote}{plural(locked, 'embedding')} in {plural(spaces, 'vector space')}")
    elif not problems and all(line.well for line in lines):
        say(f"{file}: as it was locked")
    elif lines:
        well = sum(line.well for line in lines)
        say(f"{file}: {well} of {plural(len(lines), 'embedding')} as locked", "yellow")


def _row(line: Line) -> list[Cell | str]:
    return [
        Cell(line.name, "bold"),
        "" if line.locked is None else line.locked.space,
        "" if line.cosine is None else f"{line.cosine:.5f}",
        "" if line.locked is None else f"{line.locked.dimension}",
        Cell(line.note, "" if line.well and not line.note else "yellow" if line.well else "red"),
    ]


def _as_json(file: Path, lines: Sequence[Line], problems: Sequence[str], well: bool) -> dict[str, Any]:
    return {
        "ok": well,
        "lock": str(file),
        "problems": list(problems),
        "embeddings": [
            {
                "name": line.name,
                "space": None if line.locked is None else line.locked.space,
                "cosine": line.cosine,
                "ok": line.well,
                "note": line.note,
            }
            for line in lines
        ],
    }
