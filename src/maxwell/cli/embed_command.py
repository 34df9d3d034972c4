"""`maxwell embed`: texts become vectors."""

from __future__ import annotations

import json
import math
import sys

import click

from maxwell.cli.render import is_terminal, plural, print_json, say
from maxwell.cli.requirement_options import (
    argument_text,
    json_option,
    log_content_option,
    read_stdin,
    registry_option,
    timeout_option,
)
from maxwell.lm_pool import LLMPool
from maxwell.vectors import Embedding, Vectors

_EPILOG = """\b
Examples:
  maxwell embed "some text" "another text"
  maxwell embed --lines < sentences.txt > vectors.jsonl
  maxwell embed --name code --json - < module.py
"""
_SHOWN = 5


@click.command("embed", epilog=_EPILOG)
@click.argument("words", metavar="[TEXT]...", nargs=-1)
@click.option(
    "--name",
    metavar="NAME_OR_TAG",
    help='This embedding, else the first usable one with this tag.  [default: tag "default", else the first]',
)
@click.option("--lines", is_flag=True, help="Each line of stdin is a text.")
@click.option("--truncate", is_flag=True, help="Cut texts that are too long, instead of refusing them.")
@timeout_option
@log_content_option
@json_option
@registry_option
def embed(  # noqa: PLR0913 - click hands over each option by itself
    words: tuple[str, ...],
    name: str | None,
    lines: bool,
    truncate: bool,
    timeout: float | None,
    log_content: bool,
    as_json: bool,
    registry: str | None,
) -> None:
    """Turn texts into vectors.

    Each TEXT gives one vector. "-", or no TEXT with something piped in, reads one text from stdin. Prints one
    JSON array a line when piped, a summary on a terminal.
    """
    texts = _texts(words, lines)
    with LLMPool.from_registry(registry, log_content=log_content) as pool:
        embedding = pool.get_embedding(name)
        vectors = embedding.embed_many(texts, truncate=truncate, timeout=timeout)
    if as_json:
        print_json(_as_json(embedding, vectors))
    elif is_terminal(sys.stdout):
        _summarise(embedding, texts, vectors)
    else:
        for vector in vectors:
            click.echo(json.dumps(vector))


def _texts(words: tuple[str, ...], lines: bool) -> list[str]:
    if lines:
        if words not in ((), ("-",)):
            raise click.UsageError("--lines reads stdin; leave TEXT out")
        texts = [line.removesuffix("\r") for line in read_stdin("texts").split("\n")]
    elif words == ("-",) or (not words and not sys.stdin.isatty()):
        texts = [read_stdin("the text")]
    elif words:
        texts = [argument_text((word,), "a text") for word in words]
    else:
        raise click.UsageError("there is no text; give one, or - to read it from stdin")
    for place, text in enumerate(texts, 1):
        if not text:
            which = f"line {place}" if lines else f"text {place}" if len(texts) > 1 else "the text"
            raise click.UsageError(f"{which} is empty")
    return texts


def _as_json(embedding: Embedding, vectors: Vectors) -> dict[str, object]:
    spec = embedding.spec
    who = list(vectors.llms)  # more than the chosen one where another of its vector space took over
    return {
        "name": spec.name,
        "model": spec.model,
        "dimension": spec.dimension,
        "made_by": who,
        "vectors": vectors,
    }


def _summarise(embedding: Embedding, texts: list[str], vectors: list[list[float]]) -> None:
    """Enough to see that it works; nobody reads thousands of numbers."""
    count = plural(len(vectors), "vector")
    say(
        f"{embedding.name}: {count} of {embedding.spec.dimension:,} numbers; --json or a pipe gives all",
        "dim",
    )
    for text, vector in zip(texts, vectors, strict=True):
        first = ", ".join(f"{x:+.4f}" for x in vector[:_SHOWN])
        more = ", ..." if len(vector) > _SHOWN else ""
        norm = math.sqrt(math.fsum(x * x for x in vector))
        start = text if len(text) <= 40 else text[:39] + "…"
        say(" ".join(start.split()), "bold")
        say(f"    [{first}{more}]  norm {norm:.4f}")
