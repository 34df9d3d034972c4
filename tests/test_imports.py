"""Importing Maxwell is cheap: what a call needs is loaded by the call."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import pytest

HEAVY = [
    *("urllib3", "aiohttp", "httpx2", "httpx", "requests", "http.client", "sqlite3", "asyncio", "pytest"),
    *("jsonschema", "filelock", "rich", "click", "maxwell.cli", "maxwell.testing", "maxwell.local"),
    *("maxwell.calls.urllib3_transport", "maxwell.calls.aiohttp_transport", "maxwell.calls.async_driver"),
]


@cache
def modules_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("heavy", HEAVY)
def test_the_door_imports_nothing_heavy(heavy: str) -> None:
    assert heavy not in modules_after("from maxwell.lm_pool import get_lm")


def test_the_package_alone_imports_nothing_of_itself() -> None:
    loaded = {name for name in modules_after("import maxwell") if name.partition(".")[0] == "maxwell"}
    assert loaded == {"maxwell"}


def test_no_socket_is_opened_by_importing() -> None:
    refuse = (
        "import sys\nsys.addaudithook(lambda event, args: 1 / 0 if event == 'socket.connect' else None)\n"
    )
    modules_after(refuse + "import maxwell.lm_pool, maxwell.testing, maxwell.calls.urllib3_transport")


@pytest.mark.parametrize("heavy", ["rich", "aiohttp", "maxwell.testing", "maxwell.local"])
def test_the_command_line_s_help_imports_nothing_heavy(heavy: str) -> None:
    run = "from maxwell.cli import main\ntry: main()\nexcept SystemExit: pass"
    code = f"import sys\nsys.argv = ['maxwell', '--version']\n{run}"
    assert heavy not in modules_after(code)
