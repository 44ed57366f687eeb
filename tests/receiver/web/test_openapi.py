"""The OpenAPI document: it names every route, and real responses match it."""

from typing import Any

import httpx
from starlette.routing import Route

from kling_callback.protocol.ids import new_id
from kling_receiver.app import Receiver, create_app
from kling_receiver.web.openapi.document import document, schemas
from kling_receiver.web.openapi.paths import PATHS
from kling_sandbox import Sandbox
from tests.support.receiver import Running
from tools.harness.submitting import Json, events, finished, register, submit

SCHEMAS = schemas()
PYTHON: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
}


def problems(value: Any, schema: Json, place: str = "") -> list[str]:
    """Where a value differs from a schema, for the few keywords that this document uses."""
    if "$ref" in schema:
        return problems(value, SCHEMAS[schema["$ref"].rpartition("/")[2]], place)
    if "anyOf" in schema:
        tried = [problems(value, each, place) for each in schema["anyOf"]]
        return [] if [] in tried else tried[0]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{place}: {value!r} is not one of {schema['enum']}"]
    kind = schema.get("type")
    if kind == "null":
        return [] if value is None else [f"{place}: {value!r} is not null"]
    if kind and (not isinstance(value, PYTHON[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return [f"{place}: {value!r} is not of type {kind}"]
    if kind == "array":
        return [each for n, item in enumerate(value) for each in problems(item, schema["items"], f"{place}[{n}]")]
    if kind == "object" and "properties" in schema:
        differences = [f"{place}: lacks {name}" for name in schema.get("required", ()) if name not in value]
        differences += [f"{place}: {name} is not described" for name in value if name not in schema["properties"]]
        return differences + [
            each
            for name, item in value.items()
            if name in schema["properties"]
            for each in problems(item, schema["properties"][name], f"{place}.{name}")
        ]
    return []


def test_the_checker_checks() -> None:
    """It finds missing, undescribed and mistyped values."""
    assert problems({"error": {"code": 1, "message": "x"}}, SCHEMAS["Error"]) == [
        ".error: lacks hint",
        ".error.code: 1 is not of type string",
    ]
    assert problems({"more": 1}, SCHEMAS["Error"]) == [": lacks error", ": more is not described"]
    assert problems("x", {"enum": ["y"]})
    assert problems(1, {"anyOf": [{"type": "string"}, {"type": "null"}]})


def test_every_route_is_described(shared: Running) -> None:
    """Each path and method, no more and no fewer; the pages for people apart."""
    described = {(path, method.upper()) for path, methods in PATHS.items() for method in methods}
    receiver: Receiver = shared.receiver
    routes = [route for route in create_app(receiver).routes if isinstance(route, Route)]
    real = {
        (route.path.replace(":path}", "}").replace(":int}", "}"), method)
        for route in routes
        if route.path != "/" and not route.path.startswith("/dashboard")
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == real


def test_real_responses_match_the_document(running: Running, gateway: Sandbox) -> None:
    """Open, done and failed tasks, registrations, lists, events and errors."""
    done = finished(running, submit(running, gateway, n=2)[0])
    failed = finished(running, submit(running, gateway, "failed")[0])
    lost, _ = submit(running, gateway, "redirect-private", "videos/text2video")
    for task in (done, failed, finished(running, lost)):
        assert problems(task, SCHEMAS["Task"]) == []
    for event in events(running, lost):
        assert problems(event, SCHEMAS["Event"]) == []
    registered = register(running, new_id(), model="m", tags=["a"], request={"n": 1}).json()
    assert problems(registered, SCHEMAS["Registered"]) == []
    page = httpx.get(f"{running.url}/api/tasks?limit=2", headers=running.headers()).json()
    assert problems(page, SCHEMAS["TaskPage"]) == []
    assert problems(httpx.get(f"{running.url}/api/tasks").json(), SCHEMAS["Error"]) == []


def test_the_document_is_served(shared: Running) -> None:
    """With this receiver's address; each reference has a schema, and each operation a summary and responses."""
    served = httpx.get(f"{shared.url}/openapi.json", headers=shared.headers("admin")).json()
    assert served == document(shared.url)
    assert served["servers"] == [{"url": shared.url}]

    def references(part: Any) -> set[str]:
        if isinstance(part, dict):
            return {part["$ref"]} if "$ref" in part else set().union(*map(references, part.values()))
        return set().union(*map(references, part)) if isinstance(part, list) else set()

    assert references(served) <= {f"#/components/schemas/{name}" for name in SCHEMAS}
    for methods in served["paths"].values():
        for described in methods.values():
            assert described["summary"]
            assert described["responses"]
