"""`maxwell usage holds`, `reset` and `rebuild`: open reservations; beginning at zero, and anew."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from maxwell.amounts import duration
from maxwell.cli.render import (
    Cell,
    Column,
    fold,
    hint,
    is_terminal,
    money,
    number,
    plural,
    print_json,
    say,
    table,
)
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.cli.usage_books import check_name, has_books, opened, today
from maxwell.database.owners import command
from maxwell.ledger import NANO, OpenHold, Used
from maxwell.ledger.rebuild import Rebuilt, damage, rebuild
from maxwell.registry import find, load, maxwell_home
from maxwell.registry.wording import HIDDEN, looks_secret

_HOLDS_EPILOG = """\b
Examples:
  maxwell usage holds
  maxwell usage holds --json | jq '.[].pid'
"""
_RESET_EPILOG = """\b
Example:
  maxwell usage reset gpt-4o
"""
_REBUILD_EPILOG = """\b
Example:
  maxwell usage rebuild
"""
_COMMAND_WIDTH = 60
_HOLDS = (
    Column("NAME"),
    Column("STATE"),
    Column("TOKENS", right=True),
    Column("MONEY", right=True),
    Column("AGE"),
    Column("DAY", beneath="day {}"),
    Column("OWNER", beneath="{}"),
)

_yes_option = click.option("-y", "--yes", is_flag=True, help="Do not ask.")


@click.command("holds", epilog=_HOLDS_EPILOG)
@json_option
def holds(as_json: bool) -> None:
    """Show the open reservations: what running calls may use at most.

    A call to an entry with a budget reserves its worst case before it is sent, and the reservation ends with
    the call. STATE is "held" until the request goes out, then "sent". Those of a process that has ended are
    ended at once: what was held is given back, what was sent is charged in full, because nobody knows what it
    used. A living process that keeps a reservation for good is cured by ending that process.
    """
    with opened() as ledger:
        found = ledger.holds()
    now = time.time()
    if as_json:
        print_json([_hold_json(open_hold, now) for open_hold in found])
    elif not found:
        say("no open reservations")
    else:
        table(_HOLDS, [_hold_row(open_hold, now) for open_hold in found])


def _hold_row(found: OpenHold, now: float) -> list[Cell | str]:
    hold = found.hold
    return [
        Cell(hold.name, "bold"),
        found.state,
        number(hold.amount.tokens),
        money(hold.amount.usd),
        duration(now - found.since),
        hold.day.isoformat(),
        _owner(found),
    ]


def _owner(found: OpenHold) -> str:
    pid = f"process {found.owner.pid}"
    if found.alive is None:
        return f"{pid} on another machine or in another container"
    words = _command(found)
    return f"{pid}: {words}" if words else pid


def _command(found: OpenHold) -> str:
    """The owner's command line, short and without what looks like a key."""
    words = command(found.owner).split()
    if words:
        words[0] = Path(words[0]).name
    text = " ".join(HIDDEN if looks_secret(word) else word for word in words)
    return text if len(text) <= _COMMAND_WIDTH else f"{text[: _COMMAND_WIDTH - 3]}..."


def _hold_json(found: OpenHold, now: float) -> dict[str, Any]:
    hold = found.hold
    return {
        "id": hold.id,
        "name": hold.name,
        "state": found.state,
        "tokens": hold.amount.tokens,
        "usd": hold.amount.usd,
        "day": hold.day.isoformat(),
        "since": datetime.fromtimestamp(found.since, UTC).isoformat(timespec="seconds"),
        "age_seconds": round(max(now - found.since, 0), 3),
        "pid": found.owner.pid,
        "command": _command(found),
        "alive": found.alive,
    }


@click.command("reset", epilog=_RESET_EPILOG)
@click.argument("name")
@_yes_option
@registry_option
@click.pass_context
def reset(ctx: click.Context, name: str, yes: bool, registry: str | None) -> None:
    """Let today's usage of NAME begin at zero.

    Its whole budget is there again. Open reservations stay: what their calls use counts from here on. What
    was used on other days stays in the books.
    """
    declared = load(find(registry))
    day = today(declared)
    with opened() as ledger:
        check_name(name, declared, ledger)
        used = ledger.usage(day).get(name, Used())
        is_used = bool(used.tokens or used.nanousd or used.calls)
        say(f"{name} used {_words(used) if is_used else 'nothing'} today, {day}")
        _mention([found for found in ledger.holds() if found.hold.name == name])
        if not is_used:
            say("there is nothing to reset")
            return
        _insist(f"Let {name} begin at zero?", yes, ctx)
        struck = ledger.reset(name, day)
    say(f"{name} begins at zero; {_words(struck)} are struck from the books")


def _mention(found: Sequence[OpenHold]) -> None:
    if not found:
        return
    tokens = sum(open_hold.hold.amount.tokens for open_hold in found)
    usd = sum(open_hold.hold.amount.nanousd for open_hold in found) / NANO
    count = plural(len(found), "open reservation")
    verb = "stays" if len(found) == 1 else "stay"
    say(f"{count} of {plural(tokens, 'token')}, {money(usd)} {verb}; see `maxwell usage holds`")


def _words(used: Used) -> str:
    return f"{plural(used.tokens, 'token')} and {money(used.usd)} in {plural(used.calls, 'call')}"


@click.command("rebuild", epilog=_REBUILD_EPILOG)
@_yes_option
@click.pass_context
def rebuild_command(ctx: click.Context, yes: bool) -> None:
    """Begin new books where the ledger is damaged.

    The damaged file is moved aside, never deleted. The new books begin with llm_usage.json and with what can
    still be read of the damaged file. Money stands only there: what cannot be read counts as $0. A sound
    ledger is left alone. No registry is needed.
    """
    home = maxwell_home(os.environ)
    path = home / "ledger.db"
    if not has_books(home):
        say(f"there is no ledger in {home} yet; the first call begins one")
        return
    problem = damage(home)
    if not problem:
        say(f"the ledger {path} is sound; there is nothing to rebuild")
        return
    say(f"the ledger {path} is damaged: {fold(problem)}")
    _insist("Move it aside and begin new books with what can be saved?", yes, ctx)
    _tell(rebuild(home, time.time()))


def _tell(done: Rebuilt) -> None:
    """What was recovered and what was not."""
    sources = []
    if done.projection == "used":
        sources.append("llm_usage.json")
    else:
        hint("llm_usage.json " + ("is missing" if done.projection == "missing" else "cannot be understood"))
    if done.read or done.holds:
        sources.append("the damaged file")
    else:
        hint("nothing could be read in the damaged file")
    found = [plural(done.totals, "daily total")] if done.totals else []
    found += [plural(done.holds, "open reservation")] if done.holds else []
    if found:
        say(f"recovered {' and '.join(found)} from {' and '.join(sources)}")
    else:
        say("the new books are empty: what was used before, also today, counts as nothing")
    if lost := done.totals - done.read:
        which = "their" if lost == done.totals else f"of {lost:,} of them the"
        say(f"{which} money is not known and counts as $0, also today's")
    for moved in done.moved:
        if moved.suffix in (".db", ".json"):  # and with a database what SQLite keeps beside it
            say(f"moved aside: {moved}", "dim")


def _insist(question: str, yes: bool, ctx: click.Context) -> None:
    """Go on only if the user wants it; asked where there is somebody to ask."""
    if yes:
        return
    if not (is_terminal(sys.stdin) and is_terminal(sys.stderr)):
        raise click.UsageError("nobody can be asked here; --yes does it without asking", ctx)
    if not click.confirm(question, err=True):
        hint("nothing was changed")
        raise click.exceptions.Exit(1)
