"""The body of a create: its model, and the fields that have our id and callback address."""

import json
from collections.abc import Mapping
from typing import Any

from kling_callback.errors import ParameterError
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.ids import DESCRIPTION, is_id
from kling_callback.protocol.nesting import is_deeper

MAX_DEPTH = 20
"""Levels of lists and objects in a parameter."""


def chosen_id(family: str, body: Any, external_task_id: str | None) -> str | None:
    """The task id that the caller chose, as argument or in the body, or None. Raises ParameterError."""
    in_body = options_of(family, body).get("external_task_id")
    if not all(isinstance(each or "", str) for each in (external_task_id, in_body)):
        raise ParameterError([f"external_task_id: must be text. {DESCRIPTION}"])
    task_id = external_task_id or in_body or None
    if external_task_id and in_body and external_task_id != in_body:
        raise ParameterError([f"external_task_id is {external_task_id!r}, but {in_body!r} in the body. Set it once."])
    if task_id is not None and not is_id(task_id):
        raise ParameterError([f"external_task_id: {task_id!r} is not a task's id. {DESCRIPTION}"])
    return task_id


def chosen_callback(family: str, body: Any, callback_url: Any) -> str:
    """The address for callbacks that the caller chose, as argument or in the body, or "". Raises ParameterError.

    In a body of the new standard it may also stand where the legacy one has it.
    """
    top = body.get("callback_url") if isinstance(body, Mapping) else None
    given = [each for each in (callback_url, options_of(family, body).get("callback_url"), top) if each]
    if not all(isinstance(each, str) for each in given):
        raise ParameterError(["callback_url: must be text."])
    if len(set(given)) > 1:
        raise ParameterError(["callback_url: there are several. Set it once."])
    return given[0] if given else ""


def without_callback(family: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The body without an address for callbacks: it becomes the task's hook."""
    rest = {name: value for name, value in body.items() if name != "callback_url"}
    if "callback_url" not in options_of(family, rest):
        return rest
    return {**rest, "options": {name: value for name, value in rest["options"].items() if name != "callback_url"}}


def with_callback(family: str, body: Mapping[str, Any], task_id: str, callback_url: str) -> dict[str, Any]:
    """The body with our id and callback address, in the fields of the family's standard."""
    ours = {"external_task_id": task_id, "callback_url": callback_url}
    if not is_new_standard(family):
        return {**body, **ours}
    return {**body, "options": {**options_of(family, body), **ours}}


def prompt_of(request: Any) -> str:
    """The text of a create that says what is wanted, wherever its standard has it; "" without one.

    `request`: the body, as the receiver has it.
    """
    if not isinstance(request, Mapping):
        return ""
    shots = request.get("multi_prompt")
    first = shots[0] if isinstance(shots, list) and shots else None
    contents = request.get("contents")
    texts = [each.get("text") for each in contents if isinstance(each, Mapping)] if isinstance(contents, list) else []
    shot = first.get("prompt") if isinstance(first, Mapping) else None
    candidates = (request.get("prompt"), *texts, shot, request.get("text"))
    return next((each for each in candidates if isinstance(each, str) and each.strip()), "")


def model_of(family: str, body: Mapping[str, Any]) -> str:
    """The model's name, from the body or from the end of a new-standard path; "" without one."""
    if is_new_standard(family):
        return family.rpartition("/")[2]
    name = body.get("model_name") or body.get("model")
    return name if isinstance(name, str) else ""


def options_of(family: str, body: Any) -> Mapping[str, Any]:
    """The object of the body that has `external_task_id` and `callback_url` in the family's standard."""
    if not isinstance(body, Mapping):
        return {}
    if not is_new_standard(family):
        return body
    options = body.get("options")
    return options if isinstance(options, Mapping) else {}


def check_depth(fields: Any) -> None:
    """Check the nesting of a body, or of a job's parameters, before it is walked. Raises ParameterError."""
    named = fields if isinstance(fields, Mapping) else {"body": fields}
    too_deep = [name for name, value in named.items() if is_deeper(value, MAX_DEPTH)]
    if too_deep:
        raise ParameterError(
            [f"{name}: has more than {MAX_DEPTH} levels of lists and objects; Kling needs few." for name in too_deep]
        )


def json_problems(body: Any) -> list[str]:
    """Why a body cannot be sent as a JSON object: messages for people."""
    if not isinstance(body, Mapping):
        return ["body: must be a JSON object."]
    try:
        json.dumps(body, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        return [f"body: is not valid JSON: {'invalid Unicode' if isinstance(error, UnicodeError) else error}."]
    return []
