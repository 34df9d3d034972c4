"""What the project promises about itself: how it is built, set up and locked, and what it must not name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import maxwell
from maxwell.registry.load import decode

ROOT = Path(__file__).resolve().parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOCKS = {
    path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "requirements").glob("*.txt"))
}
LOCKED = re.compile(
    r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^\s;]+)[^\n]*\\\n(?P<hashes>(?:    --hash=[^\n]+\n?)+)", re.M
)
MADE = {"__pycache__", "build", "dist"}

# Put together here, so that this file does not hold what it looks for.
INDEX_HOSTS = [
    "py" + "pi" + r"\.org",
    "python" + "hosted",
    "crates" + r"\.io",
    "npm" + r"js\.",
    "ana" + r"conda\.org",
]
PLACES = [re.escape(f"/{name}/") for name in ("wo" + "rk", "ro" + "ot", "m" + "nt")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as opened:
        yield opened


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    return wheel.read(f"maxwell_lm-{maxwell.__version__}.dist-info/{name}").decode()


def texts() -> Iterator[tuple[str, str]]:
    """(path, content) of every text file of the project that is not made from others."""
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [n for n in subfolders if n not in MADE and (n == ".ci" or not n.startswith("."))]
        for path in (Path(folder, name) for name in names):
            data = path.read_bytes()
            if b"\0" not in data:
                yield path.relative_to(ROOT).as_posix(), data.decode("utf-8")


# --- the distribution


def test_version_stands_in_one_place(wheel: zipfile.ZipFile) -> None:
    assert f"\nVersion: {maxwell.__version__}\n" in metadata(wheel, "METADATA")
    assert PROJECT["project"]["dynamic"] == ["version"]
    spelled = re.compile(rf"^.*version.*{re.escape(maxwell.__version__)}", re.I | re.M)
    assert [name for name, text in texts() if name.endswith((".py", ".toml")) and spelled.search(text)] == [
        "src/maxwell/__init__.py"
    ]


def test_changelog_has_this_version() -> None:
    assert f"\n## [{maxwell.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_wheel_holds_the_typed_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    assert "maxwell/py.typed" in names
    assert {name.split("/")[0] for name in names} == {
        "maxwell",
        f"maxwell_lm-{maxwell.__version__}.dist-info",
    }
    modules = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_wheel_has_its_command_and_licence(wheel: zipfile.ZipFile) -> None:
    assert metadata(wheel, "entry_points.txt").split() == [
        "[console_scripts]",
        "maxwell",
        "=",
        "maxwell.cli:main",
    ]
    assert metadata(wheel, "licenses/LICENSE").startswith("MIT License\n")
    assert "\nLicense-Expression: MIT\n" in metadata(wheel, "METADATA")
    assert "\nName: maxwell-lm\n" in metadata(wheel, "METADATA")
    assert "\nRequires-Python: >=3.11\n" in metadata(wheel, "METADATA")


# --- setting up


def set_up_commands() -> list[str]:
    section = README.split("\n## Set up\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S)
    return [line.split("#")[0].strip() for line in block.splitlines()]


def test_readme_sets_up_with_two_commands_that_exist() -> None:
    assert set_up_commands() == ["make demo", "make test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in set_up_commands():
        assert re.search(rf"^{command.removeprefix('make ')}:", makefile, re.M)


def test_ci_runs_the_readme_test_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert [line for line in lines if re.match(r"(make|pip|python|uv)\b", line)] == [
        next(line for line in lines if line.startswith(set_up_commands()[1] + " "))
    ]


def test_readme_registry_is_valid() -> None:
    (block,) = re.findall(r"^```json\n(.*?)^```$", README, re.M | re.S)
    registry = decode(block.encode(), "README.md")
    assert (len(registry.llms), len(registry.embeddings)) == (2, 1)


@pytest.mark.parametrize("name", [name for name, _ in texts() if name.endswith(".md")])
def test_links_within_the_documentation_lead_somewhere(name: str) -> None:
    file = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (file.parent / target.split("#")[0]).exists(), target


# --- the lock file


@pytest.mark.parametrize("name", LOCKS)
def test_lock_holds_pins_with_hashes_and_no_address(name: str) -> None:
    lock = LOCKS[name]
    rest = LOCKED.sub("", lock)
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []
    assert "://" not in lock
    for match in LOCKED.finditer(lock):
        assert re.fullmatch(r"(\s*--hash=sha256:[0-9a-f]{64}( \\)?\n?)+", match["hashes"]), match["name"]


def declared(lock: str) -> Iterator[Requirement]:
    """Every requirement that a lock file has to meet: benchmarks and vLLM have one of their own."""
    if lock == "vllm":  # beside the project, never in one environment with it
        lines = (ROOT / "requirements" / "vllm.in").read_text(encoding="utf-8").splitlines()
        yield from (Requirement(line) for line in lines if not line.startswith("#"))
        return
    project, groups = PROJECT["project"], PROJECT["dependency-groups"]
    lists = [project["dependencies"], PROJECT["build-system"]["requires"]]
    if lock == "bench":
        lists.append(groups["bench"])
    else:
        lists += [*project["optional-dependencies"].values(), groups["test"], groups["dev"]]
    for line in (line for listed in lists for line in listed):
        if isinstance(line, str):
            yield Requirement(line)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_meets_every_declared_requirement(name: str) -> None:
    locked = {match["name"]: match["version"] for match in LOCKED.finditer(LOCKS[name])}
    wrong = [
        str(r) for r in declared(name) if r.name not in locked or not r.specifier.contains(locked[r.name])
    ]
    assert wrong == [], "run `make lock`"


# --- what no file may name


def test_no_file_names_a_package_index() -> None:
    forbidden = re.compile("|".join(INDEX_HOSTS), re.I)
    assert [name for name, text in texts() if forbidden.search(text)] == []


def test_no_file_names_a_place_outside_the_project() -> None:
    places = "|".join([*PLACES, re.escape(f"{ROOT}/")])
    forbidden = re.compile(rf"(?<![\w./:-])(?:{places})\w")
    assert [f"{name}: {hit[0]}" for name, text in texts() for hit in forbidden.finditer(text)] == []
