"""A chat call whose reply must obey: what breaks its constraint, or its type, may be sent back once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from msgspec.json import encode
from msgspec.structs import replace

from maxwell.calls.chat import FINAL, Call, chat
from maxwell.calls.effects import Flow
from maxwell.calls.state import PoolState
from maxwell.errors import ConstraintBroken
from maxwell.types import Completion, Constraint, ConstraintKind

V = TypeVar("V")

MOST_TOLD = 4_000  # characters of a constraint that the model is told


def obeying(state: PoolState, call: Call) -> Flow[Completion]:
    """The reply; with `call.repair` one that breaks its constraint is sent back once. Raises as `chat`."""
    return _obeying(state, call) if call.repair else chat(state, call)


def _obeying(state: PoolState, call: Call) -> Flow[Completion]:
    done, _ = yield from parsing(state, call, str)
    return done


def parsing(state: PoolState, call: Call, read: Callable[[str], V]) -> Flow[tuple[Completion, V]]:
    """The reply and what `read` makes of its text; a ValueError of `read` breaks the constraint, too.

    Raises as `chat` does.
    """
    now, began = state.clock.monotonic, state.clock.monotonic()
    try:
        done = yield from chat(state, call)
        return done, _read(done, read)
    except ConstraintBroken as error:
        left = None if call.seconds is None else call.seconds - (now() - began)
        # A conversation in which a call has no result is refused.
        is_over = error.kind in FINAL or error.completion.tool_calls or (left is not None and left <= 0)
        if not call.repair or is_over:
            raise
        call = replace(_mended(call, error), seconds=left)
    done = yield from chat(state, call)
    return done, _read(done, read)


def _read(done: Completion, read: Callable[[str], V]) -> V:
    try:
        return read(done.text)
    except ValueError as error:
        raise ConstraintBroken(str(error), done) from error


_DEMANDS: dict[ConstraintKind, str] = {
    "json_schema": "JSON that obeys this schema: ",
    "grammar": "what this grammar allows: ",
    "choices": "exactly one of ",
    "regex": "what this regular expression matches: ",
}


def _demand(constraint: Constraint) -> str:
    """What the text must be, which the model cannot know where its server does not hold it to it."""
    value = constraint.value if isinstance(constraint.value, str) else encode(constraint.value).decode()
    return f" It must be {_DEMANDS[constraint.kind]}{value}" if len(value) <= MOST_TOLD else ""


def _mended(call: Call, error: ConstraintBroken) -> Call:
    """The call with the broken reply and what is wrong with it."""
    constraint = call.chat.constraint
    must = "" if constraint is None else _demand(constraint)
    again = f"Reply again, with nothing but the corrected text.{must}"
    why = f"That is not as it must be: {error.violation}. {again}"
    messages = [*call.chat.messages, error.completion.message, {"role": "user", "content": why}]
    return replace(call, chat=replace(call.chat, messages=messages), repair=False)
