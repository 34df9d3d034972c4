"""`maxwell bench`: measure how fast LLMs are, and correct what the registry says of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from maxwell.calls.benching import Bench, Figure, Progress, most_used
from maxwell.calls.status import Status, is_far_off
from maxwell.cli.render import (
    Cell,
    Column,
    hint,
    is_terminal,
    money,
    number,
    plural,
    print_json,
    table,
    waiting,
)
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.errors import MaxwellError
from maxwell.lm_pool import LLMPool
from maxwell.registry.edit import place_of, rewrite, set_field
from maxwell.registry.specs import LLMSpec

_EPILOG = """\b
Examples:
  maxwell bench
  maxwell bench qwen-coder-30b --load
  maxwell bench qwen-coder-30b --write
"""
_COLUMNS = (
    Column("NAME"),
    Column("WHAT"),
    Column("MEASURED", right=True),
    Column("SPREAD"),
    Column("DECLARED", right=True),
    Column("UNIT"),
    Column("NOTE", beneath="{}"),
)
_WRITTEN = ("speed_tokens_per_sec", "prefill_tokens_per_sec")


class Result(NamedTuple):
    """What came of measuring one LLM. `problem` is why it was not measured to the end, or ""."""

    spec: LLMSpec
    found: Bench
    problem: str = ""


class Change(NamedTuple):
    """A value to write into the registry."""

    name: str
    key: str
    old: float | None
    new: float


@click.command("bench", epilog=_EPILOG)
@click.argument("names", metavar="[NAME]...", nargs=-1)
@click.option("--load", is_flag=True, help="Also measure several replies at once, up to its slots.")
@click.option("--write", is_flag=True, help="Write the measured speeds into the registry. Asks first.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask, neither for money nor before writing.")
@json_option
@registry_option
@click.pass_context
def bench(  # noqa: PLR0913 - click hands over each option by itself
    ctx: click.Context,
    names: tuple[str, ...],
    load: bool,
    write: bool,
    yes: bool,
    as_json: bool,
    registry: str | None,
) -> None:
    """Measure how fast LLMs are, and correct the registry.

    Without NAME every LLM that is up, costs nothing and has no budget is measured, one after another. Each
    is called some ten times: short and long prompts, and a reply of up to 192 tokens. What costs money or
    has a budget must be named, and you are told first what it can cost at most. Whatever the calls show is
    learned, too: `maxwell list --speeds`. The registry is only touched with --write. Ctrl-C ends it and shows
    what was measured until then.
    """
    if write:
        _insist_on_somebody(yes, "--write asks before it writes", ctx)
    with LLMPool.from_registry(registry) as pool:
        for name in names:
            pool.explain(name)  # an unknown one is said before anything is called
        with waiting("asking the servers"):
            found = pool.health()
        chosen = _chosen([status for status in found if status.kind == "llm"], names)
        _confirm_cost(chosen, load, yes, ctx)
        results, ended = _measure(pool, chosen, load)
        path = pool.registry.path
    if as_json:
        print_json([_as_json(result) for result in results])
    else:
        _show(results)
    if ended:
        _exit_interrupted(ctx)
    assert path is not None
    if write:
        _write(path, _changes(results), yes, ctx)
    if not results or any(result.problem for result in results):
        ctx.exit(1)


def _exit_interrupted(ctx: click.Context) -> None:
    from maxwell.cli.app import EXIT_INTERRUPTED

    hint("maxwell: interrupted; nothing was written")
    ctx.exit(EXIT_INTERRUPTED)


def _chosen(found: Sequence[Status], names: Sequence[str]) -> list[Status]:
    """The LLMs to measure. What is left out without being asked for is said."""
    if names:
        wanted = list(dict.fromkeys(names))
        return sorted((s for s in found if s.spec.name in wanted), key=lambda s: wanted.index(s.spec.name))
    chosen = []
    for status in found:
        spec = status.spec
        if not spec.is_free or _has_budget(spec):
            why = "has a budget" if spec.is_free else "costs money"
            hint(f"{spec.name} {why}: `maxwell bench {spec.name}` measures it")
        elif status.state not in ("up", "asleep"):
            hint(f"{spec.name} is {status.state.replace('_', ' ')}: not measured")
        else:
            chosen.append(status)
    if not chosen:
        hint("there is nothing to measure")
    return chosen


def _has_budget(spec: Any) -> bool:
    return spec.daily_budget_tokens is not None or spec.daily_budget_usd is not None


def _at_once(status: Status, load: bool) -> tuple[int, ...]:
    """How many replies at once are tried: 2, 4, 8 and so on, and as many as there are slots."""
    slots = status.slots or 1
    if not load or slots < 2:
        return ()
    return (*(2**n for n in range(1, slots.bit_length()) if 2**n < slots), slots)


# --- asking


def _insist_on_somebody(yes: bool, why: str, ctx: click.Context) -> None:
    """Raise `UsageError` where a question would be asked of nobody."""
    if not yes and not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise click.UsageError(f"{why}, and nobody can be asked here; --yes goes on without asking", ctx)


def _confirm_cost(chosen: Sequence[Status], load: bool, yes: bool, ctx: click.Context) -> None:
    """Name the most that measuring can cost, where it costs anything, and go on only if that is wanted."""
    tokens, usd, names = 0, 0.0, []
    for status in chosen:
        spec = status.spec
        assert isinstance(spec, LLMSpec)
        if not spec.is_free or _has_budget(spec):
            most = most_used(spec, status.context, _at_once(status, load))
            tokens, usd = tokens + most[0], usd + most[1]
            names.append(spec.name)
    if not names:
        return
    cost = f"measuring {' and '.join(names)} takes {plural(tokens, 'token')} and {money(usd)} at most"
    if yes:
        hint(cost)
        return
    _insist_on_somebody(yes, cost, ctx)
    if not click.confirm(f"{cost[0].upper()}{cost[1:]}. Go on?", err=True):
        hint("nothing was called")
        raise click.exceptions.Exit(1)


# --- measuring


def _measure(pool: LLMPool, chosen: Sequence[Status], load: bool) -> tuple[list[Result], bool]:
    """Measure one after another; the second value is whether the user ended it."""
    results: list[Result] = []
    for status in chosen:
        told = _Told(status)
        try:
            with told:
                at_once = _at_once(status, load)
                told.so_far = pool.bench(status.spec.name, at_once=at_once, progress=told.note)
        except KeyboardInterrupt:
            results.append(told.result("interrupted"))
            return results, True
        except MaxwellError as error:
            if len(chosen) == 1 and not told.so_far.calls:
                raise  # nothing was measured: an error like that of any command
            results.append(told.result(str(error)))
        else:
            results.append(told.result())
    return results, False


class _Told:
    """Shows how far measuring one LLM is (a line that changes on a terminal, else one line) and keeps what
    was measured until now.
    """

    def __init__(self, status: Status) -> None:
        assert isinstance(status.spec, LLMSpec)
        self.spec = status.spec
        self.so_far = Bench(llm=self.spec.name)
        self._line: Any = None

    def __enter__(self) -> None:
        if not is_terminal(sys.stderr):
            hint(f"measuring {self.spec.name}")
            return
        from rich.console import Console

        console = Console(stderr=True, highlight=False, markup=False)
        self._line = console.status(f"measuring {self.spec.name}")
        self._line.start()

    def __exit__(self, *exc: object) -> None:
        if self._line is not None:
            self._line.stop()

    def note(self, progress: Progress) -> None:
        self.so_far = progress.so_far
        if self._line is not None and progress.doing:
            where = f"{progress.done + 1} of {progress.steps}"
            self._line.update(f"measuring {self.spec.name}, {where}: {progress.doing}")

    def result(self, problem: str = "") -> Result:
        return Result(self.spec, self.so_far, problem)


# --- showing


def _show(results: Sequence[Result]) -> None:
    if not results:
        return
    rows = [row for result in results for row in _rows(result)]
    table(_COLUMNS, rows)
    calls = sum(result.found.calls for result in results)
    tokens = sum(result.found.tokens for result in results)
    usd = sum(result.found.cost_usd for result in results)
    cost = f", {money(usd)}" if usd else ""
    hint(f"{plural(calls, 'call')}, {plural(tokens, 'token')}{cost}")


def _rows(result: Result) -> Iterator[list[Cell | str]]:
    spec, found = result.spec, result.found
    can = spec.capabilities
    problem = Cell(result.problem, "red")
    yield _figure_row(spec.name, "writing", found.speed, can.speed_tokens_per_sec, problem)
    yield _figure_row(spec.name, "reading", found.prefill, can.prefill_tokens_per_sec)
    yield _seconds_row(spec.name, found.overhead)
    for count, figure in found.at_once.items():
        yield _figure_row(spec.name, f"each of {count} at once", figure, None)


def _figure_row(
    name: str, what: str, figure: Figure | None, declared: float | None, note: Cell | None = None
) -> list[Cell | str]:
    measured, spread, far = Cell(""), "", ""
    if figure is not None:
        if declared is not None and is_far_off(declared, figure.middle):
            far = _far(declared, figure.middle)
        measured = Cell(_shown(figure.middle), "yellow" if far else "green")
        spread = f"{_shown(figure.low)}-{_shown(figure.high)}" if figure.count > 1 else ""
    shown_note = note if note is not None and note.text else Cell(far, "yellow")
    shown_declared = "" if declared is None else number(declared)
    return [Cell(name, "bold"), what, measured, spread, shown_declared, "tokens/s", shown_note]


def _seconds_row(name: str, figure: Figure | None) -> list[Cell | str]:
    middle = "" if figure is None else f"{figure.middle:.3f}"
    spread = "" if figure is None else f"{figure.low:.3f}-{figure.high:.3f}"
    return [Cell(name, "bold"), "first token", middle, spread, "", "s", ""]


def _far(declared: float, measured: float) -> str:
    times = max(declared, measured) / min(declared, measured)
    return f"{times:.2g} times {'faster' if measured > declared else 'slower'} than declared"


def _shown(value: float) -> str:
    return number(float(f"{value:.3g}"))


def _as_json(result: Result) -> dict[str, Any]:
    spec, found = result.spec, result.found
    can = spec.capabilities
    return {
        "name": spec.name,
        "speed_tokens_per_sec": _figure_json(found.speed, can.speed_tokens_per_sec),
        "prefill_tokens_per_sec": _figure_json(found.prefill, can.prefill_tokens_per_sec),
        "first_token_seconds": _figure_json(found.overhead, None),
        "at_once": [
            {"replies": count, "speed_tokens_per_sec": _figure_json(figure, None)}
            for count, figure in found.at_once.items()
        ],
        "calls": found.calls,
        "tokens": found.tokens,
        "cost_usd": found.cost_usd,
        "error": result.problem or None,
    }


def _figure_json(figure: Figure | None, declared: float | None) -> dict[str, Any]:
    names = {"middle": "measured"}
    values = {"middle": None, "low": None, "high": None, "count": 0}
    values |= {} if figure is None else msgspec.structs.asdict(figure)
    return {names.get(key, key): value for key, value in values.items()} | {"declared": declared}


# --- writing


def _changes(results: Sequence[Result]) -> list[Change]:
    """What the registry should say instead, in three significant digits."""
    changes = []
    for spec, found, problem in results:
        for key, figure in zip(_WRITTEN, (found.speed, found.prefill), strict=True):
            old = getattr(spec.capabilities, key)
            new = None if figure is None or problem else float(f"{figure.middle:.3g}")
            if new is not None and new != old:
                changes.append(Change(spec.name, key, old, new))
    return changes


def _write(path: Path, changes: Sequence[Change], yes: bool, ctx: click.Context) -> None:
    """Show what would change, ask, and change it."""
    if not changes:
        hint("there is nothing to write: the registry says what was measured, or nothing was")
        return
    click.echo(f"{path}:", err=True)
    for change in changes:
        old = "nothing" if change.old is None else f"{change.old:g}"
        click.echo(f"  {change.name}: {change.key} from {old} to {change.new:g}", err=True)
    if not yes and not click.confirm("Write that?", err=True):
        hint("nothing was written")
        ctx.exit(1)
    rewrite(path, lambda text: _changed(text, changes))
    hint(f"wrote {plural(len(changes), 'value')}")


def _changed(text: str, changes: Sequence[Change]) -> str:
    for change in changes:
        value = int(change.new) if change.new.is_integer() else change.new
        path = (*place_of(text, change.name), "capabilities", change.key)
        text = set_field(text, path, value)
    return text
