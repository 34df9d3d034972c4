"""The stage of `maxwell demo`: real llama.cpp servers on this machine, and the registry that names them."""

from __future__ import annotations

import json
import socket
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from msgspec import Struct

from maxwell.lm_pool import LLMPool
from maxwell.local.server import LocalServer, registry_entry
from maxwell.registry.load import load
from maxwell.registry.locate import FILE_NAME


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
