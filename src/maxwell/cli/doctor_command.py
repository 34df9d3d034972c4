"""`maxwell doctor`, which is `maxwell check --deep`: what the registry says that is not true, corrected."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from maxwell.calls.lies import Lie
from maxwell.calls.truth import Examined
from maxwell.cli.check_command import (
    STYLES,
    Verdict,
    advice_on,
    facts_of,
    fault_of,
    fix_option,
    opened,
    passing,
    summary,
    yes_option,
)
from maxwell.cli.render import (
    Cell,
    Column,
    hint,
    is_terminal,
    plural,
    print_json,
    say,
    table,
    visible,
    waiting,
)
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.cli.standing import place
from maxwell.errors import Problem, RegistryError
from maxwell.registry.edit import place_of, rewrite, set_field
from maxwell.registry.load import digest_of, read
from maxwell.registry.wording import HIDDEN, names_secret, without_secrets

_EPILOG = """\b
Examples:
  maxwell doctor
  maxwell doctor --fix
  maxwell doctor --fix --yes --json

\b
Exit codes:
  0  every entry can be used, maybe with warnings
  1  some entry cannot, or --fix left something to correct
  3  the registry is missing or wrong
"""
_COLUMNS = (
    Column("VERDICT"),
    Column("NAME"),
    Column("FIELD"),
    Column("DECLARED", beneath="declared {}"),
    Column("USE", beneath="use {}"),
    Column("FINDING", beneath="{}"),
)
_STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')
_DIFF_STYLES = {"+": "green", "-": "red", "@": "cyan"}


class Finding(NamedTuple):
    """One thing that was found out about an entry; `lie` where it is about a field's value."""

    verdict: str
    words: str
    lie: Lie | None = None


class Patient(NamedTuple):
    """One entry with all that was found out about it."""

    examined: Examined
    findings: list[Finding]

    @property
    def verdict(self) -> Verdict:
        """The worst that was found."""
        found = {finding.verdict for finding in self.findings}
        return "fault" if "fault" in found else "warning" if "warning" in found else "ok"


class Report(NamedTuple):
    """What one look at all entries gave."""

    path: Path
    digest: str
    patients: list[Patient]

    @property
    def usable(self) -> bool:
        """Whether every entry can be used."""
        return all(patient.verdict != "fault" for patient in self.patients)

    @property
    def fixable(self) -> list[Lie]:
        """The lies whose true value is known."""
        return [lie for patient in self.patients for lie in patient.examined.lies if lie.fix is not None]


@click.command("doctor", epilog=_EPILOG)
@fix_option
@yes_option
@json_option
@registry_option
@click.pass_context
def doctor(ctx: click.Context, fix: bool, yes: bool, as_json: bool, registry: str | None) -> None:
    """Compare every field with its server, and correct it.

    The same as `maxwell check --deep`. Each server is asked what it is, and each embedding that is up makes
    one vector of one short text, which is booked like any call (a fraction of a cent, where it has a price)
    and wakes a server that sleeps. Nothing else is generated. Where genai-prices is installed it fills in
    prices that are missing. What is less than the server can (a smaller context, fewer slots) is told and
    left as it is: it may be meant.
    """
    look_closely(ctx, fix=fix, yes=yes, as_json=as_json, registry=registry)


def look_closely(ctx: click.Context, *, fix: bool, yes: bool, as_json: bool, registry: str | None) -> None:
    """Show every lie, correct them where `fix`, and end with 1 where something stays wrong."""
    report = _look(registry, as_json)
    told: dict[str, Any] = {}
    if not as_json:
        _show(report)
    if fix and report.fixable:
        old, new = _corrected(report)
        diff = _diff(old, new, str(report.path))
        told = {"diff": diff, "written": 0}
        if _may_write(diff, len(report.fixable), yes=yes, as_json=as_json):
            rewrite(report.path, lambda text: _unless_changed(text, old, new))
            told["written"] = len(report.fixable)
            report = _checked_again(report, registry, as_json)
    elif not as_json:
        _point_the_way(report, fix)
    if as_json:
        print_json(_as_json(report) | told)
    if not report.usable or (fix and report.fixable):
        from maxwell.cli.app import EXIT_FAILED

        ctx.exit(EXIT_FAILED)


# --- looking


def _look(registry: str | None, as_json: bool) -> Report:
    with opened(registry, as_json) as pool:
        with waiting("asking the servers what they are"):
            found = pool.examine()
        advice = advice_on(pool.registry)
        path, digest = pool.registry.path, pool.registry.digest
    assert path is not None
    patients = [Patient(e, list(_findings(e, advice[e.status.spec.name]))) for e in found]
    return Report(path, digest, patients)


def _findings(examined: Examined, advice: Sequence[str]) -> Iterator[Finding]:
    status, found = examined.status, examined.lies
    fault = fault_of(status, examined.problem)
    warnings = [*passing(status), *advice]
    if not fault and not warnings and all(lie.severity == "note" for lie in found):
        yield Finding("ok", _facts(examined))
    if fault:
        yield Finding("fault", fault)
    yield from (Finding("warning", words) for words in warnings)
    yield from (Finding(lie.severity, lie.words, lie) for lie in found)


def _facts(examined: Examined) -> str:
    words, facts = facts_of(examined.status), examined.facts
    if facts.dimension is not None and facts.normalised is not None:
        length = "of length 1" if facts.normalised else "not of length 1"
        words += f", vectors of {facts.dimension:,} numbers, {length}"
    return words


# --- showing


def _show(report: Report) -> None:
    rows = [_row(patient, finding) for patient in report.patients for finding in patient.findings]
    table(_COLUMNS, rows)
    say()
    verdicts = [finding.verdict for patient in report.patients for finding in patient.findings]
    say(summary(str(report.path), len(report.patients), verdicts))


def _row(patient: Patient, finding: Finding) -> list[Cell | str]:
    style = STYLES[finding.verdict]
    lie = finding.lie
    return [
        Cell(finding.verdict, style),
        Cell(patient.examined.status.spec.name, "bold"),
        "" if lie is None else lie.field,
        "" if lie is None else _value(lie.declared),
        Cell("" if lie is None else _value(lie.fix), "green"),
        Cell(finding.words, "" if finding.verdict == "ok" else style),
    ]


def _value(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value)


def _point_the_way(report: Report, fix: bool) -> None:
    if report.fixable:
        hint(f"--fix corrects {plural(len(report.fixable), 'value')}")
    elif fix:
        hint("there is nothing to correct by what the servers tell")


def _as_json(report: Report) -> dict[str, Any]:
    entries = []
    for examined, findings in report.patients:
        status, facts = examined.status, examined.facts
        entries.append(
            {
                "name": status.spec.name,
                "kind": status.kind,
                "verdict": Patient(examined, findings).verdict,
                "state": status.state,
                "findings": [finding.words for finding in findings if finding.lie is None],
                "lies": [_lie_as_json(lie) for lie in examined.lies],
                "dimension": facts.dimension,
                "normalised": facts.normalised,
                "where": place(status.spec),
                "seconds": None if status.health is None else status.health.seconds,
            }
        )
    return {"ok": report.usable, "problems": [], "registry": str(report.path), "entries": entries}


def _lie_as_json(lie: Lie) -> dict[str, Any]:
    keys = ("path", "severity", "declared", "found")
    return {key: getattr(lie, key) for key in keys} | {"use": lie.fix, "words": lie.words}


# --- correcting


def _corrected(report: Report) -> tuple[str, str]:
    """The registry's text as it stands, and with every lie replaced whose true value is known."""
    data = read(report.path)
    if digest_of(data) != report.digest:
        raise _changed(str(report.path))
    old = new = data.decode()
    for lie in report.fixable:
        new = set_field(new, (*place_of(new, lie.entry), *lie.where[2:]), lie.fix)
    return old, new


def _unless_changed(text: str, old: str, new: str) -> str:
    """What was shown is what is written: a file that has changed meanwhile stays."""
    if text != old:
        raise _changed()
    return new


def _changed(file: str = "") -> RegistryError:
    message = "was changed by somebody else meanwhile; nothing was written, run it again"
    return RegistryError(file, [Problem("", message)])


def _diff(old: str, new: str, name: str) -> str:
    import difflib

    one, other = ([line.rstrip("\r") for line in text.split("\n")] for text in (old, new))
    lines = list(difflib.unified_diff(one, other, name, name, n=2, lineterm=""))
    return "\n".join([*lines[:2], *map(_hushed, lines[2:])])


def _hushed(line: str) -> str:
    """A line of JSON without what looks like an API key, or stands under such a name."""
    key = ""

    def hush(found: re.Match[str]) -> str:
        nonlocal key
        said = json.loads(found[1], strict=False)
        told = HIDDEN if names_secret(key) and not found[2] else without_secrets(said)
        key = said if found[2] else key
        return found[0] if told == said else json.dumps(told, ensure_ascii=False) + (found[2] or "")

    return _STRING.sub(hush, line)


def _may_write(diff: str, values: int, *, yes: bool, as_json: bool) -> bool:
    """Show what would change; whether that is wanted."""
    what = plural(values, "value")
    if not as_json:
        say()
        _show_diff(diff)
        say()
    if yes:
        return True
    if as_json or not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        hint(f"nothing was written; --fix --yes writes {'this value' if values == 1 else f'these {what}'}")
        return False
    if click.confirm(f"Write {'this value' if values == 1 else f'these {what}'}?", err=True):
        return True
    hint("nothing was written")
    return False


def _show_diff(diff: str) -> None:
    if not is_terminal(sys.stdout):
        click.echo(visible(diff))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    for line in visible(diff).split("\n"):
        header = line.startswith(("+++", "---"))
        console.print(Text(line, "bold" if header else _DIFF_STYLES.get(line[:1], "")), soft_wrap=True)


def _checked_again(before: Report, registry: str | None, as_json: bool) -> Report:
    """What a second look gives; on a person's screen only what is still wrong."""
    hint(f"wrote {plural(len(before.fixable), 'value')} to {before.path}; checking again")
    report = _look(registry, as_json)
    if not as_json:
        left = [p._replace(findings=_still_wrong(p)) for p in report.patients]
        if any(patient.findings for patient in left):
            say()
            _show(report._replace(patients=left))
        if not report.fixable:
            hint("checked again: nothing is left to correct")
    return report


def _still_wrong(patient: Patient) -> list[Finding]:
    return [finding for finding in patient.findings if finding.verdict in ("fault", "warning")]
