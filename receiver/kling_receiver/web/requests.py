"""The documents of an operator's orders, read and checked."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from kling_callback.protocol.reports import clean
from kling_receiver.validation import problems
from kling_receiver.web.body import Bodies, Share, read_body
from kling_receiver.web.errors import ApiError

M = TypeVar("M", bound="Order")


class Order(BaseModel):
    """What an operator may say with an order; anything else is refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def read_order(model: type[M], given: Any) -> M:
    """Raises ApiError naming every problem."""
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise ApiError(422, "bad_order", " ".join(problems(error)), "Mend it and send it again.") from None


async def json_body(request: Request, bodies: Bodies, *, empty: Any = None) -> Any:
    """The JSON document in a request's body; `empty` where there is none. Raises ApiError."""
    with Share(bodies) as share:
        body = await read_body(request, share)
    if not body.kept and empty is not None:
        return empty
    try:
        return _cleaned(json.loads(body.kept))
    except (ValueError, RecursionError):
        raise ApiError(422, "bad_json", "The body is no JSON.", "Send a JSON object.") from None


def _cleaned(document: Any) -> Any:
    """The document without letters that no database keeps, nor an answer may hold."""
    if isinstance(document, str):
        return clean(document, len(document))
    if isinstance(document, dict):
        return {clean(name, len(name)): _cleaned(value) for name, value in document.items()}
    return [_cleaned(each) for each in document] if isinstance(document, list) else document
