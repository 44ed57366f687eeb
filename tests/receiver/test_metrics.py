"""What is counted: every outcome under its own name, and no label that an outsider chooses."""

import re
from functools import partial

import httpx
from sqlalchemy import text

from kling_callback.protocol.ids import new_id
from kling_receiver.metrics import CONTENT_TYPE, Metrics
from kling_sandbox import Sandbox
from tests.support.receiver import Start
from tools.harness.submitting import finished, metric, poll_until, post, rows, submit


def test_a_run_is_counted(start: Start, gateway: Sandbox) -> None:
    """Callbacks, the time of their commits, questions and downloads."""
    running = start(api_base=gateway.url)
    finished(running, submit(running, gateway, n=2)[0])
    assert metric(running, 'kling_callbacks_total{outcome="accepted"}') == 3
    assert metric(running, "kling_callback_seconds_count") == 3
    assert metric(running, 'kling_queries_total{outcome="answered"}') == 1
    assert metric(running, 'kling_downloads_total{outcome="stored"}') == 2
    post(running, new_id(), {"task_status": "failed"})
    gateway.wait_for(lambda: len(gateway.queries) == 2)
    answer = httpx.get(f"{running.url}/metrics", headers=running.headers("read"))
    assert answer.headers["Content-Type"] == CONTENT_TYPE


def test_a_job_of_a_newer_version_is_counted_and_tried_again(start: Start, gateway: Sandbox) -> None:
    """It is a dead letter until a start: the version that wrote it may be back."""
    insert = (
        "INSERT INTO job (unique_key, kind, pool, task_id, concurrency_key, args, state, attempts, due_at, delay_ms,"
        " error, created_at) VALUES ('shrink/t', 'shrink', 'shrinking', 't', 'x', '{', 'ready', 0, 0, 0, '', 0)"
    )
    running = start(api_base=gateway.url)
    with running.receiver.store.database.write() as connection:
        connection.execute(text(insert))
    for _ in range(2):
        task, _ = submit(running, gateway)
        finished(running, task)
        assert poll_until(partial(metric, running, 'kling_invalid_jobs_total{kind="unknown"}')) == 1
        [job] = rows(running, "SELECT state, error, args FROM job WHERE kind = 'shrink'")
        error = "This version cannot run the job: its kind 'shrink' is unknown."
        assert job == {"state": "dead", "error": error, "args": "{"}
        running.stop()
        running = start(api_base=gateway.url)


def test_no_label_comes_from_outside(start: Start) -> None:
    """However many tasks and families there are, the series stay the same."""
    running = start()

    def series() -> set[str]:
        text = httpx.get(f"{running.url}/metrics", headers=running.headers("read")).text
        return {line.rpartition(" ")[0] for line in text.splitlines() if not line.startswith("#")}

    post(running, new_id(), {"task_status": "processing"})
    before = series()
    for n in range(5):
        post(running, new_id(), {"task_status": "processing"}, f"videos/family{n}")
    assert series() == before


def test_every_receiver_has_metrics_of_its_own() -> None:
    """Two in one process share no registry, and every counter is described."""
    one, other = Metrics(), Metrics()
    one.callbacks.labels("accepted").inc()
    assert b'kling_callbacks_total{outcome="accepted"} 1.0' in one.text()
    assert b"accepted" not in other.text()
    names = set(re.findall(r"# HELP (\S+) \S", other.text().decode()))
    assert names >= {
        "kling_callbacks_total",
        "kling_queries_total",
        "kling_downloads_total",
        "kling_deliveries_total",
    }
