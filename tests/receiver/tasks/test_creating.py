"""Creates that the receiver sends: their outcomes, what is sent again, and what never is."""

import pytest

from kling_receiver.store.tables import SUBMISSION
from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start
from tests.support.submitting import QUICK_CREATES, events, finish, post, show, submit


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver that sends creates to the sandbox."""
    return start(api_base=gateway.url, delays=QUICK_CREATES)


def rows(running: Running) -> list[dict[str, object]]:
    """The submissions that the database has."""
    with running.receiver.store.database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(SUBMISSION.select())]


def test_a_submission_is_answered_at_once_and_sent(running: Running, gateway: Sandbox) -> None:
    """Kling gets our id and a signed callback address; the body is deleted once it is sent."""
    response = post(running, {"prompt": "a kangaroo", "n": 2}, tags=["red"], external_task_id="mine")
    assert response.status_code == 201
    assert (response.json()["id"], response.json()["tags"], response.json()["status"]) == ("mine", ["red"], "created")
    types = events(running, "mine")
    assert types[0] == "task.created"
    assert [type_ for type_ in types if type_ in ("task.queued", "task.submitted", "task.done")] == [
        "task.submitted",
        "task.done",
    ]
    task = show(running, "mine")
    assert (task["status"], len(task["results"]), task["request"]) == ("succeed", 2, {"prompt": "a kangaroo", "n": 2})
    (create,) = gateway.creates
    assert create["external_task_id"] == "mine"
    assert create["callback_url"].startswith(f"{running.url}/callbacks/")
    assert rows(running) == []


@pytest.mark.parametrize("how", ["drop-after-create", "create-5002", "create-502", "create-504", "create-garbage"])
def test_an_unknown_outcome_is_looked_up_and_never_sent_again(running: Running, gateway: Sandbox, how: str) -> None:
    """Kling took it: the task is found by our id, and succeeds."""
    assert finish(running, submit(running, f"[sandbox: {how}]"))["status"] == "succeed"
    assert len(gateway.creates) == 1
    assert rows(running) == []


def test_a_create_that_kling_refuses_fails_the_task_with_its_words(running: Running, gateway: Sandbox) -> None:
    """Nothing was paid; the same id may be submitted again, with other parameters."""
    response = post(running, {"prompt": "[sandbox: nonsense]"}, external_task_id="mine", key="first")
    assert response.status_code == 201
    task = finish(running, "mine")
    assert (task["status"], task["origin"]) == ("failed", "local")
    assert "1201" in task["status_msg"]
    again = post(running, {"prompt": "[sandbox: nonsense]"}, external_task_id="mine", key="first")
    assert (again.status_code, again.json()["status"]) == (200, "failed")  # a repeat of the same request
    assert len(gateway.creates) == 1
    assert post(running, {"prompt": "y"}, external_task_id="mine", key="second").status_code == 201
    gateway.wait_for(lambda: gateway.tasks)
    assert len(gateway.creates) == 2


def test_a_repeat_is_the_same_task(running: Running, gateway: Sandbox) -> None:
    """By its external_task_id or its Idempotency-Key; with other parameters it is refused."""
    by_id = [post(running, external_task_id="mine").json()["id"] for _ in range(3)]
    by_key = [post(running, key="the key").json()["id"] for _ in range(3)]
    assert len(set(by_id)) == len(set(by_key)) == 1
    for fields in ({"external_task_id": "mine"}, {"key": "the key"}):
        response = post(running, {"prompt": "another"}, **fields)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
    for task_id in (by_id[0], by_key[0]):
        assert finish(running, task_id)["status"] == "succeed"
    assert len(gateway.creates) == 2


def test_a_create_that_comes_too_early_is_sent_again(running: Running, gateway: Sandbox) -> None:
    """1302 says that it was not accepted."""
    assert finish(running, submit(running, "[sandbox: busy-once]"))["status"] == "succeed"
    assert (len(gateway.creates), len(gateway.tasks)) == (2, 1)


def test_a_create_waits_for_a_gateway_that_is_not_reachable(start: Start, gateway: Sandbox) -> None:
    """Nothing is lost while there is no connection."""
    stopped = Sandbox(port=0)
    with stopped:
        pass
    running = start(api_base=stopped.url, delays=QUICK_CREATES)
    task_id = submit(running)
    with Sandbox(port=stopped.port) as again:
        assert finish(running, task_id)["status"] == "succeed"
        assert len(again.creates) == 1
