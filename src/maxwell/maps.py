"""The public side of `pool.map`: what may be asked of it, and the iterators it returns."""

from __future__ import annotations

import math
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
    Sized,
)
from typing import Any, TypedDict

from maxwell.calls.mapped import Asked, Mapped, Plan
from maxwell.requirements import (
    CONSTRAINTS,
    Needs,
    as_pictures,
    chat_call,
    prompt_messages,
    requirements,
)
from maxwell.types import Message, ReasoningEffort, Tier

__all__ = ["AsyncMapResults", "Item", "MapOptions", "MapResults", "Mapped", "Progress", "planned"]

Item = str | list[Message] | Mapping[str, Any]
Progress = Callable[[int, int, int | None], object]


class MapOptions(TypedDict, total=False):
    """The requirements of `get_lm` and the options of `generate`, for all items of a map.

    Attributes:
        tools: Tool definitions that are sent with each item; or True or False, where tools must be declared
            or must not.
        timeout: Longest that one item may take, all its attempts together, in seconds.
    """

    vision: bool | None
    reasoning: bool | None
    code_specialized: bool | None
    min_context: int | None
    min_speed: float | None
    tags: Iterable[str] | None
    tier: Tier | None
    max_completion: int | None
    time_cost_weight: float
    tools: bool | list[dict[str, Any]] | None
    system_prompt: str | None
    max_tokens: int | None
    temperature: float | None
    stop: str | list[str] | None
    seed: int | None
    tool_choice: str | dict[str, Any] | None
    json_schema: dict[str, Any] | None
    grammar: str | None
    choices: Sequence[str] | None
    regex: str | None
    repair: bool | None
    reasoning_effort: ReasoningEffort | None
    thinking_tokens: int | None
    images: Sequence[Any] | None
    extra: dict[str, Any] | None
    timeout: float | None


class MapResults(Iterator[Mapped]):
    """The results of a map: iterate for one `Mapped` an item.

    Calls are started as results are taken, and go on meanwhile. Leave early with `close()`, a `with` block or
    by dropping it: every call under way is stopped at once and what it had used is booked.
    """

    def __init__(self, steps: Generator[Mapped, None, None]) -> None:
        self._steps = steps

    def __iter__(self) -> MapResults:
        return self

    def __next__(self) -> Mapped:
        return next(self._steps)

    def close(self) -> None:
        """Stop every call under way and book what was used. Does nothing when all is done."""
        self._steps.close()

    def __enter__(self) -> MapResults:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncMapResults(AsyncIterator[Mapped]):
    """The results of a map: `async for` gives one `Mapped` an item. See `MapResults`.

    Leave early with `aclose()`, an `async with` block, by cancelling the task or by dropping it.
    """

    def __init__(self, steps: AsyncGenerator[Mapped, None]) -> None:
        self._steps = steps

    def __aiter__(self) -> AsyncMapResults:
        return self

    async def __anext__(self) -> Mapped:
        return await anext(self._steps)

    async def aclose(self) -> None:
        """Stop every call under way and book what was used. Does nothing when all is done."""
        await self._steps.aclose()

    async def __aenter__(self) -> AsyncMapResults:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


PATIENCE = 60.0  # seconds that a map waits for a server to come back


def planned(
    items: Iterable[Item],
    options: Mapping[str, Any],
    *,
    ordered: bool,
    at_most: int | None,
    patience: float,
    progress: Progress | None,
) -> Plan:
    """What `pool.map` is to do.

    Raises:
        TypeError: `items` is none to go through, an option is unknown, or something has the wrong type.
        ValueError: An option is out of range.
    """
    if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
        raise TypeError(f"items must be prompts or conversations to go through, not {type(items).__name__}")
    if at_most is not None and (not isinstance(at_most, int) or isinstance(at_most, bool)):
        raise TypeError(f"at_most must be a number of calls, not {at_most!r}")
    if at_most is not None and at_most < 1:
        raise ValueError(f"at_most must be at least 1, not {at_most!r}")
    if not isinstance(patience, int | float) or isinstance(patience, bool):
        raise TypeError(f"patience must be a number of seconds, not {patience!r}")
    if not 0 <= patience < math.inf:
        raise ValueError(f"patience must be a number of seconds from 0 on, not {patience!r}")
    if progress is not None and not callable(progress):
        raise TypeError(f"progress must be a function of (done, failed, total), not {progress!r}")
    common = dict(options)
    if common.get("images") is not None:
        common["images"] = as_pictures(common["images"])
    usual = asked("any", common)  # what is wrong with the options is wrong before the first item
    constraint = usual.chat.constraint
    choices = constraint.value if constraint is not None and constraint.kind == "choices" else None
    read = {
        "tags": usual.needs.tags,
        "stop": usual.chat.stop,
        "choices": choices,
    }  # they could be gone through only once
    common |= {key: value for key, value in read.items() if common.get(key) is not None}
    return Plan(
        items=iter(items),
        read=lambda item: asked(item, common),
        needs=usual.needs,
        usual=usual.request(),
        total=len(items) if isinstance(items, Sized) else None,
        ordered=ordered,
        at_most=at_most,
        patience=patience,
        progress=progress,
    )


def asked(item: object, options: Mapping[str, Any]) -> Asked:
    """What an item asks, with the options of all items where it has none of its own.

    Raises:
        TypeError, ValueError: The item or an option is wrong.
    """
    prompt, messages, options = _parts(item, options)
    rest = dict(options)
    demands = {key: rest.pop(key) for key in Needs.__annotations__ if key in rest and key != "tools"}
    if isinstance(rest.get("tools"), bool):
        demands["tools"] = rest.pop("tools")
    system_prompt, images = rest.pop("system_prompt", None), rest.pop("images", None)
    if messages is None:
        messages = prompt_messages(prompt, system_prompt, images)  # type: ignore[arg-type] # it checks
    return Asked(
        chat=chat_call(messages, rest),
        needs=requirements(demands),
        prompt=prompt,
        repair=bool(rest.get("repair")),
        seconds=rest.get("timeout"),
    )


def _parts(
    item: object, options: Mapping[str, Any]
) -> tuple[str | None, list[Message] | None, Mapping[str, Any]]:
    """An item's prompt or else its messages, and the options that hold for it."""
    if isinstance(item, str):
        return item, None, options
    if isinstance(item, list):
        return None, item, options
    if not isinstance(item, Mapping):
        raise TypeError(
            f"an item must be a prompt, a list of messages, or a mapping that has one of these and options, "
            f"not {type(item).__name__}"
        )
    own = dict(item)
    prompt, messages = own.pop("prompt", None), own.pop("messages", None)
    if (prompt is None) == (messages is None):
        raise ValueError('an item that is a mapping must have either a "prompt" or "messages"')
    for key in ("system_prompt", "images"):
        if messages is not None and own.get(key) is not None:
            raise ValueError(f"{key} goes with a prompt; messages hold their own")
    if any(own.get(key) is not None for key in CONSTRAINTS):  # its own one in place of everybody's
        options = {key: value for key, value in options.items() if key not in CONSTRAINTS}
    return prompt, messages, {**options, **own}
