"""Our hooks and other people's packages: what either signs, the other takes, and neither takes a forgery."""

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
from kling_callback.protocol.webhooks import hook_body, webhook_id
from kling_sandbox import Sandbox
from tests.support import node
from tests.support.kling import task_json
from tests.support.receiver import Start
from tests.support.web import Visit, host
from tools.harness.submitting import events, submit

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
OTHER = "whsec_" + base64.b64encode(b"another-secret-for-these-tests--").decode()

NODE = """
const { Webhook } = require("standardwebhooks");
const { secret, body, headers, name, at } = JSON.parse(require("fs").readFileSync(0, "utf-8"));
const hook = new Webhook(secret);
let verdict = "good";
try { hook.verify(body, headers); } catch (error) { verdict = error.constructor.name; }
console.log(JSON.stringify({ verdict, signature: hook.sign(name, new Date(at * 1000), body) }));
"""

Verify = Callable[[str, str, dict[str, str]], bool]
Sign = Callable[[str, str, datetime, str], str]


@pytest.fixture(params=["standardwebhooks", "svix", "node"])
def package(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Verify, Sign]:
    """How each package verifies, and how it signs."""
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
        given = {"secret": secret, "body": body, "headers": headers, "name": name, "at": at}
        answer: dict[str, str] = json.loads(node.run(place, NODE, json.dumps(given)))
        return answer

    def verify(secret: str, body: str, headers: dict[str, str]) -> bool:
        verdict = ask(secret, body, headers)["verdict"]
        assert verdict in ("good", "WebhookVerificationError")
        return verdict == "good"

    return verify, lambda secret, name, at, body: ask(secret, body, {}, name, int(at.timestamp()))["signature"]


@pytest.fixture
def visits(start: Start, gateway: Sandbox) -> list[Visit]:
    """What a real receiver sends of a real task."""
    with host(lambda visit: visit.answer(204)) as there:
        running = start(api_base=gateway.url, hook_url=there.url, hook_secret=SECRET)
        task, _ = submit(running, gateway)
        return there.wait_for(len(events(running, task)))


def test_they_take_what_we_sign(visits: list[Visit], package: tuple[Verify, Sign]) -> None:
    """From a real receiver; with one letter changed, or another secret, they do not, and nor do we."""
    verify, _ = package
    for visit in (visits[0], visits[-1]):
        body, headers = visit.body.decode(), dict(visit.headers)
        assert verify(SECRET, body, headers)
        assert verify_hook(visit.body, headers, SECRET).webhook_id == headers["webhook-id"]
        forged = body.replace('"id"', '"iD"', 1)
        for secret, said in ((SECRET, forged), (OTHER, body)):
            assert not verify(secret, said, headers)
            with pytest.raises(HookError):
                verify_hook(said.encode(), headers, secret)


def test_during_a_rotation_they_take_it_with_either_secret(start: Start, package: tuple[Verify, Sign]) -> None:
    """A test event of a hook whose secret was just replaced: signed with both, taken with each alone."""
    verify, _ = package
    with host(lambda visit: visit.answer(204)) as there:
        running = start()

        def order(path: str, **given: Any) -> Any:
            url, headers = f"{running.url}/api/hooks{path}", running.headers("admin")
            return httpx.post(url, json=given, headers=headers, timeout=20).raise_for_status().json()

        order("", name="mine", address=there.url, secret=SECRET)
        order("/mine/rotate", secret=OTHER)
        assert order("/mine/test")["delivered"]
        (visit,) = there.wait_for(1)
    for secret in (SECRET, OTHER):
        assert verify(secret, visit.body.decode(), dict(visit.headers))
        assert verify_hook(visit.body, visit.headers, secret).type == "hook.test"


def test_we_take_what_they_sign(package: tuple[Verify, Sign]) -> None:
    """An event with letters of every width."""
    _, sign = package
    at, name = datetime.now(UTC), webhook_id(17, 1_800_000_000_000)
    task = task_json("mine", "succeed", request={"prompt": "袋鼠 🦘 é"})
    document = {"id": 17, "type": "task.done", "at": "2027-01-15T08:00:00.000Z", "data": {}, "task": task}
    for body in (hook_body(document), json.dumps(document, ensure_ascii=False).encode()):
        headers = {
            "webhook-id": name,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": sign(SECRET, name, at, body.decode()),
        }
        assert verify_hook(body, headers, SECRET).task == task
