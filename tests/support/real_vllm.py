"""A real vLLM on the CPU, in a process group of its own, that reaches nothing but this machine's loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import urllib3
from calling import BUDGET, free_port

from maxwell.types import HTTPRequest

WRITE_MODELS = Path(__file__).resolve().parents[1] / "vllm" / "write_models.py"
READY_SECONDS = 600.0  # it takes half a minute on an idle machine
STOP_SECONDS = 15.0
KEY = "a-key-for-loopback"
TAIL = 40  # lines of its log that are told when it does not start

QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "GLOO_SOCKET_IFNAME": "lo",
}
SMALL = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}


def environment(home: Path) -> dict[str, str]:
    """Nothing of ours but the PATH: no proxies, no keys, no caches in anybody's home."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(home),
        "LANG": "C.UTF-8",
        **QUIET,
        **SMALL,
    }


def write_models(python: Path, directory: Path) -> dict[str, Path]:
    """Write the tiny models "chat" and "embedding"."""
    command = [str(python), "-I", str(WRITE_MODELS), str(directory)]
    done = subprocess.run(command, env=environment(directory), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: directory / name for name in ("chat", "embedding")}


class RealVLLM:
    """Serves one model from construction until `stop`; `url` is known at once, `wait_ready` waits.

    Args:
        python: An interpreter that has vLLM.
        model: Directory of the model.
        *options: Further options of its command line.
        home: Directory for its caches and its log.
    """

    def __init__(self, python: Path, model: Path, *options: str, home: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = home / "vllm.log"
        command = [str(python), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host=127.0.0.1", f"--port={port}", "--enforce-eager", "--dtype=float32", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(home),
                cwd=home,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def is_ready(self) -> bool:
        """Whether it answers yet; an error when it has ended."""
        assert self._process.poll() is None, f"vLLM has ended:\n{self._last_words()}"
        with contextlib.suppress(urllib3.exceptions.HTTPError):
            return ask(self.url, "/health").status == 200
        return False

    def wait_ready(self) -> None:
        deadline, tick = time.monotonic() + READY_SECONDS, threading.Event()
        while not self.is_ready():
            assert time.monotonic() < deadline, f"vLLM does not become ready:\n{self._last_words()}"
            tick.wait(0.25)

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def running(self) -> int:
        """Requests that it generates for."""
        for line in ask(self.url, "/metrics").data.decode().splitlines():
            if line.startswith("vllm:num_requests_running{"):
                return int(float(line.rsplit(" ", 1)[1]))
        raise AssertionError("vLLM tells no num_requests_running")

    def wait_running(self, number: int, seconds: float) -> None:
        deadline, tick = time.monotonic() + seconds, threading.Event()
        while (running := self.running()) != number:
            assert time.monotonic() < deadline, f"{running} requests run, not {number}"
            tick.wait(0.02)

    def stop(self) -> None:
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its engine, too
        self._process.wait()

    def _last_words(self) -> str:
        return "\n".join(self.log().splitlines()[-TAIL:])


def ask(url: str, path: str, body: Any = None) -> urllib3.BaseHTTPResponse:
    """What the server itself answers, past Maxwell."""
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request("GET" if body is None else "POST", url + path, json=body, timeout=120)


def exchange(request: HTTPRequest) -> urllib3.BaseHTTPResponse:
    """What the server answers to one of Maxwell's own requests."""
    with urllib3.PoolManager(retries=False) as pool:
        return pool.request(
            request.method, request.url, body=request.body, headers=request.headers, timeout=120
        )


def told(url: str, path: str, body: Any = None) -> Any:
    """The decoded answer, which must be a 200."""
    answer = ask(url, path, body)
    assert answer.status == 200, answer.data
    return msgspec.json.decode(answer.data)


def chat_entry(server: RealVLLM, name: str = "v", **fields: Any) -> dict[str, Any]:
    capabilities = {"max_tokens": 8000, "max_context": 8192, "speed_tokens_per_sec": 100, "tools": True}
    capabilities |= fields.pop("capabilities", {})
    fixed = {"api_base": server.url, "model": "tiny-chat", "backend": "vllm", "default_temperature": 0.7}
    return {"name": name, **fixed, "capabilities": capabilities, "daily_budget_tokens": BUDGET, **fields}


def embed_entry(server: RealVLLM, **fields: Any) -> dict[str, Any]:
    fixed = {"name": "e", "api_base": server.url, "model": "tiny-embed", "backend": "vllm"}
    sizes = {"dimension": 64, "max_context": 128}
    return {**fixed, **sizes, "api_key_env": "TINY_API_KEY", "daily_budget_tokens": BUDGET, **fields}


def _end_with_parent() -> None:
    """Linux ends the server when this process ends, however that comes about."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
