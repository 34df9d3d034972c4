from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

import maxwell

pytest_plugins = ["maxwell.testing.fixtures", "ledger_fixtures"]

# Only `make test-vllm` collects these: they need vLLM, which is 3.4 GB.
collect_ignore = ["vllm"]

SOURCE = Path(maxwell.__file__).resolve().parents[1]
PROXIES = {"http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy"}


@pytest.fixture(scope="session")
def isolated_homes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("homes")


@pytest.fixture(autouse=True)
def isolated_home(isolated_homes: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the machine's owner reaches a test: its home, directory, keys and proxies are its own."""
    here = Path(tempfile.mkdtemp(dir=isolated_homes))
    home, project = here / "home", here / "project"
    home.mkdir()
    project.mkdir()
    for name in list(os.environ):
        if name.startswith("MAXWELL_") or name.endswith("_API_KEY") or name.lower() in PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    # Child processes start in another directory, where a relative path would lead nowhere.
    monkeypatch.setenv("PYTHONPATH", str(SOURCE))
    monkeypatch.chdir(project)
    return home
