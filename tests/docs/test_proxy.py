"""docs/operating.md: the recipe for nginx, as printed, passes callbacks on, and no log has a token."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.docs.test_docs import DOCS, blocks
from tests.support.nginx import PROGRAM, Nginx, nginx
from tests.support.receiver import ABSENT, KEY, Start
from tools.harness import loopback
from tools.harness.process import Process, run
from tools.harness.submitting import IMAGES, finished, post, raw, register

(RECIPE,) = blocks((DOCS / "operating.md").read_text(encoding="utf-8"), "nginx")

pytestmark = pytest.mark.skipif(PROGRAM is None, reason=f"{ABSENT}nginx")


@pytest.fixture
def port() -> Iterator[int]:
    with loopback.reserved_port() as port:
        yield port


def token_of(url: str) -> str:
    """The token in a callback address."""
    return url.rpartition("/")[2]


def test_the_recipe_passes_callbacks_on_and_logs_no_token(tmp_path: Path, gateway: Sandbox, port: int) -> None:
    """Callbacks from Kling, refusals of every kind, and a receiver that does not run."""
    public = f"http://127.0.0.1:{port}"
    settings = {"KLING_API_BASE": gateway.url, "KLING_RECEIVER_URL": public}
    with (
        Process(tmp_path / "data", **settings) as receiver,
        nginx(tmp_path / "nginx", RECIPE, receiver.url, port) as web,
    ):
        receiver_settings = {**receiver.env, "KLING_RECEIVER_INTERNAL_URL": receiver.url}
        doctor = run("doctor", env=receiver_settings)
        assert (doctor.returncode, doctor.stdout.count("ok  ")) == (1, 5), doctor.stdout
        assert "FAIL links: " in doctor.stdout
        doctor = run("doctor", env={**receiver_settings, "KLING_LINKS_URL": receiver.url})
        assert (doctor.returncode, doctor.stdout.count("ok  ")) == (0, 6), doctor.stdout
        task = new_id()
        answer = register(receiver, task).json()
        url = answer["callback_url"]
        assert url.startswith(f"{public}/callbacks/")
        body = {"prompt": "a cat", "callback_url": url, "external_task_id": task}
        created = httpx.post(f"{gateway.url}/v1/{IMAGES}", json=body, headers={"Authorization": f"Bearer {KEY}"})
        kling_id = created.json()["data"]["task_id"]
        assert register(receiver, task, outcome="created", task_id=kling_id).status_code == 200
        assert finished(receiver, task)["status"] == "succeed"
        path = url.removeprefix(public)
        statuses = [
            httpx.post(f"{public}{path}x", content=b"{}").status_code,
            httpx.get(f"{public}{path}?q={token_of(url)}").status_code,
            httpx.post(f"{public}{path}", content=b" " * (21 << 20)).status_code,
            httpx.get(f"{public}/api/tasks/{task}/results/0?signature={token_of(url)}").status_code,
            httpx.post(f"{public}/{'%63'}{path[2:]}", content=b"{}").status_code,
            httpx.post(f"{public}/{path}", content=b"{}").status_code,
            httpx.post(f"{public}{path}", headers={"x-long": "x" * 50_000}).status_code,
        ]
        assert statuses == [401, 405, 413, 404, 200, 200, 400]
        raw(public, f"POST {path} HTTP/1.1\r\n\r\n".encode())
        raw(public, f"POST {path} HTTP/9\r\nHost: x\r\n\r\n".encode())
        receiver.kill()
        assert httpx.post(url, content=b"{}").status_code == 502
        logs = Nginx.logs(web)
    access = (web.folder / "kling.log").read_text()
    assert access.count('"POST /callbacks/... HTTP/1.1" 200') >= 3
    assert '"POST /callbacks/... HTTP/1.1" 502' in access
    assert token_of(url) not in logs
    assert token_of(url)[:20] not in logs
    assert "signature" not in logs


DOUBLED = [
    # a `location` without the slash that `proxy_pass` has: nginx makes //callbacks/ of /kling/callbacks/
    ("location /kling { proxy_pass http://127.0.0.1:8000/; }", "/kling", "/kling/callbacks/"),
    ("location /kling { proxy_pass http://127.0.0.1:8000/kling/; }", "/kling", "/kling/callbacks/"),
    ("location / { proxy_pass http://127.0.0.1:8000; }", "", "//callbacks/"),
    ("location / { proxy_pass http://127.0.0.1:8000; }", "/kling", "/kling//callbacks/"),
    ("location / { proxy_pass http://127.0.0.1:8000; }", "/kling", "//kling/callbacks/"),
    ("location /callbacks { proxy_pass http://127.0.0.1:8000/callbacks/; }", "", "/callbacks/"),
]


@pytest.mark.parametrize(("location", "prefix", "path"), DOUBLED)
def test_a_doubled_slash_loses_no_callback(
    start: Start, tmp_path: Path, port: int, location: str, prefix: str, path: str
) -> None:
    """As nginx makes it of a prefix, and as it passes it on without `merge_slashes`."""
    running = start(path=prefix)
    upstream = running.url.removesuffix(prefix)
    task = new_id()
    token = token_of(running.callback_url(task, IMAGES))
    server = f"server {{\n# listen\nmerge_slashes off;\n{location}\n}}"
    with nginx(tmp_path / "nginx", server, upstream, port) as web:
        assert httpx.post(f"{web.url}{path}{token}", json={"task_status": "processing"}).status_code == 200
        assert httpx.post(f"{web.url}{path}{token}x", json={}).status_code == 401
    assert register(running, task).status_code == 200  # the callback made it


def test_a_doubled_slash_evades_no_rule_for_other_routes(start: Start) -> None:
    """A proxy may refuse `/api`; `//api` is no route."""
    running = start()
    for path in ("//api/tasks", "//metrics", "//healthz"):
        assert httpx.get(f"{running.url}{path}", headers=running.headers("admin")).status_code == 404
    assert post(running, new_id(), {"task_status": "processing"}).status_code == 200
