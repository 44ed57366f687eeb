"""PNG and JPEG pictures of a page."""

import struct
import zlib
from collections.abc import Iterator

from kling_sandbox.pictures.font import HEIGHT, glyph
from kling_sandbox.pictures.page import IMAGE_PIXELS, Page

COLOURS = ((24, 34, 68), (20, 56, 52), (62, 30, 60), (58, 42, 22), (36, 36, 44))
"""Backgrounds: red, green and blue at the top; they become lighter towards the bottom."""
SHADES = 16
TEXT, LABEL = SHADES, SHADES + 1
"""Their numbers in the palette, after the shades of the background."""
LIGHT, AMBER = (245, 245, 240), (255, 191, 64)

Row = tuple[bytes, bool]
"""A row of dots of the page, one byte each (1 for a dot of a character), and whether it is of the label."""


def rows_of(width: int, height: int, lines: list[str], label: list[str]) -> Iterator[Row]:
    """The rows of a page of so many dots, from the top: the text is in the middle, the label at the bottom."""
    empty, rest = (bytes(width), False), max(height - HEIGHT * (len(lines) + len(label) + 1), 0)
    yield from (empty for _ in range(rest // 2))
    for line in lines:
        yield from ((row, False) for row in _text_rows(line, width))
    yield from (empty for _ in range(rest - rest // 2))
    for line in label:
        yield from ((row, True) for row in _text_rows(line, width))
    yield from (empty for _ in range(HEIGHT))


def _text_rows(line: str, width: int) -> Iterator[bytes]:
    glyphs = [glyph(character) for character in f" {line}"]
    for number in range(HEIGHT):
        values = [each[number] if number < len(each) else 0 for each in glyphs]
        yield b"".join(map(DOTS.__getitem__, values))[:width].ljust(width, b"\0")


DOTS = [bytes(value >> shift & 1 for shift in (4, 3, 2, 1, 0)) + b"\0" for value in range(32)]
"""Five bits as bytes, and the gap behind them."""


def png(page: Page) -> bytes:
    """A PNG file with a palette. About 5 kB."""
    width, height = page.size(IMAGE_PIXELS, 16)
    scale, *lines = page.lines(width, height, (9, 8, 7, 6, 5, 4, 3, 2))
    rows, data, y = rows_of(width // scale, height // scale, *lines), bytearray(), 0
    wide = {value: bytes([value]) * scale for value in (0, 1)}
    for dots, is_label in rows:
        row = b"".join(map(wide.__getitem__, dots)) if any(dots) else bytes(width)
        row = row.ljust(width, b"\0")
        for _ in range(scale):
            data += b"\0" + row.translate(_colours(y * SHADES // height, LABEL if is_label else TEXT))
            y += 1
    data += (b"\0" + bytes([SHADES - 1]) * width) * (height - y)
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette = bytes(value for colour in _palette(page.colour) for value in colour)
    chunks = ((b"IHDR", header), (b"PLTE", palette), (b"IDAT", zlib.compress(data, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*each) for each in chunks)


def _colours(background: int, foreground: int) -> bytes:
    """The table of `bytes.translate` from dots to numbers in the palette."""
    return bytes([background, foreground]) + bytes(254)


def _palette(number: int) -> list[tuple[int, ...]]:
    top = COLOURS[number % len(COLOURS)]
    return [*(tuple(value + 3 * shade for value in top) for shade in range(SHADES)), LIGHT, AMBER]


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


BLOCK = 8
"""Pixels of a JPEG's block, each of which has one brightness here: a dot, or a part of one."""
DC_CODES = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110", "1111110")
"""By the number of a difference's bits: the codes of the usual table."""
DC_LENGTHS = bytes([0, 1, 5, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0])
DARK, BRIGHT, MIDDLE = 48, 240, 176
"""The brightness of the background, of the text and of the label."""
CHROMA = ((140, 120), (132, 116), (136, 140), (116, 136), (130, 127))
"""Blue and red, for each of COLOURS."""


def jpeg(page: Page) -> bytes:
    """A baseline JPEG file whose blocks are of one colour each. About 20 kB."""
    width, height = page.size(IMAGE_PIXELS, 16)
    columns, count = width // BLOCK, height // BLOCK
    scale, *lines = page.lines(columns, count, (2, 1))
    blocks: list[bytes] = []
    for dots, is_label in rows_of(columns // scale, count // scale, *lines):
        values = dots.translate(bytes([DARK, MIDDLE if is_label else BRIGHT]) + bytes(254))
        row = b"".join(bytes([value]) * scale for value in values) if scale > 1 else values
        blocks += [row.ljust(columns, bytes([DARK]))] * scale
    blocks += [bytes([DARK]) * columns] * (count - len(blocks))
    chroma = CHROMA[page.colour % len(CHROMA)]
    first, coded = True, dict[bytes, str]()
    bits, last = [], 128
    for row in blocks:
        key = bytes([last]) + row
        if key not in coded:
            coded[key] = "".join(
                f"{_difference(value - before)}0000000" for before, value in zip(key, row, strict=False)
            )
        text = coded[key]
        if first:  # the block that sets both chroma values
            start = _difference(row[0] - 128)
            chosen = "".join(f"{_difference(value - 128)}0" for value in chroma)
            text, first = f"{start}0{chosen}{text[len(start) + 7 :]}", False
        bits.append(text)
        last = row[-1]
    stream = "".join(bits)
    stream += "1" * (-len(stream) % 8)
    data = int(stream, 2).to_bytes(len(stream) // 8, "big").replace(b"\xff", b"\xff\0")
    components = b"".join(bytes([number, 0x11, 0]) for number in (1, 2, 3))
    segments = (
        (b"\xe0", b"JFIF\0\1\1\0\0\1\0\1\0\0"),
        (b"\xdb", b"\0" + bytes([8] * 64)),  # a block's mean value is its first coefficient, times 8
        (b"\xc0", struct.pack(">BHHB", 8, height, width, 3) + components),
        (b"\xc4", b"\0" + DC_LENGTHS + bytes(range(sum(DC_LENGTHS)))),
        (b"\xc4", b"\x10" + bytes([1, *[0] * 15]) + b"\0"),  # the only other code: nothing follows in the block
        (b"\xda", b"\3\1\0\2\0\3\0\0\x3f\0"),
    )
    head = b"".join(b"\xff" + kind + struct.pack(">H", len(body) + 2) + body for kind, body in segments)
    return b"\xff\xd8" + head + data + b"\xff\xd9"


def _difference(value: int) -> str:
    """The code of a brightness that differs by so much from that of the block before."""
    size = abs(value).bit_length()
    return DC_CODES[size] + (f"{value if value > 0 else value + (1 << size) - 1:0{size}b}" if size else "")
