"""The table of media types and file extensions."""

import pytest

from kling_callback.protocol.media_types import extension


@pytest.mark.parametrize(
    ("content_type", "kind", "expected"),
    [
        ("image/png", "", "png"),
        ("IMAGE/JPEG; charset=binary", "", "jpg"),
        ("video/quicktime", "video", "mov"),
        ("audio/mp4", "audio", "m4a"),
        ("audio/x-wav", "", "wav"),
        ("text/html", "image", "png"),
        ("application/x-sh", "file", "bin"),
        ("x/unknown", "image", "png"),
        (None, "video", "mp4"),
        ("", "watermark", "bin"),
        (None, "", "bin"),
    ],
)
def test_the_media_type_goes_before_the_kind(content_type: str | None, kind: str, expected: str) -> None:
    """Parameters and capital letters are ignored; a file of unknown type and kind has the extension `bin`."""
    assert extension(content_type, kind) == expected
