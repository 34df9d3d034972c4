"""What a streamed token costs before anyone sees it: SSE parsing and chunk decoding, in us an event.

Run: python benchmarks/bench_codecs.py
"""

from __future__ import annotations

import time
from collections.abc import Callable

from maxwell.backends.wire import DONE, decode_chunk
from maxwell.calls.sse import SSEParser

EVENTS = 2000
ROUNDS = 20

LLAMACPP = (
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":" qu"}}],"created":1795386098,'
    b'"id":"chatcmpl-IclhAxaccJGCsy1YGpokzXKy8UCBqZjJ","model":"models/tiny-chat.gguf",'
    b'"system_fingerprint":"b0-unknown","object":"chat.completion.chunk"}'
)
VLLM = (
    b'{"id":"chatcmpl-9703075bac713211","object":"chat.completion.chunk","created":1795385582,'
    b'"model":"tiny-vllm","choices":[{"index":0,"delta":{"content":" on"},"logprobs":null,'
    b'"finish_reason":null,"token_ids":null}]}'
)


def pieces(payload: bytes, line_end: bytes, per_piece: int) -> list[bytes]:
    """A stream of `EVENTS` events, cut into pieces of `per_piece` events; 0 = pieces of 1000 bytes."""
    event = b"data: " + payload + line_end * 2
    if per_piece:
        return [event * per_piece] * (EVENTS // per_piece)
    whole = event * EVENTS
    return [whole[i : i + 1000] for i in range(0, len(whole), 1000)]


def parse(stream: list[bytes]) -> int:
    parser = SSEParser()
    return sum(len(parser.feed(piece)) for piece in stream)


def parse_and_decode(stream: list[bytes]) -> int:
    parser = SSEParser()
    count = 0
    for piece in stream:
        for data in parser.feed(piece):
            if data != DONE:
                decode_chunk(data)
                count += 1
    return count


def best(work: Callable[[list[bytes]], int], stream: list[bytes]) -> float:
    """Microseconds an event, the best of `ROUNDS`."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        assert work(stream) == EVENTS
        times.append(time.perf_counter() - began)
    return min(times) / EVENTS * 1e6


def main() -> None:
    cases = [
        ("one event a piece, LF", b"\n", 1),
        ("ten events a piece, LF", b"\n", 10),
        ("one event a piece, CRLF", b"\r\n", 1),
        ("cut anywhere, LF", b"\n", 0),
    ]
    print(f"{'us per event':34}{'SSE':>8}{'SSE + decode':>14}")
    for server, payload in (("llama.cpp", LLAMACPP), ("vLLM", VLLM)):
        for label, line_end, per_piece in cases:
            stream = pieces(payload, line_end, per_piece)
            print(
                f"{server + ', ' + label:34}{best(parse, stream):8.2f}{best(parse_and_decode, stream):14.2f}"
            )


if __name__ == "__main__":
    main()
