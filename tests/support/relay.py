"""A relay on loopback that answers as a test demands, and serves a video to those who have the key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.receiver import KEY
from tests.support.web import Host, Visit, host

MP4 = b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + b"\0\0\0\x10moov" + bytes(8) + b"\0\0\0\x40mdat" + bytes(56)
"""A file of three boxes, which is a whole MP4 to those who do not decode it."""
BEARER = f"Bearer {KEY}"
CONTENT = "/v1/videos/T/content"

Reply = tuple[int, Any]
"""A status, and a body: bytes as they are, anything else as JSON."""


@contextmanager
def relay(create: Reply = (200, {"id": "T", "object": "video", "status": "queued"}), *queries: Reply) -> Iterator[Host]:
    """A relay under `/kling`. `queries`: one answer after the other, then the last one again and again.

    `{url}` in an answer is the relay's own address. Its video is at CONTENT, and at `/open.mp4` without the key.
    """
    left = list(queries)

    def respond(visit: Visit) -> None:
        path = visit.path.partition("?")[0]
        if path in (CONTENT, "/closed.mp4"):
            allowed = visit.headers.get("Authorization") == BEARER
            visit.answer(200, MP4) if allowed else visit.answer(401, b'{"error":{"message":"no key"}}')
        elif path == "/open.mp4":
            visit.answer(200, MP4)
        elif not path.startswith("/kling/v1/videos/text2video"):
            message = f"Invalid URL ({visit.method} {path})"
            visit.answer(404, json.dumps({"error": {"message": message, "type": "invalid_request_error"}}).encode())
        else:
            status, body = create if visit.method == "POST" else left.pop(0) if len(left) > 1 else left[0]
            content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
            visit.answer(status, content.replace(b"{url}", there.url.encode()))

    with host(respond) as there:
        yield there
