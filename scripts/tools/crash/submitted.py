"""Kill the receiver at each of its calls while it sends creates itself: no task is created twice, none is lost."""

import signal
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
from sqlalchemy import text

from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tools.crash.checks import REPAIRED
from tools.crash.everywhere import DONE_SECONDS, EXIT_SECONDS, Kind, Run
from tools.crash.gate import Gate
from tools.harness.loopback import web
from tools.harness.process import Ended, Process

SLOTS = 2
"""Of the account: some of the submissions wait for a slot."""
SUBMISSIONS = {
    "one": ("images/generations", {"prompt": "x"}),
    "two": ("images/generations", {"prompt": "x", "n": 2}),
    "three": ("videos/text2video", {"prompt": "x [sandbox: create-504]"}),
}
"""By the task's id: the family and the body. The answer to the last one says nothing about its outcome."""
KINDS = (
    Kind("submitted: commit (fdatasync)", "fdatasync"),
    Kind("submitted: send, or write to a file", "write,writev,sendto,sendmsg"),
    Kind("submitted: write to the database", "pwrite64"),
)
LEFT = text("""
    SELECT (SELECT count(*) FROM task WHERE NOT done), (SELECT count(*) FROM submission),
        (SELECT coalesce(sum(slots), 0) FROM task), (SELECT count(*) FROM job WHERE kind <> 'dispatch')
""")


def run(kind: Kind, n: int) -> Run:
    """Submit, kill the receiver as any thread enters its n-th call of a kind, restart it, submit again, and check."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, ExitStack() as stack:
        gateway = stack.enter_context(Sandbox(image_seconds=0.02, video_seconds=0.02, concurrency=SLOTS))
        data = Path(name, "data")
        receiver = Process(data, KLING_API_BASE=gateway.url, KLING_CONCURRENCY=str(SLOTS), KLING_OVERDUE_SECONDS="1")
        stack.callback(lambda: None if receiver.ended else receiver.kill())
        gate = Gate(kind.calls)
        gate.launch(partial(receiver.launch, fork=False))  # the filter of calls is inherited
        killed = _run_until_killed(receiver, data, gate, n)
        receiver.start()
        started = time.monotonic()
        _submit_all(receiver)
        problems = _wait_until_done(receiver, data) + _broken(receiver, data, gateway)
        return Run(gate.count, killed, gate.place, time.monotonic() - started, problems)


def _run_until_killed(receiver: Process, data: Path, gate: Gate, n: int) -> bool:
    """Run up to the kill, or to an orderly end. Returns whether the receiver was killed."""
    try:
        receiver.await_ready()
        gate.begin(n)
        _submit_all(receiver)
        _wait_until_done(receiver, data)
        receiver.signal(signal.SIGTERM)
    except (Ended, httpx.TransportError):
        pass
    return receiver.wait(EXIT_SECONDS)[0] == -signal.SIGKILL


def _submit_all(receiver: Process) -> None:
    """Submit every task, as a client does that repeats what was not answered. Raises httpx.TransportError."""
    for task_id, (family, body) in SUBMISSIONS.items():
        document = {"family": family, "body": body, "external_task_id": task_id}
        response = web.post(f"{receiver.url}/api/tasks", json=document, headers=receiver.headers())
        assert response.status_code in (200, 201), response.text


def _wait_until_done(receiver: Process, data: Path) -> list[str]:
    """Wait until nothing is left to do. Returns what is left after DONE_SECONDS, or when the receiver has ended."""
    end = time.monotonic() + DONE_SECONDS
    database = Database(f"sqlite:///{data / 'kling.db'}")
    try:
        while not receiver.ended and time.monotonic() < end:
            with database.read() as connection:
                tasks, submissions, slots, jobs = connection.execute(LEFT).one()
            if not (tasks or submissions or slots or jobs):
                return []
            time.sleep(0.02)
        return [f"7: {tasks} tasks, {submissions} submissions, {slots} slots and {jobs} jobs are left"]
    finally:
        database.close()


def _broken(receiver: Process, data: Path, gateway: Sandbox) -> list[str]:
    """The promises that were broken, at the end."""
    sent = Counter(body["external_task_id"] for body in gateway.creates)
    problems = [f"6: {task_id} was sent {times} times" for task_id, times in sent.items() if times > 1]
    problems += [f"6: {len(gateway.creates)} creates, {len(gateway.tasks)} tasks"] * (
        len(gateway.creates) != len(gateway.tasks)
    )
    database = Database(f"sqlite:///{data / 'kling.db'}")
    try:
        with database.read() as connection:
            rows = connection.execute(text("SELECT id, status, origin, status_msg FROM task")).all()
    finally:
        database.close()
    problems += [f"lost: {task_id}" for task_id in SUBMISSIONS.keys() - {row.id for row in rows}]
    for row in rows:
        # A kill between the commit and the first byte: the create may have been sent, so it never is again.
        arrived = row.id in gateway.external
        if (row.status, row.origin) != (("succeed", "kling") if arrived else ("failed", "local")):
            problems.append(f"4: {row.id} ended {row.status} ({row.origin}): {row.status_msg}")
    return problems + [f"7: {line}" for line in receiver.log_text().splitlines() if REPAIRED in line]
