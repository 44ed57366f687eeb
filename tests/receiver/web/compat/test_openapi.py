"""The OpenAPI document names every route of Kling's API, if the receiver serves it."""

import httpx
from starlette.routing import Route

from kling_receiver.app import create_app
from tests.support.receiver import Running


def test_every_route_is_described(door: Running) -> None:
    """Each path and method, no more and no fewer, the pages for people apart; each reference has a schema."""
    served = httpx.get(f"{door.url}/openapi.json", headers=door.headers("admin")).json()
    described = {(path, method.upper()) for path, methods in served["paths"].items() for method in methods}
    routes = [route for route in create_app(door.receiver).routes if isinstance(route, Route)]
    real = {
        (route.path.replace(":path}", "}"), method)
        for route in routes
        if route.path != "/" and not route.path.startswith("/dashboard")
        for method in (route.methods or set()) - {"HEAD"}
    }
    assert described == real
    assert "KlingAnswer" in served["components"]["schemas"]
    assert all(each["summary"] for methods in served["paths"].values() for each in methods.values())
