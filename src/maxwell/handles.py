"""What `get_lm` returns: a handle that can be called. Thin: one driver call a method."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Unpack

from maxwell.calls import sync_driver
from maxwell.calls.chat import Call, chat
from maxwell.calls.effects import Flow
from maxwell.calls.state import PoolState
from maxwell.decision import Decision
from maxwell.errors import EmptyReply
from maxwell.registry.specs import LLMSpec
from maxwell.requirements import ChatOptions, PromptOptions, chat_call, prompt_messages
from maxwell.types import Completion, Message

if TYPE_CHECKING:
    from maxwell.calls.transport import AsyncTransport, SyncTransport

log = logging.getLogger("maxwell")


class TextStream(Iterator[str]):
    """A reply as it is written: iterate for its pieces of text.

    Leave early with `close()`, a `with` block or by dropping the stream: the server stops at once and what
    it had generated is booked.
    """

    def __init__(self, steps: Generator[str, None, Completion]) -> None:
        self._steps = steps
        self._completion: Completion | None = None

    @property
    def completion(self) -> Completion:
        """The whole reply with usage and cost, once the stream has ended. RuntimeError before."""
        if self._completion is None:
            raise RuntimeError("the stream has not ended; its completion is known after the last piece")
        return self._completion

    def __iter__(self) -> TextStream:
        return self

    def __next__(self) -> str:
        try:
            return next(self._steps)
        except StopIteration as stop:
            if stop.value is not None:
                self._completion = stop.value
            raise

    def close(self) -> None:
        """Stop the server and book what was used. Does nothing when the stream has ended."""
        self._steps.close()

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class AsyncTextStream(AsyncIterator[str]):
    """A reply as it is written: `async for` gives its pieces of text.

    Leave early with `aclose()`, an `async with` block, by cancelling the task or by dropping the stream.
    """

    def __init__(self, steps: AsyncGenerator[str, None], results: list[Completion]) -> None:
        self._steps = steps
        self._results = results

    @property
    def completion(self) -> Completion:
        """The whole reply with usage and cost, once the stream has ended. RuntimeError before."""
        if not self._results:
            raise RuntimeError("the stream has not ended; its completion is known after the last piece")
        return self._results[0]

    def __aiter__(self) -> AsyncTextStream:
        return self

    async def __anext__(self) -> str:
        return await anext(self._steps)

    async def aclose(self) -> None:
        """Stop the server and book what was used. Does nothing when the stream has ended."""
        await self._steps.aclose()

    async def __aenter__(self) -> AsyncTextStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class _ChosenLLM:
    """What the sync and the async handle of one LLM share.

    Attributes:
        decision: Who was chosen, who else could have been, who could not, and why.
    """

    def __init__(self, state: PoolState, decision: Decision, *, pinned: bool) -> None:
        self.decision = decision
        self._state = state
        self._pinned = pinned

    @property
    def spec(self) -> LLMSpec:
        """The chosen entry as declared."""
        return self.decision.ranked[0].spec

    @property
    def name(self) -> str:
        """The chosen entry's name."""
        return self.spec.name

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    def _prompt_flow(self, prompt: str, options: PromptOptions, *, stream: bool) -> Flow[Completion]:
        rest: dict[str, Any] = dict(options)
        messages = prompt_messages(prompt, rest.pop("system_prompt", None), rest.pop("images", None))
        return self._chat_flow(messages, rest, stream=stream)

    @staticmethod
    def _whole_text(done: Completion, options: PromptOptions) -> str:
        if done.finish_reason == "length" and not done.text:
            raise EmptyReply(done)
        if done.finish_reason == "length" and options.get("max_tokens") is None:
            log.warning("%s: the reply was cut off after %d tokens", done.llm, done.usage.completion_tokens)
        return done.text

    def _chat_flow(self, messages: list[Message], options: Any, *, stream: bool = False) -> Flow[Completion]:
        call = Call(
            chat=chat_call(messages, options),
            decision=self.decision,
            pinned=self._pinned,
            stream=stream,
            seconds=options.get("timeout"),
        )
        return chat(self._state, call)


class LLM(_ChosenLLM):
    """A chosen LLM. If a call fails in a way another model could mend, the next ranked one takes it,
    unless this one was picked by name; `Completion.llm` says who answered.
    """

    def __init__(
        self, state: PoolState, decision: Decision, transport: SyncTransport, *, pinned: bool
    ) -> None:
        super().__init__(state, decision, pinned=pinned)
        self._transport = transport

    def generate(self, prompt: str, **options: Unpack[PromptOptions]) -> str:
        """The reply to `prompt` as text.

        Raises:
            BackendError: The call failed (`AllAttemptsFailed` when several servers did).
            BudgetExceeded: The daily budget has no room for the call.
            EmptyReply: The tokens ran out before a word of the reply came.
            TypeError, ValueError: The prompt is empty or an option is wrong.
        """
        flow = self._prompt_flow(prompt, options, stream=False)
        return self._whole_text(sync_driver.run(flow, self._transport), options)

    def chat(self, messages: list[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The reply to a conversation, with usage, cost and timings. Raises as `generate` does."""
        return sync_driver.run(self._chat_flow(messages, options), self._transport)

    def stream(self, prompt: str, **options: Unpack[PromptOptions]) -> TextStream:
        """The reply to `prompt`, piece by piece as it is written.

        Raises as `generate` does, while it is iterated; once text has come, a failure is `StreamBroken`.
        """
        return TextStream(
            sync_driver.iterate(self._prompt_flow(prompt, options, stream=True), self._transport)
        )


class AsyncLLM(_ChosenLLM):
    """A chosen LLM for use in coroutines: `LLM`'s methods, awaited."""

    def __init__(
        self, state: PoolState, decision: Decision, transport: AsyncTransport, *, pinned: bool
    ) -> None:
        super().__init__(state, decision, pinned=pinned)
        self._transport = transport

    async def generate(self, prompt: str, **options: Unpack[PromptOptions]) -> str:
        """The reply to `prompt` as text. See `LLM.generate`."""
        from maxwell.calls import async_driver

        flow = self._prompt_flow(prompt, options, stream=False)
        return self._whole_text(await async_driver.run(flow, self._transport), options)

    async def chat(self, messages: list[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The reply to a conversation. See `LLM.chat`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._chat_flow(messages, options), self._transport)

    def stream(self, prompt: str, **options: Unpack[PromptOptions]) -> AsyncTextStream:
        """The reply to `prompt`, piece by piece as it is written. See `LLM.stream`."""
        from maxwell.calls import async_driver

        results: list[Completion] = []
        flow = self._prompt_flow(prompt, options, stream=True)
        return AsyncTextStream(async_driver.iterate(flow, self._transport, results), results)
