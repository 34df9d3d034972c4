"""The slow, thorough reading of a registry: every problem at once, each with its place.

Imported only when the fast reading fails, which it also does for good files that hold the user's own keys.
"""

from __future__ import annotations

from typing import Any

import msgspec

from maxwell.errors import Problem, RegistryError
from maxwell.registry.checks import Finding, find
from maxwell.registry.positions import Document, Fault, NotJSON, Where, scan
from maxwell.registry.specs import RegistryFile
from maxwell.registry.wording import is_own_key, path_text, shown


def diagnose(body: bytes, file: str) -> RegistryFile:
    """Decode a registry file, thoroughly.

    Args:
        body: The file's bytes without byte order mark.
        file: Its path, for messages.

    Raises:
        RegistryError: With every problem, in file order.
    """
    document = _read(body, file)
    raw = without_own_keys(document.value)
    refused = ""
    decoded: RegistryFile | None = None
    try:
        decoded = msgspec.convert(raw, RegistryFile)
    except (ValueError, OverflowError) as error:
        refused = str(error)
    faults = _faults(document)
    problems = [Problem(path_text(f.where), f.message, f.line, f.column) for f in faults]
    problems += [_placed(f, document) for f in _findings(raw, faults, complete=decoded is not None)]
    if decoded is not None and not problems:
        return decoded
    problems = problems or [Problem("", f"cannot be used: {refused}")]
    raise RegistryError(file, sorted(problems, key=lambda p: (p.line, p.column)))


def _findings(raw: dict[str, Any], faults: list[Fault], *, complete: bool) -> list[Finding]:
    """What the schema and the checks say, but at each place only the first of them to speak."""
    told = {f.where for f in faults if f.kind != "duplicate"}
    found: list[Finding] = []
    if not complete:
        from maxwell.registry.complaints import complaints

        found = [f for f in complaints(raw) if f.where not in told]
        told |= {f.where for f in found}
    return found + [f for f in find(raw) if f.where not in told]


def without_own_keys(value: Any) -> Any:
    """A registry's JSON value without the keys that are the user's own, at any depth."""
    top = _stripped(value)
    if isinstance(value, dict) and "_schema_version" in value:
        top["_schema_version"] = value["_schema_version"]
    return top


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stripped(child) for key, child in value.items() if not is_own_key(key)}
    if isinstance(value, list):
        return [_stripped(child) for child in value]
    return value


def _read(body: bytes, file: str) -> Document:
    try:
        document = scan(body.decode())
    except UnicodeDecodeError as error:
        raise RegistryError(file, [_not_utf8(body, error)]) from None
    except NotJSON as error:
        raise RegistryError(
            file, [Problem("", f"not JSON: {error.message}", error.line, error.column)]
        ) from None
    if not isinstance(document.value, dict):
        top = document.values[()]
        message = (
            f'holds {shown(document.value)}; a registry is an object: {{"llms": [...], "embeddings": [...]}}'
        )
        raise RegistryError(file, [Problem("", message, top.line, top.column)])
    return document


def _not_utf8(body: bytes, error: UnicodeDecodeError) -> Problem:
    if body.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem("", "this is UTF-16 text; save it as UTF-8", 1, 1)
    before = body[: error.start]
    line = before.count(b"\n") + 1
    column = len(before.rpartition(b"\n")[2].decode(errors="replace")) + 1
    message = f"not UTF-8: byte 0x{body[error.start]:02x} at offset {error.start}; save the file as UTF-8"
    return Problem("", message, line, column)


def _faults(document: Document) -> list[Fault]:
    """The scanner's faults; inside the user's own keys only what is not JSON at all counts."""
    return [f for f in document.faults if f.kind == "literal" or not _is_own(f.where)]


def _is_own(where: Where) -> bool:
    return where != ("_schema_version",) and any(isinstance(s, str) and is_own_key(s) for s in where)


def _placed(finding: Finding, document: Document) -> Problem:
    message = finding.message
    if finding.first in document.values:
        message += f" (the first is at line {document.values[finding.first].line})"
    places = document.keys if finding.at_key else document.values
    span = places.get(finding.where) or document.values[()]
    return Problem(path_text(finding.where), message, span.line, span.column)
