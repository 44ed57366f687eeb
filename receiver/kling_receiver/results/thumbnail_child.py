"""A program of its own: decode the image on stdin, write its thumbnail to stdout. `thumbnails` starts it for each file.

The receiver never imports this module, nor Pillow: a flaw of a decoder is not to reach its secrets. The process has
no environment, can open no file, and ends at its limits. Its only argument is the media type, which names the decoder.
"""

import io
import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from PIL import AvifImagePlugin, Image, ImageFile, ImageOps, WebPImagePlugin  # noqa: F401  # WebP: registers itself

DECODERS = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/webp": "WEBP",
    "image/gif": "GIF",
    "image/avif": "AVIF",
    "image/bmp": "BMP",
}
"""Pillow's names, by media type."""

SIDE = 480
"""Pixels of the longer side, at most."""
MAX_PIXELS = 50_000_000
"""Of a source. Kling's largest images have a third of it; a decoder needs 4 bytes for each, some twice."""
QUALITY = 80
ORIENTATION = 0x0112
"""The tag of Exif."""
UNDECODABLE = 3
"""The exit code for a file of which no attempt will make a thumbnail."""

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 10
MAX_OUTPUT_BYTES = 1 << 20
NICENESS = 15
OOM_SCORE = b"1000"
"""Where memory ends, Linux ends this process, and never the receiver: 2 kB of a WebP may need 700 MB."""


def make_thumbnail(file: BinaryIO, media_type: str) -> bytes:
    """A WebP of the image's first frame: at most SIDE pixels wide and high, upright, without metadata.

    Raises an exception of any type for a file that cannot be decoded, or is too large.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(file, formats=(DECODERS[media_type],)) as image:
            small = ImageOps.exif_transpose(_shrink(image))
    plain = Image.frombytes(small.mode, small.size, small.tobytes())  # without the profile, the comments, the place
    output = io.BytesIO()
    plain.save(output, "WEBP", quality=QUALITY)
    return output.getvalue()


def _shrink(image: Image.Image) -> Image.Image:
    """The image in RGB or RGBA. It is made small first where its mode allows that: fewer pixels are converted."""
    has_alpha = image.has_transparency_data
    if image.mode.startswith("I;16"):
        image = image.point(lambda value: value * (1 / 256)).convert("L")  # `convert` alone would cut the light half
    if image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK") or (has_alpha and image.mode in ("L", "RGB")):
        image = image.convert("RGBA" if has_alpha else "RGB")
    image.thumbnail((SIDE, SIDE))
    return image.convert("RGBA" if has_alpha else "RGB")


def _rehearse(media_type: str) -> None:
    """Make the thumbnail of an image of our own: Python then has all modules, and needs to open no file for them."""
    image, exif, file = Image.new("RGB", (2, 2)), Image.Exif(), io.BytesIO()
    exif[ORIENTATION] = 6
    image.save(file, DECODERS[media_type], exif=exif)
    file.seek(0)
    make_thumbnail(file, media_type)


def limit_process() -> None:
    """Give up memory, CPU time, files, processes and priority, for good. Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    with suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_bytes(OOM_SCORE)
    limits = {
        "RLIMIT_AS": (MEMORY_BYTES, MEMORY_BYTES),
        "RLIMIT_CPU": (CPU_SECONDS, CPU_SECONDS + 1),  # SIGXCPU comes first: of SIGKILL nobody knows why it came
        "RLIMIT_FSIZE": (MAX_OUTPUT_BYTES, MAX_OUTPUT_BYTES),
        "RLIMIT_NOFILE": (3, 3),
        "RLIMIT_NPROC": (0, 0),
        "RLIMIT_CORE": (0, 0),
    }
    for name, limit in limits.items():
        with suppress(AttributeError, ValueError, OSError):  # macOS knows some of them only by name
            resource.setrlimit(getattr(resource, name), limit)
    os.nice(NICENESS)


def main() -> int:
    """Returns the exit code."""
    media_type = sys.argv[1]
    _rehearse(media_type)
    limit_process()
    try:
        thumbnail = make_thumbnail(sys.stdin.buffer, media_type)
    except (Exception, MemoryError):
        return UNDECODABLE
    sys.stdout.buffer.write(thumbnail)
    sys.stdout.buffer.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
