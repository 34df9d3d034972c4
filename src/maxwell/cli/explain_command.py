"""`maxwell explain`: the decision that `maxwell ask` would take, with every term of every score."""

from __future__ import annotations

import sys
from typing import Any

import click

from maxwell.cli.render import Cell, Column, is_terminal, number, print_json, say, table, waiting
from maxwell.cli.requirement_options import (
    Command,
    argument_text,
    checked,
    json_option,
    name_option,
    read_stdin,
    registry_option,
    requirement_options,
)
from maxwell.explain import Flip, flips
from maxwell.lm_pool import LLMPool
from maxwell.scheduler import Decision, Scored

_EPILOG = """\b
Examples:
  maxwell explain "Why is the sky blue?"
  maxwell explain -w 0.1 --tag coding - < long_prompt.txt
  maxwell explain --min-context 32000

\b
The score, higher is better:
  score = -cost - W x seconds + bonus
  cost     price of this request in mills; 1 mill = $0.001
  W        the weight -w, in mills a second; 1 = $3.60 an hour
  seconds  until the last token: wait + read (the prompt) + write (the reply)
  bonus    1 - |used part of the context - 0.7|
"""

_SCORED = (
    Column("RANK", right=True),
    Column("LLM"),
    Column("SCORE", right=True),
    Column("COST (MILLS)", right=True),
    Column("SECONDS", right=True),
    Column("BONUS", right=True),
    Column("WAIT", right=True, beneath="{} s wait"),
    Column("READ", right=True, beneath="{} s read"),
    Column("WRITE", right=True, beneath="{} s write"),
    Column("TOKENS", right=True, beneath="{} tokens"),
    Column("CONTEXT", right=True, beneath="context {}"),
    Column("SPEED", right=True, beneath="{}"),
)
_BY_SPEED = (
    Column("RANK", right=True),
    Column("LLM"),
    Column("SPEED", right=True),
    Column("CONTEXT", right=True),
)
_REJECTED = (Column("NOT ELIGIBLE"), Column("REASON", beneath="{}"))


@click.command("explain", cls=Command, epilog=_EPILOG)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@name_option
@json_option
@registry_option
@requirement_options
@click.pass_context
def explain(
    ctx: click.Context,
    words: tuple[str, ...],
    needs: dict[str, Any],
    name: str | None,
    as_json: bool,
    registry: str | None,
) -> None:
    """Show who would be chosen and why, without calling anybody.

    "-" reads PROMPT from stdin. Without PROMPT the fastest LLM is chosen, with it the one of best score.
    """
    prompt = None
    if words:
        prompt = read_stdin("the prompt") if words == ("-",) else argument_text(words, "the prompt")
    chosen_for = checked(needs, prompt)
    with LLMPool.from_registry(registry) as pool:
        with waiting("asking the servers"):
            pool.health()  # all of them: the choice itself stops asking once the winner is certain
            decision = pool.explain(name, **chosen_for)
        out = pool.ways_out(decision)
    if as_json:
        print_json(_as_json(decision, out))
    else:
        show_decision(decision, out)
    if decision.chosen is None:
        from maxwell.cli.app import EXIT_NOT_ELIGIBLE

        ctx.exit(EXIT_NOT_ELIGIBLE)


def show_decision(decision: Decision, out: list[str]) -> None:
    """Print the candidates, the rejected ones and what follows; `out` are the ways out where none is left."""
    if decision.ranked:
        columns = _BY_SPEED if _by_speed(decision) else _SCORED
        table(columns, [_row(scored, rank, decision) for rank, scored in enumerate(decision.ranked, 1)])
    if decision.rejected:
        if decision.ranked:
            say()
        table(_REJECTED, [[Cell(no.spec.name, "yellow"), no.detail] for no in decision.rejected])
    if decision.ranked or decision.rejected:
        say()
    for sentence in _sentences(decision, out):
        say(sentence)
    if decision.ranked and not _by_speed(decision) and is_terminal(sys.stdout):
        say("score = -cost - weight x seconds + bonus; 1 mill = $0.001; see --help", "dim")


def _by_speed(decision: Decision) -> bool:
    return decision.request.prompt_bytes is None


def _row(scored: Scored, rank: int, decision: Decision) -> list[Cell | str]:
    name = Cell(scored.spec.name, "bold green" if rank == 1 else "")
    speed = f"{number(round(scored.speed, 1))} tok/s"
    if _by_speed(decision):
        return [str(rank), name, speed, f"{scored.context:,}"]
    read, write = _parts(scored)
    return [
        str(rank),
        name,
        f"{scored.score:.2f}",
        f"{scored.mills:.2f}",
        f"{scored.seconds:.2f}",
        f"{scored.utilization_bonus:.2f}",
        f"{scored.queue_wait:.2f}",
        f"{read:.2f}",
        f"{write:.2f}",
        f"{scored.prompt_tokens:,} + {scored.completion_tokens:,}",
        f"{scored.context:,}",
        speed,
    ]


def _parts(scored: Scored) -> tuple[float, float]:
    """Seconds of reading the prompt and of writing the reply."""
    write = scored.completion_tokens / scored.speed
    return max(scored.seconds - scored.queue_wait - write, 0.0), write


def _sentences(decision: Decision, out: list[str]) -> list[str]:
    if decision.chosen is None:
        if not decision.rejected:
            return ["Nothing can be chosen: the registry declares no LLM."]
        lead = [f"Nothing can be chosen.{' Ways out:' if out else ''}"]
        return lead + [f"  - {way}" for way in out]
    sentences = [why_chosen(decision)]
    if not _by_speed(decision) and len(decision.ranked) > 1:
        sentences += _flip_sentences(flips(decision), decision.request.needs.time_cost_weight)
    return sentences


def why_chosen(decision: Decision) -> str:
    """One sentence on why the best one is the best one."""
    best = decision.ranked[0]
    name = best.spec.name
    if decision.by == "name":
        return f"{name} is the one you named; no other would answer."
    if len(decision.ranked) == 1:
        return f"{name} is chosen: nothing else is eligible."
    second = decision.ranked[1]
    if _by_speed(decision):
        same = best.speed == second.speed
        reason = f"as fast as {second.spec.name} and before it in the registry" if same else "the fastest"
        return f"{name} is chosen: it is {reason}. With a prompt the score decides."
    better, worse = _compared(best, second, decision.request.needs.time_cost_weight)
    if not better:
        return f"{name} is chosen: it scores as {second.spec.name} does and comes first."
    though = f", though {' and '.join(worse)}" if worse else ""
    return f"{name} is chosen over {second.spec.name}: {' and '.join(better)}{though}."


def _compared(best: Scored, second: Scored, weight: float) -> tuple[list[str], list[str]]:
    """In what `best` is better than `second`, and in what worse; what moved the score most comes first."""
    mills, seconds = second.mills - best.mills, second.seconds - best.seconds
    bonus = best.utilization_bonus - second.utilization_bonus
    terms = (
        (mills, f"{abs(mills):.2f} mills {'cheaper' if mills > 0 else 'dearer'}"),
        (weight * seconds, f"{abs(seconds):.2f} s {'faster' if seconds > 0 else 'slower'}"),
        (bonus, f"{abs(bonus):.2f} {'more' if bonus > 0 else 'less'} bonus for filling its context"),
    )
    told = sorted((t for t in terms if abs(t[0]) >= 0.005), key=lambda t: -abs(t[0]))
    return [text for gain, text in told if gain > 0], [text for gain, text in told if gain < 0]


def _flip_sentences(found: list[Flip], weight: float) -> list[str]:
    if not found:
        return [f"At any weight from 0 to 10 the choice stays the same (now {weight:g})."]
    return [
        f"The choice flips to {flip.name} "
        f"{'below' if flip.weight < weight else 'above'} weight {flip.weight:.3g} (now {weight:g})."
        for flip in found
    ]


def _as_json(decision: Decision, out: list[str]) -> dict[str, Any]:
    chosen, scored = decision.chosen, not _by_speed(decision)
    return {
        "chosen": None if chosen is None else chosen.spec.name,
        "by": decision.by,
        "time_cost_weight": decision.request.needs.time_cost_weight,
        "ranked": [_scored_json(s, scored) for s in decision.ranked],
        "rejected": [
            {"name": no.spec.name, "reason": no.reason, "detail": no.detail} for no in decision.rejected
        ],
        "flips": [{"weight": flip.weight, "name": flip.name} for flip in (flips(decision) if scored else [])],
        "ways_out": out,
    }


def _scored_json(s: Scored, scored: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": s.spec.name, "speed_tokens_per_sec": s.speed, "context": s.context}
    if not scored:
        return entry
    read, write = _parts(s)
    return entry | {
        "score": s.score,
        "mills": s.mills,
        "seconds": s.seconds,
        "wait_seconds": s.queue_wait,
        "prompt_seconds": read,
        "completion_seconds": write,
        "utilization_bonus": s.utilization_bonus,
        "prompt_tokens": s.prompt_tokens,
        "completion_tokens": s.completion_tokens,
    }
