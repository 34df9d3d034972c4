"""How one entry stands, in the words that `list` and `check` share."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from maxwell.calls.status import Status
from maxwell.cli.render import Cell
from maxwell.registry.specs import Spec

_STYLES = {"up": "green", "asleep": "green", "loading": "yellow", "rate_limited": "yellow"}


def is_spent(status: Status) -> bool:
    """Whether today's budget is used up."""
    return any(left is not None and left <= 0 for left in (status.tokens_left, status.usd_left))


def state_cell(status: Status) -> Cell:
    """The state in words and colour."""
    if status.state in ("up", "asleep") and is_spent(status):
        return Cell("over budget", "yellow")
    return Cell(status.state.replace("_", " "), _STYLES.get(status.state, "red"))


def why(status: Status) -> str:
    """Why the entry is not up, or ""."""
    if status.problem:
        return status.problem
    if status.health is None:
        return "no answer to the health check"
    return "" if status.health.state == "up" else status.health.detail


def place(spec: Spec) -> str:
    """Host and port; never user name or password."""
    parts = urlsplit(spec.api_base)
    host = parts.hostname or spec.api_base
    host = f"[{host}]" if ":" in host else host
    try:
        port = parts.port
    except ValueError:
        port = None
    return host if port is None else f"{host}:{port}"


def short_model(model: str) -> str:
    """The model without directories and file ending: `Qwen3-Coder-30B-A3B-Instruct-Q5_K_M`."""
    return re.split(r"[/\\]", model)[-1].removesuffix(".gguf") or model
