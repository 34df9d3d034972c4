"""`maxwell check`: is the registry right, and does every server do what it declares?"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any, Literal, NamedTuple

import click

from maxwell.amounts import duration
from maxwell.calls.status import Status
from maxwell.cli.render import Cell, Column, Row, plural, print_json, say, table, waiting
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.cli.standing import is_spent, place, short_model, why
from maxwell.errors import RegistryError
from maxwell.lm_pool import LLMPool
from maxwell.registry.advice import advise
from maxwell.registry.specs import Registry
from maxwell.registry.wording import shown

_EPILOG = """\b
Examples:
  maxwell check
  maxwell check --registry ./lm_registry.json --json

\b
Exit codes:
  0  every entry can be used, maybe with warnings
  1  some entry cannot
  3  the registry is missing or wrong
"""

Verdict = Literal["ok", "warning", "fault"]
_STYLES: dict[Verdict, str] = {"ok": "green", "warning": "yellow", "fault": "red"}
_COLUMNS = (Column("VERDICT"), Column("NAME"), Column("WHERE"), Column("FINDING", beneath="{}"))


class Finding(NamedTuple):
    """What the check found about one entry."""

    status: Status
    verdict: Verdict
    words: list[str]


@click.command("check", epilog=_EPILOG)
@json_option
@registry_option
@click.pass_context
def check(ctx: click.Context, as_json: bool, registry: str | None) -> None:
    """Check the registry and every server it names, now.

    Generates nothing, so it costs nothing. `maxwell registry check` looks at the file alone.
    """
    try:
        pool = LLMPool.from_registry(registry)
    except RegistryError as error:
        if as_json:
            print_json({"ok": False, "problems": error.lines(), "entries": []})
        raise
    with pool:
        with waiting("asking the servers"):
            statuses = pool.health(refresh=True)
        advice = _advice(pool.registry)
    findings = [_finding(status, advice[status.spec.name]) for status in statuses]
    usable = all(finding.verdict != "fault" for finding in findings)
    if as_json:
        entries = [_as_json(finding) for finding in findings]
        print_json({"ok": usable, "problems": [], "registry": str(pool.registry.path), "entries": entries})
    else:
        _show(findings, str(pool.registry.path))
    if not usable:
        from maxwell.cli.app import EXIT_FAILED

        ctx.exit(EXIT_FAILED)


def _advice(registry: Registry) -> dict[str, list[str]]:
    """What looks unintended in the file, by entry."""
    advice: dict[str, list[str]] = defaultdict(list)
    for problem in advise(registry):
        where = re.fullmatch(r"(llms|embeddings)\[(\d+)\]", problem.path)
        if where is not None:
            name = getattr(registry, where[1])[int(where[2])].name
            advice[name].append(problem.message.removeprefix(shown(name)).strip())
    return advice


def _finding(status: Status, advice: list[str]) -> Finding:
    fault = _fault(status)
    if fault:
        return Finding(status, "fault", [fault, *advice])
    warnings = [*_passing(status), *status.remarks, *advice]
    if warnings:
        return Finding(status, "warning", warnings)
    return Finding(status, "ok", [_facts(status)])


def _fault(status: Status) -> str:
    """Why the entry cannot be used until somebody does something, and what."""
    if status.problem:
        return status.problem
    if status.state == "misconfigured":
        spec = status.spec
        key = f"the key in {spec.api_key_env}" if spec.api_key_env else "its key (api_key_env)"
        return f"the server refuses access: {why(status)}; check {key}"
    if status.state == "down":
        return f"{why(status)}; start the server or correct api_base"
    return ""


def _passing(status: Status) -> list[str]:
    """What keeps the entry from being used, but will pass."""
    said = []
    if status.state == "loading":
        said.append("is loading its model; it will be used when that is done")
    elif status.state == "rate_limited":
        said.append("asks callers to wait; it will be used again soon")
    if is_spent(status):
        said.append(f"today's budget is used up; it resets in {duration(status.resets_in)}")
    if status.used is None and (
        status.spec.daily_budget_tokens is not None or status.spec.daily_budget_usd is not None
    ):
        said.append("the usage ledger cannot be read, so nothing with a budget is called")
    return said


def _facts(status: Status) -> str:
    health = status.health
    facts = [short_model(status.spec.model), f"{status.context:,} tokens a request"]
    if status.slots:
        facts.append(plural(status.slots, "slot"))
    if status.state == "asleep":
        facts.append("asleep, wakes at the first request")
    if health is not None and health.seconds is not None:
        facts.append(f"answered in {health.seconds * 1000:.0f} ms")
    return ", ".join(facts)


def _show(findings: list[Finding], file: str) -> None:
    if not findings:
        say(f"{file}: declares no LLM and no embedding")
        return
    rows: list[Row] = [
        [
            Cell(finding.verdict, _STYLES[finding.verdict]),
            Cell(finding.status.spec.name, "bold"),
            place(finding.status.spec),
            Cell("; ".join(finding.words), "" if finding.verdict == "ok" else _STYLES[finding.verdict]),
        ]
        for finding in findings
    ]
    table(_COLUMNS, rows)
    verdicts = [finding.verdict for finding in findings]
    counts = [
        plural(verdicts.count("fault"), "fault"),
        plural(verdicts.count("warning"), "warning"),
    ]
    say()
    say(f"{file}: {plural(len(findings), 'entry').replace('entrys', 'entries')}, {', '.join(counts)}")


def _as_json(finding: Finding) -> dict[str, Any]:
    status = finding.status
    return {
        "name": status.spec.name,
        "kind": status.kind,
        "verdict": finding.verdict,
        "state": status.state,
        "findings": finding.words,
        "where": place(status.spec),
        "seconds": None if status.health is None else status.health.seconds,
    }
