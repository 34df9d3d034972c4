"""Maxwell's calls on real llama.cpp servers."""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import urllib3
from calling import BUDGET, MODES, SOON, Calls

from maxwell.errors import (
    BudgetExceeded,
    ConnectError,
    InputTooLong,
    NoEligibleLM,
    StatusError,
    StreamBroken,
)
from maxwell.local.server import LocalServer
from maxwell.testing.fixtures import WriteRegistry

pytestmark = pytest.mark.real

AT_ONCE = 2.0  # seconds; how soon a slot must be free again
Start = Callable[..., LocalServer]


def entry(server: LocalServer, name: str, speed: float = 100.0, **fields: Any) -> dict[str, Any]:
    capabilities = {"max_tokens": 4096, "max_context": 8192, "speed_tokens_per_sec": speed}
    fixed = {"api_base": server.url, "model": "tiny.gguf", "backend": "llamacpp", "default_temperature": 0.7}
    capabilities |= fields.pop("capabilities", {})
    return {"name": name, **fixed, "capabilities": capabilities, "daily_budget_tokens": BUDGET, **fields}


def embedding_entry(server: LocalServer, **fields: Any) -> dict[str, Any]:
    fixed = {"name": "e", "api_base": server.url, "model": "tiny-embedding.gguf", "backend": "llamacpp"}
    return fixed | {"dimension": 64, "max_context": 128, "daily_budget_tokens": BUDGET} | fields


def ask(url: str, path: str, body: Any = None) -> Any:
    with urllib3.PoolManager(retries=False) as pool:
        return json.loads(pool.request("GET" if body is None else "POST", url + path, json=body).data)


def busy(server: LocalServer) -> int:
    """Slots that generate."""
    return sum(slot["is_processing"] for slot in ask(server.url, "/slots"))


def wait_busy(server: LocalServer, number: int, seconds: float) -> None:
    """Wait until so many slots generate."""
    deadline, tick = time.monotonic() + seconds, threading.Event()
    while busy(server) != number:
        assert time.monotonic() < deadline, f"{busy(server)} slots generate, not {number}"
        tick.wait(0.02)


# --- replies


@pytest.mark.parametrize("mode", MODES)
def test_a_reply_is_what_the_server_says(llama_server: LocalServer, tmp_path: Path, mode: str) -> None:
    options: dict[str, Any] = {"temperature": 0.0, "max_tokens": 24, "seed": 7}
    body = {"messages": [{"role": "user", "content": "Hello"}], **options}
    reply = ask(llama_server.url, "/v1/chat/completions", body)
    calls = Calls(tmp_path, entry(llama_server, "one"))
    got = calls.ask(mode, **options)
    assert got.text == reply["choices"][0]["message"]["content"]
    assert calls.used("one").tokens == reply["usage"]["total_tokens"]
    if got.completion is None:
        return
    usage, timings = got.completion.usage, got.completion.timings
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        reply["usage"]["prompt_tokens"],
        reply["usage"]["completion_tokens"],
    )
    assert not usage.estimated
    assert got.completion.finish_reason == reply["choices"][0]["finish_reason"] == "length"
    assert timings.completion_tokens_per_sec is not None
    assert timings.completion_tokens_per_sec > 0
    assert timings.prompt_tokens_per_sec is not None
    assert timings.first_token_seconds is not None
    assert 0 < timings.first_token_seconds <= timings.total_seconds


def test_a_conversation_goes_on(llama_server: LocalServer, tmp_path: Path) -> None:
    with Calls(tmp_path, entry(llama_server, "one")).pool() as pool:
        lm = pool.get_lm()
        messages = [{"role": "user", "content": "Hello"}]
        prompts = []
        for _ in range(3):
            done = lm.chat(messages, max_tokens=8)
            prompts.append(done.usage.prompt_tokens)
            messages += [done.message, {"role": "user", "content": "And then?"}]
    assert prompts == sorted(set(prompts))


def test_a_grammar_is_obeyed(llama_server: LocalServer, tmp_path: Path) -> None:
    grammar = 'root ::= ("yes" | "no") " " [0-9] [0-9]? "."'
    with Calls(tmp_path, entry(llama_server, "one")).pool() as pool:
        lm = pool.get_lm()
        said = {lm.generate("Well?", grammar=grammar, seed=n, temperature=1.5) for n in range(40)}
    for text in said:
        word, number = text.split(" ")
        assert word in ("yes", "no")
        assert number[-1] == "."
        assert number[:-1].isdigit()
    assert len(said) > 5


def test_a_wrong_grammar_that_was_not_checked_is_told(llama_server: LocalServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(llama_server, "one"))
    with pytest.raises(StatusError, match="one: HTTP 400") as caught:
        calls.ask("generate", extra={"grammar": "root ::= undefined"})
    assert caught.value.kind == "bad_request"
    assert calls.used("one").tokens == 0


def test_sixteen_threads_and_sixteen_tasks(llama_server: LocalServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, entry(llama_server, "one"))
    options: Any = {"max_tokens": 8, "temperature": 0.0}
    texts: list[str] = []
    with calls.pool() as pool:
        lm = pool.get_lm()
        threads = [
            threading.Thread(target=lambda: texts.append(lm.generate("Hello", **options))) for _ in range(16)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    async def main() -> list[str]:
        async with calls.async_pool() as pool:
            lm = await pool.get_lm()
            return await asyncio.gather(*(lm.generate("Hello", **options) for _ in range(16)))

    texts += asyncio.run(main())
    assert len(texts) == 32
    wait_busy(llama_server, 0, AT_ONCE)
    assert calls.used("one").tokens % 32 == 0


# --- what the server really holds


def test_the_slots_context_is_the_limit(llama_server: LocalServer, tmp_path: Path) -> None:
    # Declared: 8192. The server shares 4096 among two slots.
    with Calls(tmp_path, entry(llama_server, "one")).pool() as pool:
        assert pool.health()[0].context == 2048
        assert pool.health()[0].slots == 2
        with pytest.raises(NoEligibleLM, match="context is 2,048"):
            pool.get_lm(prompt="the cat " * 5000)


def test_an_overflow_is_typed_and_goes_to_a_larger_context(
    llama_server: LocalServer, start_llama: Start, tmp_path: Path
) -> None:
    large = start_llama("fast", context=8192)
    prompt = "Hello " * 600  # about 3,000 tokens
    alone = Calls(tmp_path, entry(llama_server, "small", 500))
    with pytest.raises(StatusError) as caught:
        alone.ask("generate", prompt, max_tokens=4)
    assert caught.value.kind == "context_overflow"
    assert alone.used("small").tokens == 0
    both = Calls(tmp_path, entry(llama_server, "small", 500), entry(large, "large", 10))
    both.warm()
    got = both.ask("chat", prompt, max_tokens=4)
    assert got.completion is not None
    assert got.completion.attempts == ["small", "large"]
    assert got.completion.usage.prompt_tokens > 2048


# --- leaving early


@pytest.fixture
def slow(llama_slow_server: LocalServer, tmp_path: Path) -> Calls:
    return Calls(tmp_path, entry(llama_slow_server, "one"))


LONG: dict[str, Any] = {"max_tokens": 4000}


def assert_freed(calls: Calls, server: LocalServer, seconds: float = AT_ONCE) -> None:
    wait_busy(server, 0, seconds)
    used = calls.used("one")
    assert used.held_tokens == 0
    assert 0 < used.tokens < 4000


def test_closing_a_stream_frees_the_slot(slow: Calls, llama_slow_server: LocalServer) -> None:
    with slow.pool() as pool:
        stream = pool.get_lm().stream("Hello", **LONG)
        next(stream)
        assert busy(llama_slow_server) == 1
        stream.close()
        assert_freed(slow, llama_slow_server)


def test_dropping_a_stream_frees_the_slot(slow: Calls, llama_slow_server: LocalServer) -> None:
    with slow.pool() as pool:
        stream = pool.get_lm().stream("Hello", **LONG)
        next(stream)
        assert busy(llama_slow_server) == 1
        del stream
        gc.collect()
        assert_freed(slow, llama_slow_server)


def test_a_timeout_frees_the_slot(slow: Calls, llama_slow_server: LocalServer) -> None:
    with pytest.raises(StreamBroken) as caught:
        slow.ask("generate", timeout=1.0, **LONG)
    assert caught.value.partial.text
    assert_freed(slow, llama_slow_server)


@pytest.mark.parametrize("stage", ["reading the prompt", "between tokens"])
def test_cancelling_a_task_frees_the_slot(slow: Calls, llama_slow_server: LocalServer, stage: str) -> None:
    # The server looks up only when it has read a batch of the prompt. The whole reply would take minutes.
    prompt, seconds = ("Hello " * 100, SOON) if stage == "reading the prompt" else ("Hello", AT_ONCE)

    async def main() -> None:
        async with slow.async_pool() as pool:
            lm = await pool.get_lm()
            task = asyncio.create_task(lm.generate(prompt, **LONG))
            await asyncio.to_thread(wait_busy, llama_slow_server, 1, SOON)
            if stage == "between tokens":
                await asyncio.to_thread(wait_tokens, llama_slow_server, 5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(assert_freed, slow, llama_slow_server, seconds)

    asyncio.run(main())


def wait_tokens(server: LocalServer, number: int) -> None:
    """Wait until a slot has generated so many tokens."""
    deadline, tick = time.monotonic() + SOON, threading.Event()
    while True:
        slots = [slot for slot in ask(server.url, "/slots") if slot["is_processing"]]
        if any(slot["next_token"][0]["n_decoded"] >= number for slot in slots):
            return
        assert time.monotonic() < deadline
        tick.wait(0.02)


SCRIPT = "import sys; from maxwell.lm_pool import get_lm; get_lm().generate('Hello', max_tokens=4000)"


def test_ctrl_c_frees_the_slot(llama_slow_server: LocalServer, write_registry: WriteRegistry) -> None:
    write_registry(entry(llama_slow_server, "one"))
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True) as script:
        wait_busy(llama_slow_server, 1, 30)
        script.send_signal(signal.SIGINT)
        _, said = script.communicate(timeout=30)
    assert said.rstrip().endswith("KeyboardInterrupt")
    wait_busy(llama_slow_server, 0, AT_ONCE)


def test_a_killed_caller_frees_the_slot(
    llama_slow_server: LocalServer, write_registry: WriteRegistry
) -> None:
    write_registry(entry(llama_slow_server, "one"))
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE) as script:
        wait_busy(llama_slow_server, 1, 30)
        script.kill()
    wait_busy(llama_slow_server, 0, AT_ONCE)


# --- servers that die


def test_the_next_one_answers_when_the_chosen_one_is_killed(
    start_llama: Start, llama_server: LocalServer, tmp_path: Path
) -> None:
    doomed = start_llama("fast")
    calls = Calls(tmp_path, entry(doomed, "doomed", 500), entry(llama_server, "other"))
    calls.warm()
    with calls.pool() as pool:
        lm = pool.get_lm()
        assert lm.chat([{"role": "user", "content": "Hello"}], max_tokens=4).llm == "doomed"
        doomed.kill()
        done = lm.chat([{"role": "user", "content": "Hello"}], max_tokens=4)
        assert done.attempts == ["doomed", "other"]
        assert pool.get_lm().name == "other"
        with pytest.raises(NoEligibleLM, match="doomed: cannot connect"):
            pool.get_lm("doomed")


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_server_killed_in_the_middle_of_a_reply_is_told(
    start_llama: Start, llama_server: LocalServer, tmp_path: Path, how: str
) -> None:
    doomed = start_llama("slow")
    calls = Calls(tmp_path, entry(doomed, "doomed", 500), entry(llama_server, "other"))
    calls.warm()
    pieces: list[str] = []
    if how == "sync":
        with calls.pool() as pool:
            stream = pool.get_lm().stream("Hello", **LONG)
            pieces += [next(stream) for _ in range(3)]
            doomed.kill()
            with pytest.raises(StreamBroken) as caught:
                pieces.extend(stream)
    else:

        async def main() -> None:
            async with calls.async_pool() as pool:
                async for piece in (await pool.get_lm()).stream("Hello", **LONG):
                    pieces.append(piece)
                    if len(pieces) == 3:
                        await asyncio.to_thread(doomed.kill)

        with pytest.raises(StreamBroken) as caught:
            asyncio.run(main())
    partial = caught.value.partial
    assert partial.text == "".join(pieces)
    assert partial.usage.estimated
    assert calls.used("doomed").tokens == partial.usage.total_tokens > 0
    assert calls.used("other").tokens == 0


def test_a_server_that_has_gone_is_told(start_llama: Start, tmp_path: Path) -> None:
    doomed = start_llama("fast")
    calls = Calls(tmp_path, entry(doomed, "doomed"))
    with calls.pool() as pool:
        lm = pool.get_lm()
        doomed.kill()
        with pytest.raises(ConnectError, match="doomed: ") as caught:
            lm.generate("Hello")
        assert caught.value.kind in ("refused", "server_error")
    assert calls.used("doomed").held_tokens == 0


# --- money


def test_a_tool_call_stays_within_its_reservation(start_llama: Start, tmp_path: Path) -> None:
    server = start_llama("tools", context=4096)
    parameters = {"type": "object", "properties": {"n": {"type": "boolean"}}, "required": ["n"]}
    function = {"name": "look", "description": "Looks closely. " * 40, "parameters": parameters}
    tools = [{"type": "function", "function": function}]
    with Calls(tmp_path, entry(server, "one")).pool() as pool:
        lm = pool.get_lm()
        message: Any = {"role": "user", "content": "Look!"}
        used = lm.chat([message], tools=tools, tool_choice="required", max_tokens=64).usage
    assert used.prompt_tokens > 100
    # One token less than it uses at least: it must be refused beforehand, not found out afterwards.
    short = Calls(tmp_path, entry(server, "one", daily_budget_tokens=used.prompt_tokens + 63))
    with short.pool() as pool, pytest.raises(BudgetExceeded):
        pool.get_lm().chat([message], tools=tools, tool_choice="required", max_tokens=64)


def test_many_small_texts_stay_within_their_reservation(
    llama_embed_server: LocalServer, tmp_path: Path
) -> None:
    # The server counts the marks around each text.
    calls = Calls(tmp_path, embedding_entry(llama_embed_server, daily_budget_tokens=150))
    with calls.pool() as pool, pytest.raises(BudgetExceeded):
        pool.get_embedding("e").embed_many(["a"] * 100)
    assert calls.used("e").tokens <= 150


# --- embeddings


def test_embeddings_keep_their_order(llama_embed_server: LocalServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, embedding_entry(llama_embed_server))
    words = ["the", "cat", "long", "down", "day", "get"]
    texts = [" ".join(words[(i + k) % 6] for k in range(1 + i % 5)) for i in range(300)]
    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        many = embedding.embed_many(texts)
        assert [len(v) for v in many] == [64] * 300
        for i in (0, 1, 255, 256, 299):
            assert many[i] == pytest.approx(embedding.embed(texts[i]), abs=1e-4)

    async def main() -> list[list[float]]:
        async with calls.async_pool() as pool:
            return await (await pool.get_embedding("e")).embed_many(texts)

    again = asyncio.run(main())
    assert [x for v in again for x in v] == pytest.approx([x for v in many for x in v], abs=1e-4)


def test_embedding_usage_is_the_servers(llama_embed_server: LocalServer, tmp_path: Path) -> None:
    calls = Calls(tmp_path, embedding_entry(llama_embed_server))
    texts = ["the cat", "a long day", "down"]
    reported = ask(llama_embed_server.url, "/v1/embeddings", {"input": texts})["usage"]["total_tokens"]
    with calls.pool() as pool:
        pool.get_embedding("e").embed_many(texts)
    assert calls.used("e").tokens == reported


@pytest.mark.parametrize("limit", [16, 128])
def test_a_long_text_is_cut_to_exactly_as_many_tokens(
    llama_embed_server: LocalServer, tmp_path: Path, limit: int
) -> None:
    words = ["the", "cat", "sat", "down", "on", "a", "long", "day"]
    text = " ".join(words[i % len(words)] for i in range(400))
    plain = ask(llama_embed_server.url, "/tokenize", {"content": text})["tokens"]
    whole = ask(llama_embed_server.url, "/tokenize", {"content": text, "add_special": True})["tokens"]
    marks = len(whole) - len(plain)
    assert marks == 2
    cut = ask(llama_embed_server.url, "/detokenize", {"tokens": plain[: limit - marks]})["content"]
    retokenized = ask(llama_embed_server.url, "/tokenize", {"content": cut, "add_special": True})["tokens"]
    assert len(retokenized) == limit
    calls = Calls(tmp_path, embedding_entry(llama_embed_server, max_context=limit))
    with calls.pool() as pool:
        embedding = pool.get_embedding("e")
        vectors = embedding.embed_many([text, "down", cut], truncate=True)
        assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
        assert vectors[1] == pytest.approx(embedding.embed("down"), abs=1e-4)
        assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)


def test_a_text_that_is_too_long_is_named(llama_embed_server: LocalServer, tmp_path: Path) -> None:
    with Calls(tmp_path, embedding_entry(llama_embed_server)).pool() as pool:
        embedding = pool.get_embedding("e")
        with pytest.raises(InputTooLong, match=r"e: text 2 \(\d{3,} tokens\).*limit 128 tokens"):
            embedding.embed_many(["the", "cat", "the cat " * 200, "down"])
