"""The options that several commands share; the requirements mean the same everywhere."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, cast, get_args

import click

from maxwell.requirements import Needs, requirements
from maxwell.types import Tier


class SectionOption(click.Option):
    """An option that `--help` lists under a heading of its own.

    Attributes:
        section: The heading.
    """

    section = "Options"


class RequirementOption(SectionOption):
    """An option that says what the LLM must be like."""

    section = "Which LLM may do it"


class Command(click.Command):
    """A command whose `--help` lists its own options first, then the sections."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, each in its section."""
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            if record is not None:
                sections.setdefault(getattr(parameter, "section", "Options"), []).append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


class Number(click.FloatRange):
    """A number in a range; "nan" is none."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail("nan is not a number", param, ctx)
        return found


def _requirement(*names: str, **settings: Any) -> Callable[..., Any]:
    return click.option(*names, cls=RequirementOption, **settings)


_OPTIONS: tuple[Callable[..., Any], ...] = (
    _requirement("--vision/--no-vision", default=None, help="It accepts images, or must not."),
    _requirement("--reasoning/--no-reasoning", default=None, help="It reasons, or must not."),
    _requirement(
        "--code-specialized/--no-code-specialized", default=None, help="It is made for code, or must not be."
    ),
    _requirement("--tools/--no-tools", default=None, help="It can call tools, or must not."),
    _requirement("--min-context", type=int, metavar="N", help="Its context holds at least N tokens."),
    _requirement("--min-speed", type=float, metavar="X", help="It writes at least X tokens a second."),
    _requirement("--tag", "tags", multiple=True, metavar="TAG", help="It has this tag. Repeat for several."),
    _requirement("--tier", type=click.Choice(get_args(Tier)), help="It is of this tier."),
    _requirement("--max-completion", type=int, metavar="N", help="It has room for a reply of N tokens."),
    _requirement(
        "-w",
        "--time-cost-weight",
        type=float,
        default=1.0,
        show_default=True,
        metavar="W",
        help="What a second is worth: 10 = answer fast, 1 = balanced, 0.1 = save money.",
    ),
)
_FIELDS = (
    "vision",
    "reasoning",
    "code_specialized",
    "tools",
    "min_context",
    "min_speed",
    "tags",
    "tier",
    "max_completion",
    "time_cost_weight",
)

registry_option = click.option(
    "--registry", metavar="PATH", help="Registry file.  [default: the project's, else ~/.maxwell's]"
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
name_option = click.option("--name", metavar="NAME", help="This LLM and no other.")
timeout_option = click.option(
    "--timeout",
    type=Number(min=0, min_open=True),
    metavar="SECONDS",
    help="Longest the call may take in all.",
)
log_content_option = click.option(
    "--log-content",
    is_flag=True,
    envvar="MAXWELL_LOG_CONTENT",
    help="Keep the texts, too, in the receipt that `maxwell why` shows.",
)


def requirement_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` the requirement flags; it receives them as one argument, `needs`."""

    @wraps(command)
    def with_needs(**given: Any) -> Any:
        needs = {field: given.pop(field) for field in _FIELDS}
        return command(needs={key: value for key, value in needs.items() if value not in (None, ())}, **given)

    gathered: Callable[..., Any] = with_needs
    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def checked(needs: dict[str, Any], prompt: str | None = None) -> Needs:
    """The requirements as the library takes them. Raises `UsageError` when one is wrong."""
    given = needs if prompt is None else {**needs, "prompt": prompt}
    try:
        requirements(given)
    except (TypeError, ValueError) as error:
        raise click.UsageError(str(error)) from None
    return cast(Needs, given)


def read_stdin(what: str) -> str:
    """All of stdin as text, without the line end at its end. Raises `UsageError` unless it is UTF-8."""
    if sys.stdin.isatty():
        click.echo(f"reading {what} from the terminal; Ctrl-D on an empty line ends it", err=True)
    text = utf8(sys.stdin.buffer.read(), "stdin")
    return text.removesuffix("\n").removesuffix("\r")


def utf8(data: bytes, where: str) -> str:
    """`data` as text. Raises `UsageError` unless it is UTF-8; a byte order mark is dropped."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = data[error.start]
        raise click.UsageError(
            f"{where} is not UTF-8 (byte 0x{byte:02x} at offset {error.start}); convert it first"
        ) from None


def argument_text(words: tuple[str, ...], what: str) -> str:
    """Arguments joined by spaces. Raises `UsageError` where they are not UTF-8."""
    text = " ".join(words)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise click.UsageError(f"{what} is not UTF-8; convert it first") from None
    return text
