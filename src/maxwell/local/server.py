"""A llama.cpp server in a process of its own, and the registry entry that describes a running one."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from maxwell.errors import MaxwellError
from maxwell.registry.edit import Section

_READY = b"READY "
_MEASURED_TOKENS = 64
_MOST_COMPLETION = 16384
_SPLIT_FILE = re.compile(r"-\d{5}-of-\d{5}$")  # llama.cpp's names for the parts of one model


class LocalServerError(MaxwellError):
    """A local server did not start, ended by itself, or did not answer as llama.cpp does."""


class LocalServer:
    """One model, served by llama.cpp; runs from construction until `stop`.

    The server ends when this process does, however that comes about. As a context manager it is ready inside
    the block and gone after it.

    Args:
        model: The GGUF file.
        host: Address to listen on.
        port: Port to listen on; 0 = any free one.
        context: Tokens of context, shared out evenly among the slots; 0 = for each slot as much as the model
            was trained for.
        slots: Requests served at once, >= 1.
        threads: Threads that compute, 0 = one for each physical core. Tiny models are far slower with two
            threads on busy cores than with one.
        alias: Name to serve the model under; its path when None.
        api_key: Key that callers must send; None = none needed.
        embedding: Serve embeddings instead of chat; with a reranker's file, rank.
        verbose: Let llama.cpp log to stderr.
    """

    def __init__(  # noqa: PLR0913 - a server is described by its options
        self,
        model: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        context: int = 0,
        slots: int = 1,
        threads: int = 1,
        alias: str | None = None,
        api_key: str | None = None,
        embedding: bool = False,
        verbose: bool = False,
    ) -> None:
        command = [sys.executable, "-P", "-m", "maxwell.local.serve_llamacpp", "--exit-with-parent"]
        command += ["--model", str(model.absolute()), f"--host={host}", f"--port={port}"]
        command += [f"--ctx-size={context}", f"--parallel={slots}", f"--threads={threads}"]
        command += [f"--alias={alias}"] if alias else []
        command += ["--embedding"] if embedding else []
        command += ["--verbose"] if verbose else []
        self._url: str | None = None
        self._said = b""
        # A file, not a pipe: nobody reads along, and a full pipe would halt the server.
        self._errors = None if verbose else tempfile.TemporaryFile()  # noqa: SIM115 - open until stop()
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.PIPE,  # never written to: its end tells the server that this process is gone
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(api_key),
            process_group=0,  # Ctrl-C in a terminal is for this process to act on
        )

    @property
    def url(self) -> str:
        """Root URL to call the server by. Known once the server is ready; before that LocalServerError."""
        if self._url is None:
            raise LocalServerError("the local server is not ready yet; wait with wait_ready()")
        return self._url

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    def wait_ready(self, timeout: float | None = 60.0) -> str:
        """Wait until the model is loaded and return the server's URL.

        Args:
            timeout: Seconds; None = no limit.

        Raises:
            LocalServerError: The server ended, with what it said; or it is not ready in time and goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        stdout = self._process.stdout
        assert stdout is not None
        while self._url is None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if stdout.closed:
                raise LocalServerError("the local server was stopped before it was ready")
            if not select.select([stdout], [], [], left)[0]:
                raise LocalServerError(f"the local server was not ready within {timeout} s")
            piece = os.read(stdout.fileno(), 4096)
            if not piece:
                raise LocalServerError(self._last_words())
            self._said += piece
            if self._said.startswith(_READY) and self._said.endswith(b"\n"):
                # A server that listens everywhere is called here.
                url = self._said.removeprefix(_READY).decode().strip()
                self._url = url.replace("//0.0.0.0:", "//127.0.0.1:")
        return self._url

    def wait(self) -> int:
        """Wait until the server ends by itself. Returns its exit code, negative for a signal's number."""
        return self._process.wait()

    def stop(self, grace: float = 5.0) -> None:
        """End the server: by SIGTERM, and after `grace` seconds by SIGKILL. Does nothing when it is gone."""
        self._process.terminate()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._clear()

    def kill(self) -> None:
        """End the server at once by SIGKILL. Does nothing when it is gone."""
        self._process.kill()
        self._clear()

    def _clear(self) -> None:
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._errors):
            if pipe is not None:
                pipe.close()

    def _last_words(self) -> str:
        """Why the server ended before it was ready."""
        status = self._process.wait()
        lines: list[str] = []
        if self._errors is not None:
            self._errors.seek(0)
            lines = self._errors.read().decode(errors="replace").split("\n")
        spoken = [line.strip() for line in lines if line.strip()]
        return (
            spoken[-1] if spoken else f"the local server ended before it was ready: {describe_status(status)}"
        )

    def __enter__(self) -> Self:
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def describe_status(status: int) -> str:
    """A process's exit code in words, e.g. "SIGKILL" or "exit code 1"."""
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"


def _environment(api_key: str | None) -> dict[str, str]:
    """Ours, with the key: other users of this machine can read a command line, but not this."""
    from maxwell.local.serve_llamacpp import KEY_VARIABLE

    environment = dict(os.environ)
    environment.pop(KEY_VARIABLE, None)
    if api_key is not None:
        environment[KEY_VARIABLE] = api_key
    return environment


def entry_name(model: Path) -> str:
    """A registry name for a model file: its name in lower case, without suffix, part number and spaces."""
    return _SPLIT_FILE.sub("", model.name.removesuffix(".gguf")).replace(" ", "-").lower()


def registry_entry(
    server_url: str,
    model: Path,
    *,
    name: str | None = None,
    api_key: str | None = None,
    api_key_env: str | None = None,
    section: Section = "llms",
) -> dict[str, Any]:
    """Describe a running llama.cpp server for the registry, by what it says and how fast it is.

    One short generation (or embedding) is run on it; a reranker is only asked what it is.

    Args:
        server_url: Root URL of the server.
        model: The file it serves; names the entry when `name` is None.
        name: Name of the entry.
        api_key: Key to ask the server with.
        api_key_env: Environment variable that will hold that key; written into the entry.
        section: What it serves: the list of the registry that the entry is for.

    Returns:
        An item for that list.

    Raises:
        LocalServerError: The server does not answer as llama.cpp does.
    """
    with _Questions(server_url, api_key) as server:
        try:
            served = server.ask("/v1/models")["data"][0]
            context: int = served["meta"]["n_ctx"]
            entry = {"name": name or entry_name(model), "api_base": server_url, "model": served["id"]}
            entry |= _FACTS[section](server, context)
        except (KeyError, IndexError, TypeError) as error:
            raise LocalServerError(f"{server_url} does not answer as llama.cpp does: {error!r}") from error
    if api_key_env is not None:
        entry["api_key_env"] = api_key_env
    return entry


def _chat_facts(server: _Questions, context: int) -> dict[str, Any]:
    props = server.ask("/props")
    templates = props.get("chat_template_caps") or {}
    temperature: float = props["default_generation_settings"]["params"]["temperature"]
    return {
        "backend": "llamacpp",
        "capabilities": {
            "max_tokens": max(1, min(context // 2, _MOST_COMPLETION)),
            "max_context": context,
            "speed_tokens_per_sec": _measured_speed(server),
            "reasoning": False,
            "vision": bool(props["modalities"]["vision"]),
            "tools": bool(templates.get("supports_tools")),
            "slots": props["total_slots"],
        },
        "default_temperature": round(min(max(temperature, 0.0), 1.0), 2),
        "tags": ["local"],
        "cost_per_1k_tokens": 0.0,
        "tier": "free",
    }


def _embedding_facts(server: _Questions, context: int) -> dict[str, Any]:
    vector = server.ask("/v1/embeddings", {"input": "How long is a vector?"})["data"][0]["embedding"]
    return {
        "backend": "llamacpp",
        "dimension": len(vector),
        "max_context": context,
        "tags": ["local"],
    }


def _reranker_facts(_server: _Questions, context: int) -> dict[str, Any]:
    return {"backend": "llamacpp", "max_context": context, "tags": ["local"]}


_FACTS: dict[Section, Callable[[_Questions, int], dict[str, Any]]] = {
    "llms": _chat_facts,
    "embeddings": _embedding_facts,
    "rerankers": _reranker_facts,
}


def _measured_speed(server: _Questions) -> float:
    """Tokens per second of one generation, as the server timed it; at least 0.1."""
    body = {
        "messages": [{"role": "user", "content": "Count."}],
        "max_tokens": _MEASURED_TOKENS,
        "temperature": 0.0,
        "ignore_eos": True,
    }
    speed: float = server.ask("/v1/chat/completions", body)["timings"]["predicted_per_second"]
    return max(round(speed, 1), 0.1)


class _Questions:
    """A few plain requests to one server."""

    def __init__(self, url: str, api_key: str | None) -> None:
        import urllib3

        self._url = url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Long enough for the 64 tokens of a large model without a GPU.
        timeout = urllib3.Timeout(connect=5.0, read=600.0)
        self._pool = urllib3.PoolManager(headers=headers, timeout=timeout, retries=False)

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded answer to a GET, or to a POST when there is a body."""
        from urllib3.exceptions import HTTPError

        try:
            method = "GET" if body is None else "POST"
            answer = self._pool.request(method, self._url + path, json=body)
            if answer.status == 200:
                return msgspec.json.decode(answer.data)
        except (HTTPError, msgspec.DecodeError) as error:
            raise LocalServerError(f"{self._url}{path} gave no usable answer: {error}") from error
        what = answer.data.decode(errors="replace")[:300]
        raise LocalServerError(f"{self._url}{path} answered {answer.status}: {what}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.clear()
