"""No secret leaks into logs, the output of commands, HTTP answers, deliveries or files."""

import base64
import json
import re
import socket
import sys
import time
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, api_token, task_hook_secrets
from kling_callback.protocol.webhooks import sign
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET
from tests.support.web import host
from tools.harness.process import CLIENT, COMMAND, Process, run
from tools.harness.submitting import IMAGES, events, finished, metric, poll_until, post, raw, register, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
OWN_SECRET = "whsec_" + base64.b64encode(b"a-hook-s-own-secret-for-the-test").decode()
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a-webhook-secret-for-these-tests").decode()
ACCESS_SECRET = "an-access-key-s-secret-0123456789"
FOREIGN = "another-signing-secret-0123456789-abc"
SHORT = FOREIGN[:20]
PASSWORD = "password-of-the-database"
IN_BROKER = "password-of-a-broker"
IN_PATH = "hidden-in-the-hooks-path"
IN_HOOK, IN_FILE = "hidden-in-the-hooks-query", "hidden-in-a-files-query"
SECRETS = (KEY, SECRET, WEBHOOK_SECRET.removeprefix("whsec_"), ACCESS_SECRET, SHORT, PASSWORD)
HOOK_SECRETS = (*(each.removeprefix("whsec_") for each in (HOOK_SECRET, OWN_SECRET)), IN_HOOK, IN_BROKER)
"""Secrets that deliveries need: the database has them, and no other place."""


class Session:
    """A receiver process and both commands; collects their output and files."""

    def __init__(self, receiver: Process, gateway: Sandbox) -> None:
        self.receiver, self.gateway = receiver, gateway
        self.output: list[str] = []
        self.contents: list[bytes] = []
        self.tokens: set[str] = set()
        """Bearer tokens of the requests."""
        self.new_secret = ""
        """A hook's secret that the receiver created."""

    def command(self, *arguments: str, command: Path = CLIENT, **settings: str) -> str:
        """Run a command to its end. Returns its stdout."""
        done = run(*arguments, command=command, env={**self.receiver.env, **settings})
        self.output += [done.stdout, done.stderr]
        return done.stdout

    def answers(self, *answers: httpx.Response) -> None:
        """Collect answers, and the bearer tokens of their requests."""
        for answer in answers:
            self.output += [answer.text, str(answer.headers)]
            self.tokens.add(answer.request.headers.get("Authorization", "").rpartition(" ")[2])

    def files(self, folder: Path) -> None:
        """Collect the files of a folder, except databases."""
        for path in folder.rglob("*"):
            if path.is_file() and ".db" not in path.name:
                self.contents.append(path.read_bytes())

    def tasks(self) -> None:
        """Tasks with every outcome, of a client that sends a callback address in `request`."""
        for switches in ("", "failed", "file-403", "redirect-private", "query-5xx-once", "no-callback"):
            request = {"callback_url": self.receiver.callback_url("x")}
            task_id, _ = submit(self.receiver, self.gateway, switches, request=request)
            until = "task.succeed" if switches == "file-403" else "task.done"  # such a file is retried for minutes
            self.output.append(str(events(self.receiver, task_id, until)))
        poll_until(lambda: metric(self.receiver, 'kling_downloads_total{outcome="failed"}') >= 2)

    def refusals(self) -> None:
        """Every kind of error answer."""
        url, read_headers = self.receiver.url, self.receiver.headers("read")
        token = CallbackSigner([SECRET]).token("forged", IMAGES)[:-1]
        self.tokens.add(token)
        self.answers(
            httpx.post(f"{url}/callbacks/{token}", json={}),
            post(self.receiver, new_id(), b"{"),
            httpx.get(f"{url}/callbacks/{token}"),
            httpx.get(f"{url}/nothing?token={token}", headers=self.receiver.headers("admin")),
            httpx.get(f"{url}/api/tasks", headers={"Authorization": f"Bearer {KEY}"}),
            httpx.get(f"{url}/api/tasks", headers={"Authorization": f"Basic {token}"}),
            httpx.put(f"{url}/api/tasks/x", headers=read_headers, content=b"{}"),
            httpx.get(f"{url}/api/tasks/x", headers=read_headers),
            httpx.get(f"{url}/api/tasks?status={token}", headers=read_headers),
            httpx.get(f"{url}/api/tasks/x/results/0?expires=1&signature={token}"),
            httpx.get(f"{url}/healthz", headers={"x-token": token * 2000}),
            register(self.receiver, new_id(), key_fingerprint="other"),
            register(self.receiver, new_id(), family=f"{token}/"),
            register(self.receiver, new_id(), request="x" * 1_100_000),
        )
        register(
            self.receiver, new_id(), request={"callback_url": "x", "api_key": KEY}
        )  # the answer contains a callback address
        self.output.append(raw(url, f"GET /{token} {token} HTTP/1.1\r\n\r\n".encode()).decode())

    def commands(self, output: Path) -> None:
        """Both commands, with valid and invalid arguments and settings."""
        document = self.command("text-to-image", "a cat", "--output", str(output), "--json")
        assert document, self.output[-1]
        task_id = json.loads(document)["id"]
        for arguments in (("show", task_id), ("list",), ("wait", task_id), ("wait", "none")):
            self.command(*arguments)
        for switch in ("failed", "create-garbage", "not-allowed"):
            self.command("text-to-image", f"a cat [sandbox: {switch}]")
        self.command("text-to-image", "a cat", KLING_API_KEY=f"{ACCESS_SECRET}-as-a-key")
        self.command("list", KLING_API_KEY="", KLING_ACCESS_KEY="access", KLING_SECRET_KEY=ACCESS_SECRET)
        self.command("list", KLING_SIGNING_SECRETS=FOREIGN)
        self.command("list", KLING_SIGNING_SECRETS="", KLING_RECEIVER_TOKEN=FOREIGN)
        self.command("list", KLING_SIGNING_SECRETS=SHORT)
        self.command("doctor", command=COMMAND)
        self.command("doctor", command=COMMAND, KLING_SIGNING_SECRETS=FOREIGN)
        self.command("serve", command=COMMAND)
        self.command("serve", command=COMMAND, KLING_SIGNING_SECRETS=SHORT, KLING_HOOK_SECRET=FOREIGN)
        self.command("migrate", command=COMMAND)
        self.command("migrate", command=COMMAND, KLING_DATABASE_URL=f"postgresql://x:{PASSWORD}@127.0.0.1:1/x")

    def hooks(self, url: str) -> None:
        """Hooks of all kinds: added, listed, tested, rotated, failing."""
        argv = json.dumps([sys.executable, "-c", "import os; print(sorted(os.environ.items()))"])
        broker = f"redis://user:{IN_BROKER}@127.0.0.1:1/events"
        for arguments in (
            ("add", url, "--name", "web", "--secret", OWN_SECRET),
            ("add", f"command:{argv}", "--name", "env"),
            ("add", broker, "--name", "broker"),
            ("add", url, "--secret", OWN_SECRET[:24]),
            ("add", f"{url}/?{OWN_SECRET}", "--name", "-"),
            *((action, name) for action in ("show", "test") for name in ("web", "env", "broker")),
            ("list",),
            ("rotate", "web", "--secret", OWN_SECRET[:24]),
        ):
            self.command("hooks", *arguments, command=COMMAND)
        secret = run("hooks", "rotate", "web", env=self.receiver.env).stdout.strip()
        self.new_secret = secret.removeprefix("whsec_")

    def access(self, url: str) -> None:
        """A named token from its making to its end, the hook of one task, and what the audit log says."""
        named = run("token", "--name", "ci", "--role", "admin", env=self.receiver.env).stdout.strip()
        assert named
        self.tokens |= {named, task_hook_secrets([SECRET])[0].removeprefix("whsec_")}
        register(self.receiver, new_id(), hook=f"{url}/{IN_PATH}")
        headers = {"Authorization": f"Bearer {named}"}
        self.answers(
            httpx.get(f"{self.receiver.url}/api/tokens", headers=headers),
            httpx.post(f"{self.receiver.url}/api/tokens", headers=headers, json={"token": named}),
            httpx.post(f"{self.receiver.url}/api/tokens", headers=headers, json={"token": f"{named}x"}),
            httpx.post(f"{self.receiver.url}/api/hooks", headers=headers, json={"address": f"{url}/{IN_PATH}x"}),
            httpx.delete(f"{self.receiver.url}/api/hooks/{named}", headers=headers),
        )
        self.command("tokens", "list", command=COMMAND)
        self.answers(
            httpx.delete(f"{self.receiver.url}/api/tokens/ci", headers=headers),
            httpx.get(f"{self.receiver.url}/api/tokens", headers=headers),
        )
        shown = self.command("audit", "--json", command=COMMAND)
        assert "tokens revoke" in shown
        assert IN_PATH not in shown

    def hang(self, slow: socket.socket) -> None:
        """Start a download that stalls."""
        url = f"http://127.0.0.1:{slow.getsockname()[1]}/x.png?signature={IN_FILE}"
        body = {"task_status": "succeed", "task_result": {"images": [{"index": 0, "url": url}]}}
        content, now = json.dumps(body).encode(), int(time.time())
        headers = {"webhook-id": "m", "webhook-timestamp": str(now)}
        headers["webhook-signature"] = sign(WEBHOOK_SECRET, "m", now, content)
        assert post(self.receiver, new_id(), content, headers=headers).status_code == 200
        slow.settimeout(20)
        slow.accept()[0].close()
        slow.accept()[0].close()


def test_a_whole_run_leaks_no_secret(gateway: Sandbox, tmp_path: Path) -> None:
    """Tasks, refusals, wrong commands, a kill during a download: no output or file contains a secret.

    The database has what must be sent: secrets of hooks, the addresses of hooks and of files.
    """
    data = tmp_path / "data"
    settings = {
        "KLING_API_BASE": gateway.url,
        "KLING_HOOK_SECRET": HOOK_SECRET,
        "KLING_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "KLING_OVERDUE_SECONDS": "0.2",
    }
    with host(lambda visit: visit.answer(500)) as hook, socket.create_server(("127.0.0.1", 0)) as slow:
        settings["KLING_HOOK_URL"] = f"{hook.url}/?password={IN_HOOK}"
        with Process(data, **settings) as receiver:
            session = Session(receiver, gateway)
            session.tasks()
            session.refusals()
            session.commands(tmp_path / "output")
            session.hooks(hook.url)
            session.access(hook.url)
            hook.wait_for(1)
            session.hang(slow)
            receiver.kill()
            session.files(tmp_path)
            receiver.start()
            done = finished(receiver, submit(receiver, gateway)[0])
            read_headers = receiver.headers("read")
            session.answers(
                *(httpx.get(f"{receiver.url}/{at}", headers=read_headers) for at in ("metrics", "openapi.json"))
            )
            session.files(tmp_path)
            deliveries = [visit.body for visit in hook.visits]
    assert done["status"] == "succeed"
    database = b"".join(path.read_bytes() for path in data.glob("kling.db*"))
    outside = b"\n".join(["\n".join(session.output).encode(), *session.contents, *deliveries])
    for secret in (*SECRETS, *filter(None, session.tokens)):
        assert secret.encode() not in outside + database, secret
    for secret in (*HOOK_SECRETS, session.new_secret):
        assert len(secret) > 10
        assert secret.encode() not in outside, secret
        assert secret.encode() in database, secret
    assert not re.search(rb"/callbacks/[A-Za-z0-9_-]{20}", outside + database)
    assert IN_FILE.encode() in database
    for hidden in (IN_FILE, "ksTime"):
        assert hidden.encode() not in b"".join([receiver.log.read_bytes(), *deliveries]), hidden
    assert b"signature=" not in receiver.log.read_bytes()


def test_two_kinds_of_token_share_no_signature() -> None:
    """A token that was signed for one purpose is invalid for another."""
    callback = CallbackSigner([SECRET]).token("x", IMAGES)
    bearer = api_token([SECRET], "admin", 300)
    assert callback.rpartition(".")[2] != bearer.rpartition(".")[2]
    assert SECRET not in callback + bearer
