"""Make `.venv`: the locked development environment, and Maxwell itself in editable form.

Standard library only, and syntax that Python 3.7 reads, so that an old `python3` can hand over to a newer
one. Everything third-party comes from `requirements/dev.txt`, checked against its hashes; the editable
install then fetches nothing. A stamp inside `.venv`, written last, says what it was made from: while it
holds there is nothing to do; where it is missing, a run was cut short and all is made anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

OLDEST = (3, 11)
ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements" / "dev.txt"
STAMP = VENV / ".bootstrap-stamp"
# What the metadata of the editable install is made from.
PROJECT = (ROOT / "pyproject.toml", ROOT / "src" / "maxwell" / "__init__.py")


class SetupError(Exception):
    """A step failed; the message is for the user."""


def main() -> int:
    """Bring `.venv` up to date. Returns the exit code."""
    if sys.version_info < OLDEST:
        return hand_over()
    try:
        update()
    except SetupError as error:
        sys.stderr.write(f"bootstrap: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("bootstrap: interrupted; the next run begins again\n")
        return 130
    return 0


def update() -> None:
    """Do what the stamp says is still to be done."""
    locked = digest(LOCK.read_bytes(), platform.python_version(), sys.base_prefix, str(VENV))
    project = digest(*(path.read_bytes() for path in PROJECT))
    stamp = f"{locked}\n{project}\n"
    done = stamp_lines()
    if done == stamp.split():
        return
    began = time.monotonic()
    with contextlib.suppress(FileNotFoundError):
        STAMP.unlink()
    if done[:1] != [locked]:
        make_venv()
        install_locked()
    say("installing Maxwell itself, editable")
    pip("--no-deps", "--no-index", "--no-build-isolation", "--editable", str(ROOT))
    part = STAMP.with_name(STAMP.name + ".part")
    part.write_text(stamp)
    part.replace(STAMP)
    say(f".venv is ready, after {time.monotonic() - began:.0f} s")


def stamp_lines() -> list[str]:
    """What `.venv` was made from; empty when it is not there, not whole, or its Python is gone."""
    if not (STAMP.is_file() and (VENV / "bin" / "python").exists()):
        return []
    return STAMP.read_text().split()


def digest(*parts: str | bytes) -> str:
    """SHA-256 over the parts and their borders."""
    hashed = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        hashed.update(b"%d:" % len(data) + data)
    return hashed.hexdigest()


def install_locked() -> None:
    """Install the lock file's packages. Wheels only: building one would fetch unlocked tools."""
    count = len(re.findall(r"^[\w.-]+==", LOCK.read_text(), re.MULTILINE))
    say(f"installing {count} locked packages")
    pip("--require-hashes", "--no-deps", "--only-binary", ":all:", "--requirement", str(LOCK))


def pip(*arguments: str) -> None:
    """Run the environment's `pip install`, deaf to PYTHONPATH and to the user's own packages."""
    python = str(VENV / "bin" / "python")
    run([python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments])


# --- making the virtual environment


def make_venv() -> None:
    """Make an empty `.venv` with pip in it, in the first way that works here."""
    if VENV.is_symlink() or (VENV.exists() and not (VENV / "pyvenv.cfg").exists() and any(VENV.iterdir())):
        raise SetupError(f"{VENV} is not a virtual environment; move it away, then try again")
    say(f"making .venv with Python {platform.python_version()} of {sys.base_prefix}")
    failures = []
    for make in ways():
        shutil.rmtree(VENV, ignore_errors=True)
        try:
            make()
        except SetupError as error:
            failures.append(str(error))
        else:
            return
    raise SetupError("\n".join([*failures, missing_venv()]))


def ways() -> Iterator[Callable[[], None]]:
    """The ways to make a virtual environment on this machine, best first."""
    python = base_python()
    uv, virtualenv = shutil.which("uv"), shutil.which("virtualenv")
    if has_ensurepip():
        yield lambda: run([python, "-I", "-m", "venv", str(VENV)])
        return
    if uv:
        yield lambda: run([uv, "venv", "--quiet", "--seed", "--python", python, str(VENV)])
    if virtualenv:
        yield lambda: run([virtualenv, "--quiet", "--python", python, str(VENV)])
    if may_install():
        yield lambda: install_venv_package(python)


def base_python() -> str:
    """The interpreter itself, also where this runs in a virtual environment."""
    return getattr(sys, "_base_executable", None) or sys.executable


def has_ensurepip() -> bool:
    """Whether `python -m venv` can work. Debian keeps half of it in a package of its own."""
    importlib.invalidate_caches()
    return all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))


def may_install() -> bool:
    """Whether apt could complete this Python, and may be used without asking for a password."""
    if sys.base_prefix != "/usr" or not shutil.which("apt-get"):
        return False
    return os.geteuid() == 0 or passwordless_sudo()


def passwordless_sudo() -> bool:
    """Whether sudo works without a question."""
    if not shutil.which("sudo"):
        return False
    quiet = subprocess.DEVNULL
    return subprocess.run(["sudo", "-n", "true"], stdin=quiet, stdout=quiet, stderr=quiet).returncode == 0


def install_venv_package(python: str) -> None:
    """Complete Debian's Python with apt, then make the environment."""
    as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    apt = [*as_root, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]
    say(f"this Python lacks ensurepip: running apt-get install -y {venv_package()}")
    try:
        run([*apt, "install", "-y", venv_package()])
    except SetupError:  # a fresh machine has no package lists yet
        run([*apt, "update"])
        run([*apt, "install", "-y", venv_package()])
    run([python, "-I", "-m", "venv", str(VENV)])


def venv_package() -> str:
    """Debian's name for the missing half; `python3-venv` is the same for its default Python."""
    return f"python3.{sys.version_info[1]}-venv"


def missing_venv() -> str:
    """What to do when no way worked."""
    if has_ensurepip():
        return "python -m venv failed"
    return (
        f"{base_python()} cannot make virtual environments; on Debian and Ubuntu run "
        f"apt-get install {venv_package()} (or install uv), then try again"
    )


# --- a newer Python


def hand_over() -> int:
    """Run this script again with the newest suitable Python on PATH."""
    have = platform.python_version()
    wanted = "{}.{}".format(*OLDEST)
    for python in pythons():
        if suits(python):
            say(f"{sys.executable} is Python {have}, too old; using {python}")
            with contextlib.suppress(KeyboardInterrupt):
                return subprocess.run([python, str(Path(__file__).resolve()), *sys.argv[1:]]).returncode
            return 130
    sys.stderr.write(
        f"bootstrap: {sys.executable} is Python {have} and PATH has none from {wanted} on; "
        f"install Python {wanted} or newer, or name one: make PYTHON=/path/to/python3 ...\n"
    )
    return 1


def pythons() -> list[str]:
    """Every `python3.x` on PATH, newest first."""
    found = []
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        with contextlib.suppress(OSError):
            for path in Path(folder or ".").iterdir():
                version = re.fullmatch(r"python3\.(\d+)", path.name)
                if version and int(version[1]) >= OLDEST[1]:
                    found.append((int(version[1]), str(path)))
    found.sort(key=lambda pair: -pair[0])
    return [path for _, path in found]


def suits(python: str) -> bool:
    """Whether this one really runs and is new enough; version managers leave shims that do not."""
    question = [python, "-c", f"import sys; sys.exit(sys.version_info < {OLDEST})"]
    try:
        return subprocess.run(question, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0
    except OSError:
        return False


# --- helpers


def run(command: list[str]) -> None:
    """Run a command; show what it said only when it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except OSError as error:
        raise SetupError(f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode != 0:
        raise SetupError(
            f"failed with exit code {done.returncode}: {' '.join(command)}\n{done.stdout.rstrip()}"
        )


def say(step: str) -> None:
    """Tell the user what begins."""
    sys.stdout.write(f"bootstrap: {step}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
