"""Result files on a file system that ignores case and cannot sync folders, as a share of Windows."""

import hashlib
from pathlib import Path

import httpx
import pytest

from kling_receiver.results.owner import RECORD
from kling_sandbox import Sandbox
from tests.support.fuse import caseless_folder
from tools.harness.process import Process
from tools.harness.submitting import create, finished, metric, register

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

TWINS = ["Order-17", "order-17", "ORDER-17", "con", "CON", "a:b", "a-b", "A-B"]
TAKEN = "taken"


def test_each_task_has_its_own_file(tmp_path: Path, gateway: Sandbox) -> None:
    """Each is stored by its first download. A file in the way, as an earlier version named them, stays as it is."""
    with caseless_folder(tmp_path / "real", tmp_path / "share") as share:
        storage = {"KLING_API_BASE": gateway.url, "KLING_STORAGE_URL": (share / "results").as_uri()}
        with Process(tmp_path / "data", **storage) as receiver:
            for name in ("0.png", "1.png"):
                (share / "results" / TAKEN.upper()).mkdir(exist_ok=True)
                (share / "results" / TAKEN.upper() / name).write_bytes(b"of the task TAKEN")
            for task in (*TWINS, TAKEN):
                assert register(receiver, task).json()["create"]
                kling_id = create(receiver, gateway, task, prompt=f"a kangaroo for {task}", n=2)
                register(receiver, task, outcome="created", task_id=kling_id)
            contents = {}
            for task in (*TWINS, TAKEN):
                for result in finished(receiver, task)["results"]:
                    content = httpx.get(result["href"]).raise_for_status().content
                    assert (result["status"], hashlib.sha256(content).hexdigest()) == ("stored", result["sha256"])
                    contents[task, result["index"]] = content
            assert len(set(contents.values())) == len(contents)
            assert not metric(receiver, 'kling_downloads_total{outcome="failed"}')
            assert "cannot sync folders (Invalid argument)" in receiver.log_text()
        files = [path for path in (tmp_path / "real" / "results").rglob("*") if path.is_file() and path.name != RECORD]
        assert len(files) == len(contents) + 2
        assert {path.read_bytes() for path in files} == {*contents.values(), b"of the task TAKEN"}
