"""Kling's response envelope and error codes."""

from typing import Any
from uuid import uuid4

from kling_sandbox.web.http import Response, json_response

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
"""The HTTP status of each of Kling's codes."""


class ApiError(Exception):
    """An error response, by Kling's code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def response(self) -> Response:
        """The error as Kling sends it."""
        body = {"code": self.code, "message": self.message, "request_id": uuid4().hex}
        return json_response(body, HTTP_STATUS[self.code])


def envelope(data: Any) -> dict[str, Any]:
    """Wrap the data of a successful response."""
    return {"code": 0, "message": "SUCCEED", "request_id": uuid4().hex, "data": data}


def broken_json() -> Response:
    """A 200 whose JSON ends too early."""
    return Response(b'{"code": 0, "message": "SUCC', content_type="application/json")
