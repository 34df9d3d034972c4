"""`maxwell map`: ask the whole pool many prompts, one a line, and write down each answer as it comes."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from maxwell.amounts import duration
from maxwell.cli.map_files import Answers, Prompt, encoded, read_prompts
from maxwell.cli.render import fold, hint, is_terminal, money, plural
from maxwell.cli.reply_options import reply_options, seeing
from maxwell.cli.requirement_options import (
    Command,
    Number,
    checked,
    log_content_option,
    registry_option,
    requirement_options,
)
from maxwell.lm_pool import LLMPool
from maxwell.types import Completion

_EPILOG = """\b
Examples:
  maxwell map prompts.txt --out answers.jsonl
  maxwell map prompts.txt --out answers.jsonl      # again: goes on where it stopped
  maxwell map --text --system "Translate into French." - < lines.txt
  maxwell map requests.jsonl --tag coding -w 0.1 | jq -r 'select(.error) | .index'
  maxwell map reviews.txt --choice good --choice bad --out verdicts.jsonl

\b
A line of a .jsonl file is an object with "prompt" or "messages", and with any
of "id", "system_prompt", "max_tokens", "temperature", "seed", "stop",
"tools", "extra", "images", "json_schema", "grammar", "choices", "regex",
"repair", "reasoning_effort", "thinking_tokens". A line of the output has
"index", "id", "text", "finish_reason", "llm", "usage", "cost_usd", "key", or
"error" and "kind" where there is no answer.
"""
_SAID = 3  # failures that are told one by one


@click.command("map", cls=Command, epilog=_EPILOG)
@click.argument("file", metavar="FILE")
@click.option("--jsonl", is_flag=True, help="Each line is a JSON object.  [default: as FILE's name says]")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write there. What it has answered already is not asked again.",
)
@click.option("--text", "as_text", is_flag=True, help="Print the bare replies, in the prompts' order.")
@click.option("--system", metavar="TEXT", help="Instructions that come before each prompt.")
@click.option("--max-tokens", type=click.IntRange(min=1), metavar="N", help="End each reply after N tokens.")
@click.option("--temperature", type=Number(0, 2), metavar="X", help="Sampling temperature, 0 to 2.")
@click.option("--seed", type=int, metavar="N", help="Sampling seed.")
@click.option("--stop", multiple=True, metavar="TEXT", help="End each reply before this text.")
@reply_options
@click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest a prompt may take in all, once it is its turn.",
)
@log_content_option
@registry_option
@requirement_options
@click.pass_context
def map_(  # noqa: PLR0913 - click hands over each option by itself
    ctx: click.Context,
    /,
    needs: dict[str, Any],
    how: dict[str, Any],
    file: str,
    jsonl: bool,
    out: Path | None,
    as_text: bool,
    system: str | None,
    stop: tuple[str, ...],
    log_content: bool,
    registry: str | None,
    **options: Any,
) -> None:
    """Ask the whole pool many prompts, one a line.

    FILE holds the prompts, "-" is stdin; for each a JSON object is printed. All eligible LLMs work at once,
    each on as many prompts as it has slots; objects come in the order in which prompts are answered. With
    --out a run that was interrupted goes on where it stopped, and prompts that failed are asked anew. Ends
    with 1 where some prompt has no answer; a reply that does not obey what it must is none.
    """
    if as_text and out is not None:
        raise click.UsageError("--text prints on stdout and cannot be resumed; use either --text or --out")
    as_json = jsonl or Path(file).suffix in (".jsonl", ".ndjson")
    given = {**options, "system_prompt": system, "stop": list(stop) or None, **how}
    asked = {name: value for name, value in given.items() if value is not None}
    prompts = read_prompts(_content(file), file, as_json=as_json, options=asked)
    chosen_for = checked(seeing(needs, how))
    with LLMPool.from_registry(registry, log_content=log_content) as pool, _sink(out, prompts) as answers:
        pool.get_lm(**chosen_for)  # where nobody can be chosen at all, that is one error and not one a prompt
        run = _Run(prompts, answers, as_text=as_text)
        run.ask(pool, {**chosen_for, **asked})
    run.tell(resumes=out is not None)
    if run.is_interrupted:
        from maxwell.cli.app import EXIT_INTERRUPTED

        ctx.exit(EXIT_INTERRUPTED)
    if run.failed:
        ctx.exit(1)


def _content(file: str) -> bytes:
    if file == "-":
        if is_terminal(sys.stdin):
            hint("reading prompts from the terminal, one a line; Ctrl-D on an empty line ends them")
        return sys.stdin.buffer.read()
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise click.UsageError(f"cannot read {file}: {error.strerror}") from None


@contextmanager
def _sink(out: Path | None, prompts: Sequence[Prompt]) -> Iterator[Answers | None]:
    if out is None:
        yield None
        return
    with closing(Answers(out, prompts)) as answers:
        yield answers


class _Run:
    """Asks, writes down what comes, and counts it.

    Attributes:
        failed: How many prompts got no answer.
        is_interrupted: Whether the user ended it.
    """

    def __init__(self, prompts: Sequence[Prompt], answers: Answers | None, *, as_text: bool) -> None:
        self._prompts = prompts
        self._answers = answers
        self._as_text = as_text
        done = set() if answers is None else answers.done
        self._before = len(done)
        self._todo = [index for index in range(len(prompts)) if index not in done]
        self._began = time.monotonic()
        self._by_llm: Counter[str] = Counter()
        self._tokens = 0
        self._usd = 0.0
        self._reasons: list[str] = []
        self.failed = 0
        self.is_interrupted = False

    def ask(self, pool: LLMPool, how: dict[str, Any]) -> None:
        """Ask what was not answered yet; until the end, or until the user ends it."""
        items = [self._prompts[index].item for index in self._todo]
        if not items:
            return
        shares_terminal = self._answers is None and is_terminal(sys.stdout)  # there the answers are enough
        with _Bar(len(self._prompts), self._before, shown=not shares_terminal) as bar:
            try:
                with pool.map(items, ordered=self._as_text, progress=bar.step, **how) as results:
                    for result in results:
                        self._take(self._todo[result.index], result.completion, result.error)
            except KeyboardInterrupt:
                self.is_interrupted = True

    def _take(self, index: int, done: Completion | None, error: Exception | None) -> None:
        record = self._record(index, done, error)
        if self._answers is not None:
            self._answers.write(record)
        elif self._as_text:
            click.echo("" if done is None else done.text)
        else:
            click.echo(encoded(record))
        if done is None:
            self.failed += 1
            if len(self._reasons) < _SAID:
                self._reasons.append(f"prompt {index + 1}: {error}")
            return
        self._by_llm[done.llm] += 1
        self._tokens += done.usage.total_tokens
        self._usd += done.cost_usd

    def _record(self, index: int, done: Completion | None, error: Exception | None) -> dict[str, Any]:
        prompt = self._prompts[index]
        record: dict[str, Any] = {"index": index}
        if prompt.id is not None:
            record["id"] = prompt.id
        if done is None:
            kind = getattr(error, "kind", None) or type(error).__name__
            record |= {"error": fold(str(error)), "kind": kind}
        else:
            record |= {
                "text": done.text,
                "finish_reason": done.finish_reason,
                "llm": done.llm,
                "usage": msgspec.to_builtins(done.usage) | {"total_tokens": done.usage.total_tokens},
                "cost_usd": done.cost_usd,
            }
            if done.tool_calls:
                record["tool_calls"] = done.message["tool_calls"]
        return record | {"key": prompt.key}

    def tell(self, *, resumes: bool) -> None:
        """What came of it, on stderr."""
        if not self._todo:
            hint(f"all {plural(self._before, 'prompt')} had been answered before")
            return
        for reason in self._reasons:
            hint(f"maxwell: {reason}")
        if self.failed > len(self._reasons):
            hint(f"maxwell: and {self.failed - len(self._reasons):,} more")
        answered = sum(self._by_llm.values())
        parts = [f"{answered:,} answered" + (f" ({self._before:,} before)" if self._before else "")]
        if self.failed:
            parts.append(f"{self.failed:,} failed")
        left = len(self._todo) - answered - self.failed
        if left:
            parts.append(f"{left:,} not asked")
        parts.append(plural(self._tokens, "token"))
        parts.append(money(self._usd) if self._usd else "free")
        parts.append(duration(time.monotonic() - self._began))
        parts += [f"{llm} {count:,}" for llm, count in self._by_llm.most_common()]
        hint(" · ".join(parts) if is_terminal(sys.stderr) else ", ".join(parts))
        if resumes and (left or self.failed):
            hint("maxwell: the same command asks the rest")


class _Bar:
    """A progress bar on stderr, where somebody looks at it."""

    def __init__(self, total: int, before: int, *, shown: bool) -> None:
        self._total, self._before = total, before
        self._is_shown = shown
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Bar:
        if not is_terminal(sys.stderr):
            hint(f"asking {plural(self._total - self._before, 'prompt')}")
            return self
        if not self._is_shown:
            return self
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=Console(stderr=True, highlight=False, markup=False),
            transient=True,
            redirect_stdout=False,  # to where the bar is, which is stderr
            redirect_stderr=False,
        )
        self._bar.start()
        self._task = self._bar.add_task("", total=self._total, completed=self._before)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, failed: int, total: int | None) -> None:
        """So many have ended now."""
        if self._bar is not None:
            failures = f"{failed:,} failed" if failed else ""
            self._bar.update(self._task, completed=self._before + done, description=failures)
