"""What `maxwell map` reads and writes: prompts, one a line, and a file of answers that can be resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple, TypeGuard

import click

from maxwell.cli.requirement_options import utf8
from maxwell.images import check_image, is_path
from maxwell.maps import asked
from maxwell.registry.files import write_atomically

KEY_LENGTH = 16
_BEGINNING = b'{"index":'
_NOT_IN_KEYS = ("timeout", "repair")  # what has an answer has it whatever these were
_HERE = Path()


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
        where: What it is called; its images are beside it.
        as_json: Whether each line is a JSON object, or a prompt's text.
        options: How all of them are asked.

    Raises:
        UsageError: It is not UTF-8, or a line of it is wrong.
    """
    lines = utf8(data, where).splitlines() if as_json else _lines(utf8(data, where))
    common = _known_by({k: v for k, v in options.items() if v is not None and k not in _NOT_IN_KEYS})
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise click.UsageError(f"line {number} of {where} is empty")
        if as_json:
            prompts.append(_prompt(line, f"line {number} of {where}", options, common, Path(where).parent))
        else:
            prompts.append(Prompt(line, None, _key(line, common)))
    if not prompts:
        raise click.UsageError(f"{where} holds no prompt")
    return prompts


def _lines(text: str) -> list[str]:
    """Lines as files have them; other characters that may end a line are part of a prompt."""
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _prompt(
    line: str, where: str, options: Mapping[str, Any], common: Mapping[str, Any], beside: Path
) -> Prompt:
    """What a line of JSON asks."""
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
        found = _found(item, beside)
        _check(found, options)
        return Prompt(found, name, _key(_known_by(item, beside), common))
    except OSError as error:
        raise click.UsageError(f"{where}: cannot read the image {error.filename}: {error.strerror}") from None
    except (TypeError, ValueError) as error:
        raise click.UsageError(f"{where}: {error}") from None


def _found(item: dict[str, Any], beside: Path) -> dict[str, Any]:
    """The item with the paths of its images as they are from here; in a file they are relative to it."""
    images = item.get("images")
    if not _is_list(images):
        return item
    return {**item, "images": [str(beside / image) if is_path(image) else image for image in images]}


def _check(item: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raise TypeError, ValueError or OSError where the item could not be asked."""
    if "messages" in item and "system_prompt" in options:
        raise ValueError("--system goes with prompts; messages begin with their own")
    if "messages" in item and ("images" in item or "images" in options):
        raise ValueError("images go with prompts; messages hold their own")
    images = item.get("images")
    if images is not None and not _is_list(images):
        raise TypeError("images must be a list of paths and addresses")
    for image in images or ():
        check_image(image)  # whole pictures are read when it is their turn
    asked(_without_images(item), _without_images(options))


def _without_images(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key != "images"}


def _known_by(given: Mapping[str, Any], beside: Path = _HERE) -> dict[str, Any]:
    """What is asked, in short: images by path and size or by what they hold."""
    images = given.get("images")
    if not _is_list(images):
        return dict(given)
    return {**given, "images": [_image_known_by(image, beside) for image in images]}


def _image_known_by(image: Any, beside: Path) -> Any:
    if is_path(image):
        return [image, (beside / image).stat().st_size]
    return image if isinstance(image, str) else _digest(image)


def _is_list(value: Any) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and all(isinstance(image, str | dict) for image in value)


def _key(item: object, common: Mapping[str, Any]) -> str:
    return _digest([item, common])


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
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
