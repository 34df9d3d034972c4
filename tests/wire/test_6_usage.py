"""What each family says was used, and what it does not say. Rows: docs/wire.md."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from calling import Calls, entry, make_registry

from maxwell.backends.wire import decode_chunk, usage_of
from maxwell.calls.reply import Reply
from maxwell.errors import StreamBroken
from maxwell.requirements import chat_call
from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import Usage

TOTALS = {"prompt_tokens": 30, "completion_tokens": 12, "total_tokens": 42}


def used(usage: dict[str, Any] | None, **fields: Any) -> Usage | None:
    chunk = decode_chunk(msgspec.json.encode({"choices": [], "usage": usage, **fields}))
    return usage_of(chunk.usage, chunk.timings)


def test_three_totals_are_read() -> None:
    assert used(TOTALS) == Usage(30, 12)


def test_llamacpp_always_says_how_much_was_cached() -> None:
    assert used(TOTALS | {"prompt_tokens_details": {"cached_tokens": 29}}) == Usage(30, 12, cached_tokens=29)


def test_vllm_says_null_of_its_cache_unless_it_is_told_to_and_null_is_not_zero() -> None:
    silent = used(TOTALS | {"prompt_tokens_details": None})
    assert silent is not None
    assert silent.cached_tokens is None
    told = used(TOTALS | {"prompt_tokens_details": {
        "cached_tokens": 0, "created_cache_tokens": 16, "multimodal_tokens": None}})  # fmt: skip
    assert told == Usage(30, 12, cached_tokens=0)


def test_sglang_says_nothing_of_its_cache_without_a_report() -> None:
    assert used(TOTALS | {"prompt_tokens_details": None}) == Usage(30, 12)


def test_openai_counts_what_it_wrote_to_its_cache_among_the_prompt() -> None:
    details = {"cached_tokens": 10, "cache_write_tokens": 5, "audio_tokens": 0}
    assert used(TOTALS | {"prompt_tokens_details": details}) == Usage(30, 12, cached_tokens=10)


def test_openai_counts_reasoning_within_the_completion() -> None:
    details = {"reasoning_tokens": 8, "accepted_prediction_tokens": 0}
    assert used(TOTALS | {"completion_tokens_details": details}) == Usage(30, 12, reasoning_tokens=8)


@pytest.mark.parametrize("details", [None, {}, {"reasoning_tokens": None}])
def test_vllm_without_a_parser_and_llamacpp_say_nothing_of_reasoning(details: Any) -> None:
    found = used(TOTALS | {"completion_tokens_details": details})
    assert found is not None
    assert found.reasoning_tokens is None


def test_ollama_says_three_totals_and_no_more() -> None:
    found = used(TOTALS)
    assert found is not None
    assert (found.cached_tokens, found.reasoning_tokens) == (None, None)


def test_llamacpp_reports_the_first_of_several_choices_only_so_several_are_never_asked_for() -> None:
    with pytest.raises(ValueError, match="one reply a call is accounted for"):
        chat_call([{"role": "user", "content": "a"}], {"extra": {"n": 2}})


def test_llamacpp_s_timings_tell_usage_where_usage_is_missing() -> None:
    timings = {"cache_n": 20, "prompt_n": 10, "prompt_ms": 5.0, "predicted_n": 12, "predicted_ms": 60.0}
    assert used(None, timings=timings) == Usage(30, 12, cached_tokens=20)


def test_llamacpp_s_timings_tell_its_speed() -> None:
    spec = make_registry({
        "name": "one", "api_base": "http://box", "model": "m", "default_temperature": 0, "backend": "openai",
        "capabilities": {"max_tokens": 9, "max_context": 99, "speed_tokens_per_sec": 9},
    }).llms[0]  # fmt: skip
    reply = Reply(spec, 1, 0.0)
    timings = {"predicted_per_second": 50.0, "prompt_per_second": 900.0}
    reply.add(decode_chunk(msgspec.json.encode({"timings": timings})), lambda: 1.0)
    told = reply.completion(2.0, ["one"], Usage(), 0.0).timings
    assert (told.completion_tokens_per_sec, told.prompt_tokens_per_sec) == (50.0, 900.0)


def test_an_interrupted_stream_says_no_usage_so_it_is_estimated_and_booked(
    fake_server: FakeServers, tmp_path: Any
) -> None:
    server = fake_server("vllm", reply="word " * 20)
    server.fail(faults.Cut(after=10), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(StreamBroken) as caught:
        calls.ask("stream")
    assert caught.value.partial.usage.estimated
    assert calls.used("one").tokens >= 10
