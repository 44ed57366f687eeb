"""Tokens and the audit log of a receiver that is killed: what was answered holds, and no action is unrecorded."""

import base64
import json
import os
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.web import Visit, host
from tools.harness.process import Process, run

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured


@pytest.fixture
def running(tmp_path: Path) -> Any:
    """A receiver in a process of its own, without a Kling."""
    with Process(tmp_path / "data", KLING_API_BASE="http://127.0.0.1:9") as running:
        yield running


def audit(running: Process) -> list[tuple[str, str, str | None]]:
    """The log, oldest first: action, target, result."""
    page = httpx.get(f"{running.url}/api/audit", headers=running.headers("admin")).json()
    return [(each["action"], each["target"], each["result"]) for each in reversed(page["entries"])]


def test_an_action_that_a_kill_interrupts_is_in_the_log(running: Process) -> None:
    """Its entry is committed before it begins; after the restart the result is unknown."""
    came, end = threading.Event(), threading.Event()

    def respond(visit: Visit) -> None:
        came.set()
        end.wait(30)

    def test_hook() -> None:
        with pytest.raises(httpx.HTTPError):
            httpx.post(f"{running.url}/api/hooks/shop/test", headers=running.headers("admin"), timeout=30)

    with host(respond) as shop:
        secret = "whsec_" + base64.b64encode(os.urandom(32)).decode()
        document = {"name": "shop", "address": shop.url, "secret": secret, "timeout": 60}
        added = httpx.post(f"{running.url}/api/hooks", headers=running.headers("admin"), json=document)
        assert added.status_code == 201
        thread = threading.Thread(target=test_hook)
        thread.start()
        assert came.wait(20)
        running.kill()
        thread.join()
        end.set()
    running.start()
    assert audit(running) == [("hooks add", "shop", "done"), ("hooks test", "shop", None)]
    shown = run("audit", env=running.env).stdout
    assert "unknown" in shown


def test_what_was_answered_holds_after_a_kill(running: Process) -> None:
    """A token that was added is accepted, and one that was revoked is refused, however soon the kill comes."""

    def status(token: str) -> int:
        return httpx.get(f"{running.url}/api/tasks", headers={"Authorization": f"Bearer {token}"}).status_code

    for round_ in range(3):
        kept, revoked = (run("token", "--name", f"{name}-{round_}", env=running.env).stdout.strip() for name in "ab")
        answer = httpx.delete(f"{running.url}/api/tokens/b-{round_}", headers=running.headers("admin"))
        assert answer.status_code == 200
        running.kill()
        running.start()
        assert (status(kept), status(revoked)) == (200, 401)
    listed = run("tokens", "list", "--json", env=running.env).stdout.splitlines()
    assert [json.loads(line)["name"] for line in listed] == ["a-0", "a-1", "a-2"]
    assert [entry[0] for entry in audit(running)] == ["tokens add", "tokens add", "tokens revoke"] * 3
