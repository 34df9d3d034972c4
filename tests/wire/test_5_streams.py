"""How streams of each family begin, go on, end and break. Rows: docs/wire.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
from calling import CHAT, Calls, entry, make_registry

from maxwell.backends import Backend, get_backend
from maxwell.calls.attempt import LEAST_SILENCE_UNLEARNED
from maxwell.calls.effects import Pull, TransportError
from maxwell.calls.reading import read
from maxwell.calls.reply import Reply
from maxwell.errors import BackendError, DecodeError, StatusError, StreamBroken
from maxwell.registry.specs import LLMSpec
from maxwell.testing import faults
from maxwell.testing.fixtures import FakeServers
from maxwell.types import ChatCall, Completion

CAN = {"max_tokens": 64, "max_context": 4096, "speed_tokens_per_sec": 30}
OPENAI, LLAMACPP, VLLM = (get_backend(name) for name in ("openai", "llamacpp", "vllm"))
OLLAMA = get_backend("openai", family="ollama")
SGLANG = get_backend("vllm", family="sglang")
LLAMA_CPP_PYTHON = get_backend("llamacpp", family="llama-cpp-python")
EVERY = [OPENAI, LLAMACPP, VLLM, OLLAMA, SGLANG, LLAMA_CPP_PYTHON]
DONE = b"data: [DONE]\n\n"
CUT = TransportError("closed", "the connection was closed", fresh=False)


def llm() -> LLMSpec:
    declared = {"name": "one", "api_base": "http://box", "model": "m", "backend": "openai"}
    return make_registry(declared | {"capabilities": CAN, "default_temperature": 0.3}).llms[0]


class Answer:
    """A response whose body is there already."""

    def __init__(self, pieces: Sequence[bytes | Exception]) -> None:
        self.status = 200
        self.headers: Mapping[str, str] = {"content-type": "text/event-stream"}
        self.pieces = list(pieces)


def taken_in(*pieces: bytes | Exception, backend: Backend = OPENAI) -> Reply:
    """The reply that these pieces of a body make; an exception stands for a connection that breaks."""
    answer, reply = Answer(pieces), Reply(llm(), 7, 0.0)
    flow = read(answer, backend, reply, lambda: 1.0, emit=False, secrets=())
    try:
        effect = next(flow)
        while True:
            assert isinstance(effect, Pull)
            piece = answer.pieces.pop(0) if answer.pieces else b""
            effect = flow.throw(piece) if isinstance(piece, Exception) else flow.send(piece)
    except StopIteration:
        return reply


def done(*pieces: bytes | Exception, backend: Backend = OPENAI) -> Completion:
    reply = taken_in(*pieces, backend=backend)
    return reply.completion(2.0, ["one"], reply.usage, 0.0)


def frame(**fields: Any) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def says(text: str | None, **fields: Any) -> bytes:
    return frame(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}], **fields)


def ends(reason: str = "stop", **fields: Any) -> bytes:
    return frame(choices=[{"index": 0, "delta": {}, "finish_reason": reason}], **fields)


USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
COUNTED = frame(choices=[], usage=USAGE)


# --- form


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_lines_end_in_lf_or_as_llama_cpp_python_ends_them(end: bytes) -> None:
    stream = (says("Hello") + ends() + DONE).replace(b"\n", end)
    assert done(*(stream[i : i + 7] for i in range(0, len(stream), 7))).text == "Hello"


@pytest.mark.parametrize(
    "comment",
    [b":\n\n", b": keep-alive\n\n", b": ping - 2026-11-22 10:00:00+00:00\r\n\r\n"],
    ids=["llama.cpp", "vLLM", "llama-cpp-python"],
)
def test_keepalive_comments_are_no_part_of_the_reply(comment: bytes) -> None:
    assert done(comment, says("Hel"), comment, says("lo"), comment, ends(), DONE, comment).text == "Hello"


def test_a_payload_may_have_several_data_lines() -> None:
    assert done(b'data: {"choices":\ndata: [{"index":0,"delta":{"content":"a"},\n'
                b'data: "finish_reason":"stop"}]}\n\n', DONE).text == "a"  # fmt: skip


# --- usage


@pytest.mark.parametrize("backend", EVERY, ids=lambda b: b.family)
def test_every_server_is_asked_for_usage(backend: Backend) -> None:
    body = backend.body(llm(), ChatCall(messages=[{"role": "user", "content": "a"}], max_tokens=9))
    assert body["stream_options"] == {"include_usage": True}


def test_openai_s_usage_comes_last_without_choices_and_the_others_have_null() -> None:
    got = done(says("a", usage=None), ends(usage=None), COUNTED, DONE)
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.estimated) == (3, 2, False)


def test_llamacpp_s_usage_comes_last_with_its_timings() -> None:
    timings = {"cache_n": 1, "prompt_n": 2, "predicted_n": 2, "predicted_per_second": 50.0}
    got = done(says("a"), ends(), frame(choices=[], usage=USAGE, timings=timings), DONE, backend=LLAMACPP)
    assert got.usage.prompt_tokens == 3
    assert got.timings.completion_tokens_per_sec == 50.0


def test_vllm_s_other_chunks_have_no_usage_and_a_server_may_send_it_continually() -> None:
    running = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    assert done(says("a"), ends(), COUNTED, DONE, backend=VLLM).usage.completion_tokens == 2
    got = done(says("a", usage=running), ends(usage=USAGE), DONE, backend=SGLANG)
    assert got.usage.completion_tokens == 2  # the last one counts


def test_llama_cpp_python_sends_no_usage_so_it_is_estimated() -> None:
    got = done(says("a"), ends(), DONE, backend=LLAMA_CPP_PYTHON)
    assert (got.usage.estimated, got.usage.prompt_tokens, got.usage.completion_tokens) == (True, 7, 1)


# --- extras


def test_openai_s_obfuscation_is_passed_over() -> None:
    chunk = frame(choices=[{"index": 0, "delta": {"content": "a"}}], obfuscation="Zx8")
    assert done(chunk, ends(), DONE).text == "a"


def test_llamacpp_s_progress_of_the_prompt_is_no_content() -> None:
    progress = frame(
        choices=[{"index": 0, "delta": {"role": "assistant", "content": None}, "finish_reason": None}],
        prompt_progress={"total": 9, "cache": 0, "processed": 4, "time_ms": 3},
    )
    reply = taken_in(progress, ends(), DONE, backend=LLAMACPP)
    assert not reply.has_content


def test_vllm_s_metrics_are_passed_over() -> None:
    assert done(says("a", metrics={"x": 1}), ends(), DONE, backend=VLLM).text == "a"


@pytest.mark.parametrize("first", [None, ""], ids=["llama.cpp", "vLLM"])
def test_the_first_content_is_null_or_empty_and_not_the_first_token(first: str | None) -> None:
    assert not taken_in(says(first), ends(), DONE).has_content
    assert done(says(first), says("a"), ends(), DONE).text == "a"


@pytest.mark.parametrize("choices", [[], None], ids=["empty", "null"])
def test_choices_may_be_empty_or_null_at_any_time(choices: Any) -> None:
    assert done(frame(choices=choices), says("a"), frame(choices=choices), ends(), DONE).text == "a"


# --- errors before content


def test_an_error_before_the_first_byte_has_its_status(fake_server: FakeServers, tmp_path: Any) -> None:
    server = fake_server("llamacpp")
    server.fail(faults.Status(400, {"error": {"message": "no", "type": "invalid_request_error"}}))
    with pytest.raises(StatusError) as caught:
        Calls(tmp_path, entry(server, "one")).ask("generate")
    assert (caught.value.kind, caught.value.status) == ("bad_request", 400)


def test_vllm_s_error_of_generation_is_a_frame_after_a_200() -> None:
    error = {"message": "boom", "type": "InternalServerError", "param": None, "code": 500}
    with pytest.raises(StatusError, match="boom") as caught:
        taken_in(frame(error=error), DONE, backend=VLLM)
    assert (caught.value.kind, caught.value.status) == ("server_error", 500)


def test_vllm_s_refusal_may_be_the_first_frame_after_a_200() -> None:
    error = {"message": "Grammar error", "type": "BadRequestError", "param": None, "code": 400}
    with pytest.raises(StatusError) as caught:
        taken_in(frame(error=error), DONE, backend=VLLM)
    assert (caught.value.kind, caught.value.status) == ("bad_request", 400)


def test_litellm_s_status_is_that_of_its_first_chunk() -> None:
    error = {"message": "overloaded", "type": "rate_limit_error", "param": None, "code": "429"}
    assert OPENAI.refusal(429, {}, msgspec.json.encode({"error": error}), "one").kind == "rate_limited"


# --- errors amid a stream


@pytest.mark.parametrize(
    ("backend", "end"),
    [(OPENAI, [DONE]), (LLAMACPP, []), (VLLM, [DONE]), (SGLANG, [DONE])],
    ids=["OpenAI and LiteLLM", "llama.cpp, without [DONE]", "vLLM", "SGLang"],
)
def test_an_error_frame_amid_a_stream_is_an_error_with_or_without_done(
    backend: Backend, end: list[bytes]
) -> None:
    with pytest.raises(StatusError, match="boom"):
        taken_in(says("a"), frame(error={"message": "boom", "code": 500}), *end, backend=backend)


def test_sglang_s_error_may_be_the_event_itself() -> None:
    with pytest.raises(StatusError, match="boom") as caught:
        taken_in(frame(object="error", message="boom", type="BadRequestError", code=400), backend=SGLANG)
    assert caught.value.status == 400


def test_ollama_erases_errors_so_a_stream_without_finish_is_none() -> None:
    with pytest.raises(DecodeError, match="without a finish reason"):
        taken_in(says("a"), frame(choices=[{"index": 0, "delta": {}}]), backend=OLLAMA)


def test_llama_cpp_python_breaks_off() -> None:
    with pytest.raises(TransportError):
        taken_in(says("a"), CUT, backend=LLAMA_CPP_PYTHON)


def test_llama_cpp_python_ends_a_stream_for_another_s_request_with_a_bare_done() -> None:
    with pytest.raises(DecodeError, match="without a finish reason"):
        taken_in(says("a"), DONE, backend=LLAMA_CPP_PYTHON)


# --- what is success


def test_a_finish_reason_and_a_clean_end_are_success_without_done() -> None:
    assert done(says("a"), ends()).finish_reason == "stop"


def test_done_alone_proves_nothing() -> None:
    for backend in (VLLM, SGLANG, OPENAI):
        with pytest.raises(DecodeError, match="without a finish reason"):
            taken_in(says("a"), DONE, backend=backend)


def test_a_break_after_the_finish_reason_is_still_a_break() -> None:
    with pytest.raises(TransportError):
        taken_in(says("a"), ends(), CUT)


def test_an_error_is_seen_before_choices_are_read() -> None:
    with pytest.raises(BackendError, match="boom"):
        taken_in(frame(error={"message": "boom"}, choices=[{"index": 0, "finish_reason": "stop"}]), DONE)


def test_each_choice_has_a_place_and_only_the_first_is_ours() -> None:
    second = {"index": 1, "delta": {"content": "not ours"}, "finish_reason": "stop"}
    first = {"index": 0, "delta": {"content": "ours"}, "finish_reason": None}
    with pytest.raises(DecodeError):
        taken_in(frame(choices=[second, first]), DONE)
    assert done(frame(choices=[second, first]), ends(), DONE).text == "ours"


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_vllm_s_abort_and_error_are_no_ends(reason: str) -> None:
    with pytest.raises(BackendError):
        taken_in(says("a"), ends(reason), DONE, backend=VLLM)


# --- waiting and leaving


def test_llamacpp_sends_no_byte_while_a_request_waits_so_the_first_may_take_long() -> None:
    assert LEAST_SILENCE_UNLEARNED >= 300


def test_closing_the_stream_ends_generation_for_no_header_keeps_it() -> None:
    call = ChatCall(messages=[{"role": "user", "content": "a"}], max_tokens=9)
    for backend in EVERY:
        assert "x-conversation-id" not in backend.chat(llm(), call, "key").headers


def test_a_client_that_leaves_is_noticed_by_the_server(fake_server: FakeServers, tmp_path: Any) -> None:
    server = fake_server("llamacpp", reply="word " * 200, tokens_per_sec=50)
    with Calls(tmp_path, entry(server, "one")).pool() as pool, pool.get_lm().stream("Hello") as stream:
        next(iter(stream))
    assert server.wait_aborted().path == CHAT


def test_a_break_after_content_carries_what_had_come(fake_server: FakeServers, tmp_path: Any) -> None:
    server = fake_server("llamacpp", reply=["a", "b", "c", "d"])
    server.fail(faults.Cut(after=2), times=None)
    calls = Calls(tmp_path, entry(server, "one"))
    with pytest.raises(StreamBroken) as caught:
        calls.ask("stream")
    assert (caught.value.partial.text, calls.pieces) == ("ab", ["a", "b"])
    assert caught.value.partial.usage.estimated


def test_only_chat_completions_are_asked_for_whose_streams_all_end_alike() -> None:
    call = ChatCall(messages=[{"role": "user", "content": "a"}], max_tokens=9)
    for backend in EVERY:
        assert backend.chat(llm(), call, None).url.endswith("/chat/completions")
