"""Read and validate the JSON bodies of requests."""

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
    """A request body. Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def parse(model: type[M], document: Any) -> M:
    """Validate a document. Raises ApiError naming every problem."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ApiError(
            422, "bad_request", " ".join(describe_errors(error)), "Fix the request and send it again."
        ) from None


async def read_json(request: Request, bodies: BodyLimiter, *, empty: Any = None) -> Any:
    """Read the JSON in a request; `empty` stands for an empty body. Raises ApiError if it is not valid."""
    with Reservation(bodies) as reservation:
        body = await read_body(request, reservation)
    if not body.content and empty is not None:
        return empty
    try:
        return _sanitize(json.loads(body.content))
    except (ValueError, RecursionError):
        raise ApiError(422, "bad_json", "The body is not valid JSON.", "Send a JSON object.") from None


def _sanitize(document: Any) -> Any:
    """Remove the characters that a database or a JSON response cannot contain."""
    if isinstance(document, str):
        return sanitize(document, len(document))
    if isinstance(document, dict):
        return {sanitize(name, len(name)): _sanitize(value) for name, value in document.items()}
    return [_sanitize(item) for item in document] if isinstance(document, list) else document
