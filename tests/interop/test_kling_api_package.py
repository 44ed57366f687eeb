"""The npm package `kling-api` works through the receiver with `baseUrl` changed: it signs JWTs, creates and polls."""

import json
from pathlib import Path
from typing import Any

import pytest

from kling_sandbox import Sandbox
from tests.support.node import run
from tests.support.receiver import Running, Start
from tests.support.tls import TlsFront

PROGRAM = """
(async () => {
    const { KlingAPI, KlingAPIError } = await import("kling-api");
    const given = JSON.parse(require("fs").readFileSync(0));
    const api = new KlingAPI(given.account);
    const attempt = async work => {
        try {
            return await work();
        } catch (error) {
            if (!(error instanceof KlingAPIError)) throw error;
            return { code: error.code, status: error.httpStatus, message: error.message };
        }
    };
    const fetched = async url => Buffer.from(await (await fetch(url)).arrayBuffer()).toString("latin1", 0, 12);
    const quick = { interval: 20, timeout: 20000, showSpinner: false };
    console.log(JSON.stringify(await (async () => { BODY })()));
})();
"""
"""The package refuses to download from loopback, so the file is fetched here."""


@pytest.fixture
def running(start: Start, gateway: Sandbox, front: TlsFront, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A receiver with the sandbox's pair of keys."""
    monkeypatch.setenv("NODE_EXTRA_CA_CERTS", str(front.certificate))
    running = start(
        api_base=gateway.url,
        api_key="",
        access_key=gateway.access_key,
        secret_key=gateway.secret_key,
        compat_api="on",
        receiver_url=front.url,
    )
    front.target = running.local_url
    return running


def program(folder: Path, front: TlsFront, gateway: Sandbox, body: str, **account: str) -> Any:
    """What a program of this body returns. `account`: settings of the package other than the right ones."""
    settings = {"baseUrl": front.url, "accessKey": gateway.access_key, "secretKey": gateway.secret_key, **account}
    return json.loads(run(folder, PROGRAM.replace("BODY", body), json.dumps({"account": settings})))


def test_a_video_and_an_image(running: Running, gateway: Sandbox, front: TlsFront, tmp_path: Path) -> None:
    """Both are made and fetched; the id that the caller chose finds the task, and is refused a second time."""
    video, known, again, image = program(
        tmp_path,
        front,
        gateway,
        """
        const order = { prompt: "a kangaroo", model_name: "kling-v2-master", external_task_id: "order-1" };
        const created = await api.textToVideo(order);
        const video = await api.waitForVideoResult(created.data.task_id, undefined, quick);
        video.file = await fetched(video.data.task_result.videos[0].url);
        const known = await api.queryTextToVideoTask("order-1");
        const again = await attempt(() => api.textToVideo(order));
        const drawn = await api.generateImage({ prompt: "a kangaroo", model_name: "kling-v2", n: 2 });
        const image = await api.waitForImageResult(drawn.data.task_id, undefined, quick);
        image.file = await fetched(image.data.task_result.images[1].url);
        return [video, known, again, image];
        """,
    )
    assert video["data"]["task_result"]["videos"][0]["url"].startswith(f"{front.url}/")
    assert "ftyp" in video["file"]
    same = [each["data"]["task_result"]["videos"][0] for each in (known, video)]
    assert len({each["url"].partition("?")[0] for each in same}) == 1  # each answer has a link of its own
    assert len({each["id"] for each in same}) == 1
    assert known["data"]["task_info"] == {"external_task_id": "order-1"}
    assert (again["code"], again["status"]) == (1201, 400)
    assert image["file"].startswith("\x89PNG")
    assert len(gateway.creates) == 2
    assert all(task.queries <= 1 for task in gateway.tasks.values())


def test_failures(running: Running, gateway: Sandbox, front: TlsFront, tmp_path: Path) -> None:
    """A failed task, parameters that Kling refuses and an unknown task reach the program in its own errors."""
    failed, refused, unknown = program(
        tmp_path,
        front,
        gateway,
        """
        const bad = await api.textToVideo({ prompt: "a kangaroo [sandbox: failed]" });
        return [
            await attempt(() => api.waitForVideoResult(bad.data.task_id, undefined, quick)),
            await attempt(() => api.textToVideo({ prompt: "a kangaroo", external_task_id: "not an id" })),
            await attempt(() => api.queryTextToVideoTask("nobody")),
        ];
        """,
    )
    assert failed["message"]
    assert (refused["code"], refused["status"]) == (1201, 400)
    assert (unknown["code"], unknown["status"]) == (1201, 400)


def test_the_account(running: Running, gateway: Sandbox, front: TlsFront, tmp_path: Path) -> None:
    """Its packs are Kling's own answer; a wrong secret key is refused in the package's error, and nothing is sent."""
    packs = program(tmp_path, front, gateway, "return await api.getAccountInfo(0, 1);")
    assert packs["data"]["resource_pack_subscribe_infos"]
    body = """return await attempt(() => api.textToVideo({ prompt: "a kangaroo" }));"""
    (tmp_path / "node_modules").unlink()
    wrong = program(tmp_path, front, gateway, body, secretKey="another-secret-another-secret-another")
    assert (wrong["code"], wrong["status"]) == (1000, 401)
    assert gateway.creates == []
