"""`maxwell usage`: what was used today and on the days before, and what is left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

import click
from click.core import ParameterSource

from maxwell.cli import usage_tables as tables
from maxwell.cli.render import is_terminal, say
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.cli.usage_books import check_name, opened, today
from maxwell.cli.usage_subcommands import holds, rebuild_command, reset
from maxwell.ledger import Ledger, Used
from maxwell.ledger.days import budget_day, resets_at, zone
from maxwell.registry import Registry, find, load
from maxwell.registry.wording import near

_EPILOG = """\b
Examples:
  maxwell usage
  maxwell usage --days 30
  maxwell usage --days 7 --name gpt-4o
  maxwell usage --days 30 --csv > usage.csv
  maxwell usage --json | jq .total.usd
"""
_MOST_DAYS = 3660


class _Group(click.Group):
    """A group whose mistyped subcommand gets an answer that helps."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand, or say which one may be meant."""
        name = args[0]
        if name not in self.commands and not name.startswith("-"):
            meant = near(name, self.commands)
            there = f"there are {', '.join(self.commands)}, and --name {name} shows one entry"
            raise click.UsageError(
                f"no command {name!r}; {f'did you mean {meant}?' if meant else there}", ctx
            )
        return super().resolve_command(ctx, args)


@click.group("usage", cls=_Group, invoke_without_command=True, epilog=_EPILOG)
@click.option(
    "--days",
    type=click.IntRange(1, _MOST_DAYS),
    metavar="N",
    help="Show the last N days, today among them, and each entry's total.",
)
@click.option("--name", metavar="NAME", help="Show this entry alone.")
@json_option
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV: a line for each day and entry.")
@registry_option
@click.pass_context
def usage(
    ctx: click.Context, days: int | None, name: str | None, as_json: bool, as_csv: bool, registry: str | None
) -> None:
    """Show what every entry used today and what is left of its budget.

    Tokens and money are those of calls that have ended; HELD is what running calls have reserved at most. A
    day begins at midnight in the registry's budget_timezone, else in this machine's. Names that were used but
    are no longer in the registry stand at the end.
    """
    if ctx.invoked_subcommand is not None:
        given = [p for p in ctx.params if ctx.get_parameter_source(p) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options of {ctx.invoked_subcommand} stand after its name", ctx)
        return
    if as_json and as_csv:
        raise click.UsageError("give either --json or --csv, not both", ctx)
    declared = load(find(registry))
    form = "json" if as_json else "csv" if as_csv else ""
    with opened() as ledger:
        if days is None:
            _show_today(declared, ledger, name, form)
        else:
            _show_days(declared, ledger, days, name, form)


def _show_today(registry: Registry, ledger: Ledger, name: str | None, form: str) -> None:
    now, tz = time.time(), zone(registry.budget_timezone)
    day, reset = budget_day(now, tz), resets_at(now, tz)
    resets_in = reset.timestamp() - now
    found = tables.lines(registry, ledger.usage(day))
    if name is not None:
        check_name(name, registry, ledger)
        found = [line for line in found if line.name == name] or [tables.Line(name, None, Used())]
    if form == "json":
        tables.print_today_json(found, day, reset, resets_in)
    elif form == "csv":
        tables.print_csv({day: {line.name: line.used for line in found}})
    else:
        tables.show_today(found, resets_in, with_total=name is None)
        if is_terminal(sys.stdout):
            where = registry.budget_timezone or reset.tzname() or "local time"
            say(f"{day:%A, %Y-%m-%d}, {where}", "dim")


def _show_days(registry: Registry, ledger: Ledger, days: int, name: str | None, form: str) -> None:
    until = today(registry)
    since = until - timedelta(days - 1)
    books = ledger.history(since)
    if name is not None:
        check_name(name, registry, ledger)
        books = {day: {name: used[name]} for day, used in books.items() if name in used}
    period = tables.Period(registry, since, until, books)
    if form == "json":
        tables.print_days_json(period)
    elif form == "csv":
        tables.print_csv(books)
    else:
        tables.show_days(period, name)


for _subcommand in (holds, reset, rebuild_command):
    usage.add_command(_subcommand)
