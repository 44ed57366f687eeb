"""Detect a file's media type from its first bytes, and whether the file is complete.

Signatures: PNG 5.2, JPEG B.1.1.3, RIFF/WEBP, GIF89a, ISO 14496-12 (`ftyp`), QuickTime, HEIF (ISO 23008-12), Matroska,
Ogg, FLAC, MPEG audio, ADTS, RIFF/WAVE. No decoder reads the bytes, because they come from outside.
"""

import codecs
import re
from pathlib import Path

from kling_callback.protocol.media_types import MEDIA_KINDS

HEAD_BYTES = 512
"""Bytes at the start of a file that `sniff` needs."""

UNKNOWN_TYPE = "application/octet-stream"

INLINE_TYPES = frozenset(
    (
        *(f"image/{name}" for name in ("png", "jpeg", "webp", "gif", "avif", "heic", "heif", "jxl", "bmp", "tiff")),
        *(f"video/{name}" for name in ("mp4", "quicktime", "webm", "x-matroska", "ogg")),
        *(f"audio/{name}" for name in ("mpeg", "wav", "x-wav", "mp4", "aac", "ogg", "flac", "webm", "aiff", "amr")),
    )
)
"""The media types that a browser may show. None of them can hold a script, as SVG, HTML, XML and PDF can."""

MAX_BOXES = 10_000
"""Top-level boxes of an MP4 that are read: a file of empty boxes would take hours."""


def sniff(head: bytes, kind: str = "") -> str | None:
    """The media type of a file by its first HEAD_BYTES, or None for no known type. Each is in `media_types`.

    `kind`: what the file is said to be, for containers that hold sound as well as pictures.
    """
    for pattern, media_type in SIGNATURES:
        if pattern.match(head):
            return _as_kind(media_type, kind)
    return _as_kind(_sniff_boxes(head), kind)


SIGNATURES = tuple(
    (re.compile(pattern, re.DOTALL), media_type)
    for pattern, media_type in (
        (rb"\x89PNG\r\n\x1a\n", "image/png"),
        (rb"\xff\xd8\xff", "image/jpeg"),
        (rb"GIF8[79]a", "image/gif"),
        (rb"RIFF.{4}WEBP", "image/webp"),
        (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "image/jxl"),
        (rb"BM.{4}\0\0\0\0", "image/bmp"),
        (rb"II\*\0|MM\0\*", "image/tiff"),
        (rb"\x1aE\xdf\xa3(?=.{0,64}matroska)", "video/x-matroska"),
        (rb"\x1aE\xdf\xa3", "video/webm"),
        (rb"OggS(?=.{24,64}(?:\x80theora|BBCD\0))", "video/ogg"),
        (rb"OggS", "audio/ogg"),
        (rb"fLaC", "audio/flac"),
        (rb"(?:RIFF|RF64).{4}WAVE", "audio/wav"),
        (rb"FORM.{4}AIF[FC]", "audio/aiff"),
        (rb"#!AMR", "audio/amr"),
        (rb"\xff[\xf0\xf1\xf8\xf9]|ADIF", "audio/aac"),  # an ADTS frame, with or without a checksum
        (rb"ID3|\xff[\xe2-\xe5\xf2-\xf5\xfa-\xfd]", "audio/mpeg"),  # a frame of layer 2 or 3, version 1, 2 or 2.5
    )
)

BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "image/avif"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "image/heic"),
    **dict.fromkeys((b"mif1", b"msf1", b"mif2"), "image/heif"),
    **dict.fromkeys((b"M4A ", b"M4B ", b"M4P ", b"F4A ", b"F4B "), "audio/mp4"),
    b"qt  ": "video/quicktime",
}
"""Media types by the brand of an ISO file; any other brand is a video's."""
QUICKTIME_BOXES = (b"wide", b"mdat", b"moov", b"free", b"skip", b"pnot")
"""The boxes with which a file without a brand begins."""


def _sniff_boxes(head: bytes) -> str | None:
    """The media type of a file of boxes: ISO media files begin with their brand, or with boxes to skip."""
    at, found = 0, None
    while len(name := head[at + 4 : at + 8]) == 4:
        size = int.from_bytes(head[at : at + 4])
        if name == b"ftyp":
            return _brand(head[at : at + max(size, 16)])
        if name not in QUICKTIME_BOXES or 1 < size < 8:
            return found
        found = "video/quicktime"
        if size < 8:
            return found
        at += size
    return found


def _brand(box: bytes) -> str:
    """The media type by a file's own brand. A picture may have a general one: it is among the compatible ones."""
    brand, compatible = box[8:12], [box[at : at + 4] for at in range(16, len(box) - 3, 4)]
    if BRANDS.get(brand) == "image/heif":
        return next(
            (BRANDS[each] for each in compatible if BRANDS.get(each) in ("image/avif", "image/heic")), "image/heif"
        )
    return BRANDS.get(brand, "video/mp4")


SOUND = {
    **dict.fromkeys(("video/mp4", "video/quicktime"), "audio/mp4"),
    **dict.fromkeys(("video/webm", "video/x-matroska"), "audio/webm"),
    "video/ogg": "audio/ogg",
}
"""The media type of a sound in the same container as a video."""


def _as_kind(media_type: str | None, kind: str) -> str | None:
    if kind == "audio" and media_type in SOUND:
        return SOUND[media_type]
    return "video/ogg" if kind == "video" and media_type == "audio/ogg" else media_type


COMPRESSED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd")
"""The first bytes of gzip and of zstd."""
COMPRESSIONS = re.compile(r"\b(?:br|gzip|x-gzip|deflate|compress|x-compress|zstd|dcb|dcz)\b", re.IGNORECASE)


def is_compressed(head: bytes, content_encoding: str) -> bool:
    """Whether a file of no known type was compressed on its way. The bytes tell it; of `br` only the header does."""
    return head.startswith(COMPRESSED) or bool(COMPRESSIONS.search(content_encoding))


TEXT_TYPE = re.compile(r"text/|application/(?:[\w.-]*[+.-])?(?:json|xml|html|javascript)\b", re.IGNORECASE)
MARKUP = (b"<", b"{", b"[")


def is_text(head: bytes, content_type: str) -> bool:
    """Whether a file of no known type is a text, such as the page or the JSON of an error, and no result.

    `head`: the first HEAD_BYTES, or the whole of a shorter file. `content_type`: as its host names it.
    """
    if not head or not (text := _as_text(head)):
        return not head.strip()
    return text.startswith(MARKUP) or len(head) < HEAD_BYTES or bool(TEXT_TYPE.match(content_type))


def _as_text(head: bytes) -> bytes | None:
    """The text in a head in UTF-8, without blanks before it; None if the head is not text."""
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if head.startswith(mark):
            head = head[2:].decode(encoding, "replace").encode("utf-8", "replace")
    head = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)  # the last letter may be cut
    except UnicodeDecodeError:
        return None
    readable = all(letter.isprintable() or letter in "\t\n\r\f\x1b" for letter in text)
    return head if readable else None


def matches_kind(content_type: str | None, kind: str) -> bool:
    """Whether a file of this media type may be a result of this kind. `watermark` and newer kinds: any media type."""
    if content_type is None:
        return False
    return kind not in MEDIA_KINDS or content_type.startswith(f"{kind}/")


TRAILER_BYTES = 64
"""Bytes at the end of an image that are searched for its last marker: some writers append a few bytes."""

TRAILERS = {"image/png": b"IEND\xae\x42\x60\x82", "image/jpeg": b"\xff\xd9", "image/gif": b"\0\x3b"}


def is_complete(path: Path, content_type: str) -> bool:
    """Whether a file is not truncated: an MP4's boxes add up to its size, an image has its last marker.

    True for media types without such a mark. Raises OSError.
    """
    if content_type in TRAILERS:
        return TRAILERS[content_type] in _tail(path, TRAILER_BYTES)
    if content_type in ("video/mp4", "video/quicktime", "audio/mp4"):
        return b"moov" in _top_level_boxes(path)
    if content_type in ("image/avif", "image/heic", "image/heif"):
        return b"meta" in _top_level_boxes(path)
    return True


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(-min(size, path.stat().st_size), 2)
        return file.read()


def _top_level_boxes(path: Path) -> set[bytes]:
    """The names of the top-level boxes of an ISO media file; empty when they do not add up to its size."""
    size, at, count, names = path.stat().st_size, 0, 0, set()
    with path.open("rb") as file:
        while at < size:
            file.seek(at)
            header = file.read(16)
            length = int.from_bytes(header[:4])
            if length == 1:
                length = int.from_bytes(header[8:16])
            elif length == 0:
                length = size - at
            if len(header) < 8 or length < 8 or at + length > size:
                return set()
            names.add(header[4:8])
            at += length
            count += 1
            if count == MAX_BOXES:
                return set()
    return names
