"""Small real result files, each copy stamped so that no two are alike and all still open."""

import struct
import zlib
from pathlib import Path

MEDIA = Path(__file__).parent / "media"
VARIANTS = {"png": 3, "jpg": 3, "mp4": 3, "mp3": 1, "wav": 1}
TYPES = {
    "png": "image/png",
    "jpg": "image/jpeg",
    "mp4": "video/mp4",
    "mp3": "audio/mpeg",
    "wav": "audio/wav",
}


def content(ending: str, variant: int, stamp: str, size: int = 0) -> bytes:
    """Read one variant, with a comment inside that brings it to at least `size` bytes."""
    plain = (MEDIA / f"{variant % VARIANTS[ending]}.{ending}").read_bytes()
    comment = stamp.encode().ljust(size - len(plain), b" ")
    return STAMPS[ending](plain, comment)


def png(plain: bytes, comment: bytes) -> bytes:
    chunk = b"tEXtComment\0" + comment
    end = len(plain) - 12  # the empty IEND chunk comes last
    return plain[:end] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + plain[end:]


def jpg(plain: bytes, comment: bytes) -> bytes:
    parts = [comment[at : at + 65000] for at in range(0, len(comment), 65000)]
    segments = b"".join(b"\xff\xfe" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return plain[:2] + segments + plain[2:]


def mp4(plain: bytes, comment: bytes) -> bytes:
    return plain + struct.pack(">I", len(comment) + 8) + b"free" + comment


def mp3(plain: bytes, comment: bytes) -> bytes:
    frame = b"PRIV" + struct.pack(">IH", len(comment) + 8, 0) + b"sandbox\0" + comment
    sizes = bytes(len(frame) >> shift & 127 for shift in (21, 14, 7, 0))
    return b"ID3\3\0\0" + sizes + frame + plain


def wav(plain: bytes, comment: bytes) -> bytes:
    comment += b" " * (len(comment) % 2)
    longer = plain[8:] + b"junk" + struct.pack("<I", len(comment)) + comment
    return b"RIFF" + struct.pack("<I", len(longer)) + longer


STAMPS = {"png": png, "jpg": jpg, "mp4": mp4, "mp3": mp3, "wav": wav}
