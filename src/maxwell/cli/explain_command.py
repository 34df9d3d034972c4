"""`maxwell explain`: the decision that `maxwell ask` would take, with every term of every score."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple, cast

import click

from maxwell.cli.render import Cell, Column, is_terminal, number, print_json, say, table, waiting
from maxwell.cli.reply_options import reply_options, seeing
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
from maxwell.decision import Decision, Scored
from maxwell.explain import Flip, delay, flips, is_by_lot, standing, wait_or_spend
from maxwell.lm_pool import LLMPool
from maxwell.receipts import Choice, Ranked
from maxwell.requirements import PromptOptions

_EPILOG = """\b
Examples:
  maxwell explain "Why is the sky blue?"
  maxwell explain -w 0.1 --tag coding - < long_prompt.txt
  maxwell explain --min-context 32000
  maxwell explain --json-schema person.json "Who wrote Faust?"

\b
The score, higher is better:
  score = -cost - W x seconds + bonus
  cost     price of this request in mills; 1 mill = $0.001
  W        the weight -w, in mills a second; 1 = $3.60 an hour
  seconds  until the last token: wait (for a slot, or for the server)
           + overhead (to the first token besides reading) + read (the prompt)
           + write (the reply) + others (what a slot taken from a busy pool
           costs those that come after)
  bonus    1 - |used part of the context - 0.7|
"""

_NOW = Column("NOW", beneath="{}", always=True)
_SCORED = (
    Column("RANK", right=True),
    Column("LLM"),
    Column("SCORE", right=True),
    Column("COST (MILLS)", right=True),
    Column("SECONDS", right=True),
    Column("BONUS", right=True),
    Column("WAIT", right=True, beneath="{} s wait"),
    Column("OVERHEAD", right=True, beneath="{} s overhead"),
    Column("READ", right=True, beneath="{} s read"),
    Column("WRITE", right=True, beneath="{} s write"),
    Column("OTHERS", right=True, beneath="{} s for others"),
    Column("TOKENS", right=True, beneath="{} tokens"),
    Column("CONTEXT", right=True, beneath="context {}"),
    Column("SPEED", right=True, beneath="{}"),
    _NOW,
)
_BY_SPEED = (
    Column("RANK", right=True),
    Column("LLM"),
    Column("SPEED", right=True),
    Column("CONTEXT", right=True),
    _NOW,
)
_REJECTED = (Column("NOT ELIGIBLE"), Column("REASON", beneath="{}"))


@click.command("explain", cls=Command, epilog=_EPILOG)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@name_option
@reply_options
@json_option
@registry_option
@requirement_options
@click.pass_context
def explain(  # noqa: PLR0913 - click hands over each option by itself
    ctx: click.Context,
    words: tuple[str, ...],
    needs: dict[str, Any],
    name: str | None,
    how: dict[str, Any],
    as_json: bool,
    registry: str | None,
) -> None:
    """Show who would be chosen and why, without calling anybody.

    "-" reads PROMPT from stdin. Without PROMPT the fastest LLM is chosen, with it the one of best
    score. Those whose servers cannot hold a reply to what it must obey are not eligible.
    """
    prompt = None
    if words:
        prompt = read_stdin("the prompt") if words == ("-",) else argument_text(words, "the prompt")
    chosen_for = checked(seeing(needs, how), prompt)
    with LLMPool.from_registry(registry) as pool:
        with waiting("asking the servers"):
            pool.health()  # all of them: the choice itself stops asking once the winner is certain
            decision = pool.explain(name, options=cast(PromptOptions, how), **chosen_for)
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
    choice = Choice.of(decision)
    show_choice(choice)
    if decision.ranked or decision.rejected:
        say()
    for sentence in _sentences(decision, choice, out):
        say(sentence)
    if decision.ranked and not _by_speed(choice):
        say_formula()


def show_choice(choice: Choice) -> None:
    """Print the candidates and the rejected ones."""
    if choice.ranked:
        columns = _BY_SPEED if _by_speed(choice) else _SCORED
        table(columns, [_row(ranked, rank, choice) for rank, ranked in enumerate(choice.ranked, 1)])
        _say_more(choice.more_ranked)
    if choice.rejected:
        if choice.ranked:
            say()
        table(_REJECTED, [[Cell(no.name, "yellow"), no.detail] for no in choice.rejected])
        _say_more(choice.more_rejected)


def _say_more(count: int) -> None:
    if count:
        say(f"and {count:,} more")


def say_formula() -> None:
    """How a score is made, for people."""
    if is_terminal(sys.stdout):
        say("score = -cost - weight x seconds + bonus; 1 mill = $0.001; see --help", "dim")


def _by_speed(choice: Choice) -> bool:
    return choice.prompt_bytes is None


def _row(ranked: Ranked, rank: int, choice: Choice) -> list[Cell | str]:
    name = Cell(ranked.name, "bold green" if rank == 1 else "")
    speed = f"{number(round(ranked.speed, 1))} tok/s"
    now = Cell(standing(ranked), "yellow")
    if _by_speed(choice):
        return [str(rank), name, speed, f"{ranked.context:,}", now]
    wait, overhead, read, write, others = _parts(ranked)
    return [
        str(rank),
        name,
        f"{ranked.score:.2f}",
        f"{ranked.mills:.2f}",
        f"{ranked.seconds:.2f}",
        f"{ranked.utilization_bonus:.2f}",
        f"{wait:.2f}" if wait else "",
        f"{overhead:.2f}" if overhead else "",
        f"{read:.2f}",
        f"{write:.2f}",
        f"{others:.2f}" if others else "",
        _tokens(ranked),
        f"{ranked.context:,}",
        speed,
        now,
    ]


class _Parts(NamedTuple):
    """What the seconds are made of; together they are all of them."""

    wait: float
    overhead: float
    read: float
    write: float
    others: float


def _parts(s: Ranked | Scored) -> _Parts:
    wait, overhead = delay(s), s.slowdown * s.overhead
    write = s.slowdown * _reply(s) / s.speed if s.speed else 0.0  # an old receipt may lack it
    read = max(s.seconds - s.occupancy - wait - overhead - write, 0.0)
    return _Parts(wait, overhead, read, write, s.occupancy)


def _reply(s: Ranked | Scored) -> float:
    """Likely tokens of the reply; an old receipt has only those that must have room."""
    return s.reply_tokens or s.completion_tokens


def _tokens(s: Ranked) -> str:
    """Prompt and reply, the likely one where that is not all there must be room for."""
    reply = f"{s.completion_tokens:,}"
    if round(_reply(s)) != s.completion_tokens:
        reply = f"~{_reply(s):,.0f} of {reply}"
    return f"{s.prompt_tokens:,} + {reply}"


def _sentences(decision: Decision, choice: Choice, out: list[str]) -> list[str]:
    if not choice.ranked:
        if not choice.rejected:
            return ["Nothing can be chosen: the registry declares no LLM."]
        lead = [f"Nothing can be chosen.{' Ways out:' if out else ''}"]
        return lead + [f"  - {way}" for way in out]
    sentences = [because(choice)]
    if choice.wait_or_spend:
        sentences.append(choice.wait_or_spend)
    if choice.by == "score" and len(choice.ranked) > 1 and not is_by_lot(choice.ranked):
        sentences += _flip_sentences(flips(decision), choice.time_cost_weight)
    return sentences


def why_chosen(decision: Decision) -> str:
    """One sentence on why the best one is the best one."""
    return because(Choice.of(decision, most_ranked=2, most_rejected=0))


def because(choice: Choice) -> str:
    """One sentence on why the best one is the best one."""
    best = choice.ranked[0]
    if choice.by == "name":
        return f"{best.name} is the one you named; no other would answer."
    if len(choice.ranked) == 1:
        return f"{best.name} is chosen: nothing else is eligible."
    second = choice.ranked[1]
    if choice.by == "speed":
        return f"{best.name} is chosen: it is {_fastest(choice)}.{_FASTEST if _by_speed(choice) else ''}"
    if is_by_lot(choice.ranked):
        return (
            f"{best.name} is chosen by lot: how busy it and {second.name} are was told too long ago for the "
            "better one to be known."
        )
    better, worse = _compared(best, second, choice.time_cost_weight)
    if not better:
        return f"{best.name} is chosen: it scores as {second.name} does and comes first."
    though = f", though {' and '.join(worse)}" if worse else ""
    return f"{best.name} is chosen over {second.name}: {' and '.join(better)}{though}."


_FASTEST = " With a prompt the score decides."


def _fastest(choice: Choice) -> str:
    """In what the best one is first among the fastest."""
    best, second = choice.ranked[:2]
    faster = [r for r in choice.ranked if r.speed / r.slowdown > best.speed / best.slowdown]
    if faster and all(delay(best) < delay(ranked) for ranked in faster):
        return "the fastest of those that can begin soonest"
    if faster:
        return f"drawn by lot with {faster[0].name}, because how busy they are was told too long ago"
    if delay(best) < delay(second) or best.speed > second.speed:
        return "the fastest"
    return f"as fast as {second.name} and before it in the registry"


def _compared(best: Ranked, second: Ranked, weight: float) -> tuple[list[str], list[str]]:
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
    chosen, scored = decision.chosen, decision.request.prompt_bytes is not None
    return {
        "chosen": None if chosen is None else chosen.spec.name,
        "by": decision.by,
        "time_cost_weight": decision.request.needs.time_cost_weight,
        "ranked": [_scored_json(s, scored) for s in decision.ranked],
        "rejected": [
            {"name": no.spec.name, "reason": no.reason, "detail": no.detail} for no in decision.rejected
        ],
        "wait_or_spend": wait_or_spend(decision),
        "flips": [{"weight": flip.weight, "name": flip.name} for flip in flips(decision)],
        "ways_out": out,
    }


def _scored_json(s: Scored, scored: bool) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": s.spec.name,
        "speed_tokens_per_sec": s.speed,
        "context": s.context,
        "state": s.state,
        "failing": s.failing,
        "in_flight": s.in_flight,
        "slots": s.slots,
        "wait_seconds": s.queue_wait,
        "ready_in_seconds": s.ready_in,
        "slowdown": s.slowdown,
    }
    if not scored:
        return entry
    parts = _parts(s)
    return entry | {
        "score": s.score,
        "mills": s.mills,
        "seconds": s.seconds,
        "overhead_seconds": s.overhead,
        "prompt_seconds": parts.read / s.slowdown,
        "completion_seconds": parts.write / s.slowdown,
        "occupancy_seconds": s.occupancy,
        "utilization_bonus": s.utilization_bonus,
        "prompt_tokens": s.prompt_tokens,
        "completion_tokens": s.completion_tokens,
        "reply_tokens": s.reply_tokens,
    }
