"""What the tests of the command line share."""

from __future__ import annotations

import re
import sys
from typing import Any

from click.testing import Result

MAXWELL = [sys.executable, "-m", "maxwell"]


def unreachable(name: str = "nobody", **overrides: Any) -> dict[str, Any]:
    """An LLM entry on a port where nobody listens."""
    return {
        "name": name,
        "api_base": "http://127.0.0.1:9",
        "model": "m",
        "backend": "llamacpp",
        "capabilities": {"max_tokens": 100, "max_context": 1000, "speed_tokens_per_sec": 10},
        "default_temperature": 0.5,
        **overrides,
    }


def one_line(result: Result) -> str:
    """The one line on stderr."""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("maxwell: error: ")
    return lines[0].removeprefix("maxwell: error: ")


def unstyled(shown: str) -> str:
    """What a terminal showed, without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
