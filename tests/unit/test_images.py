from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maxwell.images import MAX_BYTES, check_image, image_part, is_path
from maxwell.requirements import prompt_messages
from maxwell.tokens import IMAGE_TOKENS, measure, upper_bound

PNG = b"\x89PNG\r\n\x1a\n" + b"rest"
JPEG = b"\xff\xd8\xff\xe0" + b"rest"
GIF = b"GIF89a" + b"rest"
WEBP = b"RIFF\n\x00\x00\x00WEBPVP8 rest"
KINDS = {"image/png": PNG, "image/jpeg": JPEG, "image/gif": GIF, "image/webp": WEBP}

Form = Callable[[bytes, Path], Any]


def as_bytes(data: bytes, directory: Path) -> Any:
    return data


def as_buffer(data: bytes, directory: Path) -> Any:
    return bytearray(data)


def as_path(data: bytes, directory: Path) -> Any:
    path = directory / "picture.bin"  # its name says nothing
    path.write_bytes(data)
    return path


def as_text_path(data: bytes, directory: Path) -> Any:
    return str(as_path(data, directory))


def as_data_address(data: bytes, directory: Path) -> Any:
    return "data:application/octet-stream;base64," + base64.b64encode(data).decode()


FORMS = [as_bytes, as_buffer, as_path, as_text_path, as_data_address]


def content(part: dict[str, Any]) -> tuple[str, bytes]:
    """The kind and the bytes of a part."""
    assert part["type"] == "image_url"
    head, _, text = part["image_url"]["url"].partition(";base64,")
    return head.removeprefix("data:"), base64.b64decode(text, validate=True)


# --- what is taken


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_form_of_a_picture_becomes_one_part(kind: str, form: Form, tmp_path: Path) -> None:
    assert content(image_part(form(KINDS[kind], tmp_path))) == (kind, KINDS[kind])


def test_the_kind_is_what_is_in_it_and_not_what_its_name_says(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(JPEG)
    assert content(image_part(path))[0] == "image/jpeg"
    assert content(image_part("data:image/png;base64," + base64.b64encode(GIF).decode()))[0] == "image/gif"


def test_base64_over_several_lines_is_read(tmp_path: Path) -> None:
    text = base64.encodebytes(PNG + bytes(200)).decode()
    assert content(image_part(f"DATA:image/png;base64,{text}"))[1] == PNG + bytes(200)


@pytest.mark.parametrize(
    ("address", "sent"),
    [
        ("https://example.org/cat.png?sig=a%20b", "https://example.org/cat.png?sig=a%20b"),
        ("HTTP://192.168.1.5:8000/x", "http://192.168.1.5:8000/x"),
        (" https://[::1]/x ", "https://[::1]/x"),
    ],
)
def test_an_address_is_sent_as_it_is(address: str, sent: str) -> None:
    assert image_part(address) == {"type": "image_url", "image_url": {"url": sent}}


def test_a_content_part_is_passed_on_whole() -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/cat.png", "detail": "low"}}
    assert image_part(part) == part


def test_paths_of_every_kind_are_told_from_addresses(tmp_path: Path) -> None:
    assert is_path("cat.png")
    assert is_path("C:\\cat.png")
    assert is_path("a:b.png")
    assert is_path(Path("cat.png"))
    assert not is_path("https://example.org/cat.png")
    assert not is_path("data:image/png;base64,AAAA")
    assert not is_path(b"cat.png")
    assert not is_path({"type": "image_url"})


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.binary(max_size=300))
def test_no_byte_is_changed(kind: str, rest: bytes) -> None:
    data = KINDS[kind] + rest
    part = image_part(data)
    assert content(part) == (kind, data)
    assert image_part(part["image_url"]["url"]) == part


# --- what is refused

REFUSED = {
    "a HEIC image": b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00",
    "an AVIF image": b"\x00\x00\x00\x1cftypavif\x00\x00\x00\x00",
    "a video": b"\x00\x00\x00\x20ftypisom\x00\x00\x02\x00",
    "a TIFF image": b"II*\x00\x08\x00\x00\x00",
    "a BMP image": b"BM\x9a\x00\x00\x00\x00\x00\x00\x00",
    "a JPEG XL image": b"\xff\x0a\x00",
    "an icon": b"\x00\x00\x01\x00\x01\x00",
    "a PDF document": b"%PDF-1.7\n",
    "an SVG drawing": b'<?xml version="1.0"?>\n<!-- made by hand -->\n<svg xmlns="">',
    "a web page": b"\n<!DOCTYPE HTML><title>404</title>",
    "no image that servers read (PNG, JPEG, GIF or WEBP)": b"BMW and other cars",
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_is_named(what: str, form: Form, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        image_part(form(REFUSED[what], tmp_path))
    assert f" is {what}" in str(caught.value)
    assert base64.b64encode(REFUSED[what]).decode()[:12] not in str(caught.value)


def test_refusals_say_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^the image is a HEIC image.*; convert it to PNG or JPEG$"):
        image_part(REFUSED["a HEIC image"])
    with pytest.raises(ValueError, match=r"make PNG images of its pages$"):
        image_part(REFUSED["a PDF document"])


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_picture_is_refused(form: Form, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r" is empty$"):
        image_part(form(b"", tmp_path))


@pytest.mark.parametrize("form", [as_bytes, as_path, as_data_address])
def test_a_picture_has_a_largest_size(form: Form, tmp_path: Path) -> None:
    whole = PNG + bytes(MAX_BYTES - len(PNG))
    assert len(content(image_part(form(whole, tmp_path)))[1]) == MAX_BYTES
    with pytest.raises(ValueError, match=r" has 2\d\.\d MB and an image may have 20; make it smaller$"):
        image_part(form(whole + bytes(600_000), tmp_path))


def test_a_file_is_not_read_beyond_the_largest_size(tmp_path: Path) -> None:
    path = tmp_path / "disk.png"
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(50_000_000_000)  # sparse: reading it whole would never end
    with pytest.raises(ValueError, match=r"disk\.png has 50000\.0 MB"):
        image_part(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes there")
@pytest.mark.parametrize("size", [1000, MAX_BYTES + 1])
def test_a_pipe_is_read_to_its_end_and_not_beyond_the_largest_size(tmp_path: Path, size: int) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    whole = PNG + bytes(size - len(PNG))
    writer = threading.Thread(target=pipe.write_bytes, args=(whole,))
    writer.start()
    try:
        if size > MAX_BYTES:
            with pytest.raises(ValueError, match="make it smaller"):
                image_part(pipe)
        else:
            assert content(image_part(pipe))[1] == whole
    finally:
        writer.join(timeout=30)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("ftp://example.org/cat.png", "must be http, https or data:, not ftp"),
        ("file:///home/me/cat.png", "not file; give the path alone"),
        ("https://", "not a valid http"),
        ("https://exa mple.org/cat.png", "not a valid http"),
        ("https://[::1/cat.png", "not a valid http"),
        ("data:image/png,%89PNG", "must hold base64"),
        ("data:image/png;base64,iVBOR!!!", "is damaged"),
        ("data:image/png;base64,iVBOR", "is damaged"),
        ("data:image/png;base64,iVBORw0KGgo!=", "is damaged"),
        ("", "the path of the image is empty"),
        ("  ", "the path of the image is empty"),
    ],
)
def test_a_bad_address_is_refused(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        image_part(address)


def test_the_secrets_of_an_address_are_not_told() -> None:
    with pytest.raises(ValueError, match="address") as caught:
        image_part("https://me:secret@exa mple.org/?sig=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("size", [70, 300, 6_000])
def test_bare_base64_is_refused_without_quoting_it(size: int) -> None:
    text = base64.b64encode(PNG + bytes(range(256)) * 20).decode()[:size]
    with pytest.raises(ValueError, match="give base64 as bytes or in a data: address") as caught:
        image_part(text)
    assert text[:16] not in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_oserror_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        image_part(tmp_path / "nowhere.png")
    with pytest.raises(OSError, match=tmp_path.name):  # a directory
        image_part(str(tmp_path))
    with pytest.raises(ValueError, match="is no path"):
        image_part("cat\0.png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_an_oserror(tmp_path: Path) -> None:
    path = tmp_path / "mine.png"
    path.write_bytes(PNG)
    path.chmod(0)
    with pytest.raises(PermissionError):
        image_part(path)


@pytest.mark.parametrize("image", [None, 7, ["cat.png"], object()])
def test_anything_else_is_a_type_error(image: Any) -> None:
    with pytest.raises(TypeError, match=f"an image must be a path, .*, not {type(image).__name__}$"):
        image_part(image)


@pytest.mark.parametrize(
    "part",
    [
        {},
        {"type": "text", "text": "hi"},
        {"type": "image_url", "image_url": "https://example.org/cat.png"},
        {"type": "image_url", "image_url": {"url": 7}},
    ],
)
def test_another_content_part_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a content part for an image must look like"):
        image_part(part)


# --- checking without reading all


@pytest.mark.parametrize("what", [*REFUSED, "fine"])
def test_a_check_refuses_what_reading_would(what: str, tmp_path: Path) -> None:
    image = as_path(REFUSED.get(what, PNG), tmp_path)
    if what == "fine":
        check_image(image)
        return
    with pytest.raises(ValueError, match="is") as checked:
        check_image(image)
    with pytest.raises(ValueError, match="is") as read:
        image_part(image)
    assert str(checked.value) == str(read.value)


def test_a_check_sees_size_emptiness_and_absence(tmp_path: Path) -> None:
    path = tmp_path / "big.png"
    with path.open("wb") as file:
        file.write(PNG)
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="make it smaller"):
        check_image(path)
    with pytest.raises(ValueError, match="is empty"):
        check_image(as_path(b"", tmp_path))
    with pytest.raises(FileNotFoundError):
        check_image("nowhere.png")
    with pytest.raises(ValueError, match="not ftp"):
        check_image("ftp://example.org")


# --- PIL


def opened(part: dict[str, Any]) -> Image.Image:
    return Image.open(io.BytesIO(content(part)[1]))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I;16"]
)
def test_pil_images_of_every_mode_are_sent_as_png(mode: str) -> None:
    part = image_part(Image.new(mode, (5, 3)))
    assert content(part)[0] == "image/png"
    assert opened(part).size == (5, 3)


def test_the_pixels_of_a_pil_image_are_sent_as_they_are() -> None:
    image = Image.frombytes("RGBA", (4, 4), bytes(range(64)))
    assert opened(image_part(image)).tobytes() == image.tobytes()


def test_a_large_pil_photo_is_sent_as_jpeg_unless_it_is_transparent() -> None:
    size = (2001, 2000)
    assert content(image_part(Image.new("RGB", size)))[0] == "image/jpeg"
    assert content(image_part(Image.new("CMYK", size)))[0] == "image/jpeg"
    assert content(image_part(Image.new("LA", size)))[0] == "image/png"
    assert content(image_part(Image.new("RGB", (2000, 2000))))[0] == "image/png"


def test_a_pil_image_that_cannot_be_saved_is_one_clear_error() -> None:
    whole = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(whole, "PNG")
    broken = Image.open(io.BytesIO(whole.getvalue()[:300]))
    for image in (broken, Image.new("RGB", (0, 0))):
        with pytest.raises(ValueError, match=r"^the PIL image cannot be saved: "):
            image_part(image)


def test_pil_is_not_imported_for_those_who_do_not_use_it() -> None:
    code = (
        "import sys; from maxwell.images import image_part; "
        "image_part(b'\\x89PNG\\r\\n\\x1a\\n'); print('PIL' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    assert out == b"False\n"


# --- what it costs


def test_two_megabytes_cost_what_a_picture_costs() -> None:
    [message] = prompt_messages("What is this?", None, [PNG + bytes(2_000_000)])
    assert len(message["content"][0]["image_url"]["url"]) > 2_600_000
    assert measure([message]).estimate() == IMAGE_TOKENS + 4
    assert upper_bound([message]) - upper_bound([{**message, "content": "What is this?"}]) == IMAGE_TOKENS


def test_pictures_come_before_the_text() -> None:
    messages = prompt_messages("What is this?", "Be brief.", [PNG, "https://example.org/cat.png"])
    assert [message["role"] for message in messages] == ["system", "user"]
    assert [part["type"] for part in messages[1]["content"]] == ["image_url", "image_url", "text"]
