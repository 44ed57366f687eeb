"""Small real result files: every copy has a stamp inside, so that no two are equal and all are valid."""

import struct
import zlib
from pathlib import Path

MEDIA = Path(__file__).parent / "media"
VARIANTS = {"png": 3, "jpg": 3, "mp4": 3, "mp3": 1, "wav": 1, "avif": 1, "mov": 1, "m4a": 1, "flac": 1}
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


def render(extension: str, variant: int, stamp: str, size: int = 0) -> bytes:
    """A file with the stamp in a comment that pads the file to at least `size` bytes."""
    plain = (MEDIA / f"{variant % VARIANTS[extension]}.{extension}").read_bytes()
    comment = stamp.encode().ljust(size - len(plain), b" ")
    return STAMPS[extension](plain, comment)


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
