"""Read and validate the JSON bodies and the query parameters of requests."""

import json
from collections.abc import Collection
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from kling_callback.protocol.values import sanitize
from kling_receiver.validation import describe_errors
from kling_receiver.web.body import BodyLimiter, Reservation, read_body
from kling_receiver.web.errors import ApiError

M = TypeVar("M", bound="RequestModel")

MAX_NAME_CHARS = 100
"""Characters of a parameter's name in a message."""
MAX_NAMES = 10
"""Names of query parameters about which something is said: a query may have thousands, and each is compared."""


class RequestModel(BaseModel):
    """A request body. Unknown fields and values of another type are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


def query_problems(request: Request, known: Collection[str]) -> list[str]:
    """What is wrong with the names of a request's query parameters: a name that was ignored would change the answer.

    `known`: the parameters that the route has.
    """
    problems: list[str] = []
    given = [name for name, _ in request.query_params.multi_items()]
    for name in dict.fromkeys(given):
        if len(problems) == MAX_NAMES:
            problems.append("More parameters are wrong.")
            break
        shown = sanitize(name, MAX_NAME_CHARS)
        if name in known and given.count(name) > 1:
            problems.append(f"`{shown}` is given {given.count(name)} times.")
        elif name not in known:
            closest = get_close_matches(name[:MAX_NAME_CHARS], known, 1)
            has = f"has {', '.join(known)}" if known else "has none"
            suggestion = f"Did you mean `{closest[0]}`?" if closest else f"This route {has}."
            problems.append(f"`{shown}` is not a parameter. {suggestion}")
    return problems


def check_query(request: Request, known: Collection[str] = ()) -> None:
    """Raise ApiError naming every query parameter that the route does not have. `known`: those that it has."""
    if problems := query_problems(request, known):
        raise ApiError(422, "bad_query", " ".join(problems), "Fix the query and send it again.")


def parse(model: type[M], document: Any) -> M:
    """Validate a document. Raises ApiError naming every problem."""
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise ApiError(
            422, "bad_request", " ".join(describe_errors(error)), "Fix the request and send it again."
        ) from None


def parse_time(value: Any) -> datetime:
    """Parse a time in ISO 8601; without a time zone it is in UTC. Raises ValueError."""
    if not isinstance(value, str):
        raise ValueError("must be a time, such as 2026-01-31T12:00:00Z.")
    try:
        moment = datetime.fromisoformat(value.upper())
    except ValueError:
        raise ValueError(f"{value} is not a time, such as 2026-01-31T12:00:00Z.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


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
