"""The paths of the OpenAPI document: summaries, parameters and responses."""

import re
from dataclasses import dataclass, field
from typing import Any

from kling_callback.protocol import ids
from kling_callback.protocol.events import POSITION
from kling_callback.protocol.signing import Role
from kling_receiver.hooks.config import NAME
from kling_receiver.hooks.delivery_list import STATES
from kling_receiver.states import STATUSES
from kling_receiver.tasks.registration import KLING_ID_SCHEMA
from kling_receiver.tasks.submission import MAX_KEY_CHARS
from kling_receiver.web.api.actions import ONLY
from kling_receiver.web.api.paging import MAX_PAGE_SIZE
from kling_receiver.web.api.tasks import MAX_TEXT_CHARS

Json = dict[str, Any]

STRING: Json = {"type": "string"}
TIME: Json = {"anyOf": [{"enum": [""]}, {**STRING, "format": "date-time"}]}
OWN_ID: Json = {**STRING, "pattern": f"^{ids.PATTERN.pattern}$", "description": "our id"}
IN_PATH: dict[str, Json] = {
    "token": STRING,
    "id": {
        **STRING,
        "pattern": KLING_ID_SCHEMA["pattern"],
        "description": "our id, Kling's, or the caller's external_task_id at Kling",
    },
    "n": {"type": "integer", "minimum": 0},
    "event": {"type": "integer", "minimum": 1},
    "name": {**STRING, "pattern": NAME},
}
"""The parameters in paths."""
ERRORS: dict[Role | None, tuple[int, ...]] = {None: (), "read": (401,), "client": (401, 403), "admin": (401, 403)}
"""The errors of operations that require a role."""


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _response(description: str, schema: Json | None = None, media: str = "application/json") -> Json:
    return {"description": description, **({"content": {media: {"schema": schema}}} if schema else {})}


def _parameter(place: str, name: str, schema: Json, description: str = "") -> Json:
    return {"in": place, "name": name, "schema": schema, "required": place == "path", "description": description}


def _body(schema: Json, *, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


ANY_BODY = _body({}, required=False)
DONE = _response("done", {"type": "object"})
STREAM = _response("Server-Sent Events; each `data` is an Event", STRING, "text/event-stream")
TASK = _response("the task", _ref("Task"))
TASK_PAGE = _response("a page", _ref("TaskPage"))
ACTION = _response("Kling's status, and the task after the action", _ref("Action"))
ADOPTED = {
    "200": _response("the task, which was known before", _ref("Adopted")),
    "201": _response("the task, which is new here", _ref("Adopted")),
}
HOOK = _response("the hook", _ref("Hook"))
HOOK_SECRET = _response("the hook and its secret", _ref("HookSecret"))
DELIVERY = _response("the delivery with all its attempts", _ref("Delivery"))
DELIVERY_PAGE = _response("a page", _ref("DeliveryPage"))
REGISTERED = {
    "200": _response("registered before", _ref("Registered")),
    "201": _response("new", _ref("Registered")),
}
SUBMITTED = {
    "200": _response("submitted before", _ref("Task")),
    "201": _response("new, or opened again after a create that Kling refused", _ref("Task")),
}
IDEMPOTENCY_KEY = _parameter(
    "header",
    "Idempotency-Key",
    {**STRING, "maxLength": MAX_KEY_CHARS},
    "of one intent: a repeat with the same key is the same task, and is never sent again",
)
FILE = {
    "200": _response("the file", STRING, "*/*"),
    "206": _response("a range of the file", STRING, "*/*"),
    "304": _response("not modified"),
    "416": _response("the range is past the end"),
}
LINK = (_parameter("query", "expires", STRING), _parameter("query", "signature", STRING))
START = (
    _parameter(
        "header",
        "Last-Event-ID",
        {**STRING, "pattern": f"^(0|latest|{POSITION})$"},
        "the `id` of a frame: resume after it",
    ),
    _parameter("query", "after", {**STRING, "pattern": f"^(0|latest|{POSITION})$"}, "instead of the header"),
)
PAGE = (
    _parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_SIZE}),
    _parameter("query", "cursor", STRING, "the `next` of an earlier response"),
)
TASKS = (
    _parameter("query", "status", {"enum": [*STATUSES, ""]}, "empty means any, as in the other filters"),
    _parameter("query", "family", STRING),
    _parameter("query", "model", STRING),
    _parameter("query", "tag", STRING),
    _parameter("query", "task_id", STRING, "Kling's id"),
    _parameter("query", "text", {**STRING, "maxLength": MAX_TEXT_CHARS}, "a part of the prompt, in any case"),
    _parameter("query", "since", TIME, "created at this time or later; in UTC unless it names another zone"),
    _parameter("query", "until", TIME, "created before this time"),
    *PAGE,
)
ONLY_PARAMETER = _parameter("query", "only", {"enum": list(ONLY)}, "the one of the two that is meant")
DELIVERIES = (
    _parameter("query", "hook", STRING, "empty means any, as in the other filters"),
    _parameter("query", "state", {"enum": [*STATES, ""]}),
    _parameter("query", "task", {"anyOf": [{"enum": [""]}, {**STRING, **KLING_ID_SCHEMA}]}, "any id of a task"),
    *PAGE,
)


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `ok`: its response, or its responses by status; `errors`: besides those of its `role`.

    `task_id`: the schema of the id in its path, if it has one.
    """

    summary: str
    ok: Json
    errors: tuple[int, ...] = ()
    role: Role | None = "admin"
    parameters: tuple[Json, ...] = ()
    body: Json | None = None
    task_id: Json = field(default_factory=lambda: IN_PATH["id"])

    def document(self, path: str) -> Json:
        """The operation as OpenAPI."""
        schemas = {**IN_PATH, "id": self.task_id}
        in_path = [_parameter("path", name, schemas[name]) for name in re.findall(r"{(\w+)}", path)]
        responses = {"200": self.ok} if "description" in self.ok else self.ok
        errors = {str(status): _response("an error", _ref("Error")) for status in ERRORS[self.role] + self.errors}
        return {
            "summary": f"{self.summary} (role {self.role})" if self.role else self.summary,
            "parameters": [*in_path, *self.parameters],
            **({"requestBody": self.body} if self.body else {}),
            "responses": {**responses, **errors},
            **({} if self.role else {"security": []}),
        }


OPERATIONS: dict[str, Operation] = {
    "POST /callbacks/{token}": Operation(
        "Receive a callback from Kling: 200 once it is durable", DONE, (401, 503), role=None, body=ANY_BODY
    ),
    "POST /callbacks": Operation(
        "Receive a callback that Kling itself signed", DONE, (401, 503), role=None, body=ANY_BODY
    ),
    "GET /api/tasks": Operation("List tasks, newest first", TASK_PAGE, (422,), "read", TASKS),
    "POST /api/tasks": Operation(
        "Submit a task: the receiver sends its create, as soon as a slot is free",
        SUBMITTED,
        (409, 413, 422, 429, 503),
        "client",
        (IDEMPOTENCY_KEY,),
        body=_body(_ref("Submission")),
    ),
    "DELETE /api/tasks/{id}": Operation(
        "Cancel a task that waits in the queue: its create is never sent. For role admin: remove a task that has "
        "ended, with its events and files; the response is the task as it was",
        TASK,
        (404, 409, 422, 503),
        "client",
        (ONLY_PARAMETER,),
    ),
    "GET /api/tasks/{id}": Operation("Show a task", TASK, (404, 409, 422), "read"),
    "PUT /api/tasks/{id}": Operation(
        "Register a task before its create, and report the outcome after it",
        REGISTERED,
        (409, 413, 422, 503),
        "client",
        body=_body(_ref("Registration")),
        task_id=OWN_ID,
    ),
    "POST /api/tasks/adopt": Operation(
        "Adopt a task that was created elsewhere: query Kling about it, and add it",
        ADOPTED,
        (404, 409, 413, 422, 502, 503),
        body=_body(_ref("Adoption")),
    ),
    "POST /api/tasks/{id}/ask": Operation("Query Kling now and apply its answer", ACTION, (404, 409, 502, 503)),
    "POST /api/tasks/{id}/fetch": Operation(
        "Query Kling for new file addresses and download the files that are not stored", ACTION, (404, 409, 502, 503)
    ),
    "GET /api/tasks/{id}/events": Operation(
        "Stream a task's past events, then its live events until it is done", STREAM, (404, 409, 422), "read", START
    ),
    "GET /api/events": Operation("Stream the events of all tasks, without end", STREAM, (409, 422), "read", START),
    "GET /api/tasks/{id}/results/{n}": Operation(
        "Download the n-th file, with a token or with the query of its href", FILE, (404, 409, 410), "read", LINK
    ),
    "OPTIONS /api/tasks/{id}/results/{n}": Operation(
        "Permit a page of another origin to read the file of a signed link, with a range",
        {"204": {"description": "permitted"}},
        (401, 404),
        role=None,
        parameters=LINK,
    ),
    "GET /api/hooks": Operation("List hooks", _response("all hooks", _ref("HookList"))),
    "POST /api/hooks": Operation(
        "Add a hook: from now on, events are sent to a web address",
        {"201": HOOK_SECRET},
        (409, 413, 422, 503),
        body=_body(_ref("NewHook")),
    ),
    "GET /api/hooks/{name}": Operation("Show a hook", HOOK, (404,)),
    "PATCH /api/hooks/{name}": Operation(
        "Change settings of a hook", HOOK, (404, 409, 413, 422, 503), body=_body(_ref("HookChanges"))
    ),
    "DELETE /api/hooks/{name}": Operation(
        "Remove a hook and its pending deliveries", _response("removed", _ref("Removed")), (404, 409, 503)
    ),
    "POST /api/hooks/{name}/test": Operation(
        "Send a signed test event, once",
        _response("the outcome", _ref("Outcome")),
        (404, 413, 422, 503),
        body=_body(_ref("HookTest"), required=False),
    ),
    "POST /api/hooks/{name}/pause": Operation(
        "Pause deliveries; events are kept", HOOK, (404, 413, 422, 503), body=_body(_ref("Pause"), required=False)
    ),
    "POST /api/hooks/{name}/resume": Operation("Resume deliveries, with the events since the pause", HOOK, (404, 503)),
    "POST /api/hooks/{name}/rotate": Operation(
        "Rotate a hook's secret",
        HOOK_SECRET,
        (404, 409, 413, 422, 503),
        body=_body(_ref("Rotation"), required=False),
    ),
    "GET /api/deliveries": Operation(
        "List deliveries, newest event first", DELIVERY_PAGE, (404, 422), parameters=DELIVERIES
    ),
    "GET /api/deliveries/{event}/{name}": Operation("Show a delivery of one event to one hook", DELIVERY, (404,)),
    "POST /api/deliveries/{event}/{name}/retry": Operation(
        "Deliver an event to a hook again, now", DELIVERY, (404, 503)
    ),
    "POST /api/deliveries/retry": Operation(
        "Retry all dead letters",
        _response("how many", _ref("Retried")),
        (404, 413, 422, 503),
        body=_body(_ref("Retry"), required=False),
    ),
    "POST /api/deliveries/replay": Operation(
        "Deliver events of the log again to the hooks that match them",
        _response("to which hooks, and how many events", _ref("Replayed")),
        (404, 413, 422, 503),
        body=_body(_ref("Replay")),
    ),
    "GET /api/tokens": Operation("List the named tokens that are not revoked", _response("all", _ref("TokenList"))),
    "POST /api/tokens": Operation(
        "Add a named token that was signed with the signing secrets: from now on it is accepted",
        {"201": _response("the token, without its text", _ref("Token"))},
        (409, 413, 422, 503),
        body=_body(_ref("NewToken")),
    ),
    "DELETE /api/tokens/{name}": Operation(
        "Revoke a named token: it is refused at once, and its streams end",
        _response("revoked", _ref("Revoked")),
        (404, 503),
    ),
    "GET /api/audit": Operation(
        "List administrative actions, newest first", _response("a page", _ref("AuditPage")), (422,), parameters=PAGE
    ),
    "POST /api/doctor": Operation(
        "Run the doctor's checks: send a callback through the public address, open a link, query Kling",
        _response("what each check found", _ref("Doctor")),
        (409, 429, 503),
    ),
    "GET /healthz": Operation("Check that the process is alive", DONE, role=None),
    "GET /readyz": Operation("Check that a callback would be stored and processed", DONE, (503,), role=None),
    "GET /metrics": Operation("Prometheus metrics", _response("text", STRING, "text/plain"), role="read"),
    "GET /openapi.json": Operation("This document", DONE),
}


def _paths() -> Json:
    paths: Json = {}
    for route, operation in OPERATIONS.items():
        method, path = route.split()
        paths.setdefault(path, {})[method.lower()] = operation.document(path)
    return paths


PATHS = _paths()
