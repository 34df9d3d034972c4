"""A registry file's bytes made into values.

The fast reading decodes straight into Structs and takes well under a millisecond for a usual file. Only when
it fails is `diagnose` imported, which finds every problem, or finds that the file merely holds keys of the
user's own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from maxwell.errors import Problem, RegistryError
from maxwell.registry.checks import find
from maxwell.registry.locate import Located, maxwell_home
from maxwell.registry.specs import Registry, RegistryFile
from maxwell.registry.trust import is_trusted

BOM = b"\xef\xbb\xbf"

_DECODER = msgspec.json.Decoder(RegistryFile)


def load(where: Located | Path | str, *, environ: Mapping[str, str] | None = None) -> Registry:
    """Read a registry file.

    Args:
        where: What `locate` found, or a path, which counts as named by the user.
        environ: The environment (`MAXWELL_HOME`); the process's when None.

    Raises:
        RegistryError: The file cannot be read or is wrong; carries every problem.
    """
    located = where if isinstance(where, Located) else Located(Path(where), project=False)
    path = located.path.absolute()
    data = read(path)
    decoded = decode(data, str(path))
    digest = digest_of(data)
    home = maxwell_home(os.environ if environ is None else environ)
    return Registry(
        llms=decoded.llms,
        embeddings=decoded.embeddings,
        rerankers=decoded.rerankers,
        budget_timezone=decoded.budget_timezone,
        path=path,
        project=located.project,
        trusted=not located.project or is_trusted(path, digest, home),
        digest=digest,
    )


def read(path: Path) -> bytes:
    """A registry file's bytes. Raises `RegistryError` when it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RegistryError(str(path), [Problem("", f"cannot be read: {reason}")]) from None


def digest_of(data: bytes) -> str:
    """SHA-256 of a registry file's bytes, hexadecimal."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, file: str) -> RegistryFile:
    """Decode a registry file.

    Args:
        data: Its bytes: UTF-8, with or without byte order mark.
        file: Its path, for messages.

    Raises:
        RegistryError: With every problem in the file.
    """
    body = data.removeprefix(BOM)
    try:
        decoded = _DECODER.decode(body)
        # The typed decoder keeps the last of two equal keys in silence; this reading does not.
        if not find(json.loads(body.decode(), object_pairs_hook=_unique)):
            return decoded
    except (ValueError, RecursionError):
        pass
    from maxwell.registry.diagnose import diagnose

    return diagnose(body, file)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError
    return made
