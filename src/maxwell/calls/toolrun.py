"""A conversation in which the tools a model asks for are performed, as a flow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from maxwell.calls.effects import Flow, Perform
from maxwell.errors import ReplyCutOff, ToolError, ToolStepsExceeded
from maxwell.tools import Tool
from maxwell.types import Completion, Message, PerformedCall, ToolCall, ToolRun, Usage

_QUOTED = 200  # characters of broken arguments that the model is reminded of


def run_tools(
    ask: Callable[[list[Message]], Flow[Completion]],
    messages: Sequence[Message],
    tools: Sequence[Tool],
    *,
    most_steps: int = 10,
) -> Flow[ToolRun]:
    """Ask, perform the calls of the reply and tell their results, until a reply has no calls.

    Calls of one reply are performed side by side in coroutines, one after the other elsewhere. What is wrong
    with a call (no such tool, arguments it does not take, a `ToolError`) is told to the model as its result.

    Args:
        ask: One chat call for a conversation.
        messages: How the conversation begins; left as it is.
        tools: What may be called.
        most_steps: Most replies, 1 or more. The calls of the last one are performed, too, so that the
            conversation of `ToolStepsExceeded` can be gone on with.

    Raises:
        ReplyCutOff: The tokens ran out in the midst of a call; nothing of that reply is performed.
        ToolStepsExceeded: The last reply that was allowed still had calls.
        TypeError: A tool returned what has no JSON form.
        ValueError: `most_steps` is below 1.
        Whatever `ask` raises, and a tool but for `ToolError`.
    """
    if most_steps < 1:
        raise ValueError(f"most_steps must be 1 or more, not {most_steps!r}")
    talk = _Talk(messages, tools)
    for _ in range(most_steps):
        talk.add((yield from ask(list(talk.messages))))
        if not talk.wanted:
            return talk.run()
        yield from talk.perform()
    raise ToolStepsExceeded(talk.run(), most_steps)


class _Talk:
    """What has been said and done so far.

    Attributes:
        messages: The conversation.
        wanted: The calls of the last reply.
    """

    def __init__(self, messages: Sequence[Message], tools: Sequence[Tool]) -> None:
        self.messages = list(messages)
        self.wanted: list[ToolCall] = []
        self._tools = {tool.name: tool for tool in tools}
        self._replies: list[Completion] = []
        self._performed: list[PerformedCall] = []

    def add(self, reply: Completion) -> None:
        """Take a reply in. Raises `ReplyCutOff`."""
        if reply.tool_calls and reply.finish_reason == "length":
            # Some servers mend what was cut, so that it cannot be told from what the model meant.
            raise ReplyCutOff(reply)
        self.wanted = _with_ids(reply.tool_calls, self.messages)
        self._replies.append(msgspec.structs.replace(reply, tool_calls=self.wanted))
        # Servers read the arguments of earlier calls again, and refuse the conversation over broken ones.
        sound = [msgspec.structs.replace(call, arguments=_sound(call.arguments)) for call in self.wanted]
        self.messages.append(msgspec.structs.replace(reply, tool_calls=sound).message)

    def perform(self) -> Flow[None]:
        """Perform what is wanted, and tell the results in the order of the calls."""
        bound = [self._bind(call) for call in self.wanted]
        outcomes = iter((yield Perform([work for work in bound if not isinstance(work, str)])))
        for call, work in zip(self.wanted, bound, strict=True):
            result, said = (None, work) if isinstance(work, str) else _outcome(call.name, *next(outcomes))
            self._performed.append(
                PerformedCall(name=call.name, arguments=call.arguments, result=result, error=said)
            )
            content = f"Error: {said}" if said else _text(call.name, result)
            self.messages.append({"role": "tool", "tool_call_id": call.id, "content": content})

    def run(self) -> ToolRun:
        """All of it."""
        return ToolRun(
            completion=self._replies[-1],
            messages=self.messages,
            calls=self._performed,
            usage=_total([reply.usage for reply in self._replies]),
            cost_usd=sum(reply.cost_usd for reply in self._replies),
        )

    def _bind(self, call: ToolCall) -> Callable[[], Any] | str:
        """What is to be performed, or what is wrong with the call."""
        tool = self._tools.get(call.name)
        if tool is None:
            return f"there is no tool {call.name!r}; there are {', '.join(self._tools)}"
        arguments = _decoded(call.arguments)
        if arguments is None:
            return f"the arguments must be one JSON object, not {call.arguments[:_QUOTED]}"
        try:
            return tool.bind(arguments)
        except ToolError as error:
            return str(error)


def _with_ids(calls: Sequence[ToolCall], messages: Sequence[Message]) -> list[ToolCall]:
    """The calls with an id each; some servers give none, or one to several."""
    number = sum(len(message.get("tool_calls") or ()) for message in messages)
    found: list[ToolCall] = []
    seen: set[str] = set()
    for call in calls:
        number += 1
        # Nine letters and digits, since the templates of some models take no other ids.
        id = call.id if call.id and call.id not in seen else f"call{number:05d}"
        seen.add(id)
        found.append(msgspec.structs.replace(call, id=id))
    return found


def _decoded(arguments: str) -> dict[str, Any] | None:
    """A call's arguments; None where they are no JSON object. A call without any may leave them empty."""
    if not arguments.strip():
        return {}
    try:
        decoded = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return decoded if isinstance(decoded, dict) else None


def _sound(arguments: str) -> str:
    return arguments if _decoded(arguments) else "{}"


def _outcome(name: str, result: Any, error: Exception | None) -> tuple[Any, str]:
    """A tool's result, or what the model is told instead. Raises what is not for the model."""
    if error is None:
        return result, ""
    if isinstance(error, ToolError):
        return None, str(error) or "the tool failed"
    error.add_note(f"raised by the tool {name!r}")
    raise error


def _text(name: str, result: Any) -> str:
    """A result as the model reads it."""
    if isinstance(result, str):
        return result
    try:
        return msgspec.json.encode(result, enc_hook=_of_pydantic).decode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the tool {name!r} returned a {type(result).__name__}, which has no JSON form ({error}); "
            "return text, numbers, lists, dicts, dataclasses or models"
        ) from error


def _of_pydantic(value: Any) -> Any:
    dump: Callable[..., Any] | None = getattr(value, "model_dump", None)
    if dump is None or isinstance(value, type):
        raise TypeError(f"no form for {type(value).__name__}")
    return dump(mode="json")


def _total(usages: Sequence[Usage]) -> Usage:
    """Tokens of all replies. What one of them does not report has no sum."""

    def total(counts: Sequence[Any]) -> Any:
        return None if None in counts else sum(counts)

    return Usage(
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        completion_tokens=sum(usage.completion_tokens for usage in usages),
        cached_tokens=total([usage.cached_tokens for usage in usages]),
        reasoning_tokens=total([usage.reasoning_tokens for usage in usages]),
        estimated=any(usage.estimated for usage in usages),
        reported_usd=total([usage.reported_usd for usage in usages]),
    )
