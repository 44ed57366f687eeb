"""Kling's own API in the OpenAPI document, if the receiver serves it. Bodies are Kling's, and have no schema here."""

import re
from dataclasses import dataclass
from typing import Any

from kling_callback.protocol import families
from kling_receiver.web.compat.queries import MAX_BATCH, MAX_PAGE, MAX_PAGE_SIZE
from kling_receiver.web.compat.routes import PREFIXES

Json = dict[str, Any]

SCHEMAS: Json = {
    "KlingAnswer": {
        "type": "object",
        "description": "Kling's envelope; `data` is a record of Kling's, or a list of them",
        "properties": {
            "code": {"type": "integer", "description": "0 is a success, also of a query about a failed task"},
            "message": {"type": "string"},
            "request_id": {"type": "string"},
            "data": {"type": ["object", "array"]},
        },
        "required": ["code", "message", "request_id"],
    }
}
ANSWER = {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/KlingAnswer"}}}}
STRING: Json = {"type": "string"}
BODY: Json = {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}


def _parameter(place: str, name: str, schema: Json, description: str) -> Json:
    return {"in": place, "name": name, "schema": schema, "required": place == "path", "description": description}


def _integer(name: str, maximum: int, default: int) -> Json:
    return _parameter("query", name, {"type": "integer", "minimum": 1, "maximum": maximum}, f"default: {default}")


PREFER = _parameter("header", "Prefer", STRING, "`wait=N`: hold the query of an unfinished task for up to N seconds")
IN_PATH = {
    "path": _parameter("path", "path", STRING, "below /v1, such as videos/text2video"),
    "product": _parameter("path", "product", STRING, f"such as {' or '.join(sorted(families.NEW_STANDARD)[:2])}"),
    "model": _parameter("path", "model", STRING, "such as kling-3.0-turbo"),
    "id": _parameter("path", "id", STRING, "Kling's id of the task, ours, or the caller's external_task_id"),
}
IDS = f"comma-separated; {MAX_BATCH} ids in all"


@dataclass(frozen=True, slots=True)
class CompatOperation:
    """One method of one path. `passes_on`: its answer may be Kling's own, with any status."""

    summary: str
    errors: tuple[int, ...] = (400, 401, 403, 429, 503)
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    passes_on: bool = False

    def document(self, path: str) -> Json:
        """The operation as OpenAPI."""
        in_path = [IN_PATH[name] for name in re.findall(r"{(\w+)}", path)]
        kling = {"default": {"description": "Kling's own answer, unchanged"}} if self.passes_on else {}
        return {
            "summary": f"{self.summary} (a receiver token, the account's key, or a JWT signed with it)",
            "parameters": [*in_path, *self.parameters],
            **({"requestBody": self.body} if self.body else {}),
            "responses": {
                "200": {"description": "as Kling answers", **({} if self.passes_on else ANSWER)},
                **{str(status): {"description": "an error in Kling's envelope", **ANSWER} for status in self.errors},
                **kling,
            },
        }


KEY = _parameter("header", "Idempotency-Key", {**STRING, "maxLength": 256}, "a repeat returns the same task")
CREATE_ERRORS = (400, 401, 403, 404, 413, 429, 503)
OPERATIONS = {
    "GET /v1/{path}": CompatOperation(
        "Query a task by its create's path and an id, list the tasks of a path, or forward a call",
        (400, 401, 403, 404, 429, 503, 504),
        (_integer("pageNum", MAX_PAGE, 1), _integer("pageSize", MAX_PAGE_SIZE, 30), PREFER),
        passes_on=True,
    ),
    "POST /v1/{path}": CompatOperation(
        "Create a task, or forward a call that Kling answers at once",
        (*CREATE_ERRORS, 504),
        (KEY,),
        BODY,
        passes_on=True,
    ),
    "GET /account/{path}": CompatOperation(
        "Forward a call about the account", (400, 401, 403, 404, 429, 503, 504), passes_on=True
    ),
    "POST /account/{path}": CompatOperation(
        "Forward a call about the account", (*CREATE_ERRORS, 504), body=BODY, passes_on=True
    ),
    "GET /tasks": CompatOperation(
        "Query several tasks, in the spelling of the new standard",
        parameters=(
            _parameter("query", "task_ids", STRING, IDS),
            _parameter("query", "external_task_ids", STRING, IDS),
            PREFER,
        ),
    ),
    "POST /{product}/{model}": CompatOperation(
        "Create a task of the new standard", CREATE_ERRORS, (KEY,), BODY, passes_on=True
    ),
    "GET /{product}/{model}/{id}": CompatOperation(
        "Query a task of the new standard", (400, 401, 403, 404, 429, 503), (PREFER,)
    ),
}


def _paths() -> Json:
    paths: Json = {}
    for prefix in PREFIXES:
        for route, operation in OPERATIONS.items():
            method, path = route.split()
            paths.setdefault(f"{prefix}{path}", {})[method.lower()] = operation.document(path)
    return paths


PATHS = _paths()
