"""`maxwell list`: every LLM and embedding as it stands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from maxwell.amounts import duration
from maxwell.calls.status import Status
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

_EPILOG = """\b
Examples:
  maxwell list
  maxwell list --json | jq -r '.[] | select(.state == "up") | .name'
"""

_COLUMNS = (
    Column("KIND"),
    Column("NAME"),
    Column("STATE"),
    Column("TOKENS/S", right=True),
    Column("CONTEXT", right=True),
    Column("DIMENSION", right=True),
    Column("PRICE PER 1K", beneath="price {}"),
    Column("BUDGET LEFT", beneath="budget left {}"),
    Column("SLOTS", right=True, beneath="slots {}"),
    Column("WHERE", beneath="{}"),
    Column("MODEL", beneath="{}"),
    Column("TIER", beneath="tier {}"),
    Column("TAGS", beneath="tags {}"),
    Column("DAILY BUDGET", beneath="daily budget {}"),
    Column("RESETS IN", beneath="resets in {}"),
    Column("NOTE", beneath="{}", always=True),
)


@click.command("list", epilog=_EPILOG)
@json_option
@registry_option
def list_(as_json: bool, registry: str | None) -> None:
    """Show every LLM and embedding: health, speed, context, price, budget left.

    Servers are asked how they are, at most every 30 seconds; nothing is generated. CONTEXT is what one
    request may hold; where the server gives less than the registry declares, both are shown.
    """
    with LLMPool.from_registry(registry) as pool:
        with waiting("asking the servers"):
            found = pool.health()
        problem = _ledger_problem(pool, found)
        file = pool.registry.path
    if as_json:
        print_json([_as_json(status) for status in found])
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
        say("the registry declares no LLM and no embedding")
    elif not is_terminal(sys.stdout):
        table(_COLUMNS, [_row(status, status.kind) for status in found])
    else:
        for kind, title in (("llm", "LLMs"), ("embedding", "Embeddings")):
            rows = [_row(status, "") for status in found if status.kind == kind]
            if rows:
                say(title, "bold underline")
                table(_COLUMNS, rows)
                say()


def _row(status: Status, kind: str) -> list[Cell | str]:
    spec = status.spec
    llm = spec if isinstance(spec, LLMSpec) else None
    slots = status.slots or (llm.capabilities.slots if llm else None)
    note = "; ".join(filter(None, (why(status), *status.remarks)))
    return [
        kind,
        Cell(spec.name, "bold"),
        state_cell(status),
        number(llm.capabilities.speed_tokens_per_sec) if llm else "",
        _context(status),
        f"{spec.dimension}" if isinstance(spec, EmbeddingSpec) else "",
        price(spec),
        Cell(_budget_left(status), "red" if is_spent(status) else ""),
        f"{slots}" if slots else "",
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
            "slots": status.slots or can.slots,
            "cost_per_1k_completion_tokens": spec.price_completion,
            "tier": spec.tier,
            "speed_tokens_per_sec": can.speed_tokens_per_sec,
            "reasoning": can.reasoning,
            "vision": can.vision,
            "code_specialized": can.code_specialized,
            "tools": can.tools,
        }
    else:
        entry |= {"dimension": spec.dimension, "specialized_for": list(spec.specialized_for)}
    return entry
