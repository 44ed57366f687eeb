"""Encode an image parameter: a URL, or base64 of a file that meets Kling's limits.

Nothing is sent from here. A ValueError's message follows the parameter's name.
"""

import base64
import binascii
import io
import re
from pathlib import Path

import imagesize  # type: ignore[import-untyped]  # it ships no types

from kling_callback.jobs.inputs import InputFile

MEGABYTE = 1024 * 1024
MAX_BYTES = 10 * MEGABYTE
"""Bytes of an image in a legacy job."""
MAX_BYTES_NEW = 50 * MEGABYTE
"""Bytes of an image in a job of the new standard."""

MIN_SIDE_PIXELS = 300

MAX_ASPECT_RATIO = 2.5
"""The longer side divided by the shorter one."""

MAX_NAME_CHARS = 4096
"""Characters of a file name: a longer string is base64."""
MAX_SHOWN_CHARS = 200
"""Characters of a text that is no image, in the message about it."""
MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
DATA_URL = re.compile(r"data:[^,]*,", re.ASCII)


def encode_image(image: Path | str | InputFile, max_bytes: int = MAX_BYTES) -> str:
    """The value to send as an image: the URL unchanged, or bare base64 of a checked JPEG or PNG. Blocks.

    A str is a URL (`http(s)://`), a data URL, a file name, or bare base64, tried in this order. Raises ValueError.
    """
    if isinstance(image, InputFile):
        return _encoded(image.image(), max_bytes)
    if isinstance(image, Path):
        return _encoded(_file(image, max_bytes), max_bytes)
    if is_url(image):
        return check_url(image)
    if prefix := DATA_URL.match(image):
        return _encoded(_data_url(image, prefix.group(), max_bytes), max_bytes)
    if _is_file(image):
        return _encoded(_file(Path(image), max_bytes), max_bytes)
    shown = f"{image!r} " if len(image) <= MAX_SHOWN_CHARS else ""
    content = _decoded(image, f"{shown}is neither a URL, nor an existing file, nor base64.", max_bytes)
    return _encoded(content, max_bytes)


def decode_image(text: str, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of an image in a data URL or in base64. No file is looked for. Raises ValueError."""
    if prefix := DATA_URL.match(text):
        return _data_url(text, prefix.group(), max_bytes)
    return _decoded(text, "is neither a URL nor base64.", max_bytes)


def check_url(url: str) -> str:
    """Return a URL unchanged. Raises ValueError for one with blanks or without a host."""
    if not re.fullmatch(r"[^\s/]+/?[^\s]*", url.partition("://")[2]):
        raise ValueError("is a URL with blanks, or without a host.")
    return url


def is_url(text: str) -> bool:
    """Whether a text is to be a web address."""
    return re.match(r"https?://", text, re.IGNORECASE) is not None


def _is_file(name: str) -> bool:
    """Whether a text names an existing file."""
    try:
        return len(name) < MAX_NAME_CHARS and Path(name).is_file()
    except (OSError, ValueError):
        return False


def _file(path: Path, max_bytes: int) -> bytes:
    try:
        if not path.is_file():
            raise ValueError(f"there is no file {str(path)!r}.")
        check_size(path.stat().st_size, max_bytes)
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _data_url(image: str, prefix: str, max_bytes: int) -> bytes:
    if not prefix.endswith(";base64,"):
        raise ValueError("is a data URL without `;base64`.")
    return _decoded(image[len(prefix) :], "is a data URL whose base64 does not decode.", max_bytes)


def _decoded(text: str, problem: str, max_bytes: int) -> bytes:
    check_size(len(text) * 3 // 5, max_bytes)  # four characters are three bytes; some may be line ends
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(problem) from None


def _encoded(content: bytes, max_bytes: int) -> str:
    check_size(len(content), max_bytes)
    if not content.startswith(MAGIC):
        raise ValueError("is neither a JPEG nor a PNG.")
    width, height = imagesize.get(io.BytesIO(content), exif_rotation=False)
    if width <= 0 or height <= 0:
        raise ValueError("is damaged: its dimensions cannot be read.")
    if min(width, height) < MIN_SIDE_PIXELS:
        raise ValueError(f"is {width} x {height} pixels; both sides need at least {MIN_SIDE_PIXELS}.")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(f"is {width} x {height} pixels; at most 1:{MAX_ASPECT_RATIO} or {MAX_ASPECT_RATIO}:1.")
    return base64.b64encode(content).decode()


def check_size(size: int, max_bytes: int) -> None:
    """Raise ValueError for an image of too many bytes."""
    if size > max_bytes:
        raise ValueError(f"has {size:,} bytes; at most {max_bytes:,} ({max_bytes // MEGABYTE} MB), or send a URL.")
