"""Images for tests: real ones, and files that harm decoders."""

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encoded(image: Image.Image, decoder: str, **options: Any) -> bytes:
    """An image in a format, by Pillow's name."""
    file = io.BytesIO()
    image.save(file, decoder, **options)
    return file.getvalue()


def decoded(content: bytes) -> Image.Image:
    """An image of which all pixels were read."""
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def chunk(name: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(width: int, height: int, *chunks: bytes) -> bytes:
    """A PNG that says it has this size, in grey; `chunks` are between its head and its end."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + b"".join(chunks) + chunk(b"IEND", b"")


def bomb(width: int, height: int) -> bytes:
    """A PNG whose pixels, all black, are a thousandth of their size."""
    compressor = zlib.compressobj(9)
    row = bytes(width + 1)
    rows = b"".join(compressor.compress(row) for _ in range(height)) + compressor.flush()
    return png(width, height, chunk(b"IDAT", rows))


def gif(frames: int) -> bytes:
    """A GIF of many frames of one pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff"
    frame = b"\x21\xf9\x04\0\x01\0\0\0" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    return head + frame * frames + b"\x3b"
