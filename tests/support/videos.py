"""Videos and sounds for tests that play them."""

import io
from typing import Any

import av
from PIL import Image

FRAMES = 75


def video(container: str = "mp4", codec: str = "libx264") -> bytes:
    """Three seconds, 320 by 240 pixels, from black to red."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for n in range(FRAMES):
            image = Image.new("RGB", (320, 240), (n * 3, 0, 0))
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return file.getvalue()


def sound() -> bytes:
    """Two seconds of a WAV."""
    samples = bytes((n * 8) % 256 for n in range(16_000))
    head = b"fmt \x10\0\0\0\x01\0\x01\0\x40\x1f\0\0\x40\x1f\0\0\x01\0\x08\0"
    body = b"WAVE" + head + b"data" + len(samples).to_bytes(4, "little") + samples
    return b"RIFF" + len(body).to_bytes(4, "little") + body
