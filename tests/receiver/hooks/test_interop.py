"""Hooks and other packages of Standard Webhooks: each accepts what the other signs, and rejects forgeries."""

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks.webhooks
import svix.webhooks

from kling_callback import HookError, verify_hook
from kling_callback.protocol.events import LogPosition
from kling_callback.protocol.webhooks import hook_body, webhook_id
from kling_sandbox import Sandbox
from tests.support import node
from tests.support.kling import LOG, task_json
from tests.support.receiver import Start
from tests.support.web import Visit, host
from tools.harness.submitting import events, submit

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-for-these-tests--").decode()

NODE = """
const { Webhook } = require("standardwebhooks");
const { secret, body, headers, name, at } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const hook = new Webhook(secret);
let result = "valid";
try { hook.verify(body, headers); } catch (error) { result = error.constructor.name; }
console.log(JSON.stringify({ result, signature: hook.sign(name, new Date(at * 1000), body) }));
"""

Verify = Callable[[str, str, dict[str, str]], bool]
Sign = Callable[[str, str, datetime, str], str]


@pytest.fixture(params=["standardwebhooks", "svix", "node"])
def package(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Verify, Sign]:
    """The functions of each package that verify and sign."""
    if request.param == "node":
        return _under_node(tmp_path)
    module: Any = {"standardwebhooks": standardwebhooks.webhooks, "svix": svix.webhooks}[request.param]

    def verify(secret: str, body: str, headers: dict[str, str]) -> bool:
        try:
            module.Webhook(secret).verify(body, headers)
        except standardwebhooks.webhooks.WebhookVerificationError:
            return False
        return True

    return verify, lambda secret, name, at, body: str(module.Webhook(secret).sign(name, at, body))


def _under_node(folder: Path) -> tuple[Verify, Sign]:
    count = iter(range(100))

    def ask(secret: str, body: str, headers: dict[str, str], name: str = "m", at: int = 0) -> dict[str, str]:
        (place := folder / f"node-{next(count)}").mkdir()
        document = {"secret": secret, "body": body, "headers": headers, "name": name, "at": at}
        answer: dict[str, str] = json.loads(node.run(place, NODE, json.dumps(document)))
        return answer

    def verify(secret: str, body: str, headers: dict[str, str]) -> bool:
        result = ask(secret, body, headers)["result"]
        assert result in ("valid", "WebhookVerificationError")
        return result == "valid"

    return verify, lambda secret, name, at, body: ask(secret, body, {}, name, int(at.timestamp()))["signature"]


@pytest.fixture
def visits(start: Start, gateway: Sandbox) -> list[Visit]:
    """The requests that a real receiver sends for a real task."""
    with host(lambda visit: visit.answer(204)) as server:
        running = start(api_base=gateway.url, hook_url=server.url, hook_secret=SECRET)
        task, _ = submit(running, gateway)
        return server.wait_for(len(events(running, task)))


def test_other_packages_accept_our_signatures(visits: list[Visit], package: tuple[Verify, Sign]) -> None:
    """They reject a changed body and another secret, and so does verify_hook."""
    verify, _ = package
    for visit in (visits[0], visits[-1]):
        body, headers = visit.body.decode(), dict(visit.headers)
        assert verify(SECRET, body, headers)
        assert verify_hook(visit.body, headers, SECRET).webhook_id == headers["webhook-id"]
        forged = body.replace('"id"', '"iD"', 1)
        for secret, content in ((SECRET, forged), (OTHER, body)):
            assert not verify(secret, content, headers)
            with pytest.raises(HookError):
                verify_hook(content.encode(), headers, secret)


def test_during_a_rotation_either_secret_verifies(start: Start, package: tuple[Verify, Sign]) -> None:
    """A test event of a hook whose secret was just rotated is signed with both secrets."""
    verify, _ = package
    with host(lambda visit: visit.answer(204)) as server:
        running = start()

        def call(path: str, **fields: Any) -> Any:
            url, headers = f"{running.url}/api/hooks{path}", running.headers("admin")
            return httpx.post(url, json=fields, headers=headers, timeout=20).raise_for_status().json()

        call("", name="mine", address=server.url, secret=SECRET)
        call("/mine/rotate", secret=OTHER)
        assert call("/mine/test")["delivered"]
        (visit,) = server.wait_for(1)
    for secret in (SECRET, OTHER):
        assert verify(secret, visit.body.decode(), dict(visit.headers))
        assert verify_hook(visit.body, visit.headers, secret).type == "hook.test"


def test_verify_hook_accepts_other_packages_signatures(package: tuple[Verify, Sign]) -> None:
    """An event with characters of one to four bytes."""
    _, sign = package
    at, name = datetime.now(UTC), webhook_id(LogPosition(LOG, 17, 1_800_000_000_000))
    task = task_json("mine", "succeed", request={"prompt": "袋鼠 🦘 é"})
    at_text = "2027-01-15T08:00:00.000Z"
    document = {"id": 17, "log_id": LOG, "type": "task.done", "at": at_text, "data": {}, "task": task}
    for body in (hook_body(document), json.dumps(document, ensure_ascii=False).encode()):
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": sign(SECRET, name, at, body.decode()),
        }
        assert verify_hook(body, headers, SECRET).task == task
