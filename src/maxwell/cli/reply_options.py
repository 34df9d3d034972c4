"""The options of `ask` and `map` about pictures, what a reply must obey, and thinking: texts and checks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any, get_args

import click

from maxwell.cli.requirement_options import SectionOption, argument_text, utf8
from maxwell.types import ReasoningEffort

CONSTRAINTS = {
    "json_schema": "--json-schema",
    "grammar": "--grammar",
    "choices": "--choice",
    "regex": "--regex",
}
_FIELDS = (*CONSTRAINTS, "repair", "images", "reasoning_effort", "thinking_tokens")
_file = click.Path(path_type=Path)


class ConstraintOption(SectionOption):
    """An option that says what the reply must obey."""

    section = "What the reply must obey (one of the first four)"


def _constraint(*names: str, **settings: Any) -> Callable[..., Any]:
    return click.option(*names, cls=ConstraintOption, **settings)


_OPTIONS: tuple[Callable[..., Any], ...] = (
    click.option(
        "--image",
        "images",
        multiple=True,
        metavar="FILE|URL",
        help="PNG, JPEG, GIF or WEBP that goes with the prompt. Repeat for several.",
    ),
    click.option(
        "--reasoning-effort",
        type=click.Choice(get_args(ReasoningEffort)),
        help="How much it thinks before it replies.  [default: the server's way]",
    ),
    click.option(
        "--thinking-tokens",
        type=click.IntRange(min=0),
        metavar="N",
        help="Room for thinking, besides --max-tokens.  [default: what the registry says]",
    ),
    _constraint("--json-schema", type=_file, metavar="FILE", help="A JSON Schema."),
    _constraint("--grammar", type=_file, metavar="FILE", help="A GBNF grammar with a rule root."),
    _constraint("--choice", "choices", multiple=True, metavar="TEXT", help="One of these. Repeat for each."),
    _constraint("--regex", metavar="PATTERN", help="A regular expression for the whole reply."),
    _constraint(
        "--repair",
        is_flag=True,
        help="Send a reply that does not obey back once, with what is wrong.",
    ),
)


def reply_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give `command` these options; it receives them as one argument, `how`, as the library takes them."""

    @wraps(command)
    def with_how(**given: Any) -> Any:
        asked = {field: given.pop(field) for field in _FIELDS}
        how = {k: v for k, v in asked.items() if v is not None and v is not False and v != ()}
        return command(how=_checked(how), **given)

    gathered: Callable[..., Any] = with_how
    for option in reversed(_OPTIONS):
        gathered = option(gathered)
    return gathered


def is_constrained(how: Mapping[str, Any]) -> bool:
    """Whether the reply must obey something."""
    return any(field in how for field in CONSTRAINTS)


def seeing(needs: dict[str, Any], how: Mapping[str, Any]) -> dict[str, Any]:
    """The requirements; vision is one of them where there are pictures."""
    if "images" not in how:
        return needs
    if needs.get("vision") is False:
        raise click.UsageError("--image needs an LLM with vision, and --no-vision forbids it")
    return {**needs, "vision": True}


def _checked(how: dict[str, Any]) -> dict[str, Any]:
    """The options with files read. Raises `UsageError` when one is wrong."""
    given = [field for field in CONSTRAINTS if field in how]
    if len(given) > 1:
        names = " and ".join(CONSTRAINTS[field] for field in given)
        raise click.UsageError(f"a reply obeys one thing at a time; {names} are {len(given)}")
    for field in given:
        how[field] = _constraint_value(field, how[field])
    if "images" in how:
        how["images"] = [_image(text) for text in how["images"]]
    return how


def _constraint_value(field: str, given: Any) -> Any:
    from maxwell.constraints import constraint_of

    value: Any
    if field == "json_schema":
        value = _schema(given)
    elif field == "grammar":
        value = _text(given, "grammar")
    elif field == "choices":
        value = [argument_text((text,), "--choice") for text in given]
    else:
        value = argument_text((given,), "--regex")
    try:
        constraint_of(**{field: value})
    except (TypeError, ValueError) as error:
        where = f"{given}: " if isinstance(given, Path) else ""
        raise click.UsageError(f"{where}{error}") from None
    return value


def _schema(file: Path) -> dict[str, Any]:
    try:
        schema = json.loads(_text(file, "JSON Schema"))
    except ValueError as error:
        raise click.UsageError(f"{file} is not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise click.UsageError(f"{file} is no JSON Schema, which is an object")
    return schema


def _text(file: Path, what: str) -> str:
    try:
        return utf8(file.read_bytes(), str(file))
    except OSError as error:
        raise click.UsageError(f"cannot read the {what} {file}: {error.strerror}") from None


def _image(text: str) -> dict[str, Any]:
    from maxwell.images import image_part

    try:
        return image_part(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.UsageError(f"cannot read the image {text}: {error.strerror}") from None
