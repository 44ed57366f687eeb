"""The description of hooks and deliveries, a part of `/openapi.json`; all of it is for admins."""

from kling_receiver.hooks.config import EVENT_STATUSES, NAME
from kling_receiver.hooks.delivery_list import STATES
from kling_receiver.states import STATUSES
from kling_receiver.store.tables import HOOK_SOURCES
from kling_receiver.web.api.paging import MAX_PAGE_SIZE
from kling_receiver.web.openapi.schema import (
    NUMBER,
    TEXT,
    TIME,
    YES_OR_NO,
    Json,
    answer,
    body,
    errors,
    many,
    or_null,
    parameter,
    record,
    reference,
    text,
)

SECONDS: Json = {"type": "number", "exclusiveMinimum": 0}
SECRET = text(200, description="a secret of Standard Webhooks; without it, one is made", examples=["whsec_..."])
FILTER: Json = {
    "events": many(
        {"enum": list(EVENT_STATUSES)},
        description="empty is any, like the other filters",
        maxItems=len(EVENT_STATUSES),
    ),
    "families": many({**TEXT, "examples": ["videos/effects"]}, maxItems=100),
    "statuses": many({"enum": list(STATUSES)}, maxItems=len(STATUSES)),
    "tags": many(text(100, shortest=1), description="of tasks with any of these", maxItems=100),
}
PACE: Json = {
    "retry_schedule": many({**SECONDS, "maximum": 30 * 86_400}, description="seconds between attempts", maxItems=30),
    "concurrency": {**NUMBER, "minimum": 1, "maximum": 256, "description": "attempts at once"},
    "rate_limit": or_null({"type": "number", "minimum": 0.01, "maximum": 100_000, "description": "attempts a second"}),
    "timeout": {**SECONDS, "maximum": 300, "description": "seconds for one attempt"},
}
NEW_HOOK = {
    **record(
        {
            "address": text(2000, shortest=1, description="https://...", examples=["https://hooks.example/in"]),
            "name": {**TEXT, "pattern": NAME, "description": "without it, one is made"},
            "secret": SECRET,
            **FILTER,
            **PACE,
        },
        optional=("name", "secret", *FILTER, *PACE),
    ),
    "additionalProperties": False,
}
HOOK = record(
    {
        "name": TEXT,
        "address": {**TEXT, "description": "without a password"},
        "source": {"enum": list(HOOK_SOURCES), "description": "who wants it"},
        "task": {**or_null(TEXT), "description": "the one task that it hears of"},
        **FILTER,
        **PACE,
        "state": {"enum": ["active", "failing", "paused"]},
        "paused_at": or_null(TIME),
        "paused_because": or_null(TEXT),
        "failing_since": or_null(TIME),
        "pending": {**NUMBER, "description": "deliveries that were tried, and will be again"},
        "dead": {**NUMBER, "description": "deliveries that were given up"},
        "behind": {**NUMBER, "description": "events that it was not yet offered, wanted or not"},
        "created_at": TIME,
    }
)
WITH_SECRET = record({"hook": reference("Hook"), "secret": {**TEXT, "description": "shown this once"}})
ATTEMPT = record(
    {
        "attempted_at": TIME,
        "duration_ms": {**NUMBER, "description": "milliseconds that it took"},
        "delivered": YES_OR_NO,
        "response_status": {**or_null(NUMBER), "description": "an HTTP status, or a command's exit code"},
        "response_body": {**or_null(TEXT), "description": "its first bytes; the last of a command's output"},
        "error": or_null(TEXT),
    }
)
TESTED = record(
    {
        name: ATTEMPT["properties"][name]
        for name in ("delivered", "duration_ms", "response_status", "response_body", "error")
    }
)
ROTATION = {
    **record(
        {
            "secret": SECRET,
            "overlap": {
                "type": "number",
                "minimum": 0,
                "maximum": 30 * 86_400,
                "description": "seconds for which the old one signs too",
            },
        },
        optional=("secret", "overlap"),
    ),
    "additionalProperties": False,
}


def _delivery(attempts: Json) -> Json:
    return record(
        {
            "id": {**TEXT, "description": "EVENT/HOOK"},
            "event": NUMBER,
            "hook": TEXT,
            "type": TEXT,
            "task": TEXT,
            "state": {"enum": [*STATES, "dropped"], "description": "dropped: with its hook"},
            "attempts": attempts,
            "last_attempt": or_null(reference("Attempt")),
            "next_attempt_at": {**or_null(TIME), "description": "when it is tried again"},
        }
    )


LISTED = record({"deliveries": many(_delivery(NUMBER)), "next": or_null(TEXT)})
OF_HOOK = {**TEXT, "pattern": NAME, "description": "of this hook alone"}
REPLAY = {
    **record(
        {
            "from": {**NUMBER, "minimum": 1, "maximum": (1 << 62) - 1, "description": "from this event on"},
            "since": {**TIME, "description": "since then; UTC, unless it says otherwise"},
            "task": {**TEXT, "pattern": "^[A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127}$"},
            "hook": OF_HOOK,
        },
        optional=("from", "since", "task", "hook"),
    ),
    "additionalProperties": False,
    "oneOf": [{"required": [name]} for name in ("from", "since", "task")],
}
RETRY = {**record({"hook": OF_HOOK}, optional=("hook",)), "additionalProperties": False}

SCHEMAS: Json = {
    "Hook": HOOK,
    "NewHook": NEW_HOOK,
    "Attempt": ATTEMPT,
    "Delivery": _delivery(many(reference("Attempt"))),
}

HOOK_NAME = parameter("path", "name", {**TEXT, "pattern": NAME})
PAIR = [parameter("path", "event", {**NUMBER, "minimum": 1}), HOOK_NAME]
FILTERS = [
    parameter("query", "hook", TEXT, "empty is any, like the other filters"),
    parameter("query", "state", {"enum": [*STATES, ""]}),
    parameter("query", "task", {**TEXT, "pattern": "^([A-Za-z0-9][A-Za-z0-9_.:@=-]{0,127})?$"}),
    parameter("query", "limit", {**NUMBER, "minimum": 1, "maximum": MAX_PAGE_SIZE}),
    parameter("query", "cursor", TEXT, "a `next` of an earlier answer"),
]


def _operation(summary: str, said: Json, *also: int, **more: Json | list[Json]) -> Json:
    return {"summary": summary, **more, "responses": {"200": said} | errors(401, 403, *also)}


def _of_hook(summary: str, said: Json, *also: int, **more: Json) -> Json:
    return _operation(summary, said, 404, *also, parameters=[HOOK_NAME], **more)


A_HOOK = answer("the hook", reference("Hook"))
A_DELIVERY = answer("the delivery, with all its attempts", reference("Delivery"))
REMOVED = answer("it was", record({"removed": TEXT}))

PATHS: Json = {
    "/api/hooks": {
        "get": _operation(
            "Where events go",
            answer(
                "all hooks",
                record({"hooks": many(reference("Hook")), "database": TEXT, "kept_in_file": YES_OR_NO}),
            ),
        ),
        "post": {
            "summary": "Send events to a web address from now on",
            "requestBody": body(reference("NewHook")),
            "responses": {"201": answer("the hook", WITH_SECRET)} | errors(401, 403, 409, 413, 422, 503),
        },
    },
    "/api/hooks/{name}": {
        "get": _of_hook("A hook", A_HOOK),
        "delete": _of_hook("Forget a hook, and what it is owed", REMOVED, 409, 503),
    },
    "/api/hooks/{name}/test": {
        "post": _of_hook("Send a signed test event", answer("how that went", TESTED)),
    },
    "/api/hooks/{name}/pause": {"post": _of_hook("Send nothing; its events are kept", A_HOOK, 503)},
    "/api/hooks/{name}/resume": {"post": _of_hook("Go on, with all that was kept", A_HOOK, 503)},
    "/api/hooks/{name}/rotate": {
        "post": _of_hook(
            "Give it another secret",
            answer("the hook, and its secret", WITH_SECRET),
            *(409, 413, 422, 503),
            requestBody=body(ROTATION, required=False),
        )
    },
    "/api/deliveries": {
        "get": _operation("What became of events", answer("a page, newest first", LISTED), 404, 422, parameters=FILTERS)
    },
    "/api/deliveries/{event}/{name}": {"get": _operation("One event and one hook", A_DELIVERY, 404, parameters=PAIR)},
    "/api/deliveries/{event}/{name}/retry": {
        "post": _operation("Send it again, now", A_DELIVERY, 404, 503, parameters=PAIR)
    },
    "/api/deliveries/retry": {
        "post": _operation(
            "Send again all that is dead",
            answer("how much that is", record({"deliveries": NUMBER})),
            *(404, 413, 422, 503),
            requestBody=body(RETRY, required=False),
        )
    },
    "/api/deliveries/replay": {
        "post": _operation(
            "Send events again to the hooks that want them",
            answer("to whom, and how many", record({"hooks": many(TEXT), "events": NUMBER})),
            *(404, 413, 422, 503),
            requestBody=body(REPLAY),
        )
    },
}
