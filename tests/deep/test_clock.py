"""The short form of `scripts/crash clock`: the clock of a real receiver is set, under load."""

from pathlib import Path

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import ABSENT
from tools.crash import clock
from tools.crash.clock import DAY, Clock
from tools.harness.process import Process
from tools.harness.submitting import finished, submit

pytestmark = [
    pytest.mark.skipif(not clock.library(), reason=f"{ABSENT}libfaketime"),
    pytest.mark.no_cover,  # the receiver is another process, which is not measured
]


def test_the_clock_is_set_at_random_moments(tmp_path: Path, database_url: str) -> None:
    """Forward and back, by up to three years, on both databases: every promise is kept, and no hook is paused."""
    reported: list[str] = []
    done = clock.run(tmp_path, database_url, jumps=8, seed=1, report=reported.extend)
    assert done.problems == reported == []
    assert done.tasks


@pytest.mark.parametrize("days", [-365, 20])
def test_a_deadline_survives_a_jump_while_the_worker_sleeps(tmp_path: Path, gateway: Sandbox, days: int) -> None:
    """Nothing wakes the worker but its own look at the clock; the task without a callback is found all the same."""
    shown = Clock(tmp_path)
    receiver = Process(tmp_path / "data", KLING_API_BASE=gateway.url, KLING_OVERDUE_SECONDS="8" if days < 0 else "3600")
    receiver.env |= shown.environment()
    with receiver:
        task_id, kling_id = submit(receiver, gateway, "no-callback")
        gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
        shown.set(days * DAY)
        gateway.wait_for(lambda: gateway.tasks[kling_id].queries, timeout=60)
        shown.set(0)
        assert finished(receiver, task_id)["results"][0]["status"] == "stored"
    assert "the clock jumped by" in receiver.log_text()
