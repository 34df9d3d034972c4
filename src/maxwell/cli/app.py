"""The command line's root: commands loaded when they are called, errors on one line, exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import click

from maxwell import __version__

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_REGISTRY = 3
EXIT_NOT_ELIGIBLE = 4
EXIT_BUDGET = 5
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

_ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]

# name -> where the command lives, one line of help (so that `maxwell --help` imports none of them)
_COMMANDS = {
    "ask": ("ask_command:ask", "Ask the best LLM for this prompt and print its reply."),
    "embed": ("embed_command:embed", "Turn texts into vectors."),
    "rerank": ("rerank_command:rerank", "Order documents by how well they answer a query."),
    "tokens": ("tokens_command:tokens", "Count a prompt's tokens, and how much of the context they take."),
    "map": ("map_command:map_", "Ask the whole pool many prompts, one a line."),
    "list": ("list_command:list_", "Show how every LLM, embedding and reranker stands."),
    "bench": ("bench_command:bench", "Measure how fast LLMs are, and correct the registry."),
    "explain": ("explain_command:explain", "Show who would be chosen and why, without calling anybody."),
    "usage": ("usage_command:usage", "Show what every entry used today and what is left of its budget."),
    "why": ("why_command:why", "Show why a call went where it went, and what became of it."),
    "check": ("check_command:check", "Check the registry and every server it names."),
    "doctor": ("doctor_command:doctor", "Compare every field with its server, and correct it."),
    "registry": ("registry_commands:registry", "Look at the registry file: which one, what is in it."),
    "trust": ("registry_commands:trust_command", "Let a project's registry use your API keys."),
    "up": ("up_command:up", "Serve a GGUF model on this machine with llama.cpp."),
    "demo": ("demo_command:demo", "See it work on real llama.cpp servers that this machine plays."),
}

_EPILOG = """\b
Examples:
  maxwell ask "Why is the sky blue?"
  maxwell explain "Why is the sky blue?"
  maxwell map prompts.txt --out answers.jsonl
  maxwell list
  maxwell usage --days 30

\b
Exit codes:
  0    done
  1    the call or the check failed
  2    wrong usage
  3    the registry is missing or wrong
  4    no LLM, embedding or reranker may be chosen
  5    the daily budget has no room, or the ledger cannot be kept
  130  interrupted by Ctrl-C
  141  nobody reads the output any more
  143  ended by SIGTERM (129 by SIGHUP)

MAXWELL_DEBUG=1 shows tracebacks.
"""


class PipeGoneError(Exception):
    """Nobody reads stdout or stderr any more."""


class LazyGroup(click.Group):
    """The root group. Its `main` is the one place where errors become a line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command."""
        if cmd_name not in _COMMANDS:
            return None
        module, _, attribute = _COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(import_module(f".{module}", __package__), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one may be meant."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(_COMMANDS)}"
            raise click.UsageError(f"no command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in _COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; click would end a broken pipe with 1."""
        try:
            value = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise PipeGoneError from error
        return value

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line and exit."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, standalone_mode=False, **extra)
        _prepare_streams()
        try:
            # A command ends with a code other than 0 by `ctx.exit(code)`, which arrives here as a value.
            with _ending_by_signals():
                value = super().main(
                    args, prog_name or "maxwell", complete_var, standalone_mode=False, **extra
                )
        except Exception as error:
            _end(error)
        sys.exit(value if isinstance(value, int) else 0)


@contextmanager
def _ending_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind the program as Ctrl-C does: servers stop, and what was used is booked."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in _ENDING}
    mine = [number for number, handler in before.items() if handler == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        mine = []  # signals are not this thread's
    for number in mine:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, before[number])


def _end(error: Exception) -> NoReturn:
    """Say what went wrong on one line and exit."""
    if isinstance(error, click.Abort):
        sys.exit(EXIT_INTERRUPTED)
    if isinstance(error, PipeGoneError):
        _silence()
        sys.exit(EXIT_PIPE)
    if os.environ.get("MAXWELL_DEBUG") == "1" and not isinstance(error, click.ClickException):
        raise error
    code, lines = _told(error)
    try:
        for line in lines:
            click.echo(f"maxwell: error: {line}", err=True)
    except BrokenPipeError:
        pass
    _silence()
    sys.exit(code)


def _told(error: Exception) -> tuple[int, list[str]]:
    """The exit code of an error, and its lines."""
    from maxwell.cli.render import fold
    from maxwell.errors import (
        BadConstraint,
        BudgetExceeded,
        LedgerError,
        MaxwellError,
        NoEligibleLM,
        RegistryError,
    )

    if isinstance(error, click.ClickException):
        message = fold(error.format_message())
        if isinstance(error, click.UsageError) and error.ctx is not None:
            message = f"{message.rstrip('.')}; see `{error.ctx.command_path} --help`"
        return error.exit_code, [message]
    if isinstance(error, RegistryError):
        return EXIT_REGISTRY, [fold(line) for line in error.lines()]
    if isinstance(error, NoEligibleLM):
        return EXIT_NOT_ELIGIBLE, [fold(str(error))]
    if isinstance(error, BudgetExceeded | LedgerError):
        return EXIT_BUDGET, [fold(str(error))]
    if isinstance(error, BadConstraint):
        return EXIT_USAGE, [fold(str(error))]
    if isinstance(error, MaxwellError):
        return EXIT_FAILED, [fold(str(error))]
    if isinstance(error, OSError):
        what = f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        return EXIT_FAILED, [fold(what)]
    return EXIT_FAILED, [
        fold(f"{type(error).__name__}: {error} (this is a bug; MAXWELL_DEBUG=1 shows where it happened)")
    ]


def _prepare_streams() -> None:
    """Let no closed stream and no character that the terminal's encoding lacks end the program."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it lives as long as the program
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")


def _silence() -> None:
    """Let the interpreter's last flush go nowhere, where a stream cannot be written any more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


@click.group(
    "maxwell",
    cls=LazyGroup,
    epilog=_EPILOG,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, message="maxwell %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Which of my language models should do this, right now?

    Maxwell reads one registry file of LLMs, embeddings and rerankers. For each request the one that fits, is
    up, is within its budget and scores best is called.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
