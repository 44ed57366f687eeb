"""A create's body: what must not stand in it, what we add to it, and what of it the receiver may keep."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from client.errors import ParameterError
from client.ids import RULE, is_id

FAMILY = re.compile(r"/?[A-Za-z0-9][A-Za-z0-9_.-]*(/[A-Za-z0-9][A-Za-z0-9_.-]*)+")
"""A path under `/v1`, or with a leading slash one of the new standard; at least two parts."""

AT_ONCE = frozenset({"audio/tts"})
"""Families that answer at once and call nobody back (section 3)."""

LONGEST_KEPT = 4096
"""Characters of a string that the receiver keeps."""

LONGEST_REQUEST = 90_000
"""Characters of a whole request that the receiver keeps."""

PICTURES = ("data:", "/9j/", "iVBORw0KGgo")
"""How data URLs and the base64 of JPEG and PNG begin: pictures, however small."""

SECRET_NAMES = frozenset(
    {"api_key", "apikey", "access_key", "secret_key", "authorization", "password", "token"}
)

HOOKS = (
    "callback_url is made here, for the receiver. To be called yourself, add a hook there: see KLING_HOOK_URL."
)


def check_create(family: str, body: Any) -> None:
    """Raise ParameterError, with all its problems, for a create that must not be sent."""
    problems = [*_family_problems(family), *_body_problems(body)]
    if problems:
        raise ParameterError(problems)


def own_id(family: str, body: Any, given: str | None) -> str | None:
    """The id that the caller chose, as an argument or in the body; None when there is none."""
    inside = _place(family, body).get("external_task_id")
    chosen = given or inside or None
    if given and inside and given != inside:
        raise ParameterError([f"external_task_id is {given!r}, but {inside!r} in the body. Give it once."])
    if chosen is not None and not (isinstance(chosen, str) and is_id(chosen)):
        raise ParameterError([f"external_task_id: {chosen!r} cannot be a task's id. {RULE}"])
    return chosen


def addressed(family: str, body: Mapping[str, Any], task_id: str, callback_url: str) -> dict[str, Any]:
    """The body with our id and callback address, at the place where this standard wants them."""
    ours = {"external_task_id": task_id, "callback_url": callback_url}
    if not family.startswith("/"):
        return {**body, **ours}
    return {**body, "options": {**_place(family, body), **ours}}


def model_of(family: str, body: Mapping[str, Any]) -> str:
    """The model's name, in the body or at the end of a new-standard path; "" without one."""
    if family.startswith("/"):
        return family.rpartition("/")[2]
    name = body.get("model_name") or body.get("model")
    return name if isinstance(name, str) else ""


def kept(body: Mapping[str, Any]) -> dict[str, Any]:
    """What the receiver stores as `request`: without picture bytes, callback address and secrets."""
    request: dict[str, Any] = _kept(body)
    size = len(json.dumps(request))
    return request if size <= LONGEST_REQUEST else {"note": f"[{size} characters, left out]"}


def _kept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _kept(each) for name, each in value.items() if not _withheld(name)}
    if isinstance(value, list | tuple):
        return [_kept(item) for item in value]
    if isinstance(value, str) and (len(value) > LONGEST_KEPT or value.startswith(PICTURES)):
        digest = hashlib.sha256(value.encode("utf-8", "replace")).hexdigest()
        return f"[{len(value)} characters, sha256 {digest}]"
    return value


def _withheld(name: str) -> bool:
    return name == "callback_url" or str(name).lower() in SECRET_NAMES


def _place(family: str, body: Any) -> Mapping[str, Any]:
    """Where this standard has external_task_id and callback_url."""
    if not isinstance(body, Mapping):
        return {}
    if not family.startswith("/"):
        return body
    options = body.get("options")
    return options if isinstance(options, Mapping) else {}


def _family_problems(family: str) -> list[str]:
    if not FAMILY.fullmatch(family):
        return [f"family: {family!r} is no path like videos/effects or /text-to-video/kling-3.0-turbo."]
    if re.match(r"/?v\d+/", family):
        return [f"family: write {family.split('/v1/')[-1].removeprefix('v1/')!r}, without /v1/."]
    if family in AT_ONCE:
        return [f"family: {family} answers at once and calls nobody back. Call it without this tool."]
    return []


def _body_problems(body: Any) -> list[str]:
    if not isinstance(body, Mapping):
        return ["body: must be a JSON object."]
    options = body.get("options")
    problems = [HOOKS] if "callback_url" in body else []
    if isinstance(options, Mapping) and "callback_url" in options:
        problems.append(HOOKS)
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(
            f"body: is not JSON: {'a letter is broken' if isinstance(error, UnicodeError) else error}."
        )
    return problems
