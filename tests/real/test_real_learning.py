"""What calls to a real llama.cpp server teach of it, and what measuring on purpose finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from calling import make_registry

from maxwell.lm_pool import LLMPool
from maxwell.local.server import LocalServer

pytestmark = pytest.mark.real

LONG = "The quick brown fox jumps over the lazy dog. " * 20


def pool_of(server: LocalServer, home: Path, **capabilities: Any) -> LLMPool:
    known = {"max_tokens": 1024, "max_context": 2048, "speed_tokens_per_sec": 1.0, **capabilities}
    fixed = {"api_base": server.url, "model": "tiny.gguf", "backend": "llamacpp", "default_temperature": 0.7}
    return LLMPool(make_registry({"name": "box", **fixed, "capabilities": known}), home=home, environ={})


def test_the_servers_own_figures_are_learned(llama_server: LocalServer, tmp_path: Path) -> None:
    with pool_of(llama_server, tmp_path) as pool:
        lm = pool.get_lm("box")
        ask: dict[str, Any] = {"max_tokens": 64, "extra": {"ignore_eos": True}}
        done = [lm.chat([{"role": "user", "content": f"{n} {LONG}"}], **ask) for n in range(6)]
        [status] = pool.health()
    speeds = [d.timings.completion_tokens_per_sec for d in done]
    reads = [d.timings.prompt_tokens_per_sec for d in done]
    found = status.measured
    assert found is not None
    assert None not in speeds
    assert None not in reads
    assert (found.seen.speed, found.seen.prefill, found.seen.overhead) == (6, 6, 6)
    # Machines that do other things, too, are not always as fast; what is believed lies between.
    assert 0.7 * min(map(float, filter(None, speeds))) <= found.speed <= 1.4 * max(filter(None, speeds))
    assert 0.7 * min(map(float, filter(None, reads))) <= found.prefill <= 1.4 * max(filter(None, reads))
    assert found.overhead < 1.0
    assert any("declares 1 tokens a second" in remark for remark in status.remarks)


def test_it_is_measured_on_purpose(llama_server: LocalServer, tmp_path: Path) -> None:
    with pool_of(llama_server, tmp_path) as pool:
        found = pool.bench("box", at_once=(2,))
    assert found.speed is not None
    assert found.prefill is not None
    assert found.overhead is not None
    assert found.speed.count == found.prefill.count == found.overhead.count == 3
    assert found.at_once[2].count == 2
    assert 0 < found.speed.low <= found.speed.middle <= found.speed.high
    assert found.calls == 12
