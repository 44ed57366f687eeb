"""Detect a file's media type from its first bytes, and whether the file is complete.

Signatures: PNG 5.2, JPEG B.1.1.3, RIFF/WEBP, GIF89a, ISO 14496-12 (`ftyp`), Matroska, MPEG audio, RIFF/WAVE.
No decoder reads the bytes, because they come from outside.
"""

from pathlib import Path

HEAD_BYTES = 64
"""Bytes at the start of a file that `sniff` needs."""

KINDS = ("image", "video", "audio")

MAX_BOXES = 10_000
"""Top-level boxes of an MP4 that are read: a file of empty boxes would take hours."""


def sniff(head: bytes) -> str | None:
    """The media type of a file by its first HEAD_BYTES, or None for no known type. Each is in `media_types`."""
    for signature, media_type in SIGNATURES:
        if head.startswith(signature):
            return media_type
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12])
    if head[4:8] == b"ftyp":
        return {b"qt  ": "video/quicktime", b"M4A ": "audio/mp4"}.get(head[8:12], "video/mp4")
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2:  # an MPEG audio frame, layer 3
        return "audio/mpeg"
    return None


SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"ID3", "audio/mpeg"),
)


def matches_kind(content_type: str | None, kind: str) -> bool:
    """Whether a file of this media type may be a result of this kind. `watermark` and newer kinds: any media type."""
    if content_type is None:
        return False
    return kind not in KINDS or content_type.startswith(f"{kind}/")


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
