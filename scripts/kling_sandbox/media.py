"""Small real result files: every copy has a stamp inside, so that no two are equal and all are valid."""

import struct
import zlib
from functools import lru_cache
from pathlib import Path

from kling_sandbox.pictures.images import jpeg, png
from kling_sandbox.pictures.page import Page
from kling_sandbox.pictures.video import mp4

MEDIA = Path(__file__).parent / "media"
TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "mp4": "video/mp4",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
    "avif": "image/avif",
    "mov": "video/quicktime",
    "m4a": "audio/mp4",
    "flac": "audio/flac",
}


def render(extension: str, page: Page, stamp: str, size: int = 0) -> bytes:
    """A file with the stamp in a comment that pads the file to at least `size` bytes.

    It shows the page, or is one that was recorded: sounds, and what the switch `other-formats` asks for.
    """
    plain = _drawn(extension, page) if extension in DRAWN else (MEDIA / f"0.{extension}").read_bytes()
    comment = stamp.encode().ljust(size - len(plain), b" ")
    return STAMPS[extension](plain, comment)


DRAWN = {"png": png, "jpg": jpeg, "mp4": mp4}


@lru_cache(maxsize=64)  # 3 MB; a file that is resumed, or asked for in ranges, is drawn once
def _drawn(extension: str, page: Page) -> bytes:
    return DRAWN[extension](page)


def _png(plain: bytes, comment: bytes) -> bytes:
    chunk = b"tEXtComment\0" + comment
    end = len(plain) - 12  # the empty IEND chunk comes last
    return plain[:end] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[end:]


def _jpg(plain: bytes, comment: bytes) -> bytes:
    parts = [comment[at : at + 65000] for at in range(0, len(comment), 65000)]
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return plain[:2] + segments + plain[2:]


def _box(plain: bytes, comment: bytes) -> bytes:
    return plain + struct.pack(">I", len(comment) + 8) + b"free" + comment


def _mp3(plain: bytes, comment: bytes) -> bytes:
    frame = b"PRIV" + struct.pack(">IH", len(comment) + 8, 0) + b"sandbox\0" + comment
    sizes = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + sizes + frame + plain


def _wav(plain: bytes, comment: bytes) -> bytes:
    comment += b" " * (len(comment) % 2)
    longer = plain[8:] + b"junk" + struct.pack("<I", len(comment)) + comment
    return b"RIFF" + struct.pack("<I", len(longer)) + longer


def _flac(plain: bytes, comment: bytes) -> bytes:
    block = b"sbox" + comment
    first = 42  # the mark, and the block that must be the first one
    return plain[:first] + b"\2" + len(block).to_bytes(3, "big") + block + plain[first:]


BOXES = ("mp4", "mov", "m4a", "avif")
"""The formats that consist of ISO's boxes."""

STAMPS = {"png": _png, "jpg": _jpg, "mp3": _mp3, "wav": _wav, "flac": _flac, **dict.fromkeys(BOXES, _box)}
