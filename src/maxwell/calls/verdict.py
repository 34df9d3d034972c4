"""Whether a whole reply obeys its call's constraint. Pure: no server is trusted to have honoured one."""

from __future__ import annotations

import msgspec

from maxwell.errors import ConstraintBroken, ReplyCutOff
from maxwell.types import Completion, Constraint


def judged(
    done: Completion,
    constraint: Constraint,
    *,
    wrapped: bool = False,
    thinks: bool = True,
    refused: bool = False,
) -> Completion:
    """`done` if it obeys, taken out of its wrapping.

    Args:
        done: The reply.
        constraint: What it must obey.
        wrapped: Whether the server was asked for `{"value": ...}`, of which only the value is the reply.
        thinks: Whether the model might think before it wrote. Where it might not, some servers take what it
            wrote for its thinking.
        refused: Whether the model refused in words of its own.

    Raises:
        ReplyCutOff: The tokens ran out before it was complete, and it may have become one that obeys.
        ConstraintBroken: It does not obey; `kind` is "content_policy" where the model refused or a filter
            cut it off.
    """
    if refused:
        said = " ".join(done.text.split())[:200]
        raise ConstraintBroken(f'the model refused, "{said}"', done, kind="content_policy")
    from maxwell.constraints import misbegun, violation  # heavy, and few calls have one

    if done.finish_reason == "length":
        asked = _wrapping(constraint) if wrapped else constraint
        broken = misbegun(asked, done.text or done.reasoning * (not thinks))
        if broken:  # more room would not mend it
            raise ConstraintBroken(broken, done)
        raise ReplyCutOff(done)
    if not thinks and not done.text and done.reasoning:
        done = msgspec.structs.replace(done, text=done.reasoning, reasoning="")
    broken = violation(_wrapping(constraint), done.text) if wrapped else ""
    if wrapped and not broken:
        done = _unwrapped(done, constraint)
    broken = broken or violation(constraint, done.text)
    if broken and done.finish_reason == "content_filter":
        why = f"the server's content filter ended it; {broken}"
        raise ConstraintBroken(why, done, kind="content_policy")
    if broken:
        raise ConstraintBroken(broken, done)
    return done


def _wrapping(constraint: Constraint) -> Constraint:
    """What the server was asked for, as far as it wraps: the value is judged when it is out of it."""
    value = {} if constraint.kind == "json_schema" else {"type": "string"}
    schema = {"type": "object", "properties": {"value": value}, "required": ["value"]}
    return Constraint("json_schema", {**schema, "additionalProperties": False})


def _unwrapped(done: Completion, constraint: Constraint) -> Completion:
    """`done` with the value alone: JSON as it was written, or the text itself where no JSON is asked for."""
    try:
        raw: msgspec.Raw = msgspec.json.decode(done.text, type=dict[str, msgspec.Raw])["value"]
        text: str = bytes(raw).decode() if constraint.kind == "json_schema" else msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError) as error:  # half a character, or endless nesting
        raise ConstraintBroken(f"it is not JSON: {error}", done) from None
    return msgspec.structs.replace(done, text=text)
