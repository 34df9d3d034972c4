"""The values of a map: what is asked, what came of it, and which result is handed out next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from maxwell.decision import Request
from maxwell.errors import EmptyReply, MaxwellError
from maxwell.requirements import chat_request
from maxwell.tokens import measure
from maxwell.types import ChatCall, Completion, Requirements

ItemError = MaxwellError | TypeError | ValueError | OSError


class Mapped(Struct, frozen=True, kw_only=True):
    """What came of one item.

    Attributes:
        index: Its place among the items, from 0.
        item: The item as it was given.
        completion: The reply with usage, cost and timings; None where there is an error.
        error: Why there is none: a `MaxwellError`, or a `TypeError`, `ValueError` or `OSError` where the
            item is wrong.
    """

    index: int
    item: Any
    completion: Completion | None = None
    error: ItemError | None = None

    @property
    def text(self) -> str:
        """The reply's text; raises the item's error, and `EmptyReply` as `generate` does."""
        if self.completion is None:
            assert self.error is not None
            raise self.error
        if self.completion.finish_reason == "length" and not self.completion.text:
            raise EmptyReply(self.completion)
        return self.completion.text


class Asked(Struct, frozen=True, kw_only=True):
    """What an item asks.

    Attributes:
        chat: The call.
        needs: What is demanded of an LLM, without the prompt.
        prompt: The prompt's text, where it is one prompt.
        repair: Whether a reply that breaks its constraint is sent back once.
        seconds: Longest that it may take in all, from its first call; None = no limit.
    """

    chat: ChatCall
    needs: Requirements
    prompt: str | None = None
    repair: bool = False
    seconds: float | None = None

    def request(self) -> Request:
        """What the scheduler is to choose for."""
        return chat_request(self.chat, self.needs, measure(self.chat.messages, self.chat.tools))


class Plan(Struct, frozen=True, kw_only=True):
    """What is to be done.

    Attributes:
        items: Where the items come from.
        read: Tells what an item asks. Raises TypeError, ValueError or OSError for one that is wrong.
        needs: What all items have in common, to know whose slots count.
        usual: What an item without options of its own asks for.
        total: How many items there are; None = not known.
        ordered: Whether results are handed out in the items' order, else as they come.
        at_most: Most calls at once; None = as many as there are slots.
        patience: Seconds to wait for a server to come back once none can be chosen any more.
        progress: Told how many items are done, how many of these failed, and how many there are.
    """

    items: Iterator[Any]
    read: Callable[[Any], Asked]
    needs: Requirements
    usual: Request
    total: int | None = None
    ordered: bool = True
    at_most: int | None = None
    patience: float = 0.0
    progress: Callable[[int, int, int | None], object] | None = None


class Results:
    """What has come and was not handed out yet.

    Attributes:
        done: Items that have a result.
        failed: Those of them whose result is an error.
        given: Items handed out.
    """

    def __init__(self, *, ordered: bool) -> None:
        self._ordered = ordered
        self._found: dict[int, Mapped] = {}  # in the order in which they came
        self.done = self.failed = self.given = 0

    def add(self, mapped: Mapped) -> None:
        """An item is done."""
        self._found[mapped.index] = mapped
        self.done += 1
        self.failed += mapped.error is not None

    def has_next(self) -> bool:
        """Whether there is one to hand out now."""
        return self.given in self._found if self._ordered else bool(self._found)

    def next(self) -> Mapped:
        """The next one to hand out."""
        index = self.given if self._ordered else next(iter(self._found))
        self.given += 1
        return self._found.pop(index)

    def ready(self) -> int:
        """How many could be handed out now; more or less, where the order counts."""
        return len(self._found) if self.has_next() else 0
