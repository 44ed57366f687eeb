"""A link to PostgreSQL that drops packets silently: callbacks are refused in time, and it recovers by itself."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import ABSENT
from tools.crash import link
from tools.harness.loopback import answers, web
from tools.harness.process import Process
from tools.harness.submitting import finished, post, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured


@pytest.fixture
def server() -> Iterator[link.Link]:
    """A PostgreSQL server behind a link of its own."""
    if not link.available():
        pytest.skip(f"{ABSENT}network namespaces")
    with link.server() as server:
        yield server


def ready(receiver: Process) -> httpx.Response:
    """The answer of `/readyz`."""
    return web.get(f"{receiver.url}/readyz", timeout=40)


def test_a_link_that_is_cut_in_silence(server: link.Link, gateway: Sandbox, tmp_path: Path) -> None:
    """Callbacks get 503 before their sender times out, so does `/readyz`; the receiver recovers by itself."""
    with (
        Process(tmp_path / "data", KLING_API_BASE=gateway.url, KLING_DATABASE_URL=server.url) as receiver,
        ThreadPoolExecutor(2) as pool,
    ):
        assert post(receiver, new_id(), {"task_status": "submitted"}).status_code == 200
        server.cut()
        readiness = pool.submit(ready, receiver)
        refused = pool.submit(post, receiver, new_id(), {"task_status": "processing"}, timeout=40).result()
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert readiness.result().status_code == 503
        server.restore()
        assert answers(f"{receiver.url}/readyz", 40)
        task_id, _ = submit(receiver, gateway)
        assert finished(receiver, task_id)["results"][0]["status"] == "stored"
