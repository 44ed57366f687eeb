"""A batch whose command is killed, and whose receiver restarts while it runs: each line is paid once."""

import json
import os
import subprocess
from pathlib import Path

from kling_sandbox import Sandbox
from tests.client.cli.test_main import KLING
from tests.support.receiver import SECRET, Start
from tests.support.submitting import QUICK_CREATES

JOBS = 40


def test_a_killed_batch_and_a_restarted_receiver(start: Start) -> None:
    """The first run is killed; the second outlives a restart of the receiver, and ends with all files."""
    prompts = (f"kangaroo {number // 2}" for number in range(JOBS))  # each twice, without an id
    Path("jobs.jsonl").write_text("".join(f'{{"job": "text-to-image", "prompt": "{each}"}}\n' for each in prompts))
    command = [KLING, "batch", "jobs.jsonl", "--output", "out", "--json"]
    with Sandbox(image_seconds=0.3) as gateway:
        settings = {"api_base": gateway.url, "concurrency": "3", "delays": QUICK_CREATES}
        receiver = start(**settings)
        port = int(receiver.url.rpartition(":")[2])
        environment = {**os.environ, "KLING_RECEIVER_URL": receiver.url, "KLING_SIGNING_SECRETS": SECRET}
        killed = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert killed.stdout is not None
        assert json.loads(killed.stdout.readline())["status"] == "succeed"
        killed.kill()
        killed.communicate()
        with Path("err").open("w") as errors:
            again = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        assert again.stdout is not None
        first = [again.stdout.readline() for _ in range(5)]
        receiver.stop()
        start(port=port, **settings)
        tasks = [json.loads(line) for line in (*first, *again.stdout)]
        code, err = again.wait(60), Path("err").read_text()
        again.stdout.close()
        assert code == 0, err
        assert len({task["id"] for task in tasks}) == len(tasks) == len(gateway.creates) == JOBS
        assert f"{JOBS} of {JOBS} jobs succeeded, 0 failed, {JOBS} files." in err
    assert len([path for path in Path("out").iterdir() if path.suffix == ".png"]) == JOBS
