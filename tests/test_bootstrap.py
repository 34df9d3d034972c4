"""`scripts/bootstrap.py` with stand-ins for uv and for the environment's Python: nothing is fetched."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "bootstrap.py"

# "uv venv ... PATH" makes an environment whose Python notes its arguments and fails when told to.
UV = """#!/bin/sh
for venv in "$@"; do :; done
mkdir -p "$venv/bin"
touch "$venv/pyvenv.cfg"
cat > "$venv/bin/python" <<'END'
#!/bin/sh
echo "$@" >> "$CALLS"
case "$*" in *"$FAIL_ON"*) echo "no such luck"; exit 7;; esac
END
chmod +x "$venv/bin/python"
echo made >> "$CALLS"
"""


class Checkout:
    """A checkout with nothing in it but what bootstrapping needs, on a machine without ensurepip."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "checkout"
        self.tools = folder / "tools"
        self.calls = folder / "calls"
        self.write("pyproject.toml", "[project]\n")
        self.write("src/maxwell/__init__.py", '__version__ = "0"\n')
        self.write("requirements/dev.txt", "one==1 \\\n    --hash=sha256:0\ntwo==2 \\\n    --hash=sha256:0\n")
        self.write("scripts/bootstrap.py", SCRIPT.read_text(encoding="utf-8"))
        self.hidden = folder / "hidden"
        self.hidden.mkdir()
        hide = "import sys\nsys.modules['ensurepip'] = None\n"
        (self.hidden / "sitecustomize.py").write_text(hide, encoding="utf-8")
        self.tools.mkdir()
        for name in ("sh", "mkdir", "touch", "cat", "chmod"):
            (self.tools / name).symlink_to(str(shutil.which(name)))

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def tool(self, name: str, script: str) -> None:
        path = self.tools / name
        path.write_text(script, encoding="utf-8")
        path.chmod(0o755)

    def run(self, fail_on: str = "nothing at all") -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": str(self.tools),
            "PYTHONPATH": str(self.hidden),
            "CALLS": str(self.calls),
            "FAIL_ON": fail_on,
        }
        self.calls.unlink(missing_ok=True)
        script = [sys.executable, str(self.folder / "scripts" / "bootstrap.py")]
        return subprocess.run(
            script, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    @property
    def called(self) -> list[str]:
        """What happened in the last run, in order: "made", then the last word of each pip call."""
        if not self.calls.exists():
            return []
        return [Path(line.split()[-1]).name for line in self.calls.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    made.tool("uv", UV)
    return made


def test_makes_the_environment_once(checkout: Checkout) -> None:
    first = checkout.run()
    assert (first.returncode, first.stderr) == (0, "")
    assert checkout.called == ["made", "dev.txt", "checkout"]
    assert len(first.stdout.splitlines()) == 4
    assert "installing 2 locked packages" in first.stdout

    second = checkout.run()
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert checkout.called == []


def test_locked_packages_are_checked_and_the_project_fetches_nothing(checkout: Checkout) -> None:
    checkout.run()
    _, locked, project = checkout.calls.read_text(encoding="utf-8").splitlines()
    assert "--require-hashes" in locked.split()
    assert {"--no-deps", "--no-index", "--no-build-isolation", "--editable"} <= set(project.split())


def test_changed_lock_remakes_everything(checkout: Checkout) -> None:
    checkout.run()
    checkout.write("requirements/dev.txt", "one==2 \\\n    --hash=sha256:1\n")
    assert checkout.run().returncode == 0
    assert checkout.called == ["made", "dev.txt", "checkout"]


@pytest.mark.parametrize("name", ["pyproject.toml", "src/maxwell/__init__.py"])
def test_changed_project_installs_only_the_project(checkout: Checkout, name: str) -> None:
    checkout.run()
    checkout.write(name, "# changed\n")
    assert checkout.run().returncode == 0
    assert checkout.called == ["checkout"]


@pytest.mark.parametrize("step", ["--require-hashes", "--editable"])
def test_failure_shows_the_real_error_and_the_next_run_begins_again(checkout: Checkout, step: str) -> None:
    failed = checkout.run(fail_on=step)
    assert failed.returncode == 1
    assert "no such luck" in failed.stderr
    assert "exit code 7" in failed.stderr

    assert checkout.run().returncode == 0
    assert checkout.called == ["made", "dev.txt", "checkout"]


def test_failure_while_updating_is_not_taken_for_done(checkout: Checkout) -> None:
    checkout.run()
    checkout.write("pyproject.toml", "# changed\n")
    assert checkout.run(fail_on="--editable").returncode == 1
    assert checkout.run().returncode == 0
    assert checkout.called == ["made", "dev.txt", "checkout"]


def test_says_what_to_install_when_no_way_is_left(checkout: Checkout) -> None:
    (checkout.tools / "uv").unlink()
    done = checkout.run()
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert f"apt-get install python3.{sys.version_info[1]}-venv" in line


def test_tries_the_next_way_when_one_fails(checkout: Checkout) -> None:
    checkout.tool("virtualenv", UV)
    checkout.tool("uv", "#!/bin/sh\nexit 1\n")
    assert checkout.run().returncode == 0
    assert checkout.called == ["made", "dev.txt", "checkout"]


def test_leaves_a_folder_alone_that_is_no_environment(checkout: Checkout) -> None:
    checkout.write(".venv/notes.txt", "mine")
    done = checkout.run()
    assert done.returncode == 1
    assert "not a virtual environment" in done.stderr
    assert (checkout.folder / ".venv" / "notes.txt").read_text(encoding="utf-8") == "mine"
