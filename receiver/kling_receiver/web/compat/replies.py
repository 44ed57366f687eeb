"""Kling's envelope, its error codes, and our own errors in that shape."""

import functools
import logging
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from kling_receiver.store.errors import DBAPIError, Unavailable, describe
from kling_receiver.web.auth import RouteHandler
from kling_receiver.web.errors import ApiError

log = logging.getLogger("kling_receiver.web")

AUTH_FAILED, AUTH_EMPTY, AUTH_INVALID, AUTH_TOO_EARLY, AUTH_EXPIRED = 1000, 1001, 1002, 1003, 1004
NO_RIGHT, BAD_BODY, BAD_PARAMETER, NO_PATH, TOO_FAST, FULL = 1103, 1200, 1201, 1202, 1302, 1303
FAILED, UNAVAILABLE, NO_ANSWER = 5000, 5001, 5002

HTTP_STATUS = {
    **dict.fromkeys((AUTH_FAILED, AUTH_EMPTY, AUTH_INVALID, AUTH_TOO_EARLY, AUTH_EXPIRED), 401),
    NO_RIGHT: 403,
    **dict.fromkeys((BAD_BODY, BAD_PARAMETER), 400),
    NO_PATH: 404,
    **dict.fromkeys((TOO_FAST, FULL), 429),
    FAILED: 500,
    UNAVAILABLE: 503,
    NO_ANSWER: 504,
}
"""The HTTP status that Kling sends with each of its codes."""

TOO_LARGE = 413
"""The HTTP status of a body that is too long, for which Kling has no code."""
CODES = {401: AUTH_INVALID, 403: NO_RIGHT, 404: NO_PATH, 429: FULL, 502: UNAVAILABLE, 503: UNAVAILABLE}
"""Kling's code for our own errors, by their HTTP status; any other of the caller's is BAD_PARAMETER."""


class CompatError(Exception):
    """An error that is answered in Kling's shape, by its code. `headers`: of the response, with `_` for `-`."""

    def __init__(self, code: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.code, self.message = code, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def envelope(data: Any, request_id: str | None = None) -> dict[str, Any]:
    """A success. `request_id`: Kling's, of the answer that this one repeats; None: a new one of ours."""
    return {"code": 0, "message": "SUCCEED", "request_id": request_id or uuid4().hex, "data": data}


def problem(code: int, message: str) -> dict[str, Any]:
    """An error's JSON."""
    return {"code": code, "message": message, "request_id": uuid4().hex}


def failure(
    code: int, message: str, headers: Mapping[str, str] | None = None, *, status: int | None = None
) -> Response:
    """An error, with the HTTP status of its code, unless another is given."""
    return JSONResponse(problem(code, message), status or HTTP_STATUS[code], headers=headers)


def in_kling_shape(endpoint: RouteHandler) -> RouteHandler:
    """Wrap an endpoint, so that each of its errors is answered in Kling's shape."""

    @functools.wraps(endpoint)
    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except CompatError as error:
            return failure(error.code, error.message, error.headers)
        except ApiError as error:
            code = CODES.get(error.status, FAILED if error.status >= 500 else BAD_PARAMETER)
            status = TOO_LARGE if error.status == TOO_LARGE else None
            return failure(code, f"{error.message} {error.hint}".strip(), error.headers, status=status)
        except Unavailable as error:
            return failure(UNAVAILABLE, f"{error} Send the request again.", {"Retry-After": "5"})
        except DBAPIError as error:
            log.error("the database refused a statement of a request", exc_info=error)
            message = f"The database refused a statement: {describe(error)}. Send the request again."
            return failure(UNAVAILABLE, message, {"Retry-After": "5"})
        except Exception:
            log.exception("a request to Kling's API failed")
            return failure(FAILED, "The receiver failed. Check its log.")

    return answered
