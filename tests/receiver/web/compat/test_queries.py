"""Queries, batches and lists are answered from the database, in the spelling of either standard."""

import json
import re
from typing import Any

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.compat import code, data
from tests.support.receiver import Running, Start
from tools.harness.submitting import finished, register, rows, submit


def _unsigned(records: Any) -> Any:
    """Records without the signatures of their links, which differ each second."""
    return json.loads(re.sub(r"\?expires=[^\"]*", "", json.dumps(records)))


IMAGES, VIDEOS, NEW = "images/generations", "videos/text2video", "/text-to-video/kling-3.0-turbo"


def test_a_finished_task(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """By Kling's id and by ours; the files are ours, with ranges; Kling is not asked again."""
    task, kling_id = submit(door, door_gateway, n=2)
    finished(door, task)
    queries = len(door_gateway.queries)
    record = data(api.get(f"/v1/{IMAGES}/{kling_id}"))
    assert _unsigned(record) == _unsigned(data(api.get(f"/kling/v1/{IMAGES}/{kling_id}")))
    assert record["task_id"] == kling_id
    assert (record["task_status"], record["task_status_msg"]) == ("succeed", "")
    assert record["task_info"] == {"external_task_id": task}
    assert record["final_unit_deduction"] == door_gateway.tasks[kling_id].cost
    assert [image["index"] for image in record["task_result"]["images"]] == [0, 1]
    assert record["created_at"] <= record["updated_at"]
    for image in record["task_result"]["images"]:
        assert image["url"].startswith(f"{door.url}/api/tasks/")
        part = httpx.get(image["url"], headers={"Range": "bytes=0-9"})
        assert (part.status_code, len(part.content)) == (206, 10)
    assert _unsigned(data(api.get(f"/v1/{IMAGES}/{task}"))) == _unsigned(record)
    assert len(door_gateway.queries) == queries


def test_succeed_is_reported_when_the_files_are_stored(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """A file that could not be stored keeps Kling's address; before that, the task is processing."""
    task, kling_id = submit(door, door_gateway, "redirect-private")
    statuses = {data(api.get(f"/v1/{IMAGES}/{kling_id}"))["task_status"] for _ in range(3)}
    assert statuses <= {"submitted", "processing"}
    finished(door, task)
    record = data(api.get(f"/v1/{IMAGES}/{kling_id}"))
    assert record["task_status"] == "succeed"
    assert record["task_result"]["images"][0]["url"].startswith(f"{door_gateway.url}/files/")


def test_a_failed_task(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """The envelope is a success, as at Kling: the reason is in the record."""
    task, kling_id = submit(door, door_gateway, "failed", VIDEOS)
    finished(door, task)
    answer = api.get(f"/v1/{VIDEOS}/{kling_id}")
    assert answer.json()["message"] == "SUCCEED"
    assert data(answer)["task_status"] == "failed"
    assert data(answer)["task_status_msg"]


def test_unknown_tasks(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """An unknown id, also one of another family, is 400 with 1201; an unknown path is 404 with 1202."""
    task, kling_id = submit(door, door_gateway)
    for path in (f"/v1/{IMAGES}/unknown", f"/v1/{VIDEOS}/{kling_id}", f"/v1/{VIDEOS}/{task}", f"{NEW}/unknown"):
        assert code(api.get(path)) == (400, 1201)
    assert "tasks adopt" in api.get(f"/v1/{IMAGES}/unknown").json()["message"]
    for path in ("/v1/videos/no-such-family", "/v1/unknown", "/v1/", "/v1//", "/account/unknown"):
        assert code(api.get(path)) == (404, 1202), path
    for method, path in (("PUT", f"/v1/{IMAGES}"), ("GET", NEW), ("POST", "/tasks"), ("DELETE", f"{NEW}/{kling_id}")):
        assert code(api.request(method, path)) == (404, 1202), path
    assert code(api.get(f"/v1/{IMAGES}/a%00b")) == (400, 1201)
    assert code(api.get(f"/v1/{IMAGES}/{'x' * 300}")) == (400, 1201)


def test_a_batch(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """Any of the ids, legacy tasks too, in the new spelling; unknown ids are left out."""
    image, kling_image = submit(door, door_gateway)
    video, _ = submit(door, door_gateway, "", VIDEOS)
    finished(door, image)
    finished(door, video)
    answer = api.get("/tasks", params={"task_ids": f"{kling_image},unknown,{video}", "external_task_ids": image})
    records = data(answer)
    assert [record["id"] for record in records] == [kling_image, video, kling_image]
    assert {record["status"] for record in records} == {"succeeded"}
    assert records[1]["outputs"][0]["type"] == "video"
    assert records[1]["external_id"] == video
    assert "task_status" not in records[0]
    assert _unsigned(records) == _unsigned(data(api.get(f"/kling{answer.request.url.raw_path.decode()}")))
    for query in ("", "?task_ids=", f"?task_ids={','.join(map(str, range(21)))}"):
        assert code(api.get(f"/tasks{query}")) == (400, 1201)


def test_the_new_standard(door: Running, api: httpx.Client) -> None:
    """A task of the new standard is queried by its path, too."""
    task = new_id()
    register(door, task, NEW, outcome="created", task_id=f"kling-{task}")
    record = data(api.get(f"{NEW}/kling-{task}"))
    assert (record["id"], record["status"], record["external_id"]) == (f"kling-{task}", "submitted", task)
    assert data(api.get("/tasks", params={"task_ids": f"kling-{task}"})) == [record]
    assert data(api.get(f"/kling{NEW}/kling-{task}")) == record


def test_a_list(door: Running, api: httpx.Client) -> None:
    """Newest first, of one family, page by page; empty parameters are absent."""
    family = "videos/video-extend"
    tasks = [new_id() for _ in range(5)]
    for task in tasks:
        register(door, task, family, outcome="created", task_id=f"list-{task}")
    newest = [f"list-{task}" for task in reversed(tasks)]

    def page(query: str) -> list[str]:
        return [record["task_id"] for record in data(api.get(f"/v1/{family}{query}"))]

    assert page("") == page("?pageNum=&pageSize=") == page("?pageNum=1&pageSize=500") == newest
    assert page("?pageNum=2&pageSize=2") == newest[2:4]
    assert page("?pageNum=3&pageSize=2") == newest[4:]
    assert page("?pageNum=4&pageSize=2") == []
    for query in ("?pageNum=0", "?pageSize=501", "?pageNum=1001", "?pageSize=x", "?pageSize=-1", "?pageNum=%C2%B2"):
        assert code(api.get(f"/v1/{family}{query}")) == (400, 1201), query
    assert data(api.get("/v1/videos/avatar/image2video")) == []


def test_an_id_of_two_tasks(door: Running, api: httpx.Client) -> None:
    """The answer names our ids."""
    tasks = [new_id(), new_id()]
    same = f"same-{tasks[0]}"
    for task in tasks:
        register(door, task, VIDEOS, outcome="created", task_id=same)
    answer = api.get(f"/v1/{VIDEOS}/{same}")
    assert code(answer) == (400, 1201)
    assert all(task in answer.json()["message"] for task in tasks)


def test_the_setting_is_off(running: Running) -> None:
    """Then there are no such routes."""
    for path in ("/v1/images/generations", "/kling/v1/images/generations", "/tasks", f"{NEW}/x", "/account/costs"):
        response = httpx.get(f"{running.url}{path}", headers=running.headers("admin"))
        assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found"), path
    assert httpx.post(f"{running.url}{NEW}", json={}).status_code == 404


def test_no_route_of_ours_is_shadowed(door: Running, api: httpx.Client) -> None:
    """A wrong method and an unknown path under our own first segments are answered as before."""
    for method, path, status in (
        ("POST", "/api/audit", 405),
        ("POST", "/api/kling-x", 404),
        ("POST", "/callbacks/kling-x", 401),
        ("GET", "/healthz/kling-x/1", 404),
        ("POST", "/metrics/kling-3.0", 404),
        ("PUT", "/healthz", 405),
        ("POST", "/some/path", 404),
    ):
        response = api.request(method, path)
        assert response.status_code == status, path
        assert response.json().keys() == {"error"}, path


@pytest.mark.parametrize("stripped", [False, True])
def test_below_the_path_of_the_receiver_url(door_gateway: Sandbox, start: Start, stripped: bool) -> None:
    """Whether or not a proxy has removed it."""
    running = start(api_base=door_gateway.url, compat_api="on", path="/prefix")
    base = running.url.removesuffix("/prefix") if stripped else running.url
    task = new_id()
    assert register(running, task, NEW, outcome="created", task_id=f"kling-{task}").status_code == 201
    for path in (f"{NEW}/{task}", f"/kling{NEW}/{task}", f"/tasks?task_ids={task}", f"/v1/{IMAGES}"):
        assert code(httpx.get(f"{base}{path}", headers=running.headers())) == (200, 0)
    assert httpx.get(f"{base}/callbacks/kling-x").status_code == 405
    assert rows(running, "SELECT count(*) AS number FROM task") == [{"number": 1}]
