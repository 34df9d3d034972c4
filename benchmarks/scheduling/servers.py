"""Simulated servers: slots, a queue, fixed rates, and the llama.cpp and OpenAI wire as bytes.

How long a reply becomes stands in the prompt: `prompt_text` writes the job's number at its beginning, and the
server looks it up. The client cannot know it.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from maxwell.types import HTTPRequest
from scheduling.machines import Machine, Weather
from scheduling.network import Exchange
from scheduling.world import Timer, World

PROBE_SECONDS = 0.002
STORM_SECONDS = 0.005
LONGEST_SILENCE = 20.0  # a reply is cut into few pieces, but a real one would not be silent for long
JSON = {"content-type": "application/json", "server": "llama.cpp"}
STREAM = {"content-type": "text/event-stream", "server": "llama.cpp"}
PLAIN_JSON = {"content-type": "application/json"}
PLAIN_STREAM = {"content-type": "text/event-stream"}


class Job(NamedTuple):
    """One request: its number, and what it will turn out to be.

    Attributes:
        number: Its index in the workload.
        prompt: Prompt tokens.
        completion: Tokens of the whole reply, if `max_tokens` allows it.
        bytes: UTF-8 bytes of the prompt.
    """

    number: int
    prompt: int
    completion: int
    bytes: int


def prompt_text(job: Job) -> str:
    """The prompt of a job."""
    return f"{job.number} ".ljust(job.bytes, "x")


class _ChatBody(msgspec.Struct):
    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


_decode = msgspec.json.Decoder(_ChatBody).decode


class Run:
    """One request at a server.

    Attributes:
        job: What it is.
        completion: Tokens that will be generated.
        began: When a slot took it; None = it queues.
    """

    __slots__ = ("began", "completion", "exchange", "job", "timers")

    def __init__(self, job: Job, completion: int, exchange: Exchange) -> None:
        self.job = job
        self.completion = completion
        self.exchange = exchange
        self.began: float | None = None
        self.timers: list[Timer] = []


class Meter(NamedTuple):
    """What a server has done for one request.

    Attributes:
        job: The job's number.
        at: When it ended.
        prompt: Prompt tokens read.
        completion: Tokens generated, as far as it came.
        whole: Whether the reply came to its end.
    """

    job: int
    at: float
    prompt: int
    completion: int
    whole: bool


class Server:
    """One simulated server.

    Args:
        world: Its time.
        machine: What it can do; may be replaced later, for the requests that begin then.
        jobs: What the numbers in the prompts mean.
        weather: Its troubles.
        llamacpp: Whether it speaks as llama.cpp does (slots, timings, tokenizer); else plain OpenAI.
        service: Replaces the time a request takes, by job number; None = by the machine's rates.
        told_speed: What its timings say of its speed, by job number and true speed.

    Attributes:
        running: Requests in slots.
        meter: What it did, in order; who pays for tokens pays for these.
        most: Most requests it ever had at once, queue included.
    """

    def __init__(
        self,
        world: World,
        machine: Machine,
        jobs: Sequence[Job],
        *,
        weather: Weather | None = None,
        llamacpp: bool = True,
        service: Callable[[int], float] | None = None,
        told_speed: Callable[[int, float], float] | None = None,
    ) -> None:
        self.machine = machine
        self.weather = weather or Weather()
        self.running: set[Run] = set()
        self.meter: list[Meter] = []
        self.most = 0
        self._world = world
        self._jobs = jobs
        self._llamacpp = llamacpp
        self._service = service
        self._told_speed = told_speed
        self._queue: deque[Run] = deque()
        self._runs: dict[Exchange, Run] = {}

    @property
    def count(self) -> int:
        """Requests it has, queue included."""
        return len(self._runs)

    # --- Host

    def refuses(self) -> bool:
        """See `Host.refuses`."""
        return self.weather.is_in("refusal", self._world.now)

    def answer(self, request: HTTPRequest, exchange: Exchange) -> None:
        """See `Host.answer`."""
        path = request.url.partition("://")[2].partition("/")[2]
        if path == "v1/chat/completions":
            self._chat(request.body, exchange)
        else:
            status, body = self._tell(path, request.body)
            self._world.after(PROBE_SECONDS, lambda: self._whole(exchange, status, body))

    def abandoned(self, exchange: Exchange) -> None:
        """See `Host.abandoned`: the slot is free at once, as llama.cpp's is within a batch."""
        run = self._runs.pop(exchange, None)
        if run is not None:
            self._leave(run, whole=False)

    # --- what it says about itself

    def _tell(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == "health":
            return 200, b'{"status":"ok"}'
        if path == "v1/models":
            owner = "llamacpp" if self._llamacpp else "system"
            card = {"id": self.machine.name, "object": "model", "owned_by": owner}
            return 200, msgspec.json.encode({"object": "list", "data": [card]})
        if path == "props" and self._llamacpp:
            settings = {"n_ctx": self.machine.context}
            told = {"total_slots": self.machine.slots, "default_generation_settings": settings}
            return 200, msgspec.json.encode(told)
        if path == "slots" and self._llamacpp:
            busy = len(self.running)
            slots = [{"id": i, "is_processing": i < busy} for i in range(self.machine.slots)]
            return 200, msgspec.json.encode(slots)
        if path == "v1/chat/completions/input_tokens" and self._llamacpp:
            return 200, msgspec.json.encode({"input_tokens": self._job_of(_decode(body)).prompt})
        return 404, b'{"error":{"message":"File Not Found","type":"not_found_error","code":404}}'

    def _whole(self, exchange: Exchange, status: int, body: bytes, **headers: str) -> None:
        exchange.begin(status, {**(JSON if self._llamacpp else PLAIN_JSON), **headers})
        exchange.deliver(body)
        exchange.deliver(b"")

    # --- chat

    def _job_of(self, body: _ChatBody) -> Job:
        text: str = body.messages[-1]["content"]
        return self._jobs[int(text[: text.index(" ")])]

    def _chat(self, data: bytes, exchange: Exchange) -> None:
        if self.weather.is_in("storm", self._world.now):
            body = b'{"error":{"message":"Too many requests","type":"rate_limit_error","code":429}}'
            self._world.after(STORM_SECONDS, lambda: self._whole(exchange, 429, body))
            return
        body_of = _decode(data)
        job = self._job_of(body_of)
        most = body_of.max_tokens or body_of.max_completion_tokens or job.completion
        run = Run(job, min(job.completion, most), exchange)
        self._runs[exchange] = run
        self.most = max(self.most, len(self._runs))
        if len(self.running) < self.machine.slots:
            self._begin(run)
        else:
            self._queue.append(run)

    def _begin(self, run: Run) -> None:
        """Give it a slot and plan its pieces."""
        machine, job = self.machine, run.job
        slowness = self.weather.slowness(self._world.now)
        run.began = self._world.now
        self.running.add(run)
        if self._service is not None:
            reading = writing = self._service(job.number) / 2.0
        else:
            reading = slowness * (machine.overhead + job.prompt / machine.prefill)
            writing = slowness * run.completion / machine.speed
        pieces = max(2, math.ceil(writing / LONGEST_SILENCE))
        text = "w" * max(1, 4 * run.completion // pieces)
        for i in range(pieces):
            part = 1.0 / run.completion if i == 0 else i / pieces  # the first token, then equal parts
            self._plan(run, reading + part * writing, chunk(text))
        timings = self._timings(run, slowness) if self._llamacpp else None
        end = last(job.prompt, run.completion, run.completion < job.completion, timings)
        run.timers.append(self._world.after(reading + writing, lambda: self._end(run, end)))

    def _plan(self, run: Run, seconds: float, piece: bytes) -> None:
        run.timers.append(self._world.after(seconds, lambda: self._deliver(run, piece)))

    def _deliver(self, run: Run, piece: bytes) -> None:
        if not run.exchange.status:
            run.exchange.begin(200, STREAM if self._llamacpp else PLAIN_STREAM)
        run.exchange.deliver(piece)

    def _end(self, run: Run, piece: bytes) -> None:
        # The slot is free before the client hears of it: what it sends next finds it so.
        del self._runs[run.exchange]
        self._leave(run, whole=True)
        self._deliver(run, piece)
        run.exchange.deliver(b"")

    def _leave(self, run: Run, *, whole: bool) -> None:
        for timer in run.timers:
            timer.cancel()
        if run not in self.running:
            self._queue.remove(run)
            return
        self.running.discard(run)
        done = run.completion if whole else self._so_far(run)
        self.meter.append(Meter(run.job.number, self._world.now, run.job.prompt, done, whole))
        if self._queue and len(self.running) < self.machine.slots:
            self._begin(self._queue.popleft())

    def _so_far(self, run: Run) -> int:
        """Tokens generated until now."""
        assert run.began is not None
        machine = self.machine
        writing = self._world.now - run.began - machine.overhead - run.job.prompt / machine.prefill
        return max(0, min(run.completion, int(writing * machine.speed)))

    def _timings(self, run: Run, slowness: float) -> dict[str, float]:
        """llama.cpp's own measurement."""
        prefill, speed = self.machine.prefill / slowness, self.machine.speed / slowness
        if self._told_speed is not None:
            speed = self._told_speed(run.job.number, speed)
        return {
            "prompt_n": run.job.prompt,
            "prompt_ms": 1000.0 * run.job.prompt / prefill,
            "prompt_per_second": prefill,
            "predicted_n": run.completion,
            "predicted_ms": 1000.0 * run.completion / speed,
            "predicted_per_second": speed,
        }


def chunk(text: str) -> bytes:
    """A piece of the reply as an event."""
    return b'data: {"choices":[{"index":0,"delta":{"content":"%s"}}]}\n\n' % text.encode()


def last(prompt: int, completion: int, capped: bool, timings: Mapping[str, float] | None) -> bytes:
    """The end of a reply: its last token, finish reason, usage, timings and the closing event."""
    reason = "length" if capped else "stop"
    total = prompt + completion
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    event: dict[str, Any] = {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}
    event["usage"] = usage
    if timings is not None:
        event["timings"] = timings
    return chunk("w") + b"data: " + msgspec.json.encode(event) + b"\n\ndata: [DONE]\n\n"


def noisy(seed: int, spread: float, outliers: float, factor: float) -> Callable[[int, float], float]:
    """Timings that are off: log-normal noise, and a share of outliers that say `factor` of the truth."""

    def told(number: int, speed: float) -> float:
        draw = random.Random(seed * 1_000_003 + number)
        value = speed * math.exp(draw.gauss(0.0, spread))
        return value * factor if draw.random() < outliers else value

    return told
