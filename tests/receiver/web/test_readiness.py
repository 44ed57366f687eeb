"""`/readyz`: a receiver is ready only if a callback would be made durable."""

import shutil
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text as sql

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.app import Receiver, create_app
from kling_receiver.store.database import Database
from tests.support.api import error_of
from tests.support.receiver import SECRET, Running, make_settings
from tools.harness.submitting import IMAGES


def test_a_receiver_that_lost_its_storage_is_not_ready(running: Running) -> None:
    """It tries to write there, reports why it is not ready, stays alive, and is ready once the folder is restored."""
    shutil.rmtree(running.settings.results)
    running.settings.results.write_text("in the way")
    response = httpx.get(f"{running.url}/readyz")
    assert error_of(response) == (503, "not_ready")
    assert "The folder for result files cannot be written" in response.json()["error"]["message"]
    assert httpx.get(f"{running.url}/healthz").status_code == 200
    running.settings.results.unlink()
    response = httpx.get(f"{running.url}/readyz")
    assert "Mount its volume again, or restart the receiver" in response.json()["error"]["message"]
    (running.settings.results / ".parts").mkdir(parents=True)
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_a_receiver_that_cannot_write_its_database_is_not_ready(running: Running) -> None:
    """The check commits a write."""
    with running.receiver.store.database.write() as connection:
        connection.execute(sql("PRAGMA busy_timeout = 20"))
    blocker = Database(running.settings.database)
    with blocker.write():
        assert error_of(httpx.get(f"{running.url}/readyz")) == (503, "not_ready")
    blocker.close()
    assert httpx.get(f"{running.url}/readyz").status_code == 200


@pytest.mark.anyio
async def test_a_receiver_that_has_not_started_is_not_ready(tmp_path: Path) -> None:
    """Until its writer runs, callbacks are answered 503."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
        assert error_of(await http.get("http://receiver/readyz")) == (503, "not_ready")
        address = CallbackSigner([SECRET]).url(receiver.settings.receiver_url, new_id(), IMAGES)
        assert error_of(await http.post(address, json={})) == (503, "unavailable")
    receiver.store.database.close()
