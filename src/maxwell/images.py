"""Pictures for a prompt, in the form every server takes: an address, or the bytes in a `data:` address.

Errors never quote a picture's content.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

# OpenAI allowed 20 MB an image and 50 MB a request when this was written; llama.cpp fetches up to 10 MB.
MAX_BYTES = 20_000_000

_KINDS = {
    "image/png": rb"\x89PNG\r\n\x1a\n",
    "image/jpeg": rb"\xff\xd8\xff",
    "image/gif": rb"GIF8[79]a",
    "image/webp": rb"RIFF....WEBP",
}
_CONVERT = "convert it to PNG or JPEG"
_REFUSED = (
    (rb"....ftyp(?:hei[cmsx]|hev[cmx]|mif1|msf1)", "a HEIC image", _CONVERT),
    (rb"....ftypavi[fs]", "an AVIF image", _CONVERT),
    (rb"....ftyp", "a video", "give single pictures of it"),
    (rb"II[*+]\x00|MM\x00[*+]", "a TIFF image", _CONVERT),
    (rb"BM.{4}\x00{4}", "a BMP image", _CONVERT),
    (rb"\xff\x0a|\x00\x00\x00\x0cJXL ", "a JPEG XL image", _CONVERT),
    (rb"\x00\x00\x01\x00", "an icon", _CONVERT),
    (rb"%PDF-", "a PDF document", "make PNG images of its pages"),
    (rb"(?i:\s*(?:<\?xml.{,400}?)?<svg)", "an SVG drawing", "make a PNG image of it"),
    (rb"(?i:\s*<(?:!doctype )?html)", "a web page", "give the picture itself"),
)
_LOOKED_AT = 512  # bytes that tell what a file is
_BASE64 = re.compile(r"[A-Za-z0-9+/=_\s-]{64,}")
_DATA = re.compile(r"data:[^,]{,200};base64,", re.IGNORECASE)
_PATH_CHARS = 4096  # no system takes longer ones

_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
# A photo of more pixels is large as a PNG, and models see it smaller anyway.
_PHOTO_PIXELS = 4_000_000

_ALLOWED = "a path, bytes, an http(s) address, a data: address, a PIL image or a content part"


def image_part(image: Any) -> dict[str, Any]:
    """A content part of a chat message for one picture.

    Args:
        image: A path, bytes, an http(s) address (which the server must be able to fetch), a `data:` address
            with base64, a PIL image, or a content part of type "image_url", which is passed on. What is in
            it must be PNG, JPEG, GIF or WEBP, whatever its name says. llama.cpp cannot read WEBP, and some
            servers see only the first picture of a GIF. A PIL image is sent with its pixels as they stand:
            as a PNG, above 4 million pixels without transparency as a JPEG.

    Returns:
        `{"type": "image_url", "image_url": {"url": ...}}`

    Raises:
        TypeError: It is nothing of that.
        ValueError: It is empty, larger than 20 MB or of another kind; the message says of which.
        OSError: A file cannot be read.
    """
    if isinstance(image, Mapping):
        return _ready(image)
    return {"type": "image_url", "image_url": {"url": _address(image)}}


def check_image(image: Any) -> None:
    """Raise what `image_part` would; of a file only the beginning is read."""
    path = _path(image)
    if path is None:
        image_part(image)
        return
    with _opened(path) as file:
        _check(file.read(_LOOKED_AT), os.fstat(file.fileno()).st_size, str(path))


def is_path(image: Any) -> bool:
    """Whether a picture is given by its path."""
    return _path(image) is not None


def _ready(part: Mapping[str, Any]) -> dict[str, Any]:
    inner = part.get("image_url")
    url = inner.get("url") if isinstance(inner, Mapping) else None
    if part.get("type") != "image_url" or not isinstance(url, str):
        raise ValueError(
            'a content part for an image must look like {"type": "image_url", "image_url": {"url": ...}}'
        )
    return dict(part)


def _address(image: Any) -> str:
    path = _path(image)
    if path is not None:
        return _read(path)
    if isinstance(image, str):
        return _linked(image)
    if isinstance(image, bytes | bytearray | memoryview):
        return _encoded(bytes(image), "the image")
    if callable(getattr(image, "save", None)) and hasattr(image, "mode") and hasattr(image, "size"):
        return _encoded(_saved(image), "the PIL image, saved,")
    raise TypeError(f"an image must be {_ALLOWED}, not {type(image).__name__}")


# --- files


def _path(image: Any) -> Path | None:
    if isinstance(image, str):
        if not image.strip():
            raise ValueError("the path of the image is empty")
        return None if image[:5].lower() == "data:" or "://" in image[:20] else Path(image)
    return Path(os.fsdecode(image)) if isinstance(image, os.PathLike) else None


def _opened(path: Path) -> io.BufferedReader:
    text = str(path)
    is_there = os.path.exists(path)  # noqa: PTH110 - Path.exists raises where a name is too long
    if len(text) > _PATH_CHARS or "\0" in text or (_BASE64.fullmatch(text) and not is_there):
        raise ValueError(
            f"a text of {len(text):,} characters is no path of an image and no address; "
            "give base64 as bytes or in a data: address"
        )
    return path.open("rb")


def _read(path: Path) -> str:
    with _opened(path) as file:
        data = file.read(MAX_BYTES + 1)
        size = max(len(data), os.fstat(file.fileno()).st_size)
    _check(data, size, str(path))
    return _data_address(data)


# --- bytes


def _encoded(data: bytes, name: str) -> str:
    _check(data, len(data), name)
    return _data_address(data)


def _data_address(data: bytes) -> str:
    return f"data:{_kind(data)};base64,{base64.b64encode(data).decode()}"


def _kind(data: bytes) -> str | None:
    head = data[:_LOOKED_AT]
    return next((kind for kind, sign in _KINDS.items() if re.match(sign, head, re.DOTALL)), None)


def _check(data: bytes, size: int, name: str) -> None:
    """Raise ValueError unless it is a picture that servers read. `data` may be its beginning alone."""
    if not data:
        raise ValueError(f"{name} is empty")
    if _kind(data) is None:
        head = data[:_LOOKED_AT]
        for sign, what, remedy in _REFUSED:
            if re.match(sign, head, re.DOTALL):
                raise ValueError(f"{name} is {what}, which few servers read; {remedy}")
        raise ValueError(f"{name} is no image that servers read (PNG, JPEG, GIF or WEBP)")
    if size > MAX_BYTES:
        raise ValueError(
            f"{name} has {size / 1e6:.1f} MB and an image may have {MAX_BYTES // 1_000_000}; make it smaller"
        )


# --- addresses


def _linked(text: str) -> str:
    """An address as it is sent."""
    if text[:5].lower() == "data:":
        return _unpacked(text)
    scheme, _, rest = text.strip().partition("://")
    if scheme.lower() not in ("http", "https"):
        hint = "; give the path alone" if scheme.lower() == "file" else ""
        raise ValueError(f"the address of an image must be http, https or data:, not {scheme[:20]}{hint}")
    url = f"{scheme.lower()}://{rest}"
    try:
        host = urlsplit(url).hostname
    except ValueError:
        host = None
    if not host or re.search(r"[\s\x00-\x1f\x7f]", rest):
        raise ValueError("the address of the image is not a valid http(s) address")
    return url


def _unpacked(text: str) -> str:
    """A `data:` address, its content checked and its type that of the content."""
    head = _DATA.match(text)
    if head is None:
        raise ValueError("a data: address of an image must hold base64, as in data:image/png;base64,...")
    try:
        data = base64.b64decode("".join(text[head.end() :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("the base64 of the image's data: address is damaged") from None
    return _encoded(data, "the image in the data: address")


# --- PIL


def _saved(image: Any) -> bytes:
    buffer = io.BytesIO()
    try:
        has_alpha = image.mode in _ALPHA or "transparency" in getattr(image, "info", {})
        width, height = image.size
        if width * height > _PHOTO_PIXELS and not has_alpha:
            as_rgb = image if image.mode in ("L", "RGB") else image.convert("RGB")
            as_rgb.save(buffer, "JPEG", quality=95)
        else:
            mode = "RGBA" if has_alpha else "RGB"
            (image if image.mode in _PNG_MODES else image.convert(mode)).save(buffer, "PNG")
    except (OSError, ValueError, SystemError) as error:
        raise ValueError(f"the PIL image cannot be saved: {error}") from error
    return buffer.getvalue()
