from __future__ import annotations

import os
import pty
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from command_line import MAXWELL

from maxwell.cli.app import cli

Run = Callable[..., Result]
_LOOKS = ("COLUMNS", "FORCE_COLOR", "LINES", "NO_COLOR", "PYTHONUNBUFFERED", "TTY_COMPATIBLE")


@pytest.fixture(autouse=True)
def usual_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the environment changes how output looks or when it is written."""
    for name in _LOOKS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(maxwell_home: object) -> Run:
    """Runs a command line in this process, as if piped, and checks that no traceback is shown."""

    def run(*args: str, **settings: Any) -> Result:
        result = CliRunner().invoke(cli, list(args), **settings)
        assert "Traceback" not in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result

    return run


@pytest.fixture
def on_terminal(maxwell_home: object) -> Callable[..., tuple[int, str]]:
    """Runs a command line as on a terminal that many columns wide: (exit code, all that was shown)."""

    def run(*args: str, columns: int = 80, **environment: str) -> tuple[int, str]:
        ours, theirs = pty.openpty()
        env = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm-256color", **environment}
        process = subprocess.Popen([*MAXWELL, *args], stdin=theirs, stdout=theirs, stderr=theirs, env=env)
        os.close(theirs)
        shown: list[bytes] = []
        reader = threading.Thread(target=_drain, args=(ours, shown))
        reader.start()
        try:
            code = process.wait(timeout=60)
        finally:
            process.kill()
            process.wait()
            reader.join(timeout=10)
            os.close(ours)
        return code, b"".join(shown).decode().replace("\r\n", "\n")

    return run


def _drain(terminal: int, shown: list[bytes]) -> None:
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the last program has closed the terminal
            return
        if not piece:
            return
        shown.append(piece)


@pytest.fixture
def start(maxwell_home: object) -> Callable[..., subprocess.Popen[bytes]]:
    """Starts a command line as a process of its own, its three streams piped."""

    def start(*args: str, **environment: str) -> subprocess.Popen[bytes]:
        pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        return subprocess.Popen([*MAXWELL, *args], env={**os.environ, **environment}, **pipes)

    return start
