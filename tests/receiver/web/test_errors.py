"""Every error has one shape: unknown routes and methods, and failures of the receiver itself."""

from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from kling_receiver.app import Receiver, create_app
from tests.support.api import error_of
from tests.support.database import Ledger
from tests.support.receiver import Running, make_settings


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api", 404),
        ("GET", "/api/tasks/", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/api/tasks/unknown", 404),
        ("GET", "/api/tasks/unknown/events", 404),
        ("POST", "/api/tasks", 422),
        ("DELETE", "/api/tasks/x", 404),
        ("PATCH", "/api/tasks/x", 405),
        ("POST", "/healthz", 405),
        ("PATCH", "/api/events", 405),
    ],
)
def test_errors_have_one_shape(shared: Running, method: str, path: str, status: int) -> None:
    """Code, message and hint; 405 names every method that is allowed."""
    response = httpx.request(method, f"{shared.url}{path}", headers=shared.headers("admin"))
    assert error_of(response)[0] == status
    if method == "PATCH" and path == "/api/tasks/x":
        assert {"GET", "PUT", "DELETE"} <= set(response.headers["Allow"].split(", "))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("UPDATE task SET request = 'no JSON'", (500, "internal")),
        ("ALTER TABLE task RENAME TO gone", (503, "unavailable")),
    ],
)
async def test_a_failure_of_the_receiver_has_the_shape_too(tmp_path: Path, fault: str, code: tuple[int, str]) -> None:
    """500 without details, which the log has; 503 when the database cannot be used."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    Ledger(receiver.store.database).put_task()
    engine = create_engine(receiver.settings.database)
    with engine.begin() as connection:
        connection.execute(sql(fault))
    engine.dispose()
    transport = httpx.ASGITransport(create_app(receiver), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        headers = {"Authorization": Running.headers(receiver)["Authorization"]}  # type: ignore[arg-type]
        response = await http.get("http://receiver/api/tasks", headers=headers)
    receiver.store.database.close()
    assert error_of(response) == code
    assert "JSON" not in response.text
    assert "SELECT" not in response.text
