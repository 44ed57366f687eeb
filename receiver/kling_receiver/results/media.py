"""What a file is, by its own first bytes: no decoder meets bytes from outside.

Signatures: PNG 5.2, JPEG B.1.1.3, RIFF/WEBP, GIF89a, ISO 14496-12 (`ftyp`), Matroska, MPEG audio, RIFF/WAVE.
"""

from pathlib import Path

HEAD_BYTES = 64
"""Bytes that `sniff` needs."""

EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "video/mp4": ".mp4",
    "video/quicktime": ".mov",
    "video/webm": ".webm",
    "audio/mpeg": ".mp3",
    "audio/wav": ".wav",
    "audio/mp4": ".m4a",
}
FAMILIES = ("image", "video", "audio")

MAX_BOXES = 10_000
"""Top boxes of an MP4; a file of nothing but boxes would keep us walking."""


def sniff(head: bytes) -> str | None:
    """The content type that a file's first bytes show, or None."""
    for signature, found in SIGNATURES:
        if head.startswith(signature):
            return found
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
    """Whether a file of this type may be a result of this kind (`watermark` and newer kinds: any media)."""
    if content_type is None:
        return False
    return kind not in FAMILIES or content_type.startswith(f"{kind}/")


TRAILER_BYTES = 64
"""Bytes at the end among which an image's last marker is: some writers add a few of their own."""

TRAILERS = {"image/png": b"IEND\xae\x42\x60\x82", "image/jpeg": b"\xff\xd9", "image/gif": b"\0\x3b"}


def is_complete(path: Path, content_type: str) -> bool:
    """Whether a file reaches its own end: the boxes of an MP4 add up, an image has its last marker."""
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
    """The top boxes of an ISO media file, or none when they do not add up to its size."""
    size, at, count, found = path.stat().st_size, 0, 0, set()
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
            found.add(header[4:8])
            at += length
            count += 1
            if count == MAX_BOXES:
                return set()
    return found
