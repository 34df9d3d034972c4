"""`maxwell demo`: a tour of Maxwell over real llama.cpp servers that it starts and stops itself."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time

import click

from maxwell.cli.explain_command import show_decision, why_chosen
from maxwell.cli.list_command import show_statuses
from maxwell.cli.render import Column, hint, is_terminal, money, number, plural, say, table
from maxwell.decision import Scored
from maxwell.errors import MaxwellError, StreamBroken
from maxwell.local.showcase import Stage
from maxwell.local.tour import (
    Booked,
    Chosen,
    Code,
    Explained,
    Failed,
    Heading,
    Note,
    Replied,
    Shown,
    Standing,
    tour,
)
from maxwell.types import Completion

_WIDEST = 100  # columns of prose
_NOISE = 60  # characters of a reply that are shown

_INTRO = (
    "For each request Maxwell picks, among all language models that you can reach, the one that fits, is "
    "able, is up, is within its budget and scores best, and makes the call. Here it does so with four real "
    "llama.cpp servers on this machine and one entry whose server is switched off.",
    "THE TEXT IS NOISE: the models are tiny and their weights random. Look at who answers, why, how fast "
    "and at what price.",
    "No money moves: the price of paid-fast is made up. Nothing leaves this machine, and your own Maxwell "
    "files are not touched.",
    "Lines behind >>> run as they are shown. In a script of yours they come after "
    "`from maxwell.lm_pool import get_lm, get_embedding, LLMPool` and `pool = LLMPool.from_registry()`.",
)
_NEXT = (
    ("maxwell up your-model.gguf --add", "serve a model of your own and declare it"),
    ("maxwell list", "see how all your models stand"),
    ('maxwell ask "Why is the sky blue?"', "ask the best one"),
    ("docs/registry.md", "what a registry may hold"),
)
_BOOKS = (Column("NAME"), Column("TOKENS TODAY", right=True), Column("COST", right=True))


@click.command("demo")
@click.option("--keep", is_flag=True, help="Keep the servers running after the tour, until Ctrl-C.")
def demo(keep: bool) -> None:
    """See Maxwell at work on real llama.cpp servers with tiny models, in ten seconds.

    The models' weights are random, so their text is noise. Everything is temporary: servers, models,
    registry and books.

    Needs pip install 'maxwell-lm[local]'.
    """
    say("Maxwell demo", "bold underline")
    for paragraph in _INTRO:
        say()
        _put(paragraph, indent=0)
    say()
    try:
        with Stage(lambda sentence: _put(sentence, "dim", indent=0)) as stage:
            for shown in tour(stage):
                _show(shown)
            if keep:
                _keep(stage)
    except KeyboardInterrupt:
        hint("interrupted: the demo's servers are stopped and its files are gone")
        raise
    say()
    _put("Done: the demo's servers are stopped and its files are gone. What to do next:", "bold", indent=0)
    widest = max(len(command) for command, _ in _NEXT)
    for command, words in _NEXT:
        say(f"   {command.ljust(widest)}  {words}")


def _keep(stage: Stage) -> None:
    """Serve until Ctrl-C, which is then no interruption."""
    stage.revive()
    try:
        say()
        _put("The servers go on, the killed one anew. In another terminal:", "bold", indent=0)
        say(f"   export MAXWELL_HOME={stage.home}")
        say(f"   export MAXWELL_REGISTRY={stage.registry}")
        say("   maxwell list")
        _put("Ctrl-C stops them.", indent=0)
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        say()


def _show(shown: Shown) -> None:
    match shown:
        case Heading(step, text):
            say()
            say(f"{step}. {text}", "bold")
        case Code(text):
            _show_code(text)
        case Note(text):
            _put(text)
        case Chosen():
            _show_choice(shown)
        case Replied(completion):
            _show_reply(completion)
        case Failed(error):
            _show_error(error)
        case Standing(statuses):
            show_statuses(statuses)
        case Explained(decision):
            show_decision(decision, [])
        case Booked():
            _show_books(shown)


def _show_code(text: str) -> None:
    """Lines as the interpreter shows them."""
    for line in text.split("\n"):
        say(f"   {'...' if line.startswith(' ') else '>>>'} {line}", "cyan")


def _show_choice(shown: Chosen) -> None:
    decision = shown.decision
    _put(why_chosen(decision), "green")
    if shown.scores:
        _put(_terms(decision.ranked[0], decision.request.needs.time_cost_weight))
        others = (f"{other.spec.name} {other.score:.2f}" for other in decision.ranked[1:])
        _put(f"The others score less: {', '.join(others)}.")
    for no in decision.rejected if shown.skipped else ():
        _put(f"Skipped {no.spec.name}: {no.detail}.")


def _terms(best: Scored, weight: float) -> str:
    """The score as a sum."""
    return (
        f"Its score: {best.utilization_bonus:.2f} bonus - {best.mills:.2f} mills "
        f"- {weight:g} x {best.seconds:.2f} s = {best.score:.2f}"
    )


def _show_reply(done: Completion) -> None:
    tokens = plural(done.usage.completion_tokens, "token")
    took = f"{done.timings.total_seconds:.2f} s"
    _put(f"{done.llm} answered: {tokens} in {took} for {money(done.cost_usd)}.", "green")
    if len(done.attempts) > 1:
        _put(f"done.attempts: {', '.join(done.attempts)}")
    _put(_noise(done.text), "dim")


def _show_error(error: MaxwellError) -> None:
    _put(f"{type(error).__name__}: {error}", "yellow")
    if isinstance(error, StreamBroken):
        tokens = plural(error.partial.usage.completion_tokens, "token")
        _put(f"error.partial holds what had come, about {tokens}:")
        _put(_noise(error.partial.text), "dim")


def _noise(text: str) -> str:
    return f'noise: "{text[:_NOISE]}"' + ("..." if len(text) > _NOISE else "")


def _show_books(shown: Booked) -> None:
    rows = [[name, number(used.tokens), money(used.usd)] for name, used in shown.used.items() if used.tokens]
    table(_BOOKS, rows)
    for_programs = json.dumps(json.loads(shown.file.read_bytes()))
    _put(f"{shown.file.name}, for other programs: {for_programs}", "dim")


def _put(text: str, style: str = "", *, indent: int = 3) -> None:
    """A paragraph: wrapped with its indentation on a terminal, one line when piped."""
    margin = " " * indent
    if not is_terminal(sys.stdout):
        say(margin + text)
        return
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    for line in textwrap.wrap(
        text,
        width,
        initial_indent=margin,
        subsequent_indent=margin,
        break_long_words=False,
        break_on_hyphens=False,
    ):
        say(line, style)
