"""Which project registries may send keys.

A registry that comes with a cloned repository must not be able to send a key to a host of its author's
choice. So a project's registry may use `api_key_env` only after the user said so (`maxwell trust`), and only
as long as its bytes stay the same: what is recorded is the file's path with its SHA-256.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from maxwell.registry.files import write_atomically

FILE_NAME = "trusted.json"
# Several versions of one file stay trusted, so that changing branches does not ask again each time.
KEPT_PER_FILE = 20

Record = dict[str, list[str]]


def is_trusted(path: Path, digest: str, home: Path) -> bool:
    """Whether the user trusted this file with exactly this content.

    Args:
        path: The registry file.
        digest: SHA-256 of its bytes, hexadecimal.
        home: Maxwell's home directory (see `maxwell_home`).
    """
    return digest in (_recorded(home) or {}).get(_name(path), [])


def trust(path: Path, digest: str, home: Path) -> str | None:
    """Record that this file with this content may use `api_key_env`.

    Returns:
        A notice for the user when the record was damaged and had to be begun anew, else None.

    Raises:
        OSError: The record cannot be written.
    """
    from filelock import FileLock

    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = home / FILE_NAME
    with FileLock(home / f".{FILE_NAME}.lock"):
        record, notice = _recorded(home), None
        if record is None:
            backup = file.with_name(f"{FILE_NAME}.damaged")
            file.replace(backup)
            notice = f"{file} was damaged: nothing recorded there is trusted any more; it is kept as {backup}"
            record = {}
        digests = [known for known in record.get(_name(path), []) if known != digest]
        record[_name(path)] = [*digests, digest][-KEPT_PER_FILE:]
        write_atomically(file, msgspec.json.format(msgspec.json.encode(record)) + b"\n", mode=0o600)
    return notice


def _recorded(home: Path) -> Record | None:
    """The record; empty when there is none, None when it cannot be understood."""
    try:
        return msgspec.json.decode((home / FILE_NAME).read_bytes(), type=Record)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        return None


def _name(path: Path) -> str:
    # Lone surrogates stand for bytes that are not UTF-8; JSON cannot hold them.
    return str(path.resolve()).encode(errors="surrogateescape").decode(errors="backslashreplace")
