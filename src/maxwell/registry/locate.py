"""Which registry file is meant: the argument, `MAXWELL_REGISTRY`, the project's, the user's own."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from msgspec import Struct

from maxwell.errors import Problem, RegistryError

FILE_NAME = "lm_registry.json"
VARIABLE = "MAXWELL_REGISTRY"


class Located(Struct, frozen=True):
    """A registry file that was found.

    Attributes:
        path: The file, absolute.
        project: Whether it belongs to a project directory, so that its keys need `maxwell trust`.
        source: What named it: "argument", "environment", "project" or "home".
        looked: Every place looked at, the last one being `path`.
    """

    path: Path
    project: bool
    source: str = "argument"
    looked: tuple[Path, ...] = ()


def maxwell_home(environ: Mapping[str, str], home: Path | None = None) -> Path:
    """The directory of Maxwell's own files: `MAXWELL_HOME`, else `.maxwell` in the home directory.

    Args:
        environ: The environment.
        home: The user's home directory; the process's when None.
    """
    named = environ.get("MAXWELL_HOME")
    if named and not named.startswith("~"):  # who names a place need not have a home
        return Path.cwd() / named
    user = home if home is not None else Path.home()
    return _absolute(named, Path.cwd(), user) if named else user / ".maxwell"


def global_registry(environ: Mapping[str, str], home: Path | None = None) -> Path:
    """The user's own registry file, whether it exists or not."""
    return maxwell_home(environ, home) / FILE_NAME


def find(explicit: Path | str | None = None) -> Located:
    """`locate` for this process: its working directory, home directory and environment."""
    return locate(explicit, cwd=Path.cwd(), home=Path.home(), environ=os.environ)


def locate(explicit: Path | str | None, *, cwd: Path, home: Path, environ: Mapping[str, str]) -> Located:
    """Find the registry file; the first one that exists wins.

    Args:
        explicit: The file named by `--registry` or `registry=`, or None.
        cwd: Where the search for a project's file begins.
        home: The user's home directory, where that search ends.
        environ: The environment; `MAXWELL_REGISTRY` and `MAXWELL_HOME` are read.

    Raises:
        RegistryError: There is none, a named file does not exist, or another user's file is in the way.
    """
    if explicit is not None:
        path = _named(str(explicit), "the registry argument (--registry or registry=)", cwd, home)
        return Located(path, project=False, source="argument", looked=(path,))
    if environ.get(VARIABLE):
        path = _named(environ[VARIABLE], f"the environment variable {VARIABLE}", cwd, home)
        return Located(path, project=False, source="environment", looked=(path,))
    own = global_registry(environ, home)
    looked: list[Path] = []
    for path in _project_files(cwd.resolve(), home.resolve(), own.resolve()):
        looked.append(path)
        if _stands(path):
            _check_owner(path)
            return Located(path, project=True, source="project", looked=tuple(looked))
    looked.append(own)
    if _stands(own):
        return Located(own, project=False, source="home", looked=tuple(looked))
    raise RegistryError("", [Problem("", _none_found(looked))])


def _project_files(cwd: Path, home: Path, own: Path) -> Iterator[Path]:
    """Where a project's registry may lie, nearest first, ending at the repository or home directory."""
    for directory in (cwd, *cwd.parents):
        path = directory / ".maxwell" / FILE_NAME
        if directory == home or (path == own and _stands(own)):
            return
        yield path
        if (directory / ".git").exists():
            return


def _check_owner(path: Path) -> None:
    """Refuse a file that another user laid into a directory above: it would send prompts to their hosts."""
    if not hasattr(os, "getuid") or os.getuid() == 0:
        return
    with contextlib.suppress(
        OSError
    ):  # one that cannot be looked at cannot be read either, and says so there
        owner = path.stat().st_uid
        if owner not in (os.getuid(), 0):
            message = f"belongs to another user (number {owner}); name it with --registry if you mean it"
            raise RegistryError(str(path), [Problem("", message)])


def _named(name: str, who: str, cwd: Path, home: Path) -> Path:
    path = _absolute(name, cwd, home)
    if not name or not _stands(path):
        raise RegistryError(
            "", [Problem("", f'{who} names "{name}", which does not exist; correct or unset it')]
        )
    return path


def _absolute(name: str, cwd: Path, home: Path) -> Path:
    if name == "~" or name.startswith("~/"):
        return home / name[2:]
    return cwd / name


def _stands(path: Path) -> bool:
    # A dangling link or unreadable file stands: passing it over would choose another registry in silence.
    return os.path.lexists(path)


def _none_found(looked: list[Path]) -> str:
    places = ", ".join(str(path) for path in looked)
    return (
        f"no registry found; looked at {places}. Make one with `maxwell up MODEL.gguf --add`, or write the "
        "last of these (`maxwell registry schema` prints its format)"
    )
