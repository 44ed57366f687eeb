"""Error responses, all in one shape: `{"error": {"code", "message", "hint"}}`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse
from typing_extensions import TypedDict


class ErrorDetailJson(TypedDict):
    """What went wrong (`code` for programs, `message` for people), and what to do."""

    code: str
    message: str
    hint: str


class ErrorJson(TypedDict):
    """An error response."""

    error: ErrorDetailJson


class ApiError(Exception):
    """An error that the request is answered with, in the one shape."""

    def __init__(self, status: int, code: str, message: str, hint: str, **headers: str) -> None:
        """`headers`: of the response, with `_` for `-`."""
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_response(
    status: int, code: str, message: str, hint: str, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error response in the one shape."""
    content: ErrorJson = {"error": {"code": code, "message": message, "hint": hint}}
    return JSONResponse(content, status, headers=headers)
