"""POST /api/tasks/adopt: a task that another program created becomes a task like any other."""

import json
import re
from typing import Any

import httpx
import pytest

from kling_callback.protocol.families import ASYNCHRONOUS, SYNCHRONOUS, family_problems
from kling_receiver.web.api.actions import JOB_SCHEMA
from kling_sandbox import Sandbox
from tests.receiver.web.test_openapi import SCHEMAS, problems
from tests.support.api import error_of
from tests.support.receiver import KEY, Running, Start
from tests.support.web import Visit, host
from tools.harness.submitting import IMAGES, Json, create, events, finished, metric, post, register, rows, show, types

NEW = "/text-to-video/kling-3.0-turbo"


def adopt(running: Running, kling_id: str, family: str = IMAGES, role: Any = "admin", **more: Any) -> httpx.Response:
    """One adoption."""
    body = {"family": family, "task_id": kling_id, **more}
    return httpx.post(f"{running.url}/api/tasks/adopt", json=body, headers=running.headers(role), timeout=20)


def elsewhere(gateway: Sandbox, family: str = IMAGES, switches: str = "", external_task_id: str = "") -> str:
    """A task that another program creates, without a callback. Returns Kling's id."""
    body: Json = {"prompt": f"x [sandbox: {switches}]" if switches else "x"}
    ours = {"external_task_id": external_task_id} if external_task_id else {}
    new = family.startswith("/")
    body |= {"options": ours} if new else ours
    address = f"{gateway.url}{family}" if new else f"{gateway.url}/v1/{family}"
    data = httpx.post(address, json=body, headers={"Authorization": f"Bearer {KEY}"}).json()["data"]
    return str(data["id" if new else "task_id"])


def tables(running: Running) -> list[Json]:
    """How many rows there are of tasks, events and jobs."""
    return rows(
        running,
        "SELECT (SELECT count(*) FROM task) AS tasks, (SELECT count(*) FROM event) AS events, "
        "(SELECT count(*) FROM job) AS jobs",
    )


@pytest.mark.parametrize("family", [IMAGES, NEW])
@pytest.mark.parametrize("external", ["", "order-42", "not/ours", "~order"])
def test_a_finished_task_is_adopted_with_its_files(
    running: Running, gateway: Sandbox, family: str, external: str
) -> None:
    """By one query; its external id is its id here, if it can be one, and in any case finds it."""
    kling_id = elsewhere(gateway, family, external_task_id=external)
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    response = adopt(running, kling_id, family)
    assert (response.status_code, response.json()["kling"]) == (201, "succeed")
    task = finished(running, response.json()["task"]["id"])
    assert (task["task_id"], task["family"], task["origin"]) == (kling_id, family, "kling")
    assert task["model"] == ("kling-3.0-turbo" if family == NEW else "")
    assert {result["status"] for result in task["results"]} == {"stored"}
    assert gateway.tasks[kling_id].queries == 1
    assert (task["id"] == external) == (external == "order-42")
    if external in ("order-42", "~order"):
        assert show(running, external)["id"] == task["id"]
    seen = types(events(running, task["id"]))
    assert seen[:4] == ["task.created", "task.submitted", "task.succeed", "task.recovered"]
    assert metric(running, 'kling_queries_total{outcome="answered"}') == 1


def test_an_open_task_is_queried_at_its_deadline(start: Start, gateway: Sandbox) -> None:
    """One query now, and one then: no callback will come."""
    running = start(api_base=gateway.url, overdue_seconds=1)
    kling_id = elsewhere(gateway, switches="slow")
    response = adopt(running, kling_id)
    assert response.json()["task"]["status"] in ("submitted", "processing")
    task = finished(running, response.json()["task"]["id"])
    assert task["status"] == "succeed"
    assert gateway.tasks[kling_id].queries == 2


def test_a_failed_task_is_adopted_as_failed(running: Running, gateway: Sandbox) -> None:
    """With Kling's reason."""
    kling_id = elsewhere(gateway, switches="failed")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    task = adopt(running, kling_id).json()["task"]
    assert (task["status"], task["origin"], task["done"]) == ("failed", "kling", True)
    assert task["status_msg"]


def test_an_adoption_is_idempotent(running: Running, gateway: Sandbox) -> None:
    """A known task is shown, by any of its ids, and Kling is not queried again."""
    kling_id = elsewhere(gateway, external_task_id="order-42")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    first = adopt(running, kling_id).json()["task"]
    finished(running, first["id"])
    before = tables(running)
    for any_id in (kling_id, "order-42"):
        again = adopt(running, any_id)
        assert (again.status_code, again.json()["task"]["id"]) == (200, first["id"])
        assert (again.json()["kling"], again.json()["queried"]) == (None, False)
        assert problems(again.json(), SCHEMAS["Adopted"]) == []
    assert gateway.tasks[kling_id].queries == 1
    assert tables(running) == before


@pytest.mark.parametrize("claims", [1, 2])
def test_no_callback_keeps_a_task_from_being_adopted(running: Running, gateway: Sandbox, claims: int) -> None:
    """One that says that Kling's id is the caller's id of its own task."""
    kling_id = elsewhere(gateway)
    for number in range(claims):
        record = {"task_id": f"k{number}", "task_status": "processing", "task_info": {"external_task_id": kling_id}}
        assert post(running, f"signed-{number}", record).status_code == 200
    response = adopt(running, kling_id)
    assert (response.status_code, response.json()["task"]["task_id"]) == (201, kling_id)
    assert show(running, kling_id)["id"] == response.json()["task"]["id"]


def test_a_task_may_be_named_by_its_external_id(running: Running, gateway: Sandbox) -> None:
    """Kling answers such a query too, and names its own id."""
    kling_id = elsewhere(gateway, external_task_id="order-42")
    task = adopt(running, "order-42").json()["task"]
    assert (task["id"], task["task_id"]) == ("order-42", kling_id)


def test_an_unknown_task_leaves_nothing_behind(running: Running, gateway: Sandbox) -> None:
    """Nor does one of another family, nor a Kling that does not answer."""
    before = tables(running)
    assert error_of(adopt(running, "nobody")) == (404, "unknown_at_kling")
    assert error_of(adopt(running, elsewhere(gateway), "videos/text2video")) == (404, "unknown_at_kling")
    assert error_of(adopt(running, elsewhere(gateway, switches="query-5xx"))) == (502, "kling_failed")
    assert error_of(adopt(running, elsewhere(gateway, switches="query-garbage"))) == (502, "kling_failed")
    assert tables(running) == before


def test_a_known_task_of_another_family_is_a_conflict(running: Running, gateway: Sandbox) -> None:
    """The message says what it is."""
    register(running, "mine", outcome="created", task_id="k1")
    response = adopt(running, "k1", "videos/text2video")
    assert error_of(response) == (409, "conflict")
    assert f"mine, of the family {IMAGES}" in response.json()["error"]["message"]


def test_the_task_of_an_unknown_outcome_is_completed(running: Running, gateway: Sandbox) -> None:
    """Kling's record names our id: the operator has found the lost create, and no second task is added."""
    register(running, "mine")
    register(running, "mine", outcome="unknown")
    kling_id = create(running, gateway, "mine", "no-callback")
    gateway.wait_for(lambda: gateway.tasks[kling_id].finished_at)
    response = adopt(running, kling_id)
    assert (response.status_code, response.json()["task"]["id"]) == (200, "mine")
    assert (finished(running, "mine")["task_id"], len(rows(running, "SELECT id FROM task"))) == (kling_id, 1)


def test_a_task_of_another_id_at_kling_keeps_its_own(running: Running, gateway: Sandbox) -> None:
    """A relay may drop external ids, so that two tasks name one."""
    register(running, "mine", outcome="created", task_id="k1")
    kling_id = elsewhere(gateway, external_task_id="mine")
    task = adopt(running, kling_id).json()["task"]
    assert (task["task_id"], task["external_task_id"]) == (kling_id, "mine")
    assert task["id"] != "mine"
    assert show(running, "mine")["task_id"] == "k1"


def test_a_create_with_the_id_of_an_adopted_task_is_not_sent(running: Running, gateway: Sandbox) -> None:
    """One intent, one paid task."""
    adopt(running, elsewhere(gateway, external_task_id="order-42"))
    registered = register(running, "order-42", request={"prompt": "x"}, request_sha256="a" * 64).json()
    assert registered["create"] is False
    assert registered["task"]["request"] == {"prompt": "x"}


def test_a_relay_that_answers_with_another_id(start: Start) -> None:
    """The task keeps the id by which the relay knows it."""
    asked: list[str] = []

    def respond(visit: Visit) -> None:
        asked.append(visit.path)
        record = {"task_id": "inner", "task_status": "processing"}
        visit.answer(200, json.dumps({"code": "success", "data": {"status": "IN_PROGRESS", "data": record}}).encode())

    with host(respond) as relay:
        running = start(api_base=relay.url)
        task = adopt(running, "outer").json()["task"]
        assert (task["task_id"], task["status"]) == ("outer", "processing")
        httpx.post(f"{running.url}/api/tasks/{task['id']}/ask", headers=running.headers("admin"))
        assert asked == [f"/v1/{IMAGES}/outer"] * 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"family": "audio/tts", "task_id": "k"}, "kling call"),
        ({"family": "v1/images/generations", "task_id": "k"}, "without /v1/"),
        ({"family": "x", "task_id": "k"}, "family"),
        ({"family": IMAGES, "task_id": "a/b"}, "task_id"),
        ({"family": IMAGES, "task_id": ".."}, "task_id"),
        ({"family": IMAGES}, "task_id"),
        ({"family": IMAGES, "task_id": "k", "extra": 1}, "extra"),
        ([], ""),
    ],
)
def test_an_invalid_adoption_is_refused(shared: Running, body: Any, says: str) -> None:
    """With every problem, before Kling is queried."""
    response = httpx.post(f"{shared.url}/api/tasks/adopt", json=body, headers=shared.headers("admin"))
    assert error_of(response) == (422, "bad_request")
    assert says in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "family",
    [
        *ASYNCHRONOUS,
        *sorted(SYNCHRONOUS),
        "/audio/tts",
        NEW,
        "x",
        "/x",
        "account/x",
        "v1/a/b",
        "/v2/a/b",
        "a/b/c",
        "a//b",
    ],
)
def test_the_schema_of_a_family_is_its_rule(family: str) -> None:
    """Programs that check a request by the document refuse what the receiver refuses."""
    matches = re.search(JOB_SCHEMA["pattern"], family) is not None
    excluded = any(
        family in rule.get("enum", ()) or ("pattern" in rule and re.search(rule["pattern"], family))
        for rule in JOB_SCHEMA["not"]["anyOf"]
    )
    assert (matches and not excluded) == (family_problems(family) == [])


def test_only_an_operator_adopts(shared: Running) -> None:
    """A client's token may not."""
    assert error_of(adopt(shared, "k", role="client")) == (403, "forbidden")
