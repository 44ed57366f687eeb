"""The documents of an operator's orders, read and checked."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from kling_callback.protocol.reports import sanitize
from kling_receiver.validation import describe_errors
from kling_receiver.web.body import BodyLimiter, Reservation, read_body
from kling_receiver.web.errors import ApiError

M = TypeVar("M", bound="RequestModel")


class RequestModel(BaseModel):
    """What an operator may say with an order; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def parse(model: type[M], document: Any) -> M:
    """Raises ApiError naming every problem."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ApiError(422, "bad_request", " ".join(describe_errors(error)), "Fix it and send it again.") from None


async def read_json(request: Request, bodies: BodyLimiter, *, empty: Any = None) -> Any:
    """The JSON document in a request's body; `empty` where there is none. Raises ApiError."""
    with Reservation(bodies) as share:
        body = await read_body(request, share)
    if not body.content and empty is not None:
        return empty
    try:
        return _sanitize(json.loads(body.content))
    except (ValueError, RecursionError):
        raise ApiError(422, "bad_json", "The body is no JSON.", "Send a JSON object.") from None


def _sanitize(document: Any) -> Any:
    """The document without letters that no database keeps, nor an answer may hold."""
    if isinstance(document, str):
        return sanitize(document, len(document))
    if isinstance(document, dict):
        return {sanitize(name, len(name)): _sanitize(value) for name, value in document.items()}
    return [_sanitize(each) for each in document] if isinstance(document, list) else document
