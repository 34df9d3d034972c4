"""Whether a whole reply obeys its call's constraint. Pure: no server is trusted to have honoured one."""

from __future__ import annotations

from typing import Any

import msgspec

from maxwell.errors import ConstraintBroken, ReplyCutOff
from maxwell.types import ChatCall, Completion


def judged(done: Completion, chat: ChatCall, *, wrapped: bool, refused: bool) -> Completion:
    """`done` if it obeys, taken out of its wrapping.

    A reply that calls tools has no text to judge.

    Args:
        done: The reply.
        chat: What was asked.
        wrapped: Whether the server was asked for `{"value": ...}`, of which only the value is the reply.
        refused: Whether the model refused in words of its own.

    Raises:
        ReplyCutOff: The tokens ran out before it was complete.
        ConstraintBroken: It does not obey, or the model refused (`kind` "content_policy").
    """
    constraint = chat.constraint
    if constraint is None or (done.tool_calls and not done.text):
        return done
    if refused:
        said = " ".join(done.text.split())[:200]
        raise ConstraintBroken(f'the model refused, "{said}"', done, kind="content_policy")
    if done.finish_reason == "length":
        raise ReplyCutOff(done)
    from maxwell.constraints import violation  # heavy, and few calls have one

    if wrapped:
        value = _unwrapped(done)
        text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
        done = msgspec.structs.replace(done, text=text)
    broken = violation(constraint, done.text)
    if broken:
        raise ConstraintBroken(broken, done)
    return done


def _unwrapped(done: Completion) -> Any:
    try:
        reply = msgspec.json.decode(done.text)
    except msgspec.DecodeError as error:
        raise ConstraintBroken(f"it is not JSON ({error})", done) from None
    if not isinstance(reply, dict) or set(reply) != {"value"}:
        raise ConstraintBroken('it is not {"value": ...}, which the server was asked for', done)
    return reply["value"]
