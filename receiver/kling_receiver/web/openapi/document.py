"""The description of the HTTP interface, served as `/openapi.json`."""

from kling_callback.protocol.families import MAX_CHARS, PATTERN
from kling_callback.protocol.reports import IDENTIFIER, MAX_ID_CHARS
from kling_receiver import __version__
from kling_receiver.states import ORIGINS, STATUSES
from kling_receiver.store.tables import RESULT_STATUSES
from kling_receiver.web.openapi import hooks as hook_paths
from kling_receiver.web.openapi.schema import (
    NUMBER,
    TEXT,
    TIME,
    Json,
    answer,
    errors,
    or_null,
    parameter,
    record,
    text,
)

RESULT = record(
    {
        "index": NUMBER,
        "kind": {**TEXT, "description": "image, video, audio; watermark for a marked copy"},
        "id": or_null(TEXT),
        "duration": {**or_null({"type": "number"}), "description": "seconds"},
        "status": {"enum": list(RESULT_STATUSES)},
        "content_type": or_null(TEXT),
        "size": {**or_null(NUMBER), "description": "bytes"},
        "sha256": or_null(TEXT),
        "href": {**or_null(TEXT), "description": "opens for a limited time without a token"},
        "source_url": or_null(TEXT),
        "expires_at": {**or_null(TIME), "description": "when source_url ends, if it says so"},
        "error": {**or_null(TEXT), "description": "why the file could not be had"},
    }
)
TASK = record(
    {
        "id": {**TEXT, "description": "ours"},
        "task_id": {**or_null(TEXT), "description": "Kling's"},
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
EVENT = record({"id": NUMBER, "type": TEXT, "at": TIME, "data": {}, "task": {"$ref": "#/components/schemas/Task"}})
ERROR = record({"error": record({"code": TEXT, "message": TEXT, "hint": TEXT})})


KLINGS_ID = text(MAX_ID_CHARS, pattern=f"^{IDENTIFIER.pattern}$")
REGISTRATION = {
    **record(
        {
            "family": text(MAX_CHARS, pattern=f"^{PATTERN.pattern}$", example="videos/text2video"),
            "model": text(256),
            "request": {},
            "base": text(2000),
            "key_fingerprint": text(256),
            "tags": {"type": "array", "items": text(100, shortest=1), "maxItems": 20},
            "attempt": text(256, description="before a create: the name of this one try at it"),
            "outcome": {"enum": ["created", "not_created", "unknown", None], "description": "after the create"},
            "task_id": {**or_null(KLINGS_ID), "description": "Kling's, with the outcome `created`"},
            "reason": text(4000),
            "hook": text(2000, description="a web address that is told of this task alone"),
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
            "hook",
        ),
    ),
    "anyOf": [
        {
            "properties": {"outcome": {"const": None}, "attempt": text(256, shortest=1)},
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
REGISTERED = record(
    {
        "task": {"$ref": "#/components/schemas/Task"},
        "callback_url": TEXT,
        "create": {"type": "boolean", "description": "whether this attempt may send the create"},
    }
)


ID = parameter("path", "id", {**TEXT, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}$"})
SSE = answer("Server-Sent Events; each `data` is an Event", TEXT, "text/event-stream")
LAST = parameter("header", "Last-Event-ID", {**TEXT, "pattern": "^[0-9]{1,18}$"}, "resume after this event")
AFTER = parameter(
    "query", "after", {**TEXT, "pattern": "^([0-9]{1,18}|latest)$"}, "the same for those who set no headers"
)
OPEN: Json = {"security": []}
FILTERS = [
    parameter("query", "status", {"enum": [*STATUSES, ""]}, "empty is any, like the other filters"),
    parameter("query", "family", TEXT),
    parameter("query", "tag", TEXT),
    parameter("query", "limit", {"type": "integer", "minimum": 1, "maximum": 200}),
    parameter("query", "cursor", TEXT, "a `next` of an earlier answer"),
]
LIST = record({"tasks": {"type": "array", "items": {"$ref": "#/components/schemas/Task"}}, "next": or_null(TEXT)})
ORDERED = record({"kling": or_null(TEXT), "task": {"$ref": "#/components/schemas/Task"}})
TASK_ANSWER = answer("the task", {"$ref": "#/components/schemas/Task"})
REGISTRATION_BODY = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Registration"}}},
}
ANY_BODY: Json = {"content": {"application/json": {"schema": {}}}}
TOKEN = parameter("path", "token", TEXT)
OK = {"200": answer("done", {"type": "object"})}


def _order(summary: str) -> Json:
    responses = {"200": answer("Kling's word, and the task", ORDERED)} | errors(401, 403, 404, 409, 502, 503)
    return {"post": {"summary": summary, "parameters": [ID], "responses": responses}}


PATHS: Json = {
    "/callbacks/{token}": {
        "post": {
            "summary": "A status change, from Kling: 200 once it is durable",
            "parameters": [TOKEN],
            "requestBody": ANY_BODY,
            "responses": OK | errors(401, 503),
            **OPEN,
        }
    },
    "/callbacks": {
        "post": {
            "summary": "A callback that Kling itself signed",
            "requestBody": ANY_BODY,
            "responses": OK | errors(401, 503),
            **OPEN,
        }
    },
    "/api/tasks": {
        "get": {
            "summary": "Tasks, newest first",
            "parameters": FILTERS,
            "responses": {"200": answer("a page", LIST)} | errors(401, 422),
        }
    },
    "/api/tasks/{id}": {
        "get": {"summary": "A task", "parameters": [ID], "responses": {"200": TASK_ANSWER} | errors(401, 404)},
        "put": {
            "summary": "Register a task before its create, and report after it",
            "parameters": [ID],
            "requestBody": REGISTRATION_BODY,
            "responses": {
                "200": answer("known already", {"$ref": "#/components/schemas/Registered"}),
                "201": answer("new", {"$ref": "#/components/schemas/Registered"}),
            }
            | errors(401, 403, 409, 413, 422, 503),
        },
    },
    "/api/tasks/{id}/ask": _order("Ask Kling now how the task stands, and believe it (admin)"),
    "/api/tasks/{id}/fetch": _order("Ask Kling where the files lie now, and fetch those not stored (admin)"),
    "/api/tasks/{id}/events": {
        "get": {
            "summary": "What happened to a task, then what happens, until it is done",
            "parameters": [ID, LAST, AFTER],
            "responses": {"200": SSE} | errors(401, 404, 422),
        }
    },
    "/api/events": {
        "get": {
            "summary": "The same for all tasks, without end",
            "parameters": [LAST, AFTER],
            "responses": {"200": SSE} | errors(401, 422),
        }
    },
    "/api/tasks/{id}/results/{n}": {
        "get": {
            "summary": "The n-th file; with `expires` and `signature` of an href, or a token",
            "parameters": [
                ID,
                parameter("path", "n", {**NUMBER, "minimum": 0}),
                parameter("query", "expires", TEXT),
                parameter("query", "signature", TEXT),
            ],
            "responses": {
                "200": answer("the file", TEXT, "*/*"),
                "206": answer("a part of it", TEXT, "*/*"),
                "304": answer("unchanged"),
                "416": answer("no such part"),
            }
            | errors(401, 404, 409, 410),
        }
    },
    **hook_paths.PATHS,
    "/healthz": {"get": {"summary": "Alive", "responses": OK, **OPEN}},
    "/readyz": {"get": {"summary": "Able to make callbacks durable", "responses": OK | errors(503), **OPEN}},
    "/metrics": {
        "get": {
            "summary": "Prometheus text",
            "responses": {"200": answer("text", TEXT, "text/plain")} | errors(401),
        }
    },
    "/openapi.json": {"get": {"summary": "This document (admin)", "responses": OK | errors(401, 403)}},
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
                **hook_paths.SCHEMAS,
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }
