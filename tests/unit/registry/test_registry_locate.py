from __future__ import annotations

from pathlib import Path

import pytest

from maxwell.errors import RegistryError
from maxwell.registry import Located, locate, maxwell_home


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put(directory: Path) -> Path:
    path = directory / ".maxwell" / "lm_registry.json"
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    return path


def found(home: Path, cwd: Path, explicit: Path | str | None = None, **environ: str) -> Located:
    return locate(explicit, cwd=cwd, home=home, environ=environ)


def test_argument_wins_over_everything(home: Path, tmp_path: Path) -> None:
    put(home)
    named = put(tmp_path / "a")
    result = found(home, home, named, MAXWELL_REGISTRY=str(put(tmp_path / "b")))
    assert (result.path, result.project, result.source) == (named, False, "argument")


def test_environment_wins_over_project(home: Path, tmp_path: Path) -> None:
    put(home / "work")
    named = put(tmp_path / "b")
    result = found(home, home / "work", MAXWELL_REGISTRY=str(named))
    assert (result.path, result.project, result.source) == (named, False, "environment")


def test_empty_environment_variable_counts_as_unset(home: Path) -> None:
    own = put(home)
    assert found(home, home, MAXWELL_REGISTRY="").path == own


@pytest.mark.parametrize("below", [".", "src", "src/deep/deeper"])
def test_project_file_is_found_upward(home: Path, below: str) -> None:
    put(home)
    path = put(home / "work")
    (home / "work" / below).mkdir(parents=True, exist_ok=True)
    result = found(home, home / "work" / below)
    assert (result.path, result.project, result.source) == (path, True, "project")


def test_nearest_project_file_wins(home: Path) -> None:
    put(home / "work")
    inner = put(home / "work" / "inner")
    assert found(home, home / "work" / "inner").path == inner


@pytest.mark.parametrize("git_is_file", [True, False])
def test_search_ends_at_the_repository_root(home: Path, git_is_file: bool) -> None:
    own = put(home)
    put(home / "outer")
    repository = home / "outer" / "repository"
    (repository / "src").mkdir(parents=True)
    git = repository / ".git"
    git.write_text("gitdir: elsewhere") if git_is_file else git.mkdir()
    assert found(home, repository / "src") == Located(
        own,
        project=False,
        source="home",
        looked=(
            repository / "src" / ".maxwell" / "lm_registry.json",
            repository / ".maxwell" / "lm_registry.json",
            own,
        ),
    )


def test_registry_in_the_repository_root_itself_is_found(home: Path) -> None:
    path = put(home / "repository")
    (home / "repository" / ".git").mkdir()
    assert found(home, home / "repository").path == path


@pytest.mark.parametrize("below", [".", "work"])
def test_file_in_the_home_directory_is_the_users_own(home: Path, below: str) -> None:
    own = put(home)
    (home / below).mkdir(exist_ok=True)
    result = found(home, home / below)
    assert (result.path, result.project, result.source) == (own, False, "home")


def test_search_does_not_leave_the_home_directory_upward(home: Path) -> None:
    put(home.parent)
    own = put(home)
    assert found(home, home).path == own


def test_search_outside_the_home_directory_ends_with_the_users_own(home: Path, tmp_path: Path) -> None:
    own = put(home)
    (tmp_path / "elsewhere" / ".git").mkdir(parents=True)
    assert found(home, tmp_path / "elsewhere").path == own


def test_home_reached_through_a_link_is_still_home(home: Path, tmp_path: Path) -> None:
    own = put(home)
    link = tmp_path / "link"
    link.symlink_to(home)
    result = found(link, home)
    assert (result.path.resolve(), result.project) == (own, False)


def test_maxwell_home_moves_the_users_own_file(home: Path, tmp_path: Path) -> None:
    put(home)
    moved = put(tmp_path / "moved")
    result = found(home, home, MAXWELL_HOME=str(moved.parent))
    assert (result.path, result.project) == (moved, False)


def test_maxwell_home_inside_a_project_is_not_the_projects(home: Path) -> None:
    path = put(home / "work")
    result = found(home, home / "work", MAXWELL_HOME=str(path.parent))
    assert (result.path, result.project, result.source) == (path, False, "home")


def test_empty_maxwell_home_does_not_hide_the_projects_file(home: Path) -> None:
    outer = put(home / "work")
    (home / "work" / "sub").mkdir()
    result = found(home, home / "work" / "sub", MAXWELL_HOME=str(home / "work" / "sub" / ".maxwell"))
    assert (result.path, result.project) == (outer, True)


@pytest.mark.parametrize(("environ", "expected"), [({}, "~/.maxwell"), ({"MAXWELL_HOME": "~/mx"}, "~/mx")])
def test_maxwell_home(home: Path, environ: dict[str, str], expected: str) -> None:
    assert maxwell_home(environ, home) == home / expected[2:]


def test_relative_and_home_paths_are_understood(home: Path) -> None:
    own = put(home)
    assert found(home, own.parent, "lm_registry.json").path == own
    assert found(home, home.parent, "~/.maxwell/lm_registry.json").path == own


@pytest.mark.parametrize("name", ["nowhere.json", ""])
def test_missing_argument_is_named(home: Path, name: str) -> None:
    put(home)
    with pytest.raises(RegistryError, match=rf'--registry.*names "{name}", which does not exist'):
        found(home, home, name)


def test_missing_environment_file_is_named(home: Path) -> None:
    put(home)
    with pytest.raises(RegistryError, match=r'MAXWELL_REGISTRY names "nowhere\.json", which does not exist'):
        found(home, home, MAXWELL_REGISTRY="nowhere.json")


def test_dangling_link_is_not_passed_over(home: Path) -> None:
    put(home)
    link = home / "work" / ".maxwell" / "lm_registry.json"
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "gone.json")
    assert found(home, home / "work").path == link


def test_nothing_found_lists_every_place_and_the_way_out(home: Path) -> None:
    (home / "a" / "b").mkdir(parents=True)
    with pytest.raises(RegistryError) as caught:
        found(home, home / "a" / "b")
    text = str(caught.value)
    for place in (home / "a" / "b", home / "a", home):
        assert str(place / ".maxwell" / "lm_registry.json") in text
    assert "maxwell up MODEL.gguf --add" in text
    assert "maxwell registry schema" in text
    assert caught.value.file == ""
