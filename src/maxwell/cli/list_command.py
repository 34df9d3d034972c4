"""`maxwell list`: every LLM, embedding and reranker as it stands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from maxwell.amounts import duration
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
    say,
    table,
    waiting,
)
from maxwell.cli.requirement_options import json_option, registry_option
from maxwell.cli.standing import is_spent, place, short_model, state_cell, why
from maxwell.errors import LedgerError
from maxwell.lm_pool import LLMPool
from maxwell.registry.specs import EmbeddingSpec, LLMSpec, Spec
from maxwell.speed import Seen, Speeds

_EPILOG = """\b
Examples:
  maxwell list
  maxwell list --speeds
  maxwell list --json | jq -r '.[] | select(.state == "up") | .name'
"""

_COLUMNS = (
    Column("KIND"),
    Column("NAME"),
    Column("STATE"),
    Column("TOKENS/S", right=True),
    Column("MEASURED", right=True),
    Column("CONTEXT", right=True),
    Column("DIMENSION", right=True),
    Column("PRICE PER 1K", beneath="price {}"),
    Column("BUDGET LEFT", beneath="budget left {}"),
    Column("SLOTS", right=True, beneath="slots {}"),
    Column("IN FLIGHT", right=True, beneath="in flight {}"),
    Column("WHERE", beneath="{}"),
    Column("MODEL", beneath="{}"),
    Column("TIER", beneath="tier {}"),
    Column("TAGS", beneath="tags {}"),
    Column("DAILY BUDGET", beneath="daily budget {}"),
    Column("RESETS IN", beneath="resets in {}"),
    Column("NOTE", beneath="{}", always=True),
)
_SPEEDS = (
    Column("NAME"),
    Column("WRITES/S", right=True),
    Column("DECLARED", right=True),
    Column("READS/S", right=True),
    Column("DECLARED", right=True),
    Column("FIRST TOKEN", right=True, beneath="first token {}"),
    Column("REPLY", right=True, beneath="reply {} tokens"),
    Column("LOADS IN", right=True, beneath="loads in {}"),
    Column("WAKES IN", right=True, beneath="wakes in {}"),
    Column("SLOTS", right=True, beneath="slots {}"),
    Column("CALLS", right=True),
)
_SPEEDS_MEAN = """\
WRITES/S and READS/S: tokens a second, as measured. FIRST TOKEN: seconds until it comes, reading not
included. REPLY: its usual tokens. CALLS: how many showed the speed; - is not known yet.
"""


@click.command("list", epilog=_EPILOG)
@click.option("--speeds", is_flag=True, help="Show what calls taught of every LLM, beside what is declared.")
@json_option
@registry_option
def list_(speeds: bool, as_json: bool, registry: str | None) -> None:
    """Show how every LLM, embedding and reranker stands: health, speed, context, price, budget left.

    Servers are asked how they are, at most every 30 seconds; nothing is generated. TOKENS/S is the declared
    speed, MEASURED the one that calls showed. CONTEXT is what one request may hold; where the server gives
    less than the registry declares, both are shown. IN FLIGHT counts the calls of all your programs.
    """
    with LLMPool.from_registry(registry) as pool:
        with waiting("asking the servers"):
            found = pool.health()
        problem = _ledger_problem(pool, found)
        file = pool.registry.path
    if as_json:
        print_json([_as_json(status) for status in found])
    elif speeds:
        show_speeds(found)
    else:
        show_statuses(found)
        if is_terminal(sys.stdout):
            say(f"from {file}", "dim")
    if problem:
        hint(f"maxwell: warning: {problem}")


def _ledger_problem(pool: LLMPool, found: Sequence[Status]) -> str:
    if all(status.used is not None for status in found):
        return ""
    try:
        pool.usage()
    except LedgerError as error:
        return str(error)
    return ""


def show_statuses(found: Sequence[Status]) -> None:
    """Print how every entry stands."""
    if not found:
        say("the registry declares no LLM, no embedding and no reranker")
    elif not is_terminal(sys.stdout):
        table(_COLUMNS, [_row(status, status.kind) for status in found])
    else:
        for kind, title in (("llm", "LLMs"), ("embedding", "Embeddings"), ("reranker", "Rerankers")):
            rows = [_row(status, "") for status in found if status.kind == kind]
            if rows:
                say(title, "bold underline")
                table(_COLUMNS, rows)
                say()


def show_speeds(found: Sequence[Status]) -> None:
    """Print what calls taught of every LLM, beside what is declared."""
    rows = [_speeds_row(status) for status in found if status.kind == "llm"]
    if not rows:
        say("the registry declares no LLM")
        return
    table(_SPEEDS, rows)
    if is_terminal(sys.stdout):
        say()
        say(_SPEEDS_MEAN.replace("\n", " ").strip(), "dim")


def _speeds_row(status: Status) -> list[Cell | str]:
    spec, found = status.spec, status.measured
    assert isinstance(spec, LLMSpec)
    can, seen = spec.capabilities, found.seen if found else Seen()
    return [
        Cell(spec.name, "bold"),
        _measured(found.speed if found and seen.speed else None, can.speed_tokens_per_sec),
        number(can.speed_tokens_per_sec),
        _measured(found.prefill if found and seen.prefill else None, can.prefill_tokens_per_sec),
        number(can.prefill_tokens_per_sec) if can.prefill_tokens_per_sec else "",
        f"{found.overhead:.2f} s" if found and seen.overhead else "",
        f"{found.completion:,.0f}" if found and seen.completion else "",
        duration(found.load) if found and seen.load else "",
        duration(found.wake) if found and seen.wake else "",
        f"{status.slots}" if status.slots else "",
        f"{seen.speed:,}",
    ]


def _measured(value: float | None, declared: float | None) -> Cell:
    """A measured speed, marked where the declared one is far off."""
    if value is None:
        return Cell("")
    far_off = declared is not None and is_far_off(declared, value)
    return Cell(number(float(f"{value:.3g}")) + (" !" if far_off else ""), "yellow" if far_off else "")


def _row(status: Status, kind: str) -> list[Cell | str]:
    spec = status.spec
    llm = spec if isinstance(spec, LLMSpec) else None
    found = status.measured
    note = "; ".join(filter(None, (why(status), *status.remarks)))
    return [
        kind,
        Cell(spec.name, "bold"),
        state_cell(status),
        number(llm.capabilities.speed_tokens_per_sec) if llm else "",
        _measured(found.speed, llm.capabilities.speed_tokens_per_sec)
        if llm and found and found.seen.speed
        else "",
        _context(status),
        f"{spec.dimension}" if isinstance(spec, EmbeddingSpec) else "",
        price(spec),
        Cell(_budget_left(status), "red" if is_spent(status) else ""),
        f"{status.slots}" if status.slots else "",
        f"{status.in_flight}" if status.in_flight else "",
        place(spec),
        short_model(spec.model),
        llm.tier if llm else "",
        ", ".join(spec.tags),
        _budget(spec.daily_budget_tokens, spec.daily_budget_usd),
        duration(status.resets_in) if _has_budget(spec) else "",
        Cell(note, "yellow"),
    ]


def _context(status: Status) -> str:
    declared = _declared_context(status.spec)
    return f"{status.context:,}" if status.context == declared else f"{status.context:,} of {declared:,}"


def _declared_context(spec: Spec) -> int:
    return spec.capabilities.max_context if isinstance(spec, LLMSpec) else spec.max_context


def _has_budget(spec: Spec) -> bool:
    return spec.daily_budget_tokens is not None or spec.daily_budget_usd is not None


def price(spec: Spec) -> str:
    """What 1000 tokens cost."""
    if spec.is_free:
        return "free"
    if not isinstance(spec, LLMSpec) or spec.price_prompt == spec.price_completion:
        return money(spec.price_prompt)
    return f"{money(spec.price_prompt)} in, {money(spec.price_completion)} out"


def _budget_left(status: Status) -> str:
    if not _has_budget(status.spec):
        return "unlimited"
    return "unknown" if status.used is None else _budget(status.tokens_left, status.usd_left)


def _budget(tokens: int | None, usd: float | None) -> str:
    amounts = [] if tokens is None else [plural(max(tokens, 0), "token")]
    if usd is not None:
        amounts.append(money(max(usd, 0.0)))
    return ", ".join(amounts)


def _as_json(status: Status) -> dict[str, Any]:
    spec, used = status.spec, status.used
    entry: dict[str, Any] = {
        "kind": status.kind,
        "name": spec.name,
        "state": status.state,
        "why": why(status),
        "remarks": list(status.remarks),
        "where": place(spec),
        "model": spec.model,
        "backend": spec.backend,
        "context": status.context,
        "declared_context": _declared_context(spec),
        "slots": status.slots,
        "tags": list(spec.tags),
        "cost_per_1k_prompt_tokens": spec.price_prompt,
        "daily_budget_tokens": spec.daily_budget_tokens,
        "daily_budget_usd": spec.daily_budget_usd,
        "tokens_left": status.tokens_left,
        "usd_left": status.usd_left,
        "tokens_used": None if used is None else used.tokens,
        "usd_used": None if used is None else used.usd,
        "budget_resets_in_seconds": round(status.resets_in),
    }
    if isinstance(spec, LLMSpec):
        can = spec.capabilities
        entry |= {
            "in_flight": status.in_flight,
            "cost_per_1k_completion_tokens": spec.price_completion,
            "tier": spec.tier,
            "speed_tokens_per_sec": can.speed_tokens_per_sec,
            "prefill_tokens_per_sec": can.prefill_tokens_per_sec,
            "measured": _measured_json(status.measured),
            "reasoning": can.reasoning,
            "vision": can.vision,
            "code_specialized": can.code_specialized,
            "tools": can.tools,
        }
    elif isinstance(spec, EmbeddingSpec):
        entry |= {"dimension": spec.dimension, "specialized_for": list(spec.specialized_for)}
    return entry


def _measured_json(found: Speeds | None) -> dict[str, Any] | None:
    """What calls showed; null where none did."""
    if found is None:
        return None
    seen = found.seen
    return {
        "speed_tokens_per_sec": found.speed if seen.speed else None,
        "prefill_tokens_per_sec": found.prefill if seen.prefill else None,
        "first_token_seconds": found.overhead if seen.overhead else None,
        "reply_tokens": found.completion if seen.completion else None,
        "bytes_per_token": found.bytes_per_token if seen.bytes_per_token else None,
        "load_seconds": found.load if seen.load else None,
        "wake_seconds": found.wake if seen.wake else None,
        "slots": found.slots,
        "observations": msgspec.structs.asdict(seen),
    }
