"""`maxwell tokens`: how long a prompt is."""

from __future__ import annotations

import sys

import click

from maxwell.cli.render import Cell, Column, Row, plural, print_json, say, table, waiting
from maxwell.cli.requirement_options import (
    argument_text,
    json_option,
    name_option,
    read_stdin,
    registry_option,
)
from maxwell.decision import Decision
from maxwell.lm_pool import LLMPool

_EPILOG = """\b
Examples:
  maxwell tokens "Why is the sky blue?"
  maxwell tokens --name qwen-coder-30b - < module.py
  maxwell tokens --all --json - < report.txt
"""
_COLUMNS = (
    Column("NAME"),
    Column("TOKENS", right=True),
    Column("CONTEXT", right=True),
    Column("SHARE", right=True),
    Column("HOW"),
)


@click.command("tokens", epilog=_EPILOG)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@name_option
@click.option("--all", "for_all", is_flag=True, help="Count for every LLM.")
@json_option
@registry_option
def tokens(
    words: tuple[str, ...], name: str | None, for_all: bool, as_json: bool, registry: str | None
) -> None:
    """Count a prompt's tokens, and how much of the context they take.

    PROMPT is one text, words joined by spaces. "-", or no PROMPT with something piped in, reads it from
    stdin. The LLM's own server counts, its chat template included; where it cannot, the number is an
    estimate and marked so. Without --name or --all it is counted for the LLM that would be asked.
    """
    if name is not None and for_all:
        raise click.UsageError("give either --name or --all, not both")
    prompt = _prompt(words)
    with LLMPool.from_registry(registry) as pool, waiting("counting"):
        names = [spec.name for spec in pool.llms] if for_all else [name or _chosen(pool, prompt)]
        found = pool.count_tokens(prompt, names=names)
    if as_json:
        print_json(
            [
                {"name": n.llm, "tokens": n.tokens, "exact": n.exact, "context": n.context, "share": n.share}
                for n in found
            ]
        )
    elif for_all:
        rows: list[Row] = [
            [Cell(n.llm, "bold"), f"{n.tokens:,}", f"{n.context:,}", f"{n.share:.1%}", _how(n.exact)]
            for n in found
        ]
        table(_COLUMNS, rows)
    else:
        (one,) = found
        about = "" if one.exact else "about "
        say(
            f"{about}{plural(one.tokens, 'token')} for {one.llm}, {one.share:.1%} of its context of "
            f"{one.context:,} ({_how(one.exact)})"
        )


def _how(exact: bool) -> str:
    return "counted by its server" if exact else "estimated"


def _prompt(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        return read_stdin("the prompt")
    if not words:
        raise click.UsageError("there is no prompt; give one, or - to read it from stdin")
    return argument_text(words, "the prompt")


def _chosen(pool: LLMPool, prompt: str) -> str:
    """Who would be asked; where the prompt fits nobody, whoever holds most."""
    decision: Decision = pool.explain(prompt=prompt)
    if decision.chosen is not None:
        return decision.chosen.spec.name
    short = [no for no in decision.rejected if no.reason == "context"]
    if short:
        return max(short, key=lambda no: no.have).spec.name
    return pool.get_lm(prompt=prompt).name  # raises, and says why nobody can be asked
