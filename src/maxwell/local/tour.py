"""What `maxwell demo` shows: a tour of Maxwell over the servers of its stage.

`tour` runs the steps and yields what to show. The code that is shown is the code that runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct

from maxwell.calls.status import Status
from maxwell.decision import Decision
from maxwell.errors import MaxwellError
from maxwell.ledger import Used
from maxwell.local.showcase import Stage
from maxwell.types import Completion


class Heading(Struct, frozen=True):
    """A step begins; they are numbered from 1."""

    number: int
    text: str


class Code(Struct, frozen=True):
    """Python that runs next."""

    text: str


class Note(Struct, frozen=True):
    """Words about what was seen."""

    text: str


class Chosen(Struct, frozen=True):
    """An LLM was chosen.

    Attributes:
        decision: Who, and who else.
        scores: The scores are worth a look.
        skipped: Those that could not be chosen are worth a look.
    """

    decision: Decision
    scores: bool = False
    skipped: bool = False


class Replied(Struct, frozen=True):
    """A reply, whole or as far as it came."""

    completion: Completion


class Failed(Struct, frozen=True):
    """An error that was expected."""

    error: MaxwellError


class Standing(Struct, frozen=True):
    """How every entry stands."""

    statuses: Sequence[Status]


class Explained(Struct, frozen=True):
    """A decision with every term."""

    decision: Decision


class Booked(Struct, frozen=True):
    """What each entry used, and the file that says so."""

    used: dict[str, Used]
    file: Path


Shown = Heading | Code | Note | Chosen | Replied | Failed | Standing | Explained | Booked


def tour(stage: Stage) -> Iterator[Shown]:
    """Run the steps one after another; each thing is yielded when it has happened, code before it runs."""
    shell = _Shell(stage)
    for step in _STEPS:
        yield from step(shell)


class _Shell:
    """Runs lines of Python as a user's script would, with the tour's pool behind `get_lm`."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.steps = 0
        self.names: dict[str, Any] = {
            "get_lm": stage.pool.get_lm,
            "get_embedding": stage.pool.get_embedding,
            "pool": stage.pool,
            "kill": stage.kill,
        }

    def heading(self, text: str) -> Heading:
        """The next step's heading."""
        self.steps += 1
        return Heading(self.steps, text)

    def run(self, code: str) -> Iterator[Shown]:
        """Show the code and run it."""
        yield Code(code)
        # Compiled first: Python counts a Ctrl-C inside exec(str) as never handled, and ends by the signal.
        exec(compile(code, "<demo>", "exec"), self.names)  # noqa: S102 - this module's own lines

    def fail(self, code: str) -> Iterator[Shown]:
        """Show the code, run it and show the error that it ends with."""
        try:
            yield from self.run(code)
        except MaxwellError as error:
            yield Failed(error)
        else:
            raise RuntimeError(f"no error came of {code!r}")

    def choose(self, code: str, *, scores: bool = False, skipped: bool = False) -> Iterator[Shown]:
        """Run code that gets an LLM as `lm`."""
        yield from self.run(code)
        yield Chosen(self.names["lm"].decision, scores, skipped)

    def reply(self, code: str) -> Iterator[Shown]:
        """Run code that gets a reply as `done`."""
        yield from self.run(code)
        yield Replied(self.names["done"])


def _look(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("The registry: every model you can reach, in one file")
    yield from shell.run("standing = pool.health()")
    yield Standing(shell.names["standing"])
    yield Note(
        "Live speeds were measured just now. paid-fast has a price, free-medium is tagged for coding, "
        "free-slow reasons (so its entry says) and has the largest context. switched-off would be the "
        "fastest, but nothing listens at its address."
    )


def _default(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("The default: the fastest that is up")
    yield from shell.choose("lm = get_lm()", skipped=True)
    yield from shell.run('messages = [{"role": "user", "content": "Why is the sky blue?"}]')
    yield from shell.reply("done = lm.chat(messages, max_tokens=40)")


def _named(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("By name: that one and no other")
    yield from shell.choose('lm = get_lm("free-slow")')
    yield from shell.reply("done = lm.chat(messages, max_tokens=40)")


def _routed(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("By prompt: the best score, and what a second is worth to you")
    yield from shell.run('question = "Why is the sky blue?"')
    yield Note("A person waits, so a second is worth 10 mills (1 mill = $0.001).")
    yield from shell.choose("lm = get_lm(prompt=question, time_cost_weight=10)", scores=True)
    yield from shell.reply("done = lm.chat(messages, max_tokens=40)")
    yield Note("A batch runs overnight, so a second is worth 0.1 mills.")
    yield from shell.choose("lm = get_lm(prompt=question, time_cost_weight=0.1)", scores=True)
    yield from shell.reply("done = lm.chat(messages, max_tokens=40)")
    yield Note("A long document goes where it fits.")
    yield from shell.run('document = "some people look about all day but see one come out. " * 350')
    yield from shell.choose("lm = get_lm(prompt=document)", skipped=True)


def _able(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("By capability: what the registry declares")
    yield from shell.choose("lm = get_lm(reasoning=True, min_context=8000)")
    yield from shell.choose('lm = get_lm(tags=["coding"], min_speed=50)')
    yield Note("Nothing that can do it is up: every entry is named with its reason, and the ways out.")
    yield from shell.fail("lm = get_lm(vision=True)")


def _obeyed(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("A reply that must obey: a JSON Schema, choices, a grammar or a regex")
    yield from shell.run(
        'mood = {"enum": ["calm", "cross"]}\n'
        'schema = {"type": "object", "properties": {"mood": mood, "sure": {"type": "boolean"}},\n'
        '          "required": ["mood", "sure"], "additionalProperties": False}\n'
        "done = get_lm().chat(messages, json_schema=schema)"
    )
    yield _obeying(shell.names["done"])
    yield from shell.run('done = get_lm("free-slow").chat(messages, choices=["yes", "no"])')
    yield _obeying(shell.names["done"])
    yield Note(
        "Every reply is checked here, too, whatever its server says; one that does not obey is an error."
    )


def _obeying(done: Completion) -> Note:
    return Note(f"{done.llm} obeyed: {done.text}")


def _embedded(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("An embedding, by name or tag")
    yield from shell.run('embed = get_embedding("default")\nvector = embed.embed("Some text to embed")')
    vector, name = shell.names["vector"], shell.names["embed"].name
    first = ", ".join(f"{x:.3f}" for x in vector[:4])
    yield Note(f"{name} gave {len(vector)} numbers: {first}, ... (noise as well)")


def _explained(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("Explain: every term of every score, without calling anybody")
    yield from shell.run("decision = pool.explain(prompt=question, time_cost_weight=0.1)")
    yield Explained(shell.names["decision"])


def _killed(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("The chosen server is killed in the middle of its reply")
    yield from shell.choose("lm = get_lm(prompt=question, time_cost_weight=0.1)")
    yield Note("(a) Text has come: the stream ends in an error that holds it, never as if it were whole.")
    yield from shell.fail(
        "for count, piece in enumerate(lm.stream(question, max_tokens=1500)):\n"
        "    if count == 30:\n"
        "        kill(lm.name)  # the demo's own: SIGKILL"
    )
    yield Note(
        "(b) No text has come yet: the same lm still points at the dead server, and the next best takes over."
    )
    yield from shell.reply("done = lm.chat(messages, max_tokens=40)")
    yield Note("From now on every process of yours knows that it is down.")
    yield from shell.choose("lm = get_lm(prompt=question, time_cost_weight=0.1)", skipped=True)


def _booked(shell: _Shell) -> Iterator[Shown]:
    yield shell.heading("The books: what was used today, the broken reply included")
    yield from shell.run("used = pool.usage()")
    shell.stage.pool.close()  # writes everything down; the file may otherwise be a second behind
    yield Note("The killed server could not tell what it had used: that part is an estimate, never zero.")
    yield Booked(shell.names["used"], shell.stage.home / "llm_usage.json")


_STEPS = (
    _look,
    _default,
    _named,
    _routed,
    _able,
    _obeyed,
    _embedded,
    _explained,
    _killed,
    _booked,
)
