"""Detection of media types and truncation, with files from real writers."""

import io
import struct
import wave
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kling_callback.protocol.media_types import EXTENSIONS
from kling_receiver.results.media import HEAD_BYTES, MAX_BOXES, is_complete, is_text, matches_kind, sniff
from kling_sandbox.media import MEDIA


def image(kind: str) -> bytes:
    """An image, written by Pillow."""
    file = io.BytesIO()
    Image.effect_noise((64, 48), 50).convert("RGB").save(file, kind)
    return file.getvalue()


def video(form: str, codec: str) -> bytes:
    """Half a second of video, written by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for shade in range(5):
            frame = av.VideoFrame(64, 48, "yuv420p")
            for plane in frame.planes:
                plane.update(bytes([shade * 40]) * plane.buffer_size)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def audio(form: str, codec: str) -> bytes:
    """A tenth of a second of sound, written by FFmpeg."""
    file = io.BytesIO()
    with av.open(file, "w", format=form) as container:
        stream = container.add_stream(codec, rate=48_000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame(format="s16", layout="mono", samples=4800)
        frame.planes[0].update(bytes(9600))
        frame.sample_rate = 48_000
        for resampled in av.AudioResampler(stream.format, stream.layout, 48_000).resample(frame):
            container.mux(stream.encode(resampled))
        container.mux(stream.encode(None))
    return file.getvalue()


def sound() -> bytes:
    """A wave file."""
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setparams((1, 2, 8000, 0, "NONE", ""))
        written.writeframes(bytes(800))
    return file.getvalue()


REAL = {
    "image/png": image("PNG"),
    "image/jpeg": image("JPEG"),
    "image/webp": image("WEBP"),
    "image/gif": image("GIF"),
    "video/mp4": video("mp4", "mpeg4"),
    "video/quicktime": video("mov", "mpeg4"),
    "video/webm": video("webm", "libvpx"),
    "video/x-matroska": video("matroska", "mpeg4"),
    "image/avif": image("AVIF"),
    "image/bmp": image("BMP"),
    "image/tiff": image("TIFF"),
    "audio/aac": audio("adts", "aac"),
    "audio/mp4": audio("ipod", "aac"),
    "audio/ogg": audio("ogg", "libopus"),
    "audio/flac": audio("flac", "flac"),
    "audio/aiff": audio("aiff", "pcm_s16be"),
    "audio/mpeg": (MEDIA / "0.mp3").read_bytes(),
    "audio/wav": sound(),
}


@pytest.mark.parametrize("content_type", REAL)
def test_real_files_are_detected(tmp_path: Path, content_type: str) -> None:
    """By their first bytes; they are complete, and have an extension."""
    content = REAL[content_type]
    assert sniff(content[:HEAD_BYTES]) == content_type
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_complete(path, content_type)
    assert EXTENSIONS[content_type]


@pytest.mark.parametrize(
    "content_type",
    ["image/png", "image/jpeg", "image/gif", "image/avif", "video/mp4", "video/quicktime", "audio/mp4"],
)
def test_truncated_files_are_not_complete(tmp_path: Path, content_type: str) -> None:
    """Wherever an image or a video is truncated."""
    content, path = REAL[content_type], tmp_path / "file"
    for size in (*range(16), *range(16, len(content), max(len(content) // 50, 1)), len(content) - 1):
        path.write_bytes(content[:size])
        assert not is_complete(path, content_type), size


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/gif"])
def test_a_few_bytes_after_the_end_are_accepted(tmp_path: Path, content_type: str) -> None:
    """Some writers append them."""
    path = tmp_path / "file"
    path.write_bytes(REAL[content_type] + b"\n" + bytes(16))
    assert is_complete(path, content_type)


def box(name: bytes, size: int | None = None, content: bytes = b"") -> bytes:
    """One box of an MP4, whose size may be wrong."""
    return struct.pack(">I", len(content) + 8 if size is None else size) + name + content


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (box(b"ftyp") + box(b"moov"), True),
        (box(b"ftyp") + box(b"moov") + box(b"mdat", 0, b"to the end"), True),
        (box(b"ftyp") + box(b"moov") + struct.pack(">I4sQ", 1, b"mdat", 20) + b"long", True),
        (box(b"ftyp") + box(b"mdat"), False),
        (box(b"ftyp") + box(b"moov", 99), False),
        (box(b"ftyp") + box(b"moov") + struct.pack(">I4sQ", 1, b"mdat", 1 << 63), False),
        (box(b"ftyp") + box(b"moov") + struct.pack(">I4sQ", 1, b"mdat", 3), False),
        (box(b"ftyp", 7) + box(b"moov"), False),
        (box(b"ftyp") + box(b"moov") + b"\0\0\0", False),
        (box(b"moov") + box(b"free") * (MAX_BOXES - 2), True),
        (box(b"moov") + box(b"free") * MAX_BOXES, False),
        (b"", False),
    ],
)
def test_boxes_add_up(tmp_path: Path, content: bytes, whole: bool) -> None:
    """The sizes in an MP4 reach its end exactly, and the index is present; the number of boxes is limited."""
    path = tmp_path / "file"
    path.write_bytes(content)
    assert is_complete(path, "video/mp4") is whole


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"<html>",
        b'{"error":1}',
        b"RIFF\0\0\0\0AVI ",
        b"RIFF",
        b"\xff",
        b"%PDF",
        b"PK\3\4",
        b"\x89PN",
    ],
)
def test_other_files_are_not_media(head: bytes) -> None:
    """Pages, errors, archives and truncated signatures."""
    assert sniff(head) is None


@pytest.mark.parametrize(
    ("head", "content_type"),
    [
        (b"\0\0\0\x18ftypisom", "video/mp4"),
        (b"\0\0\0\x18ftypqt  ", "video/quicktime"),
        (b"\0\0\0\x18ftypM4A ", "audio/mp4"),
        (b"ID3\3", "audio/mpeg"),
        (b"\xff\xfb\x90", "audio/mpeg"),
        (b"\xff\xf3\x90", "audio/mpeg"),
    ],
)
def test_brands_and_frames(head: bytes, content_type: str) -> None:
    """Files of one container are distinguished by their brand."""
    assert sniff(head) == content_type


@given(st.binary(max_size=100))
def test_any_bytes_can_be_sniffed(head: bytes) -> None:
    """The result is a type of the table, or None."""
    assert sniff(head) in {None, *EXTENSIONS}


def test_kinds_and_types() -> None:
    """A result of a known kind is of that media type; a watermarked copy or a newer kind is any media."""
    assert matches_kind("image/png", "image")
    assert not matches_kind("video/mp4", "image")
    assert matches_kind("video/mp4", "watermark")
    assert matches_kind("audio/wav", "something newer")
    assert not matches_kind(None, "image")
    assert not matches_kind(None, "something newer")


@pytest.mark.parametrize(
    ("content", "kind", "content_type"),
    [
        (bytes.fromhex("0000001c66747970617669660000000061766966"), "image", "image/avif"),
        (bytes.fromhex("4f676753"), "audio", "audio/ogg"),
        (bytes.fromhex("fff1"), "audio", "audio/aac"),
        (bytes.fromhex("664c6143"), "audio", "audio/flac"),
        (box(b"free") + box(b"ftyp", content=b"isom\0\0\0\0"), "video", "video/mp4"),
        (box(b"free", content=bytes(100)) + box(b"ftyp", content=b"qt  \0\0\0\0"), "video", "video/quicktime"),
        (box(b"wide") + box(b"mdat", content=b"x" * 20) + box(b"moov"), "video", "video/quicktime"),
        (box(b"mdat", 99_999, b"x" * 600), "video", "video/quicktime"),
        (struct.pack(">I4sQ", 1, b"mdat", 1 << 40), "video", "video/quicktime"),
        (box(b"moov") + box(b"mdat"), "audio", "audio/mp4"),
        (box(b"ftyp", content=b"isom\0\0\0\0"), "audio", "audio/mp4"),
        (box(b"ftyp", content=b"isom\0\0\0\0"), "watermark", "video/mp4"),
        (box(b"ftyp", content=b"heic\0\0\0\0mif1heic"), "image", "image/heic"),
        (box(b"ftyp", content=b"mif1\0\0\0\0mif1heic"), "image", "image/heic"),
        (box(b"ftyp", content=b"mif1\0\0\0\0mif1miafavif"), "image", "image/avif"),
        (box(b"ftyp", content=b"mif1\0\0\0\0"), "image", "image/heif"),
        (b"OggS" + bytes(24) + b"\x80theora", "video", "video/ogg"),
        (b"OggS" + bytes(24) + b"OpusHead", "audio", "audio/ogg"),
        (b"\xff\xf9\x50", "audio", "audio/aac"),
        (b"\xff\xfd\x90", "audio", "audio/mpeg"),
    ],
)
def test_the_first_bytes_and_the_kind_tell_the_type(content: bytes, kind: str, content_type: str) -> None:
    """Containers that hold sound as well as pictures are what Kling says."""
    assert sniff(content[:HEAD_BYTES], kind) == content_type
    assert matches_kind(content_type, kind)
    assert EXTENSIONS[content_type]


@pytest.mark.parametrize(
    "content", [box(b"free", 4) + box(b"ftyp", content=b"isom\0\0\0\0"), b"\0\0\0\x09text", b"BMW is"]
)
def test_what_only_resembles_a_known_file_is_unknown(content: bytes) -> None:
    """A box that ends before it begins, boxes of other formats, and text."""
    assert sniff(content) is None


@pytest.mark.parametrize(
    ("head", "content_type", "page"),
    [
        (b"<html>", "", True),
        (b"  \r\n<?xml", "image/png", True),
        (b'{"error": 1}', "image/png", True),
        (b"[]", "", True),
        ("\ufeff<html>".encode("utf-16-le"), "", True),
        ("拒绝访问".encode(), "", True),
        ("拒绝访问".encode()[:-1], "", True),
        (b" \n", "", True),
        (b"x" * HEAD_BYTES, "text/plain; charset=utf-8", True),
        (b"x" * HEAD_BYTES, "application/problem+json", True),
        (b"x" * HEAD_BYTES, "application/octet-stream", False),
        (b"\0\1\2", "text/html", False),
        (b"\x93\xfa", "", False),
    ],
)
def test_pages_and_messages_are_no_files(head: bytes, content_type: str, page: bool) -> None:
    """Text that begins as markup, a short text, and what its host calls a text; not other bytes."""
    assert is_text(head, content_type) is page
