"""`maxwell ask`: send a prompt to the LLM that should answer it, and print the reply as it comes."""

from __future__ import annotations

import sys
from typing import Any

import click
import msgspec

from maxwell.cli.render import fold, hint, is_terminal, money, number, plural, print_json, visible
from maxwell.cli.reply_options import is_constrained, reply_options, seeing
from maxwell.cli.requirement_options import (
    Command,
    Number,
    argument_text,
    checked,
    json_option,
    log_content_option,
    name_option,
    read_stdin,
    registry_option,
    requirement_options,
    timeout_option,
)
from maxwell.errors import StreamBroken
from maxwell.lm_pool import LLMPool
from maxwell.requirements import prompt_messages
from maxwell.types import Completion

_EPILOG = """\b
Examples:
  maxwell ask "Why is the sky blue?"
  maxwell ask --system "Summarise this in three sentences." - < notes.txt
  git diff | maxwell ask --system "Write a commit message." --tag coding -w 0.1
  maxwell ask --name gpt-4o --json "Say hello" | jq .usage
  maxwell ask --image cat.jpg "What is on this picture?"
  maxwell ask --json-schema person.json "Who wrote Faust?" | jq .name
  maxwell ask --choice yes --choice no "Is Pluto a planet?"
"""


@click.command("ask", cls=Command, epilog=_EPILOG)
@click.argument("words", metavar="[PROMPT]...", nargs=-1)
@name_option
@click.option("--system", metavar="TEXT", help="Instructions that come before the prompt.")
@click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="End the reply after N tokens.  [default: --max-completion, else what the LLM can do]",
)
@click.option(
    "--temperature",
    type=Number(0, 2),
    metavar="X",
    help="Sampling temperature, 0 to 2.  [default: the entry's]",
)
@click.option("--seed", type=int, metavar="N", help="Sampling seed, to get the same reply again.")
@click.option(
    "--stop", multiple=True, metavar="TEXT", help="End the reply before this text. Repeat for several."
)
@reply_options
@timeout_option
@click.option("--no-stream", is_flag=True, help="Print the reply only when it is complete.")
@click.option(
    "--show-reasoning",
    is_flag=True,
    help="Print what the LLM thought, on stderr, before its reply. Implies --no-stream.",
)
@log_content_option
@json_option
@registry_option
@requirement_options
def ask(  # noqa: PLR0913 - click hands over each option by itself
    words: tuple[str, ...],
    needs: dict[str, Any],
    how: dict[str, Any],
    name: str | None,
    system: str | None,
    stop: tuple[str, ...],
    no_stream: bool,
    show_reasoning: bool,
    log_content: bool,
    as_json: bool,
    registry: str | None,
    **options: Any,
) -> None:
    """Ask the best LLM for this prompt and print its reply as it comes.

    PROMPT is one text, words joined by spaces. "-", or no PROMPT with something piped in, reads it from
    stdin.
    If the LLM fails before its first word, the next best answers; with --name no other does.
    A reply that must obey something is printed only when it is complete and does.
    """
    must_obey = is_constrained(how)
    if how.get("repair") and not must_obey:
        raise click.UsageError("--repair goes with --json-schema, --grammar, --choice or --regex")
    prompt = _prompt(words)
    options |= {"system_prompt": system, "stop": list(stop) or None, **how}
    # Instructions take room in the context as the prompt does.
    chosen_for = checked(seeing(needs, how), prompt if system is None else f"{system}\n{prompt}")
    with LLMPool.from_registry(registry, log_content=log_content) as pool:
        lm = pool.get_lm(name, **chosen_for)
        if as_json or no_stream or show_reasoning or must_obey:
            done = _whole(lm, prompt, options, as_json=as_json, show_reasoning=show_reasoning)
        else:
            done = _streamed(lm, prompt, options)
    _remark(done, capped=bool(options["max_tokens"] or needs.get("max_completion")))
    if not as_json and is_terminal(sys.stderr):
        hint(_summary(done))


def _prompt(words: tuple[str, ...]) -> str:
    if words == ("-",) or (not words and not sys.stdin.isatty()):
        prompt = read_stdin("the prompt")
    elif words:
        prompt = argument_text(words, "the prompt")
    else:
        raise click.UsageError("there is no prompt; give one, or - to read it from stdin")
    if not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return prompt


def _streamed(lm: Any, prompt: str, options: dict[str, Any]) -> Completion:
    """Print each piece as it comes; a reply that breaks off stays as far as it came."""
    printer = _Printer()
    try:
        with lm.stream(prompt, **options) as pieces:
            for piece in pieces:
                printer.add(piece)
    finally:
        printer.end()
    done: Completion = pieces.completion
    return done


def _whole(
    lm: Any, prompt: str, options: dict[str, Any], *, as_json: bool, show_reasoning: bool
) -> Completion:
    """Print the reply when it is complete."""
    messages = prompt_messages(prompt, options.pop("system_prompt"), options.pop("images", None))
    try:
        done: Completion = lm.chat(messages, **options)
    except StreamBroken as error:
        if not as_json and not is_constrained(options):
            _print_whole(error.partial, show_reasoning)
        raise
    if as_json:
        print_json(_as_json(done))
    else:
        _print_whole(done, show_reasoning)
    return done


def _print_whole(done: Completion, show_reasoning: bool) -> None:
    if show_reasoning and done.reasoning:
        for line in done.reasoning.strip().splitlines():
            hint(line)
    printer = _Printer()
    printer.add(done.text)
    printer.end()


class _Printer:
    """Writes text to stdout as it comes, and a line end after the last of it."""

    def __init__(self) -> None:
        self._for_people = is_terminal(sys.stdout)
        self._last = ""

    def add(self, text: str) -> None:
        if not text:
            return
        sys.stdout.write(visible(text) if self._for_people else text)
        sys.stdout.flush()
        self._last = text[-1]

    def end(self) -> None:
        if self._last not in ("", "\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()
        self._last = ""


def _remark(done: Completion, *, capped: bool) -> None:
    """What the reader of the reply must know, on stderr. `capped`: the user said how long it may be."""
    if done.finish_reason == "length":
        used = plural(done.usage.completion_tokens, "token")
        thought = ", all of them reasoning" if done.reasoning and not done.text else ""
        limit = "--max-tokens allows more" if capped else f"that is the most {done.llm} has room for"
        hint(f"maxwell: the reply was cut off after {used}{thought}; {limit}")
    elif done.finish_reason == "content_filter":
        hint(f"maxwell: {done.llm} cut the reply off for its content")


def _summary(done: Completion) -> str:
    """Who answered, with what effort."""
    usage, timings = done.usage, done.timings
    estimated = " (estimated)" if usage.estimated else ""
    parts = [
        done.llm + (f" after {', '.join(done.attempts[:-1])} failed" if len(done.attempts) > 1 else ""),
        f"{usage.prompt_tokens:,} + {plural(usage.completion_tokens, 'token')}{estimated}",
        money(done.cost_usd) if done.cost_usd else "free",
        _seconds(timings.total_seconds),
    ]
    speed = timings.completion_tokens_per_sec
    if speed is None and timings.first_token_seconds is not None and usage.completion_tokens > 1:
        writing = timings.total_seconds - timings.first_token_seconds
        speed = (usage.completion_tokens - 1) / writing if writing > 0 else None
    if speed:
        parts.append(f"{number(round(speed, 1))} tokens/s")
    return fold(" · ".join(parts))


def _seconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _as_json(done: Completion) -> dict[str, Any]:
    return {
        "text": done.text,
        "reasoning": done.reasoning,
        "llm": done.llm,
        "model": done.model,
        "finish_reason": done.finish_reason,
        "usage": msgspec.to_builtins(done.usage) | {"total_tokens": done.usage.total_tokens},
        "cost_usd": done.cost_usd,
        "timings": msgspec.to_builtins(done.timings),
        "attempts": done.attempts,
        "receipt": done.receipt,
    }
