"""`maxwell why`: the receipt of a call: what was asked, who was chosen and why, what became of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import click
from msgspec import Struct

from maxwell.cli.explain_command import because, say_formula, show_choice
from maxwell.cli.render import Cell, Column, is_terminal, money, number, plural, print_json, say, table
from maxwell.cli.requirement_options import json_option
from maxwell.clock import SystemClock
from maxwell.errors import UnknownReceipt
from maxwell.receipts import Attempted, Prices, Receipt
from maxwell.receipts.book import ReceiptBook
from maxwell.registry.locate import maxwell_home
from maxwell.types import Usage

_EPILOG = """\b
Examples:
  maxwell why
  maxwell why k3x9
  maxwell why --list

\b
Receipts are kept for 30 days, without the text of prompts and replies unless
--log-content or MAXWELL_LOG_CONTENT=1 asked for it. The terms of the score:
`maxwell explain --help`.
"""

_LISTED = 20

_LIST = (
    Column("ID"),
    Column("WHEN"),
    Column("LLM"),
    Column("OUTCOME"),
    Column("TOKENS", right=True, beneath="{} tokens"),
    Column("COST", right=True, beneath="{}"),
    Column("SECONDS", right=True, beneath="{} s"),
    Column("TRIES", right=True, beneath="{} tries"),
)
_ATTEMPTS = (
    Column("ASKED"),
    Column("OUTCOME"),
    Column("SECONDS", right=True),
    Column("HELD", right=True, beneath="held back {} s before"),
    Column("COST", right=True, beneath="{}"),
    Column("TOKENS", beneath="{} tokens"),
    Column("PRICE", beneath="{}", always=True),
    Column("WHAT WENT WRONG", beneath="{}", always=True),
)
_STYLES = {"ok": "green", "cancelled": "yellow"}

_ENDS = {
    "budget": "no daily budget had room for it",
    "ledger": "it was not made, because the usage ledger could not be kept",
    "failed": "nobody answered",
}


@click.command("why", epilog=_EPILOG)
@click.argument("wanted", metavar="[ID|last]", default="last")
@click.option("--list", "as_list", is_flag=True, help="Show the latest calls, a line each.")
@click.option(
    "-n",
    "most",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"With --list: so many of them.  [default: {_LISTED}]",
)
@json_option
def why(wanted: str, as_list: bool, most: int | None, as_json: bool) -> None:
    """Show why a call went where it went, and what became of it.

    ID is a receipt's, or as much of its beginning as is needed; without it the latest call is shown.
    """
    if as_list and wanted != "last":
        raise click.UsageError("--list shows the latest calls; leave ID out")
    if most is not None and not as_list:
        raise click.UsageError("-n goes with --list")
    with _receipts() as book:
        if as_list:
            found = book.recent(most or _LISTED)
        else:
            last = book.last() if wanted == "last" else book.get(wanted)
            found = [] if last is None else [last]
    if not found:
        raise UnknownReceipt('there is no receipt yet, every call leaves one; try `maxwell ask "Hello"`')
    if as_json:
        told = [as_plain(receipt) for receipt in found]
        print_json(told if as_list else told[0])
    elif as_list:
        table(_LIST, [_list_row(receipt) for receipt in found])
    else:
        show_receipt(found[0])


@contextmanager
def _receipts() -> Iterator[ReceiptBook]:
    from maxwell.ledger.sqlite import SQLiteLedger

    clock = SystemClock()
    database = SQLiteLedger(maxwell_home(os.environ), clock).database
    try:
        yield ReceiptBook(database, clock)
    finally:
        database.close()


def _list_row(receipt: Receipt) -> list[Cell | str]:
    attempts, usage = receipt.attempts, receipt.usage
    # A month is kept, so the year says nothing; without it more fits beside one another.
    when = _when(receipt.at)[5:] if is_terminal(sys.stdout) else _when(receipt.at)
    return [
        receipt.id,
        when,
        receipt.llm or (attempts[-1].name if attempts else ""),
        Cell(_words(receipt.outcome), _STYLES.get(receipt.outcome, "red")),
        f"{'~' if usage.estimated else ''}{usage.total_tokens:,}" if usage else "",
        _cost(receipt.usd, usage),
        f"{receipt.seconds:.3f}" if attempts else "",
        f"{len(attempts)}" if len(attempts) > 1 else "",
    ]


_KINDS = {"embed": "an embedding call", "rerank": "a reranking call"}
_ASKED_FOR = {"embed": "embedding", "rerank": "reranker"}


def show_receipt(receipt: Receipt) -> None:
    """Print a receipt."""
    kind = _KINDS.get(receipt.kind, "a chat call")
    say(f"Receipt {receipt.id}: {kind} on {_when(receipt.at)}", "bold")
    say(_asked(receipt))
    choice = receipt.choice
    if choice.ranked or choice.rejected:
        say()
        show_choice(choice)
    if choice.ranked:
        say()
        for sentence in _reasons(receipt):
            say(sentence)
        if choice.prompt_bytes is not None:
            say_formula()
    say()
    if receipt.attempts:
        table(_ATTEMPTS, [_attempt_row(attempt, receipt.kind) for attempt in receipt.attempts])
        say()
        for sentence in _takeovers(receipt):
            say(sentence)
    say(_end(receipt))
    for title, text in (("Prompt", receipt.prompt), ("Reply", receipt.reply)):
        if text is not None:
            say()
            say(title, "bold underline")
            say(text)


def _asked(receipt: Receipt) -> str:
    """What was asked, in a sentence."""
    choice, is_chat = receipt.choice, receipt.kind not in _ASKED_FOR
    size = [
        plural(receipt.messages, "message" if is_chat else "text"),
        plural(receipt.characters, "character"),
    ]
    if receipt.images:
        size.append(plural(receipt.images, "image"))
    parts = [f"Asked: {', '.join(size)}"]
    if choice.needs:
        parts.append("needs " + ", ".join(f"{key}={_need(value)}" for key, value in choice.needs.items()))
    if is_chat and choice.prompt_bytes is not None:
        parts.append(f"weight {choice.time_cost_weight:g}")
    if choice.asked:
        what = _ASKED_FOR.get(receipt.kind, "LLM")
        parts.append(f'the {what} was asked for by {choice.by} "{choice.asked}"')
    elif not is_chat:
        parts.append(f"no {_ASKED_FOR[receipt.kind]} was named")
    return "; ".join(parts) + "."


def _reasons(receipt: Receipt) -> list[str]:
    """Why the one that was asked first was chosen."""
    choice, attempts = receipt.choice, receipt.attempts
    told = [because(choice)]
    if choice.wait_or_spend:
        told.append(choice.wait_or_spend)
    if receipt.chosen_before:
        told.append(
            f"When the LLM was got it was {receipt.chosen_before}; when it was called, this was decided anew."
        )
    if attempts and attempts[0].name != choice.ranked[0].name:
        told.append(_in_time(attempts[0].name, choice.ranked[0].name))
    return told


def _takeovers(receipt: Receipt) -> list[str]:
    """Who took over from one that had failed, and why."""
    told = []
    for before, attempt in pairwise(receipt.attempts):
        choice = attempt.choice
        if choice is None or not choice.ranked:
            continue
        reasons = [f"{before.name} failed; {because(choice)}", choice.wait_or_spend]
        if attempt.name != choice.ranked[0].name:
            reasons.append(_in_time(attempt.name, choice.ranked[0].name))
        told.append(" ".join(filter(None, reasons)))
    return told


def _in_time(asked: str, best: str) -> str:
    return f"{asked} was asked, because {best} would not have been done in time."


def _need(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _attempt_row(attempt: Attempted, kind: str) -> list[Cell | str]:
    usage = attempt.usage
    return [
        attempt.name,
        Cell(_words(attempt.outcome), _STYLES.get(attempt.outcome, "red")),
        f"{attempt.seconds:.3f}",
        f"{attempt.held_seconds:.3f}" if attempt.held_seconds else "",
        _cost(attempt.usd, usage),
        "" if usage is None else _total(usage) if kind == "embed" else _tokens(usage),
        _prices(attempt),
        Cell(attempt.message, "yellow"),
    ]


def _tokens(usage: Usage) -> str:
    """Prompt and completion, with what is special about them."""
    cached = f" ({usage.cached_tokens:,} cached)" if usage.cached_tokens else ""
    reasoning = f" ({usage.reasoning_tokens:,} reasoning)" if usage.reasoning_tokens else ""
    return f"{usage.prompt_tokens:,}{cached} + {usage.completion_tokens:,}{reasoning}{_estimated(usage)}"


def _total(usage: Usage) -> str:
    return f"{usage.total_tokens:,}{_estimated(usage)}"


def _estimated(usage: Usage) -> str:
    return " (estimated)" if usage.estimated else ""


def _cost(usd: float, usage: Usage | None) -> str:
    return "" if usage is None else money(usd)


def _prices(attempt: Attempted) -> str:
    """What was counted with, and what the server says it came to where that is not the same."""
    facts = [] if attempt.prices is None else [f"{_per_1k(attempt.prices)} per 1K"]
    reported = None if attempt.usage is None else attempt.usage.reported_usd
    if reported is not None and money(reported) != money(attempt.usd):
        facts.append(f"{money(reported)} says the server")
    return ", ".join(facts)


def _per_1k(prices: Prices) -> str:
    if prices.prompt == prices.cached == (prices.completion or prices.prompt):
        return money(prices.prompt)
    cached = "" if prices.cached == prices.prompt else f"{money(prices.cached)} cached, "
    return f"{money(prices.prompt)} in, {cached}{money(prices.completion)} out"


def _end(receipt: Receipt) -> str:
    """How it ended and what it came to, in a sentence or two."""
    usage = receipt.usage
    facts = [f"{number(round(receipt.seconds, 3))} s in all"]
    held = receipt.held_seconds + sum(attempt.held_seconds for attempt in receipt.attempts)
    if held:
        facts.append(f"held back for {number(round(held, 3))} s of them")
    if receipt.first_token_seconds is not None:
        facts.append(f"{number(round(receipt.first_token_seconds, 3))} s to the first token")
    if usage is not None:
        facts += [plural(usage.total_tokens, "token") + _estimated(usage), money(receipt.usd)]
    if receipt.finish_reason and receipt.outcome == "ok":
        facts.append(f"finish reason {receipt.finish_reason}")
    why = f" ({receipt.message})" if receipt.message else ""
    return f"{_ending(receipt)}{why}: {', '.join(facts)}."


def _ending(receipt: Receipt) -> str:
    others = len(receipt.attempts) - 1
    if receipt.outcome == "ok":
        after = f" after {plural(others, 'other')} had failed" if others > 0 else ""
        return f"{receipt.llm or 'It'} answered{after}"
    if receipt.outcome == "broken_stream":
        return f"The reply of {receipt.llm} broke off"
    if receipt.outcome == "cancelled":
        return "The caller left before it was over"
    return f"It failed, {_ENDS.get(receipt.outcome, _words(receipt.outcome))}"


def _words(outcome: str) -> str:
    return outcome.replace("_", " ")


def _when(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC).astimezone():%Y-%m-%d %H:%M:%S}"


def as_plain(receipt: Receipt) -> dict[str, Any]:
    """A receipt for programs, every field by its name."""
    plain: dict[str, Any] = _plain(receipt)
    usage = receipt.usage
    return plain | {
        "at": datetime.fromtimestamp(receipt.at, UTC).isoformat(timespec="milliseconds"),
        "usage": None if usage is None else _plain(usage),
        "cost_usd": receipt.usd,
    }


# As `maxwell explain` and `maxwell ask` call them.
_NAMES = {
    "queue_wait": "wait_seconds",
    "ready_in": "ready_in_seconds",
    "overhead": "overhead_seconds",
    "occupancy": "occupancy_seconds",
    "speed": "speed_tokens_per_sec",
    "usd": "cost_usd",
}


def _plain(value: Any) -> Any:
    if isinstance(value, Struct):
        return {_NAMES.get(field, field): _plain(getattr(value, field)) for field in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
