"""The description of the HTTP interface, served as `/openapi.json`."""

from typing import Any

from client.codec import IDENTIFIER, LONGEST_ID
from client.families import LONGEST, SHAPE
from receiver import __version__
from receiver.states import ORIGINS, STATUSES
from receiver.tables import RESULT_STATUSES

Json = dict[str, Any]

TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "integer"}
TIME: Json = {"type": "string", "format": "date-time"}


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(properties: Json, *, optional: tuple[str, ...] = ()) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


RESULT = _object(
    {
        "index": NUMBER,
        "kind": {**TEXT, "description": "image, video, audio; watermark for a marked copy"},
        "id": _or_null(TEXT),
        "duration": {**_or_null({"type": "number"}), "description": "seconds"},
        "status": {"enum": list(RESULT_STATUSES)},
        "content_type": _or_null(TEXT),
        "size": {**_or_null(NUMBER), "description": "bytes"},
        "sha256": _or_null(TEXT),
        "href": {**_or_null(TEXT), "description": "opens for a limited time without a token"},
        "source_url": _or_null(TEXT),
        "expires_at": {**_or_null(TIME), "description": "when source_url ends, if it says so"},
        "error": {**_or_null(TEXT), "description": "why the file could not be had"},
    }
)
TASK = _object(
    {
        "id": {**TEXT, "description": "ours"},
        "task_id": {**_or_null(TEXT), "description": "Kling's"},
        "family": TEXT,
        "model": TEXT,
        "tags": {"type": "array", "items": TEXT},
        "status": {"enum": list(STATUSES)},
        "status_msg": TEXT,
        "origin": {"enum": [*ORIGINS, None], "description": "who said the final status"},
        "request": {},
        "results": {"type": "array", "items": {"$ref": "#/components/schemas/Result"}},
        "cost": {"description": "as Kling said it"},
        "done": {"type": "boolean", "description": "final, believed, and every result stored or failed"},
        "created_at": TIME,
        "updated_at": TIME,
    }
)
EVENT = _object(
    {"id": NUMBER, "type": TEXT, "at": TIME, "data": {}, "task": {"$ref": "#/components/schemas/Task"}}
)
ERROR = _object({"error": _object({"code": TEXT, "message": TEXT, "hint": TEXT})})


def _text(longest: int, *, shortest: int = 0, **more: Any) -> Json:
    return {**TEXT, "maxLength": longest, **({"minLength": shortest} if shortest else {}), **more}


KLINGS_ID = _text(LONGEST_ID, pattern=f"^{IDENTIFIER.pattern}$")
REGISTRATION = {
    **_object(
        {
            "family": _text(LONGEST, pattern=f"^{SHAPE.pattern}$", example="videos/text2video"),
            "model": _text(256),
            "request": {},
            "base": _text(2000),
            "key_fingerprint": _text(256),
            "tags": {"type": "array", "items": _text(100, shortest=1), "maxItems": 20},
            "attempt": _text(256, description="before a create: the name of this one try at it"),
            "outcome": {"enum": ["created", "not_created", "unknown", None], "description": "after the create"},
            "task_id": {**_or_null(KLINGS_ID), "description": "Kling's, with the outcome `created`"},
            "reason": _text(4000),
        },
        optional=(
            "model",
            "request",
            "base",
            "key_fingerprint",
            "tags",
            "attempt",
            "outcome",
            "task_id",
            "reason",
        ),
    ),
    "anyOf": [
        {
            "properties": {"outcome": {"const": None}, "attempt": _text(256, shortest=1)},
            "required": ["attempt"],
        },
        {
            "properties": {"outcome": {"const": "created"}, "task_id": KLINGS_ID},
            "required": ["outcome", "task_id"],
        },
        {"properties": {"outcome": {"enum": ["not_created", "unknown"]}}, "required": ["outcome"]},
    ],
}
"""What comes before a create, after one that was taken, and after any other."""
REGISTERED = _object(
    {
        "task": {"$ref": "#/components/schemas/Task"},
        "callback_url": TEXT,
        "create": {"type": "boolean", "description": "whether this attempt may send the create"},
    }
)


def _answer(description: str, schema: Json | None = None, media: str = "application/json") -> Json:
    return {"description": description, **({"content": {media: {"schema": schema}}} if schema else {})}


def _errors(*statuses: int) -> Json:
    return {str(status): _answer("an error", {"$ref": "#/components/schemas/Error"}) for status in statuses}


def _in(place: str, name: str, schema: Json, meaning: str = "") -> Json:
    return {"in": place, "name": name, "schema": schema, "required": place == "path", "description": meaning}


ID = _in("path", "id", {**TEXT, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}$"})
SSE = _answer("Server-Sent Events; each `data` is an Event", TEXT, "text/event-stream")
LAST = _in("header", "Last-Event-ID", {**TEXT, "pattern": "^[0-9]{1,18}$"}, "resume after this event")
AFTER = _in(
    "query", "after", {**TEXT, "pattern": "^([0-9]{1,18}|latest)$"}, "the same for those who set no headers"
)
OPEN: Json = {"security": []}
FILTERS = [
    _in("query", "status", {"enum": [*STATUSES, ""]}, "empty is any, like the other filters"),
    _in("query", "family", TEXT),
    _in("query", "tag", TEXT),
    _in("query", "limit", {"type": "integer", "minimum": 1, "maximum": 200}),
    _in("query", "cursor", TEXT, "a `next` of an earlier answer"),
]
LIST = _object(
    {"tasks": {"type": "array", "items": {"$ref": "#/components/schemas/Task"}}, "next": _or_null(TEXT)}
)
ORDERED = _object({"kling": _or_null(TEXT), "task": {"$ref": "#/components/schemas/Task"}})
TASK_ANSWER = _answer("the task", {"$ref": "#/components/schemas/Task"})
REGISTRATION_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Registration"}}},
}
ANY_BODY: Json = {"content": {"application/json": {"schema": {}}}}
TOKEN = _in("path", "token", TEXT)
OK = {"200": _answer("done", {"type": "object"})}


def _order(summary: str) -> Json:
    answer = _answer("Kling's word, and the task", ORDERED)
    responses = {"200": answer} | _errors(401, 403, 404, 409, 502, 503)
    return {"post": {"summary": summary, "parameters": [ID], "responses": responses}}


PATHS: Json = {
    "/callbacks/{token}": {
        "post": {
            "summary": "A status change, from Kling: 200 once it is durable",
            "parameters": [TOKEN],
            "requestBody": ANY_BODY,
            "responses": OK | _errors(401, 503),
            **OPEN,
        }
    },
    "/callbacks": {
        "post": {
            "summary": "A callback that Kling itself signed",
            "requestBody": ANY_BODY,
            "responses": OK | _errors(401, 503),
            **OPEN,
        }
    },
    "/api/tasks": {
        "get": {
            "summary": "Tasks, newest first",
            "parameters": FILTERS,
            "responses": {"200": _answer("a page", LIST)} | _errors(401, 422),
        }
    },
    "/api/tasks/{id}": {
        "get": {"summary": "A task", "parameters": [ID], "responses": {"200": TASK_ANSWER} | _errors(401, 404)},
        "put": {
            "summary": "Register a task before its create, and report after it",
            "parameters": [ID],
            "requestBody": REGISTRATION_BODY,
            "responses": {
                "200": _answer("known already", {"$ref": "#/components/schemas/Registered"}),
                "201": _answer("new", {"$ref": "#/components/schemas/Registered"}),
            }
            | _errors(401, 403, 409, 413, 422, 503),
        },
    },
    "/api/tasks/{id}/ask": _order("Ask Kling now how the task stands, and believe it (admin)"),
    "/api/tasks/{id}/fetch": _order("Ask Kling where the files lie now, and fetch those not stored (admin)"),
    "/api/tasks/{id}/events": {
        "get": {
            "summary": "What happened to a task, then what happens, until it is done",
            "parameters": [ID, LAST, AFTER],
            "responses": {"200": SSE} | _errors(401, 404, 422),
        }
    },
    "/api/events": {
        "get": {
            "summary": "The same for all tasks, without end",
            "parameters": [LAST, AFTER],
            "responses": {"200": SSE} | _errors(401, 422),
        }
    },
    "/api/tasks/{id}/results/{n}": {
        "get": {
            "summary": "The n-th file; with `expires` and `signature` of an href, or a token",
            "parameters": [
                ID,
                _in("path", "n", {**NUMBER, "minimum": 0}),
                _in("query", "expires", TEXT),
                _in("query", "signature", TEXT),
            ],
            "responses": {
                "200": _answer("the file", TEXT, "*/*"),
                "206": _answer("a part of it", TEXT, "*/*"),
                "304": _answer("unchanged"),
                "416": _answer("no such part"),
            }
            | _errors(401, 404, 409, 410),
        }
    },
    "/healthz": {"get": {"summary": "Alive", "responses": OK, **OPEN}},
    "/readyz": {"get": {"summary": "Able to make callbacks durable", "responses": OK | _errors(503), **OPEN}},
    "/metrics": {
        "get": {
            "summary": "Prometheus text",
            "responses": {"200": _answer("text", TEXT, "text/plain")} | _errors(401),
        }
    },
    "/openapi.json": {"get": {"summary": "This document (admin)", "responses": OK | _errors(401, 403)}},
}


def document(receiver_url: str) -> Json:
    """The OpenAPI 3.1 document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Kling Callback receiver", "version": __version__},
        "servers": [{"url": receiver_url}],
        "security": [{"bearer": []}],
        "paths": PATHS,
        "components": {
            "schemas": {
                "Task": TASK,
                "Result": RESULT,
                "Event": EVENT,
                "Error": ERROR,
                "Registration": REGISTRATION,
                "Registered": REGISTERED,
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
