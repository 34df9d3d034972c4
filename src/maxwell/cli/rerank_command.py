"""`maxwell rerank`: documents ordered by how well they answer a query."""

from __future__ import annotations

import click

from maxwell.cli.render import Cell, Column, Row, fold, print_json, table
from maxwell.cli.requirement_options import (
    argument_text,
    json_option,
    log_content_option,
    read_stdin,
    registry_option,
    timeout_option,
)
from maxwell.lm_pool import LLMPool

_EPILOG = """\b
Examples:
  maxwell rerank "who may sign" "The chair signs." "Lunch is at noon."
  maxwell rerank "who may sign" --top 5 < paragraphs.txt
  maxwell rerank "who may sign" --json < paragraphs.txt | jq '.results[0].index'
"""
_COLUMNS = (Column("SCORE", right=True), Column("PLACE", right=True), Column("DOCUMENT"))
_SHOWN = 100  # characters of a document


@click.command("rerank", epilog=_EPILOG)
@click.argument("query")
@click.argument("documents", metavar="[DOCUMENT]...", nargs=-1)
@click.option(
    "--name",
    metavar="NAME_OR_TAG",
    help='This reranker, else the first usable one with this tag.  [default: tag "default", else the first]',
)
@click.option("--top", type=click.IntRange(1), metavar="N", help="Show the best N alone.")
@timeout_option
@log_content_option
@json_option
@registry_option
def rerank(  # noqa: PLR0913 - click hands over each option by itself
    query: str,
    documents: tuple[str, ...],
    name: str | None,
    top: int | None,
    timeout: float | None,
    log_content: bool,
    as_json: bool,
    registry: str | None,
) -> None:
    """Order documents by how well they answer a query, best first.

    Without DOCUMENT each line of stdin is one. All are scored by one server; its scores can be compared with
    each other, not with another server's. PLACE counts from 0.
    """
    texts = [argument_text((text,), "a document") for text in documents] or _lines()
    wanted = argument_text((query,), "the query")
    if not wanted.strip():
        raise click.UsageError("the query is empty")
    with LLMPool.from_registry(registry, log_content=log_content) as pool:
        reranker = pool.get_reranker(name)
        ranked = reranker.rerank(wanted, texts, top_n=top, timeout=timeout)
    if as_json:
        results = [{"index": one.index, "score": one.score, "document": one.document} for one in ranked]
        print_json({"name": reranker.name, "model": reranker.spec.model, "results": results})
        return
    rows: list[Row] = [[f"{one.score:.6g}", f"{one.index}", Cell(_short(one.document))] for one in ranked]
    table(_COLUMNS, rows)


def _lines() -> list[str]:
    lines = [line.removesuffix("\r") for line in read_stdin("the documents").split("\n")]
    if lines == [""]:
        raise click.UsageError("there is no document; give one, or some on stdin, one a line")
    return lines


def _short(text: str) -> str:
    line = fold(text)
    return line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
