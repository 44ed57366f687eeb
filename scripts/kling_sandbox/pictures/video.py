"""H.264 in MP4 of a page: one picture for five seconds, above a bar that grows.

A character is one macroblock of raw pixels; all others are predicted from their neighbours, or from the frame before.
"""

import re
import struct

from kling_sandbox.pictures.font import HEIGHT, WIDTH, glyph
from kling_sandbox.pictures.images import BRIGHT, CHROMA, MIDDLE
from kling_sandbox.pictures.page import VIDEO_PIXELS, Page

SIZE = 16
"""Pixels of a macroblock."""
FRAMES, FRAMES_A_SECOND = 50, 10
MAX_CHARACTERS = 100
"""Characters of the prompt: each has 384 bytes."""
DARK = 48

SAMPLE_ENTRY = 78
"""Bytes of the fields that a visual sample entry begins with."""


class Bits:
    """A bit stream, written from its start."""

    def __init__(self) -> None:
        self._bytes, self._bits = bytearray(), list[str]()

    def add(self, bits: str) -> None:
        """Append bits, written as digits."""
        self._bits.append(bits)

    def ue(self, value: int) -> None:
        """Append a number in Exp-Golomb code."""
        text = f"{value + 1:b}"
        self._bits.append("0" * (len(text) - 1) + text)

    def raw(self, data: bytes) -> None:
        """Append bytes at the next byte's border."""
        self._flush("")
        self._bytes += data

    def end(self) -> bytes:
        """The bytes, with the stop bit, where no three of them look like a start code."""
        self._flush("1")
        return re.sub(rb"\0\0(?=[\0-\3])", b"\0\0\3", bytes(self._bytes))

    def _flush(self, stop: str) -> None:
        text = "".join([*self._bits, stop])
        text += "0" * (-len(text) % 8)
        if text:
            self._bytes += int(text, 2).to_bytes(len(text) // 8, "big")
        self._bits.clear()


def mp4(page: Page) -> bytes:
    """An MP4 file of 5 seconds. About 45 kB for a long prompt."""
    width, height = page.size(VIDEO_PIXELS, 8)
    columns, rows = -(-width // SIZE), -(-height // SIZE)
    parameters = _sequence(columns, rows, width, height), b"\x68" + _picture()
    frames = [b"\x65" + _first_frame(page, columns, rows)]
    frames += [b"\x41" + _next_frame(page, number, columns, rows) for number in range(1, FRAMES)]
    return _file([struct.pack(">I", len(frame)) + frame for frame in frames], parameters, width, height)


def _sequence(columns: int, rows: int, width: int, height: int) -> bytes:
    """The sequence parameter set: baseline profile, level 3."""
    bits = Bits()
    for value in (0, 4, 2, 1):  # its id, frame numbers of 8 bits, output in order, one reference frame
        bits.ue(value)
    bits.add("0")
    bits.ue(columns - 1)
    bits.ue(rows - 1)
    bits.add("111")
    for value in (0, (columns * SIZE - width) // 2, 0, (rows * SIZE - height) // 2):  # cropped on the right and below
        bits.ue(value)
    bits.add("0")
    return b"\x67\x42\xc0\x1e" + bits.end()


def _picture() -> bytes:
    """The picture parameter set: CAVLC, and slices may do without the deblocking filter."""
    bits = Bits()
    bits.add("1100" + "111" + "000" + "111" + "100")
    return bits.end()


def _slice(kind: int, number: int) -> Bits:
    """A slice with its header: of the whole frame, without the deblocking filter. `kind`: 7 for I, 5 for P."""
    bits = Bits()
    bits.ue(0)
    bits.ue(kind)
    bits.add(f"1{number:08b}")
    bits.add("100" if kind == 7 else "000")  # the picture's id and two flags; or three flags
    bits.add("1")
    bits.ue(1)
    return bits


def _first_frame(page: Page, columns: int, rows: int) -> bytes:
    characters = _characters(page, columns, rows)
    bits = _slice(7, 0)
    for row in range(rows):
        for column in range(columns):
            if (row, column) in characters or (row, column) == (0, 0):
                bits.ue(25)  # raw pixels
                bits.raw(_block(page, *characters.get((row, column), (" ", DARK))))
                continue
            near = [place in characters or place == (0, 0) for place in ((row, column - 1), (row - 1, column))]
            seen = [raw for raw, inside in zip(near, (column > 0, row > 0), strict=True) if inside]
            # Of one colour, which is the mean of its neighbours' edges; coefficients: none, in the code of its context.
            bits.add("0010011" + ("000011" if any(seen) else "1"))
    return bits.end()


def _characters(page: Page, columns: int, rows: int) -> dict[tuple[int, int], tuple[str, int]]:
    """By row and column of its macroblock, each character that is drawn, and its brightness."""
    text = page.text if len(page.text) <= MAX_CHARACTERS else f"{page.text[: MAX_CHARACTERS - 3]}..."
    shown = Page(text, page.note)
    _, lines, label = shown.lines(columns * WIDTH, (rows - 1) * HEIGHT, (1,))
    above, below = max((rows - 2 - len(lines) - len(label)) // 2, 1), rows - 2 - len(label)
    placed = [(above + number, line, BRIGHT) for number, line in enumerate(lines)]
    placed += [(below + number, line, MIDDLE) for number, line in enumerate(label)]
    return {
        (row, column): (character, brightness)
        for row, line, brightness in placed
        for column, character in enumerate(line[: columns - 2], 1)
        if character != " "
    }


def _block(page: Page, character: str, brightness: int) -> bytes:
    """The pixels of a character's macroblock: its edges have the background's colour, for its neighbours."""
    luma = bytearray([DARK]) * (SIZE * SIZE)
    for y, bits in enumerate(glyph(character) if character != " " else ()):
        for x in range(5):
            if bits >> (4 - x) & 1:
                for row in (2 * y + 1, 2 * y + 2):
                    at = row * SIZE + 2 * x + 3
                    luma[at : at + 2] = bytes([brightness]) * 2
    return bytes(luma) + _chroma(page)


def _chroma(page: Page) -> bytes:
    blue, red = CHROMA[page.colour % len(CHROMA)]
    return bytes([blue]) * 64 + bytes([red]) * 64


def _next_frame(page: Page, number: int, columns: int, rows: int) -> bytes:
    """The frame before, with a longer bar in the last row."""
    begin, end = ((each * columns) // (FRAMES - 1) for each in (number - 1, number))
    bits = _slice(5, number)
    bits.ue((rows - 1) * columns + begin if begin < end else rows * columns)  # macroblocks that stay as they are
    for column in range(begin, end):
        if column == 0:
            bits.ue(30)
            bits.raw(bytes([MIDDLE]) * (SIZE * SIZE) + _chroma(page))
        else:
            # As its left neighbour's edge; the neighbour is raw in the same frame only if that is its first.
            bits.ue(7)
            bits.add("010" + "1" + ("000011" if column == 1 and begin == 0 else "1"))
        bits.ue(columns - 1 - column if column == end - 1 else 0)
    return bits.end()


def _file(samples: list[bytes], parameters: tuple[bytes, bytes], width: int, height: int) -> bytes:
    """The boxes of the file, those of the index first."""
    brand = _box(b"ftyp", b"isom\0\0\2\0isomiso2avc1mp41")
    for offset in (0, len(brand) + len(_index(samples, parameters, width, height, 0)) + 8):
        index = _index(samples, parameters, width, height, offset)
    return brand + index + _box(b"mdat", b"".join(samples))


def _index(samples: list[bytes], parameters: tuple[bytes, bytes], width: int, height: int, offset: int) -> bytes:
    sequence, picture = parameters
    duration, matrix = FRAMES, struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    codec = b"\1" + sequence[1:4] + b"\xff\xe1" + struct.pack(">H", len(sequence)) + sequence
    codec += b"\1" + struct.pack(">H", len(picture)) + picture
    entry = struct.pack(">6xH16xHHIIIH32xHh", 1, width, height, 0x480000, 0x480000, 0, 1, 24, -1)
    assert len(entry) == SAMPLE_ENTRY
    description = _box(b"avc1", entry + _box(b"avcC", codec))
    sizes = struct.pack(f">{len(samples)}I", *map(len, samples))
    tables = (
        _full(b"stsd", struct.pack(">I", 1) + description),
        _full(b"stts", struct.pack(">III", 1, len(samples), 1)),
        _full(b"stss", struct.pack(">II", 1, 1)),
        _full(b"stsc", struct.pack(">IIII", 1, 1, len(samples), 1)),
        _full(b"stsz", struct.pack(">II", 0, len(samples)) + sizes),
        _full(b"stco", struct.pack(">II", 1, offset)),
    )
    reference = _full(b"dref", struct.pack(">I", 1) + _full(b"url ", b"", 1))
    media = (
        _full(b"mdhd", struct.pack(">IIIIHH", 0, 0, FRAMES_A_SECOND, duration, 0x55C4, 0)),
        _full(b"hdlr", struct.pack(">I4s12x", 0, b"vide") + b"sandbox\0"),
        _box(b"minf", _full(b"vmhd", bytes(8), 1) + _box(b"dinf", reference) + _box(b"stbl", b"".join(tables))),
    )
    track = struct.pack(">IIIII8xhhhH", 0, 0, 1, 0, duration, 0, 0, 0, 0) + matrix
    track += struct.pack(">II", width << 16, height << 16)
    movie = struct.pack(">IIIIIH10x", 0, 0, FRAMES_A_SECOND, duration, 0x10000, 0x100) + matrix + bytes(24)
    movie += struct.pack(">I", 2)
    return _box(
        b"moov",
        _full(b"mvhd", movie) + _box(b"trak", _full(b"tkhd", track, 3) + _box(b"mdia", b"".join(media))),
    )


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content) + 8) + kind + content


def _full(kind: bytes, content: bytes, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", flags) + content)
