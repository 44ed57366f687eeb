"""A create's body: what must not stand in it, what we add to it, and what of it the receiver may keep."""

import json
import re
from collections.abc import Mapping
from typing import Any

from kling_callback.errors import ParameterError
from kling_callback.protocol.families import DESCRIPTION as FAMILY_RULE
from kling_callback.protocol.families import is_job, is_new_standard
from kling_callback.protocol.ids import DESCRIPTION, is_id

SYNCHRONOUS_FAMILIES = frozenset({"audio/tts"})
"""Families that answer at once and call nobody back (section 3)."""

CALLBACK_URL_RESERVED = (
    "callback_url is made here, for the receiver. To be called yourself, give a hook: --hook URL, or hook=."
)


def check_create(family: str, body: Any) -> None:
    """Raise ParameterError, with all its problems, for a create that must not be sent."""
    problems = [*_family_problems(family), *_body_problems(body)]
    if problems:
        raise ParameterError(problems)


def chosen_id(family: str, body: Any, given: str | None) -> str | None:
    """The id that the caller chose, as an argument or in the body; None when there is none."""
    inside = _options(family, body).get("external_task_id")
    chosen = given or inside or None
    if given and inside and given != inside:
        raise ParameterError([f"external_task_id is {given!r}, but {inside!r} in the body. Give it once."])
    if chosen is not None and not (isinstance(chosen, str) and is_id(chosen)):
        raise ParameterError([f"external_task_id: {chosen!r} cannot be a task's id. {DESCRIPTION}"])
    return chosen


def with_callback(family: str, body: Mapping[str, Any], task_id: str, callback_url: str) -> dict[str, Any]:
    """The body with our id and callback address, at the place where this standard wants them."""
    ours = {"external_task_id": task_id, "callback_url": callback_url}
    if not is_new_standard(family):
        return {**body, **ours}
    return {**body, "options": {**_options(family, body), **ours}}


def model_of(family: str, body: Mapping[str, Any]) -> str:
    """The model's name, in the body or at the end of a new-standard path; "" without one."""
    if is_new_standard(family):
        return family.rpartition("/")[2]
    name = body.get("model_name") or body.get("model")
    return name if isinstance(name, str) else ""


def _options(family: str, body: Any) -> Mapping[str, Any]:
    """Where this standard has external_task_id and callback_url."""
    if not isinstance(body, Mapping):
        return {}
    if not is_new_standard(family):
        return body
    options = body.get("options")
    return options if isinstance(options, Mapping) else {}


def _family_problems(family: str) -> list[str]:
    if not is_job(family):
        return [f"family: {family!r} must be {FAMILY_RULE}."]
    if re.match(r"/?v\d+/", family):
        return [f"family: write {family.split('/v1/')[-1].removeprefix('v1/')!r}, without /v1/."]
    if family in SYNCHRONOUS_FAMILIES:
        return [f"family: {family} answers at once and calls nobody back. Call it without this tool."]
    return []


def _body_problems(body: Any) -> list[str]:
    if not isinstance(body, Mapping):
        return ["body: must be a JSON object."]
    options = body.get("options")
    problems = [CALLBACK_URL_RESERVED] if "callback_url" in body else []
    if isinstance(options, Mapping) and "callback_url" in options:
        problems.append(CALLBACK_URL_RESERVED)
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        problems.append(f"body: is not JSON: {'a letter is broken' if isinstance(error, UnicodeError) else error}.")
    return problems
