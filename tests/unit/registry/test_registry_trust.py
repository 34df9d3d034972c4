from __future__ import annotations

import stat
from pathlib import Path

import pytest

from maxwell.registry import is_trusted, trust


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "mx"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "lm_registry.json"


def test_nothing_is_trusted_at_first(file: Path, home: Path) -> None:
    assert not is_trusted(file, "d1", home)
    assert not home.exists()


def test_trusts_this_file_with_this_content_only(file: Path, home: Path, tmp_path: Path) -> None:
    assert trust(file, "d1", home) is None
    assert is_trusted(file, "d1", home)
    assert not is_trusted(file, "d2", home)
    assert not is_trusted(tmp_path / "other.json", "d1", home)


def test_several_contents_and_files_stay_trusted(file: Path, home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    for path, digest in ((file, "d1"), (other, "d1"), (file, "d2")):
        trust(path, digest, home)
    assert all(is_trusted(p, d, home) for p, d in ((file, "d1"), (other, "d1"), (file, "d2")))


def test_forgets_the_oldest_contents(file: Path, home: Path) -> None:
    for number in range(21):
        trust(file, f"d{number}", home)
    assert not is_trusted(file, "d0", home)
    assert is_trusted(file, "d1", home)


def test_a_link_is_its_target(file: Path, home: Path, tmp_path: Path) -> None:
    file.write_text("{}")
    link = tmp_path / "link.json"
    link.symlink_to(file)
    trust(link, "d1", home)
    assert is_trusted(file, "d1", home)


def test_record_is_private(file: Path, home: Path) -> None:
    trust(file, "d1", home)
    (home / "trusted.json").chmod(0o644)
    trust(file, "d2", home)
    assert stat.S_IMODE((home / "trusted.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b"\xff", b"[" * 100_000])
def test_damaged_record_trusts_nothing_and_is_kept_aside(file: Path, home: Path, content: bytes) -> None:
    trust(file, "d1", home)
    record = home / "trusted.json"
    record.write_bytes(content)
    assert not is_trusted(file, "d1", home)
    notice = trust(file, "d2", home)
    assert notice is not None
    assert "damaged" in notice
    assert (home / "trusted.json.damaged").read_bytes() == content
    assert is_trusted(file, "d2", home)
    assert not is_trusted(file, "d1", home)


def test_path_that_is_no_utf8_can_be_trusted(home: Path, tmp_path: Path) -> None:
    path = tmp_path / "\udcff.json"
    trust(path, "d1", home)
    assert is_trusted(path, "d1", home)


def test_leaves_no_temporary_files(file: Path, home: Path) -> None:
    trust(file, "d1", home)
    assert {p.name for p in home.iterdir()} == {"trusted.json", ".trusted.json.lock"}
