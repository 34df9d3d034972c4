"""What `get_lm` returns: a handle that can be called. Thin: one driver call a method."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from maxwell.calls import sync_driver
from maxwell.calls.chat import Call
from maxwell.calls.effects import Flow
from maxwell.calls.obeying import obeying, parsing
from maxwell.calls.state import PoolState
from maxwell.decision import Decision
from maxwell.errors import EmptyReply, StatusError
from maxwell.registry.specs import LLMSpec
from maxwell.requirements import (
    CONSTRAINTS,
    ChatOptions,
    CountOptions,
    PromptOptions,
    chat_call,
    check_prompt,
    prompt_messages,
)
from maxwell.types import Completion, Message, ToolRun

if TYPE_CHECKING:
    from maxwell.calls.token_count import TokenCount
    from maxwell.calls.transport import AsyncTransport, SyncTransport

log = logging.getLogger("maxwell")

V = TypeVar("V")
Prompt = str | list[Message]


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
        check_prompt(prompt)
        return self._worded(self._call(*_conversation(prompt, options), stream=stream))

    def _worded(self, call: Call) -> Flow[Completion]:
        """Ask; a reply without a word of text, because the tokens ran out, is an error."""
        done = yield from obeying(self._state, call)
        if done.finish_reason == "length" and not done.text:
            raise EmptyReply(done)
        if done.finish_reason == "content_filter" and not done.text:
            words = "the server's content filter kept the whole reply back"
            raise StatusError(words, llm=done.llm, kind="content_policy")
        if done.finish_reason == "length" and call.chat.max_tokens is None:
            log.warning("%s: the reply was cut off after %d tokens", done.llm, done.usage.completion_tokens)
        return done

    def _chat_flow(self, messages: list[Message], options: Any) -> Flow[Completion]:
        return obeying(self._state, self._call(messages, options))

    def _parse_flow(self, prompt: Prompt, shape: type[V], options: PromptOptions) -> Flow[V]:
        from maxwell.shapes import shape_of  # few programs need it

        known = shape_of(shape)
        messages, rest = _conversation(prompt, options)
        for key in CONSTRAINTS:
            if rest.get(key) is not None:
                raise TypeError(f"parse has a constraint of its own, the type; drop {key}")
        call = self._call(messages, {**rest, "json_schema": known.schema})
        value: V
        _, value = yield from parsing(self._state, call, known.decode)
        return value

    def _count_flow(self, prompt: Prompt, options: CountOptions) -> Flow[TokenCount]:
        from maxwell.calls.token_count import count  # few programs need it

        messages, rest = _conversation(prompt, options)
        return count(self._state, self._state.llm(self.name), messages, rest.get("tools"))

    def _tools_flow(
        self,
        prompt: Prompt,
        functions: Sequence[Callable[..., Any]],
        most_steps: int,
        options: PromptOptions,
        *,
        can_await: bool,
    ) -> Flow[ToolRun]:
        from maxwell.calls.toolrun import run_tools  # few programs need it
        from maxwell.tools import tools_of

        tools = tools_of(functions, can_await=can_await)
        messages, rest = _conversation(prompt, options)
        if rest.get("tools") is not None:
            raise TypeError("run_tools makes the tool definitions itself; drop tools")
        rest["tools"] = [tool.definition for tool in tools]

        def ask(conversation: list[Message]) -> Flow[Completion]:
            # What must be called is meant for the first reply; for ever, the run would never end.
            first = len(conversation) == len(messages)
            return self._chat_flow(conversation, rest if first else {**rest, "tool_choice": None})

        run: ToolRun = yield from run_tools(ask, messages, tools, most_steps=most_steps)
        return run

    def _call(self, messages: list[Message], options: Any, *, stream: bool = False) -> Call:
        chat, repair = chat_call(messages, options), bool(options.get("repair"))
        if stream and repair:
            raise ValueError("a stream cannot be repaired: what was shown cannot be taken back")
        return Call(
            chat=chat,
            decision=self.decision,
            pinned=self._pinned,
            stream=stream,
            repair=repair,
            seconds=options.get("timeout"),
        )


def _conversation(
    prompt: Prompt, options: PromptOptions | CountOptions
) -> tuple[list[Message], dict[str, Any]]:
    """What is asked as messages, and the options that are left."""
    rest: dict[str, Any] = dict(options)
    system_prompt, images = rest.pop("system_prompt", None), rest.pop("images", None)
    if not isinstance(prompt, list):
        return prompt_messages(prompt, system_prompt, images), rest
    if system_prompt is not None or images:
        raise ValueError("system_prompt and images go with a prompt; messages hold their own")
    return prompt, rest


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
        return sync_driver.run(self._prompt_flow(prompt, options, stream=False), self._transport).text

    def chat(self, messages: list[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The reply to a conversation, with usage, cost and timings. Raises as `generate` does."""
        return sync_driver.run(self._chat_flow(messages, options), self._transport)

    def parse(self, prompt: Prompt, shape: type[V], **options: Unpack[PromptOptions]) -> V:
        """The reply as an instance of a type: pydantic model, msgspec Struct, dataclass, TypedDict ...

        Args:
            prompt: A prompt, or a conversation.
            shape: The type; its JSON Schema is the reply's constraint.
            **options: As in `generate`; with `repair=True` a reply that is none is sent back once.

        Raises:
            ConstraintBroken: The reply is no such instance.
            ReplyCutOff: The tokens ran out before it was complete.
            Otherwise as `generate` does.
        """
        return sync_driver.run(self._parse_flow(prompt, shape, options), self._transport)

    def count_tokens(self, prompt: Prompt, **options: Unpack[CountOptions]) -> TokenCount:
        """How many tokens a prompt or a conversation has for this LLM, as a call would send it.

        Counted by its server where it can, else estimated; the result says which.
        """
        return sync_driver.run(self._count_flow(prompt, options), self._transport)

    def run_tools(
        self,
        prompt: Prompt,
        functions: Sequence[Callable[..., Any]],
        *,
        most_steps: int = 10,
        **options: Unpack[PromptOptions],
    ) -> ToolRun:
        """Let the LLM call Python functions until it has no more calls; all that was said and done.

        Args:
            prompt: A prompt, or a conversation.
            functions: What it may call. Each parameter needs an annotation; the docstring tells what it does.
            most_steps: Most replies; the calls of the last one are performed, too.
            **options: As in `generate`; `tool_choice` is for the first reply, `timeout` for each of them.

        Raises:
            ToolStepsExceeded: It still asked for tools after the last step.
            ReplyCutOff: The tokens ran out in the midst of a call.
            TypeError: A function cannot be made a tool.
            Otherwise as `chat` does, and whatever a function raises but `ToolError`, which the LLM is told.
        """
        flow = self._tools_flow(prompt, functions, most_steps, options, can_await=False)
        return sync_driver.run(flow, self._transport)

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

        done = await async_driver.run(self._prompt_flow(prompt, options, stream=False), self._transport)
        return done.text

    async def chat(self, messages: list[Message], **options: Unpack[ChatOptions]) -> Completion:
        """The reply to a conversation. See `LLM.chat`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._chat_flow(messages, options), self._transport)

    async def parse(self, prompt: Prompt, shape: type[V], **options: Unpack[PromptOptions]) -> V:
        """The reply as an instance of a type. See `LLM.parse`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._parse_flow(prompt, shape, options), self._transport)

    async def count_tokens(self, prompt: Prompt, **options: Unpack[CountOptions]) -> TokenCount:
        """How many tokens a prompt or a conversation has for this LLM. See `LLM.count_tokens`."""
        from maxwell.calls import async_driver

        return await async_driver.run(self._count_flow(prompt, options), self._transport)

    async def run_tools(
        self,
        prompt: Prompt,
        functions: Sequence[Callable[..., Any]],
        *,
        most_steps: int = 10,
        **options: Unpack[PromptOptions],
    ) -> ToolRun:
        """Let the LLM call functions, coroutine functions among them. See `LLM.run_tools`."""
        from maxwell.calls import async_driver

        flow = self._tools_flow(prompt, functions, most_steps, options, can_await=True)
        return await async_driver.run(flow, self._transport)

    def stream(self, prompt: str, **options: Unpack[PromptOptions]) -> AsyncTextStream:
        """The reply to `prompt`, piece by piece as it is written. See `LLM.stream`."""
        from maxwell.calls import async_driver

        results: list[Completion] = []
        flow = self._prompt_flow(prompt, options, stream=True)
        return AsyncTextStream(async_driver.iterate(flow, self._transport, results), results)
