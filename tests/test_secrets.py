"""No secret where it does not belong: not in logs, errors, the database, metrics or answers."""

import base64
import re
from pathlib import Path

import httpx
from gateway import Sandbox

from client.ids import new_id
from client.signing import CallbackSigner, api_token
from tests.conftest import KEY, SECRET
from tests.hosts import host
from tests.processes import Process, run
from tests.submitting import IMAGES, events, finished, post, register, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
WEBHOOK_SECRET = "whsec_" + base64.b64encode(b"a-webhook-secret-for-these-tests").decode()


def test_a_whole_run_tells_no_secret(gateway: Sandbox, tmp_path: Path) -> None:
    """Good and bad days, restarts and refusals: key, signing secret, hook secret and tokens appear nowhere."""
    data = tmp_path / "data"
    settings = {
        "KLING_API_BASE": gateway.url,
        "KLING_HOOK_SECRET": HOOK_SECRET,
        "KLING_WEBHOOK_SECRETS": WEBHOOK_SECRET,
        "KLING_OVERDUE_SECONDS": "0.2",
    }
    with host(lambda visit: visit.answer(500)) as hook:
        settings["KLING_HOOK_URL"] = f"{hook.url}/?password=hidden-in-a-query"
        with Process(data, **settings) as receiver:
            said = []
            for switches in ("", "failed", "file-403", "redirect-private", "query-5xx-once", "no-callback"):
                task, _ = submit(
                    receiver, gateway, switches, request={"callback_url": receiver.callback_url("x")}
                )
                said.append(str(events(receiver, task)))
            token = CallbackSigner([SECRET]).token("forged", IMAGES)[:-1]
            said.append(httpx.post(f"{receiver.url}/callbacks/{token}", json={}).text)
            said.append(post(receiver, new_id(), b"{").text)
            register(receiver, new_id(), request={"callback_url": receiver.callback_url("x"), "api_key": KEY})
            said.append(httpx.get(f"{receiver.url}/api/tasks", headers={"Authorization": f"Bearer {KEY}"}).text)
            said.append(httpx.get(f"{receiver.url}/api/tasks", headers=receiver.headers("read")).text)
            said.append(register(receiver, new_id(), key_fingerprint="other").text)
            said.append(httpx.get(f"{receiver.url}/metrics", headers=receiver.headers("read")).text)
            said.append(httpx.get(f"{receiver.url}/openapi.json").text)
            used = receiver.headers("admin")["Authorization"].partition(" ")[2]
            httpx.get(f"{receiver.url}/nothing?token={used}", headers={"Authorization": f"Bearer {used}"})
            hook.wait_for(1)
            receiver.kill()
            receiver.start()
            done = finished(receiver, submit(receiver, gateway)[0])
            doctor = run("doctor", env=receiver.env)
            said += [doctor.stdout, doctor.stderr]
        said.append(receiver.said())
        database = b"".join(path.read_bytes() for path in data.glob("kling.db*"))
    everything = "\n".join(said).encode() + database
    for secret in (KEY, SECRET, HOOK_SECRET, WEBHOOK_SECRET, HOOK_SECRET[6:], WEBHOOK_SECRET[6:], token, used):
        assert secret.encode() not in everything, secret
    assert not re.search(rb"/callbacks/[A-Za-z0-9_-]{20}", everything)
    assert b"ksTime" not in receiver.said().encode()
    assert b"hidden-in-a-query" not in everything
    assert b"signature=" not in receiver.said().encode() + database
    assert done["status"] == "succeed"


def test_two_kinds_of_token_share_no_signature() -> None:
    """One signed for one purpose says nothing to another."""
    callback = CallbackSigner([SECRET]).token("x", IMAGES)
    bearer = api_token([SECRET], "admin", 300)
    assert callback.rpartition(".")[2] != bearer.rpartition(".")[2]
    assert SECRET not in callback + bearer
