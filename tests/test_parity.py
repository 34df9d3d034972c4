"""The sync and the async face return the same, one of them awaited; `test_exports` compares what goes in."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import maxwell
from maxwell import lm_pool, maps
from maxwell.calls import effects, transport
from maxwell.calls.aiohttp_transport import AiohttpTransport
from maxwell.calls.urllib3_transport import Urllib3Transport

TWINS: list[tuple[type, type]] = [
    (maxwell.LLMPool, maxwell.AsyncLLMPool),
    (maxwell.LLM, maxwell.AsyncLLM),
    (maxwell.Embedding, maxwell.AsyncEmbedding),
    (maxwell.Reranker, maxwell.AsyncReranker),
    (maxwell.TextStream, maxwell.AsyncTextStream),
    (maps.MapResults, maps.AsyncMapResults),
    (transport.SyncTransport, transport.AsyncTransport),
    (transport.SyncExchange, transport.AsyncExchange),
]
# What waits for a server is awaited; what must work while a task is cancelled, or only makes a value, is not.
NOT_AWAITED = {
    "AsyncLLM": {"stream"},
    "AsyncLLMPool": {"from_registry", "is_outdated", "map", "resets_at", "today", "usage", "ways_out"},
    "AsyncExchange": {"close"},
}
RENAMED = {"aclose": "close", "__aiter__": "__iter__", "__anext__": "__next__"}
RENAMED |= {"__aenter__": "__enter__", "__aexit__": "__exit__"}
CONTEXT = set(RENAMED) | set(RENAMED.values())


def methods(cls: type) -> dict[str, Any]:
    """A class's public methods, and those that make it iterable and a context."""
    return {
        RENAMED.get(name, name): member
        for name, member in inspect.getmembers(cls, inspect.isroutine)
        if (not name.startswith("_") or name in CONTEXT)
        and inspect.unwrap(member).__module__.startswith("maxwell")
    }


def result(function: Any) -> str:
    """What a function returns, as it is written, without the words that tell the twins apart."""
    text = str(inspect.signature(function).return_annotation)
    return re.sub(r"\b(Async|Sync)", "", text)


@pytest.mark.parametrize(("sync", "twin"), TWINS, ids=lambda cls: cls.__name__)
def test_twins_have_the_same_methods_that_return_the_same(sync: type, twin: type) -> None:
    ours, theirs = methods(sync), methods(twin)
    assert ours.keys() == theirs.keys()
    assert {n: result(m) for n, m in ours.items()} == {n: result(m) for n, m in theirs.items()}


@pytest.mark.parametrize(("sync", "twin"), TWINS, ids=lambda cls: cls.__name__)
def test_what_waits_is_awaited(sync: type, twin: type) -> None:
    assert not [name for name, m in methods(sync).items() if inspect.iscoroutinefunction(m)]
    plain = {name for name, m in methods(twin).items() if not inspect.iscoroutinefunction(m)}
    assert plain - {"__iter__"} == NOT_AWAITED.get(twin.__name__, set())


@pytest.mark.parametrize(
    ("protocol", "kept_by"),
    [(transport.SyncTransport, Urllib3Transport), (transport.AsyncTransport, AiohttpTransport)],
)
def test_the_transports_keep_their_protocol(protocol: type, kept_by: type) -> None:
    for name, promised in methods(protocol).items():
        kept = getattr(kept_by, name)
        assert [*inspect.signature(kept).parameters] == [*inspect.signature(promised).parameters]
        assert inspect.iscoroutinefunction(kept) == inspect.iscoroutinefunction(promised)


@pytest.mark.parametrize(
    "name", [name for name in lm_pool.__all__ if name.startswith("get_") and "async" not in name]
)
def test_functions_of_the_door_return_twins(name: str) -> None:
    twin = getattr(lm_pool, name.replace("get_", "get_async_"))
    assert result(getattr(lm_pool, name)) == result(twin)
    assert inspect.getdoc(twin)


def test_every_effect_is_known_to_both_drivers() -> None:
    """An effect that one driver lacked would work in scripts and fail in services, or the other way round."""
    from maxwell.calls import async_driver, sync_driver

    known = {"Send", "Pull", "Close", "Emit", "Sleep", "Gather", "Aside", "Start", "First", "Stop", "Perform"}
    yielded = {
        name
        for name, cls in vars(effects).items()
        if (inspect.isclass(cls) and "Result:" in (cls.__doc__ or "")) or name == "Gather"
    }
    assert yielded == known
    for driver in (sync_driver, async_driver):
        assert known <= vars(driver).keys()
