"""`FakeServer`: an LLM server for tests, real HTTP on loopback, in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from maxwell.testing.dialects import DIALECTS
from maxwell.testing.dialects.base import Facts
from maxwell.testing.faults import Fault
from maxwell.testing.script import Says, Script
from maxwell.testing.state import Condition, Recorded, State
from maxwell.testing.tokens import Tokenizer
from maxwell.types import BackendName, Usage

if TYPE_CHECKING:
    from maxwell.testing.serving import Serving

_HOST = "127.0.0.1"
_BACKLOG = 1024
# A start takes milliseconds; this only keeps a broken one from hanging the test run.
_LAST_TURNS = 5
_START_SECONDS = 30.0


class FakeServer:
    """An LLM server that says what the test wants, in the words of one server family, and fails on request.

    Use it as a context manager (`with` or `async with`), or call `start` and, at the end, `close`.

    Args:
        dialect: Whose protocol to speak: "llamacpp", "vllm" or "openai".
        model: Name of the model; with llama.cpp also the path it was loaded from.
        context: Context window of one request, in tokens; for embeddings the longest input.
        slots: Requests served at once, the others wait; None = 4 on llama.cpp, unlimited elsewhere.
        reply: What the model says: a text, a list of tokens, or a function from the request's body to either.
        reasoning: What it thinks first, in the same forms; "" = nothing. OpenAI counts it and hides it.
        constrained_reply: What it says when the request holds a grammar or schema that this server honours;
            None = `reply`.
        tool_calls: (name, arguments) of the tools it calls, in place of `reply`, when the request offers any.
        tokens_per_sec: How fast it generates; None = as fast as can be.
        prefill_tokens_per_sec: How fast it reads prompts, what it has cached left out; None = at once.
        token_bytes: Most UTF-8 bytes of a token: the tokenizer packs characters greedily and splits none.
        max_tokens_default: Completion cap for requests that name none; None = the rest of the context.
        cached_tokens: Prompt tokens reported as read from cache, at most.
        api_key: The key to demand; None = none.
        aliases: Further names. llama.cpp goes by the first one, vLLM and OpenAI answer to all.
        embeddings: Serve embeddings instead of chat. OpenAI always serves both.
        dimension: Length of an embedding.
        reranker: Rank documents instead of chatting. OpenAI, which has no such route, does both then.
        most_documents: Documents that one reranking request may hold; None = any number.
        space: Word of the vector space. Servers with the same word give a text the same vector.
        vision: Accept images. One costs `tokens.IMAGE_TOKENS` prompt tokens.
    """

    def __init__(  # noqa: PLR0913 - a public entry point; all but the first are keywords
        self,
        dialect: BackendName = "llamacpp",
        *,
        model: str = "tiny",
        context: int = 4096,
        slots: int | None = None,
        reply: Says = "Hello there, friend.",
        reasoning: Says = "",
        constrained_reply: Says | None = None,
        tool_calls: Sequence[tuple[str, Mapping[str, Any]]] = (),
        tokens_per_sec: float | None = None,
        prefill_tokens_per_sec: float | None = None,
        token_bytes: int = 4,
        max_tokens_default: int | None = None,
        cached_tokens: int = 0,
        api_key: str | None = None,
        aliases: Sequence[str] = (),
        embeddings: bool = False,
        dimension: int = 64,
        reranker: bool = False,
        most_documents: int | None = None,
        space: str = "",
        vision: bool = False,
    ) -> None:
        if dialect not in DIALECTS:
            raise ValueError(f"unknown dialect {dialect!r}; choose one of {', '.join(DIALECTS)}")
        tokenizer = Tokenizer(token_bytes)
        facts = Facts(
            model=model,
            aliases=tuple(aliases),
            context=context,
            slots=4 if slots is None and dialect == "llamacpp" else slots,
            dimension=dimension,
            embeddings=embeddings,
            reranker=reranker,
            most_documents=most_documents,
            space=space,
            vision=vision,
            api_key=api_key,
            tokenizer=tokenizer,
            started=int(time.time()),
        )
        self._facts = facts
        self._dialect = DIALECTS[dialect](facts)
        self._script = Script(tokenizer, reply, reasoning, constrained_reply, tool_calls)
        self._reasons = bool(reasoning)
        self._speed = (tokens_per_sec, prefill_tokens_per_sec, max_tokens_default, cached_tokens)
        self._state = State(frozenset(self._dialect.routes))
        self._port = 0
        self._socket: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._halt: asyncio.Event | None = None
        self._serving: Serving | None = None

    def __repr__(self) -> str:
        return f"FakeServer({self._dialect.name!r}, {self._facts.model!r}, port={self._port})"

    # Life

    @property
    def url(self) -> str:
        """Root URL, without `/v1`. Known before the start; connections are refused until then."""
        self._reserve()
        return f"http://{_HOST}:{self._port}"

    def _reserve(self) -> None:
        # A bound socket that does not listen refuses connections and keeps the port from anyone else.
        if self._socket is not None or self._thread is not None:
            return
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.bind((_HOST, self._port))
        self._port = self._socket.getsockname()[1]

    def start(self) -> Self:
        """Begin to listen, on the same port every time. Does nothing when running already."""
        if self._thread is not None:
            return self
        self._reserve()
        assert self._socket is not None
        listener, self._socket = self._socket, None
        self._state.stopping = False
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._main(listener, ready)), name=repr(self), daemon=True
        )
        self._thread.start()
        if not ready.wait(_START_SECONDS):
            raise RuntimeError(f"{self!r} did not start within {_START_SECONDS:.0f} s")
        return self

    async def _main(self, listener: socket.socket, ready: threading.Event) -> None:
        from maxwell.testing.chats import Speed  # here, because they import aiohttp
        from maxwell.testing.serving import Serving

        self._loop, self._halt = asyncio.get_running_loop(), asyncio.Event()
        serving = Serving(self._dialect, self._script, self._state, Speed(*self._speed))
        self._serving = serving
        server = await self._loop.create_server(serving.protocol, sock=listener, backlog=_BACKLOG)
        ready.set()
        await self._halt.wait()
        # What was accepted at the last moment is a connection only some turns of the loop later, and must not
        # meet a closed server on its way: asyncio would leave its socket open.
        self._loop.remove_reader(listener.fileno())
        for _ in range(_LAST_TURNS):
            serving.drop_connections()
            await asyncio.sleep(0)
        server.close()

    def stop(self) -> None:
        """Drop every connection and refuse new ones, until `start`. Does nothing when stopped already."""
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._halt is not None
        self._state.stopping = True
        self._loop.call_soon_threadsafe(self._halt.set)
        self._thread.join()
        self._thread = self._loop = self._halt = self._serving = None
        self._reserve()

    def close(self) -> None:
        """Stop and give the port back. May be called more than once."""
        self.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __del__(self) -> None:
        # Someone who never closed a stopped server should not be told so by a warning.
        if getattr(self, "_socket", None) is not None:
            self.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Misbehaviour

    def fail(self, fault: Fault, times: int | None = 1, path: str | None = None) -> None:
        """Let the next matching requests misbehave.

        One request meets one fault; faults that were armed earlier go first.

        Args:
            fault: How, see `maxwell.testing.faults`.
            times: How many requests, >= 1; None = all until `heal`.
            path: Which requests: those whose path begins so; "*" = all; None = those that make a model work.
        """
        if times is not None and times < 1:
            raise ValueError(f"times must be at least 1, or None for all until heal(), got {times}")
        self._state.arm(fault, times, path)

    def heal(self) -> None:
        """Forget every fault and be up."""
        self._state.disarm()
        self._state.condition = "up"

    def set_state(self, state: Condition) -> None:
        """Change what the server says of its model.

        Args:
            state: "loading" = 503 on every path, before keys and faults are looked at. "asleep" = llama.cpp's
                /props says so and everything else works; the next chat or embedding wakes it. "up".
        """
        if state not in ("up", "loading", "asleep"):
            raise ValueError(f"unknown state {state!r}; choose up, loading or asleep")
        self._state.condition = state

    def swap_model(self, space: str) -> None:
        """Make other vectors from now on, those of `space`, under the same name: what must not go unseen."""
        self._facts.space = space

    @property
    def state(self) -> Condition:
        """What the server says of its model, see `set_state`."""
        return self._state.condition

    # What happened

    @property
    def requests(self) -> list[Recorded]:
        """Every request so far, oldest first; beyond 10,000 the oldest are forgotten."""
        return self._state.requests()

    def requests_to(self, path: str) -> list[Recorded]:
        """The requests to exactly this path, oldest first."""
        return [r for r in self.requests if r.path == path]

    def wait_requests(self, count: int = 1, timeout: float = 5.0) -> list[Recorded]:
        """Wait until `count` requests have arrived in all, and return them. Raises `TimeoutError`."""
        return self._state.wait_requests(count, timeout)

    def wait_aborted(self, timeout: float = 5.0) -> Recorded:
        """Wait until a client has gone away before its response's end; return that request.

        Raises `TimeoutError` when none has within `timeout` seconds.
        """
        return self._state.wait_aborted(timeout)

    @property
    def connections(self) -> int:
        """TCP connections accepted so far."""
        return self._state.connections

    @property
    def open_connections(self) -> int:
        """TCP connections open now; those kept for later requests are among them."""
        return 0 if self._serving is None else self._serving.open_connections

    @property
    def in_flight(self) -> int:
        """Chat and embedding requests now with the server, those that wait for a slot included."""
        return self._state.in_flight

    @property
    def max_in_flight(self) -> int:
        """The most `in_flight` has been."""
        return self._state.max_in_flight

    @property
    def usage(self) -> Usage:
        """Tokens metered in truth: prompts that were given a slot, and every completion token sent.

        Reports to clients may be missing or cut short; these never are.
        """
        return self._state.usage()

    # Registry entries

    def llm_entry(self, name: str, **overrides: Any) -> dict[str, Any]:
        """A complete registry entry for this server's LLM.

        Args:
            name: The entry's name.
            **overrides: Fields to set; dictionaries are merged, so `capabilities={"vision": True}` keeps the
                other capabilities.
        """
        capabilities = {
            "max_tokens": max(1, self._facts.context // 4),
            "max_context": self._facts.context,
            "speed_tokens_per_sec": float(self._speed[0] or 100.0),
            "reasoning": self._reasons,
            "vision": self._facts.vision,
            "code_specialized": False,
        }
        entry = {
            "name": name,
            "api_base": self.url,
            "model": self._dialect.served,
            "backend": self._dialect.name,
            "capabilities": capabilities,
            "default_temperature": 0.7,
            "tags": [],
            "cost_per_1k_tokens": 0.0,
            "tier": "standard" if self._dialect.name == "openai" else "free",
        }
        return _merged(entry, overrides)

    def embedding_entry(self, name: str, **overrides: Any) -> dict[str, Any]:
        """A complete registry entry for this server's embedding model; `overrides` as in `llm_entry`."""
        entry = {
            "name": name,
            "api_base": self.url,
            "model": self._dialect.served,
            "dimension": self._facts.dimension,
            "max_context": self._facts.context,
            "specialized_for": [],
            "tags": [],
            "backend": self._dialect.name,
        }
        return _merged(entry, overrides)

    def reranker_entry(self, name: str, **overrides: Any) -> dict[str, Any]:
        """A complete registry entry for this server's reranker; `overrides` as in `llm_entry`."""
        entry = {
            "name": name,
            "api_base": self.url,
            "model": self._dialect.served,
            "max_context": self._facts.context,
            "tags": [],
            "backend": self._dialect.name,
        }
        return _merged(entry, overrides)


def _merged(entry: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(entry)
    for key, value in overrides.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged
