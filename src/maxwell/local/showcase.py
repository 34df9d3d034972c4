"""What `maxwell demo` shows: real llama.cpp servers on this machine, and a tour of Maxwell over them.

`Stage` puts the servers and their registry up and takes them down; `tour` runs the steps and yields what to
show. The code that is shown is the code that runs.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from maxwell.calls.status import Status
from maxwell.decision import Decision
from maxwell.errors import MaxwellError
from maxwell.ledger import Used
from maxwell.lm_pool import LLMPool
from maxwell.local.server import LocalServer, registry_entry
from maxwell.registry.load import load
from maxwell.registry.locate import FILE_NAME
from maxwell.types import Completion


class Role(Struct, frozen=True, kw_only=True):
    """One server of the tour.

    Attributes:
        name: Its name in the registry.
        model: Which of the tiny models it serves (see `tiny_models.demo_models`).
        context: Its context in tokens; 0 = the model's own.
        fields: What its entry declares besides what the server tells.
        capabilities: The same, for its capabilities.
    """

    name: str
    model: str
    context: int = 0
    fields: dict[str, Any] = {}
    capabilities: dict[str, Any] = {}


LLMS = (
    Role(
        name="paid-fast",
        model="fast",
        context=1024,
        fields={"cost_per_1k_tokens": 0.002, "daily_budget_usd": 0.5, "tags": ["fast"], "tier": "premium"},
    ),
    Role(
        name="free-medium",
        model="medium",
        context=4096,
        fields={"tags": ["coding"]},
        capabilities={"code_specialized": True},
    ),
    Role(
        name="free-slow",
        model="slow",
        context=8192,
        fields={"tags": ["high-context"]},
        capabilities={"reasoning": True},
    ),
)
EMBEDDER = Role(name="embedder", model="embedding", fields={"tags": ["default"]})


class Stage:
    """The servers of the tour and the registry that names them, in a temporary home; a context manager.

    Args:
        tell: Called with a sentence at each part of the preparations.

    Attributes:
        home: Maxwell's home directory for the tour; the user's own is not touched.
        registry: The registry file in it.
        pool: The pool of that registry.

    Raises:
        MaxwellError: On entry: the extra `local` is not installed, or a server does not start.
    """

    home: Path
    registry: Path
    pool: LLMPool

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._servers: dict[str, LocalServer] = {}
        self._models: dict[str, Path] = {}
        self._killed: set[str] = set()
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            self._undo = undo
            self._put_up()
            self._undo = undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()

    def _put_up(self) -> None:
        from maxwell.calls.urllib3_transport import Urllib3Transport
        from maxwell.local.tiny_models import demo_models

        self.home = Path(self._undo.enter_context(tempfile.TemporaryDirectory(prefix="maxwell-demo-")))
        self._tell("Writing tiny models with random weights.")
        self._models = demo_models(self.home / "models")
        self._tell("Starting a llama.cpp server for each: three for chat, one for embeddings.")
        for role in (*LLMS, EMBEDDER):
            self._start(role)
        for server in self._servers.values():
            server.wait_ready()
        self._tell("Measuring how fast they are, for the registry.")
        self.registry = self.home / FILE_NAME
        self.registry.write_text(json.dumps(self._registry(), indent=2), encoding="utf-8")
        # A proxy that the environment names could not reach servers on this machine.
        self.pool = LLMPool(load(self.registry), home=self.home, transport=Urllib3Transport({}))
        self._undo.callback(self.pool.close)

    def _start(self, role: Role, port: int = 0) -> LocalServer:
        server = LocalServer(
            self._models[role.model],
            port=port,
            context=role.context,
            alias=f"tiny-{role.model}",
            embedding=role is EMBEDDER,
        )
        self._undo.callback(server.kill)
        self._servers[role.name] = server
        return server

    def _registry(self) -> dict[str, Any]:
        llms = [self._entry(role) for role in LLMS]
        return {
            "llms": [*llms, self._dead_entry(llms[0])],
            "embeddings": [self._entry(EMBEDDER)],
            "_schema_version": "1.0",
        }

    def _entry(self, role: Role) -> dict[str, Any]:
        """What the server tells, the better of two measurements, and what the role declares."""
        url = self._servers[role.name].url
        file = self._models[role.model]
        if role is EMBEDDER:
            return registry_entry(url, file, name=role.name, section="embeddings") | role.fields
        measured = [registry_entry(url, file, name=role.name) for _ in range(2)]
        entry = max(measured, key=lambda e: float(e["capabilities"]["speed_tokens_per_sec"]))
        entry["capabilities"] |= role.capabilities
        return entry | role.fields

    def _dead_entry(self, fastest: dict[str, Any]) -> dict[str, Any]:
        """An LLM that would be the first choice, on a port that nobody listens on."""
        held = self._undo.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))  # bound and not listening: refused, and nobody else can take it
        speed = 3 * fastest["capabilities"]["speed_tokens_per_sec"]
        return {
            "name": "switched-off",
            "api_base": f"http://127.0.0.1:{held.getsockname()[1]}",
            "model": "tiny-vision",
            "backend": "llamacpp",
            "capabilities": {
                "max_tokens": 2048,
                "max_context": 4096,
                "speed_tokens_per_sec": round(speed),
                "vision": True,
            },
            "default_temperature": 0.7,
            "tags": ["fast"],
            "tier": "free",
        }

    def kill(self, name: str) -> None:
        """End a server as a power cut would, by SIGKILL."""
        self._servers[name].kill()
        self._killed.add(name)

    def revive(self) -> None:
        """Start the servers that were killed anew, on their old ports."""
        for role in LLMS:
            if role.name in self._killed:
                port = int(self._servers[role.name].url.rpartition(":")[2])
                self._start(role, port).wait_ready()
        self._killed.clear()
        self.pool.health(refresh=True)


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
    for step in (_look, _default, _named, _routed, _able, _embedded, _explained, _killed, _booked):
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
