"""Writing a file so that readers see the old or the new one, never a part."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def write_atomically(path: Path, data: bytes, *, mode: int | None = None, durable: bool = True) -> None:
    """Replace a file's content in one step; readers see the old or the new one, never a part.

    Args:
        path: The file; its directory exists. A symbolic link would be replaced: pass its target.
        data: The new content.
        mode: Permission bits; those of the old file when None, else what the umask leaves.
        durable: Wait until the disk has it, so that it also survives a crash of the machine.

    Raises:
        OSError: The directory cannot be written; the old file is untouched.
    """
    if mode is None:
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.stat().st_mode)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        with os.fdopen(os.open(temporary, flags, 0o666 if mode is None else 0o600), "wb") as file:
            if mode is not None:
                temporary.chmod(mode)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    # Windows cannot open directories, and some file systems cannot sync them; the rename stands all the same.
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
