"""Media types and the file extensions for them: one table for client and receiver."""

import re

MEDIA_KINDS = ("video", "image", "audio")
"""The kinds of files that a browser shows or plays; also the first parts of their media types."""

EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/webp": "webp",
    "image/gif": "gif",
    "image/avif": "avif",
    "image/heic": "heic",
    "image/heif": "heif",
    "image/jxl": "jxl",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/webm": "webm",
    "video/x-matroska": "mkv",
    "video/ogg": "ogv",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/x-wav": "wav",
    "audio/mp4": "m4a",
    "audio/aac": "aac",
    "audio/ogg": "ogg",
    "audio/flac": "flac",
    "audio/webm": "weba",
    "audio/aiff": "aiff",
    "audio/amr": "amr",
    "application/octet-stream": "bin",
}
"""Without a dot, by media type."""

EXTENSIONS_BY_KIND = {"image": "png", "video": "mp4", "audio": "mp3"}
"""Without a dot, by the kind of a result: for a file of unknown media type."""


def extension(content_type: str | None, kind: str = "") -> str:
    """The extension, without a dot, for a file of this media type, else of this kind; `bin` for neither.

    `content_type` may have parameters, as in `image/png; charset=binary`. Only this table counts: a type that a
    server names must not make a file that its system runs.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    return EXTENSIONS.get(media_type) or EXTENSIONS_BY_KIND.get(kind, "bin")


DEVICE = re.compile(
    r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9\u00b9\u00b2\u00b3]) *([.:].*)?", re.IGNORECASE | re.DOTALL
)
"""Names of devices on Windows: in any folder, with any suffix."""


def is_device(name: str) -> bool:
    """Whether Windows takes a file name for a device, which keeps nothing."""
    return DEVICE.fullmatch(name) is not None


MORE_SUFFIXES = {"jpeg": "image", "tif": "image", "m4v": "video", "avi": "video", "oga": "audio", "opus": "audio"}


def kind_of_suffix(path: str) -> str:
    """`image`, `video` or `audio` by the suffix of a path; "" for any other."""
    suffix = path.rpartition("/")[2].rpartition(".")[2].lower()
    return KIND_OF_EXTENSION.get(suffix, "")


KIND_OF_EXTENSION = MORE_SUFFIXES | {
    suffix: kind for media_type, suffix in EXTENSIONS.items() if (kind := media_type.partition("/")[0]) in MEDIA_KINDS
}
"""`image`, `video` or `audio`, by extension."""
