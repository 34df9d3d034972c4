"""What `maxwell map` reads and writes: prompts, one a line, and a file of answers that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import click

from maxwell.cli.requirement_options import utf8
from maxwell.maps import asked
from maxwell.registry.files import write_atomically

KEY_LENGTH = 16
_BEGINNING = b'{"index":'


class Prompt(NamedTuple):
    """One prompt.

    Attributes:
        item: Its text, or an object with `prompt` or `messages` and options of its own.
        id: What its line calls it; None = nothing.
        key: Tells it from every other prompt and from itself with other options.
    """

    item: str | dict[str, Any]
    id: str | int | None
    key: str


def read_prompts(data: bytes, where: str, *, as_json: bool, options: Mapping[str, Any]) -> list[Prompt]:
    """The prompts of a file.

    Args:
        data: Its content.
        where: What it is called.
        as_json: Whether each line is a JSON object, or a prompt's text.
        options: How all of them are asked.

    Raises:
        UsageError: It is not UTF-8, or a line of it is wrong.
    """
    lines = utf8(data, where).splitlines() if as_json else _lines(utf8(data, where))
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise click.UsageError(f"line {number} of {where} is empty")
        item, name = _item(line, f"line {number} of {where}", options) if as_json else (line, None)
        prompts.append(Prompt(item, name, _key(item, options)))
    if not prompts:
        raise click.UsageError(f"{where} holds no prompt")
    return prompts


def _lines(text: str) -> list[str]:
    """Lines as files have them; other characters that may end a line are part of a prompt."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _item(line: str, where: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], str | int | None]:
    """What a line of JSON asks, and what it calls itself."""
    try:
        item = json.loads(line)
    except ValueError as error:
        raise click.UsageError(f"{where} is not JSON: {error}") from None
    if not isinstance(item, dict) or ("prompt" in item) == ("messages" in item):
        raise click.UsageError(f'{where} must be an object with either "prompt" or "messages"')
    name = item.pop("id", None)
    if not isinstance(name, str | int | None) or isinstance(name, bool):
        raise click.UsageError(f'{where}: "id" must be a text or a whole number')
    try:
        _check(item, options)
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{where}: {error}") from None
    return item, name


def _check(item: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError where the item could not be asked."""
    if "messages" in item and "system_prompt" in options:
        raise ValueError("--system goes with prompts; messages begin with their own")
    asked(item, options)


def _key(item: object, options: Mapping[str, Any]) -> str:
    given = {name: value for name, value in options.items() if value is not None and name != "timeout"}
    text = json.dumps([item, given], sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:KEY_LENGTH]


class Answers:
    """The file of answers, a JSON object a line. What is in it already need not be asked again.

    Failures of an earlier run and a line that was broken off are dropped, so that each prompt has one line.

    Args:
        path: The file; made where there is none.
        prompts: What is asked.

    Attributes:
        done: Indexes of the prompts that are answered already.

    Raises:
        UsageError: The file is something else, or holds answers to other prompts.
        ClickException: Another process writes to it.
        OSError: It cannot be read or written.
    """

    def __init__(self, path: Path, prompts: Sequence[Prompt]) -> None:
        self.done: set[int] = set()
        path = Path(os.path.realpath(path))
        self._file = path.open("ab")
        try:
            _lock(self._file, path)
            data = path.read_bytes()
            kept = self._kept(data, path, prompts)
            if kept != data:
                if os.name == "nt":  # which replaces no open file
                    self._file.close()
                write_atomically(path, kept)
                self._file.close()
                self._file = path.open("ab")
                _lock(self._file, path)
        except BaseException:
            self._file.close()
            raise

    def _kept(self, data: bytes, path: Path, prompts: Sequence[Prompt]) -> bytes:
        """The lines with answers; notes whose they are."""
        kept = []
        lines = data.split(b"\n")
        tail = lines.pop()  # what a run that was killed had begun to write
        if _record(tail) is not None:
            lines.append(tail)
        elif not lines and tail[: len(_BEGINNING)] != _BEGINNING[: len(tail)]:
            raise _foreign(path, 1)
        for number, line in enumerate(lines, 1):
            record = _record(line)
            if record is None:
                raise _foreign(path, number)
            index = record["index"]
            if index >= len(prompts) or record["key"] != prompts[index].key:
                raise click.UsageError(
                    f"line {number} of {path} is about another prompt or other options than line {index + 1} "
                    "of the input; choose another --out"
                )
            if "error" not in record and index not in self.done:
                self.done.add(index)
                kept.append(line + b"\n")
        return b"".join(kept)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line; it is in the file when this returns."""
        self._file.write(encoded(record) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def encoded(record: Mapping[str, Any]) -> bytes:
    """One line, without its end. It begins with the index, by which a broken one is known."""
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _record(line: bytes) -> dict[str, Any] | None:
    """One line of such a file; None = it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("key"), str):
        return None
    index = record.get("index")
    is_index = isinstance(index, int) and not isinstance(index, bool) and index >= 0
    return record if is_index else None


def _foreign(path: Path, number: int) -> click.UsageError:
    return click.UsageError(f"line {number} of {path} was not written by `maxwell map`; choose another --out")


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep other processes from writing there, where the system can do that."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise click.ClickException(f"another process is writing to {path}") from None
