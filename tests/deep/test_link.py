"""A PostgreSQL behind a link that is cut in silence: refused in time, and all goes on once it is back."""

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


@pytest.fixture
def far() -> Iterator[link.Link]:
    """A server behind a link of its own."""
    if not link.present():
        pytest.skip(f"{ABSENT}a network of our own")
    with link.server() as far:
        yield far


def ready(receiver: Process) -> httpx.Response:
    """Whether it says that it is ready."""
    return web.get(f"{receiver.url}/readyz", timeout=40)


def test_a_link_that_is_cut_in_silence(far: link.Link, gateway: Sandbox, tmp_path: Path) -> None:
    """Callbacks are refused before their sender hangs up, readiness says so; afterwards nobody has to help."""
    with (
        Process(tmp_path / "data", KLING_API_BASE=gateway.url, KLING_DATABASE_URL=far.url) as receiver,
        ThreadPoolExecutor(2) as both,
    ):
        assert post(receiver, new_id(), {"task_status": "submitted"}).status_code == 200
        far.cut()
        asked = both.submit(ready, receiver)
        refused = both.submit(post, receiver, new_id(), {"task_status": "processing"}, timeout=40).result()
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert asked.result().status_code == 503
        far.mend()
        assert answers(f"{receiver.url}/readyz", 40)
        task, _ = submit(receiver, gateway)
        assert finished(receiver, task)["results"][0]["status"] == "stored"
