"""Every failure is an error of its kind, which decides what happens next. One test is one topic."""

from __future__ import annotations

import pytest
from families.asking import CHAT, IMAGE, WEATHER, chat, lm_of, refused
from families.meeting import NAME, Meeting

from maxwell.errors import BackendError, NoEligibleLM, StatusError, StreamBroken


def test_an_overflow(meeting: Meeting) -> None:
    """A prompt that is longer than Maxwell thinks: one token a character."""
    prompt = "zqx " * meeting.expected.get("words", 2000)
    if meeting.expected.get("how") == "answers":
        assert chat(meeting, [{"role": "user", "content": prompt}], max_tokens=4).text
        return
    refused(meeting, [{"role": "user", "content": prompt}], max_tokens=4)


def test_a_wrong_field(meeting: Meeting) -> None:
    refused(meeting, extra=meeting.expected.get("extra", {"temperature": "hot"}))


def test_an_image_for_a_text_model(meeting: Meeting) -> None:
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": IMAGE}}]
    refused(meeting, [{"role": "user", "content": parts}], max_tokens=5)


def test_tools_that_it_does_not_take(meeting: Meeting) -> None:
    refused(meeting, tools=[WEATHER], max_tokens=50)


def test_an_error_in_the_stream(meeting: Meeting) -> None:
    """A 200, and the error in the first event."""
    refused(meeting, extra=meeting.expected.get("extra", {}))


def test_no_reply_at_all(meeting: Meeting) -> None:
    refused(meeting, extra=meeting.expected.get("extra", {}))


def test_a_reply_that_breaks_off(meeting: Meeting) -> None:
    pieces: list[str] = []
    with lm_of(meeting) as lm, pytest.raises(StreamBroken) as caught:
        pieces.extend(lm.stream("Hello", max_tokens=50))
    assert caught.value.kind == "broken_stream"
    assert caught.value.partial.text == "".join(pieces) == meeting.expected["text"]
    assert meeting.count(CHAT) in (1, None)
    assert caught.value.partial.usage.estimated
    assert caught.value.partial.finish_reason == "error"


def test_an_error_of_the_servers(meeting: Meeting) -> None:
    with pytest.raises(BackendError) as caught:
        chat(meeting, extra=meeting.expected.get("extra", {}))
    assert (caught.value.kind, caught.value.status) == ("server_error", 500)


def test_embeddings_of_a_chat_server(meeting: Meeting) -> None:
    with meeting.pool("embedding") as pool, pytest.raises(StatusError) as caught:
        pool.get_embedding(NAME).embed("x")
    assert caught.value.kind == meeting.expected["kind"]


def test_chat_with_an_embedding_server(meeting: Meeting) -> None:
    with pytest.raises((StatusError, NoEligibleLM)) as caught:
        chat(meeting, max_tokens=8)
    kind = caught.value.kind if isinstance(caught.value, StatusError) else "not chosen"
    assert kind == meeting.expected["kind"]
