"""HTTP requests and responses of the sandbox, including the responses that end a connection too early."""

import gzip
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

import h11

CHUNK_BYTES = 2**16
"""Bytes. One chunk of a body that is sent without Content-Length."""


@dataclass(frozen=True)
class Request:
    """One received request. Header names are lower case; of repeated headers and parameters the last one counts."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The decoded path, with the sandbox's base path."""
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, str]:
        """The decoded query parameters."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    @property
    def origin(self) -> str:
        """The address by which the client reached the sandbox, without a path."""
        return f"http://{self.headers.get('host', '')}"


@dataclass(eq=False)
class Response:
    """A response with Content-Length. `background` runs after the response is sent, also if the client is gone."""

    body: bytes = b""
    status: int = 200
    content_type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    background: Callable[[], Awaitable[None]] | None = None

    closes = False
    """Whether the server closes the connection behind this response."""

    def events(self) -> list[h11.Event]:
        """The parts of the response, in order."""
        return [self._head(self._length()), h11.Data(self.body), h11.EndOfMessage()]

    def _length(self) -> dict[str, str]:
        return {"content-length": str(len(self.body))}

    def _head(self, framing: dict[str, str]) -> h11.Response:
        type_ = f"{self.content_type}; charset=utf-8" if self.content_type.startswith("text/") else self.content_type
        headers = {
            "date": formatdate(usegmt=True),
            "server": "kling-sandbox",
            **({"content-type": type_} if type_ else {}),
            **framing,
            **self.headers,
        }
        reason = HTTPStatus(self.status).phrase
        return h11.Response(status_code=self.status, headers=list(headers.items()), reason=reason)


class Chunked(Response):
    """A response without Content-Length: its length is unknown until its end."""

    def events(self) -> list[h11.Event]:
        """The parts of the response, the body in chunks."""
        starts = range(0, len(self.body), CHUNK_BYTES)
        chunks = [h11.Data(self.body[start : start + CHUNK_BYTES]) for start in starts]
        return [self._head({}), *chunks, h11.EndOfMessage()]


class CutShort(Response):
    """All headers and half of the body; then the connection closes."""

    closes = True

    def events(self) -> list[h11.Event]:
        """The parts that are sent."""
        return [self._head(self._length()), h11.Data(self.body[: len(self.body) // 2])]


class Hangup(Response):
    """No response at all: the connection closes."""

    closes = True

    def events(self) -> list[h11.Event]:
        """Nothing is sent."""
        return []


def json_response(content: Any, status: int = 200) -> Response:
    """A JSON document."""
    body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")
    return Response(body, status, "application/json")


def text_response(text: str, status: int = 200) -> Response:
    """Plain text."""
    return Response(text.encode(), status, "text/plain")


def html_response(html: str, status: int = 200) -> Response:
    """An HTML page."""
    return Response(html.encode(), status, "text/html")


def redirect(url: str) -> Response:
    """A 302 to `url`."""
    return Response(status=302, headers={"location": url})


def gzip_response(body: bytes, content_type: str) -> Response:
    """A body with Content-Encoding gzip."""
    return Response(gzip.compress(body, 1), 200, content_type, {"content-encoding": "gzip"})
