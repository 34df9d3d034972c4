"""`maxwell check`: is the registry right, and does every server do what it declares?"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
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
  maxwell check --deep --fix

\b
Exit codes:
  0  every entry can be used, maybe with warnings
  1  some entry cannot, or --fix left something to correct
  3  the registry is missing or wrong
"""

Verdict = Literal["ok", "warning", "fault"]
STYLES: dict[str, str] = {"ok": "green", "warning": "yellow", "fault": "red", "note": "dim"}

fix_option = click.option(
    "--fix",
    is_flag=True,
    help="Show what to change in the registry, and change it. Asks first.",
)
yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask before writing.")

_COLUMNS = (Column("VERDICT"), Column("NAME"), Column("WHERE"), Column("FINDING", beneath="{}"))


class Finding(NamedTuple):
    """What the check found about one entry."""

    status: Status
    verdict: Verdict
    words: list[str]


@click.command("check", epilog=_EPILOG)
@click.option("--deep", is_flag=True, help="Compare every field with its server: `maxwell doctor`.")
@fix_option
@yes_option
@json_option
@registry_option
@click.pass_context
def check(ctx: click.Context, deep: bool, fix: bool, yes: bool, as_json: bool, registry: str | None) -> None:
    """Check the registry and every server it names, now.

    Generates nothing, so it costs nothing; only with --deep (which --fix implies) each embedding makes one
    vector of one short text. `maxwell registry check` looks at the file alone.
    """
    if deep or fix:
        from maxwell.cli.doctor_command import look_closely

        look_closely(ctx, fix=fix, yes=yes, as_json=as_json, registry=registry)
        return
    pool = opened(registry, as_json)
    with pool:
        with waiting("asking the servers"):
            statuses = pool.health(refresh=True)
        advice = advice_on(pool.registry)
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


def opened(registry: str | None, as_json: bool) -> LLMPool:
    """The pool of a registry. A wrong file is told as JSON, too, where that was asked for."""
    try:
        return LLMPool.from_registry(registry)
    except RegistryError as error:
        if as_json:
            print_json({"ok": False, "problems": error.lines(), "entries": []})
        raise


def advice_on(registry: Registry) -> dict[str, list[str]]:
    """What looks unintended in the file, by entry."""
    advice: dict[str, list[str]] = defaultdict(list)
    for problem in advise(registry):
        where = re.fullmatch(r"(llms|embeddings|rerankers)\[(\d+)\]", problem.path)
        if where is not None:
            name = getattr(registry, where[1])[int(where[2])].name
            advice[name].append(problem.message.removeprefix(shown(name)).strip())
    return advice


def _finding(status: Status, advice: list[str]) -> Finding:
    fault = fault_of(status, status.problem)
    if fault:
        return Finding(status, "fault", [fault, *advice])
    warnings = [*passing(status), *status.remarks, *advice]
    if warnings:
        return Finding(status, "warning", warnings)
    return Finding(status, "ok", [facts_of(status)])


def fault_of(status: Status, problem: str) -> str:
    """Why the entry cannot be used until somebody does something, and what.

    `problem` is why although its server answers, or "".
    """
    if problem:
        return problem
    if status.state == "misconfigured":
        spec = status.spec
        key = f"the key in {spec.api_key_env}" if spec.api_key_env else "its key (api_key_env)"
        return f"the server refuses access: {why(status)}; check {key}"
    if status.state == "down":
        return f"{why(status)}; start the server or correct api_base"
    return ""


def passing(status: Status) -> list[str]:
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


def facts_of(status: Status) -> str:
    """What is good to know of an entry that is well."""
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
        say(f"{file}: declares no LLM, no embedding and no reranker")
        return
    rows: list[Row] = [
        [
            Cell(finding.verdict, STYLES[finding.verdict]),
            Cell(finding.status.spec.name, "bold"),
            place(finding.status.spec),
            Cell("; ".join(finding.words), "" if finding.verdict == "ok" else STYLES[finding.verdict]),
        ]
        for finding in findings
    ]
    table(_COLUMNS, rows)
    say()
    say(summary(file, len(findings), [finding.verdict for finding in findings]))


def summary(file: str, entries: int, verdicts: Sequence[str]) -> str:
    """How many entries there are, and how many findings are not good."""
    faults, warnings = (plural(verdicts.count(verdict), verdict) for verdict in ("fault", "warning"))
    return f"{file}: {plural(entries, 'entry').replace('entrys', 'entries')}, {faults}, {warnings}"


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
