"""What goes back over the wire: the envelope, the error codes, and the two ways to hang up."""

import gzip
from typing import Any
from uuid import uuid4

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

HTTP_STATUS = {
    **dict.fromkeys((1000, 1001, 1002, 1003, 1004), 401),
    **dict.fromkeys((1100, 1101, 1102, 1302, 1303, 1304), 429),
    **dict.fromkeys((1200, 1201, 1300, 1301), 400),
    **dict.fromkeys((1202, 1203), 404),
    1103: 403,
    5000: 500,
    5001: 503,
    5002: 504,
}


class Refused(Exception):
    """An error answer, by Kling's business code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def reply(self) -> Response:
        body = {"code": self.code, "message": self.message, "request_id": uuid4().hex}
        return JSONResponse(body, HTTP_STATUS[self.code])


def envelope(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "SUCCEED", "request_id": uuid4().hex, "data": data}


def garbage() -> Response:
    return Response('{"code": 0, "message": "SUCC', media_type="application/json")


class Hangup(Response):
    """No answer at all: the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["transport"].close()
        while (await receive())["type"] != "http.disconnect":
            pass
        if self.background:
            await self.background()


class CutShort(Hangup):
    """All the headers and half of the body; then the connection closes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        half = bytes(self.body)[: len(self.body) // 2]
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": half, "more_body": True})
        await super().__call__(scope, receive, send)


def zipped(body: bytes, media_type: str) -> Response:
    return Response(gzip.compress(body, 1), headers={"content-encoding": "gzip"}, media_type=media_type)
