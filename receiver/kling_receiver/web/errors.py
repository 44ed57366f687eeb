"""The one shape of every error that is answered: `{"error": {"code", "message", "hint"}}`."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class ApiError(Exception):
    """Ends a request with an error in the one shape."""

    def __init__(self, status: int, code: str, message: str, hint: str, **headers: str) -> None:
        """`headers`: of the answer, with `_` for `-`."""
        super().__init__(message)
        self.status, self.code, self.message, self.hint = status, code, message, hint
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_response(
    status: int, code: str, message: str, hint: str, *, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """An error in the one shape."""
    return JSONResponse({"error": {"code": code, "message": message, "hint": hint}}, status, headers=headers)
