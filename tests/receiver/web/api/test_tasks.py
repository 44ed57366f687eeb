"""Registration, task lists and single tasks over the API."""

import base64
import itertools
import json
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from kling_callback import Kling
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import key_fingerprint
from kling_sandbox import Sandbox
from tests.support.api import error_of, get, put
from tests.support.receiver import KEY, SECRET, Running, Start
from tools.harness.submitting import IMAGES, Json, finished, post, register, rows, show, types


def task_rows(running: Running, task_id: str) -> list[Json]:
    """The rows of a task: one or none."""
    return rows(running, "SELECT * FROM task WHERE id = :task_id", task_id=task_id)


# --- registration ------------------------------------------------------------------------------------------


def test_a_registration_signs_the_callback_address(running: Running) -> None:
    """The first registration adds the task, lets its attempt send the create, and signs the address."""
    task = new_id()
    request = {
        "prompt": "x",
        "callback_url": "http://secret",
        "nested": [{"API_KEY": "secret"}],
        "image": "A" * 9000,
    }
    response = register(running, task, model="kling-v2", tags=["b", "a", "a"], request=request)
    assert (response.status_code, response.json()["create"]) == (201, True)
    shown = response.json()["task"]
    assert shown == show(running, task)
    assert (shown["status"], shown["task_id"]) == ("created", None)
    assert (shown["model"], shown["tags"]) == ("kling-v2", ["a", "b"])
    assert shown["request"] == {"prompt": "x", "nested": [{}], "image": "(9000 characters, left out)"}
    assert httpx.post(response.json()["callback_url"], json={"task_status": "processing"}).status_code == 200
    assert show(running, task)["status"] == "processing"


def test_only_one_attempt_may_create(running: Running) -> None:
    """The first attempt may create, also when it is repeated; another attempt may not: one intent, one paid task."""
    task = new_id()
    assert [register(running, task, attempt=token).json()["create"] for token in ("one", "one", "two")] == [
        *(True, True),
        False,
    ]
    for _ in range(2):
        reported = register(running, task, outcome="created", task_id="k1")
        assert (reported.status_code, reported.json()["create"]) == (200, False)
    assert not register(running, task, attempt="one").json()["create"]
    shown = show(running, task)
    assert (shown["status"], shown["task_id"]) == ("submitted", "k1")
    assert types(rows(running, "SELECT type FROM event")) == ["task.created", "task.submitted"]


def test_a_refused_create_fails_the_task_and_may_be_retried(running: Running) -> None:
    """The task fails locally with the reason, and the next attempt may create."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="not_created", reason="The account is in arrears.")
    shown = show(running, task)
    assert (shown["status"], shown["origin"], shown["done"]) == ("failed", "local", True)
    assert shown["status_msg"] == "The account is in arrears."
    assert register(running, task, attempt="two").json()["create"]


def test_an_unknown_outcome_leaves_the_task_open(running: Running) -> None:
    """Kling may have created it, so no attempt may create it again."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="unknown", reason="timed out")
    assert show(running, task)["status"] == "created"
    assert not register(running, task, attempt="two").json()["create"]


def test_another_family_or_account_is_a_conflict(running: Running, gateway: Sandbox) -> None:
    """A task keeps its family, and a receiver serves one account at one gateway."""
    task = new_id()
    register(running, task)
    assert error_of(register(running, task, "videos/text2video")) == (409, "conflict")
    assert error_of(register(running, new_id(), base="https://elsewhere.example")) == (409, "conflict")
    assert error_of(register(running, new_id(), key_fingerprint="0" * 16)) == (409, "conflict")
    good = {"base": f"{gateway.url}/v1/", "key_fingerprint": running.settings.key_fingerprint}
    assert register(running, new_id(), **good).status_code == 201


def test_all_problems_of_a_registration_are_reported_at_once(shared: Running) -> None:
    """A registration with problems is not stored, and none of its values is in the response."""
    task = new_id()
    bad = {"family": "../x", "model": "m" * 300, "tags": [""] * 30, "outcome": "maybe", "task_id": "t" * 300}
    response = put(shared, task, json.dumps({**bad, "base": 5, "reason": "r" * 5000}).encode())
    assert error_of(response) == (422, "bad_registration")
    for name in (*bad, "base", "reason"):
        assert f"{name}" in response.json()["error"]["message"], name
    assert "mmmm" not in response.text
    assert task_rows(shared, task) == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"family":"images/generations"}',
        b'{"family":"images/generations","outcome":"created"}',
        b'{"family":"images/generations","create_token":"x"}',
        b'{"family":"images/generations","outcome":"created","kling_id":"x"}',
        b'{"family":"images/generations","attempt":"x","request":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"family":"images/generations","attempt":"x","request":' + b"9" * 5000 + b"}",
        b'{"family":"\\u0000","attempt":"x"}',
        b'{"family":"images/generations","attempt":"\\ud800"}',
        b'{"family":"images//generations","attempt":"x"}',
        b'{"family":"images/../x","attempt":"x"}',
        json.dumps({"family": "a" * 201, "attempt": "x"}).encode(),
    ],
)
def test_an_invalid_registration_is_refused(shared: Running, body: bytes) -> None:
    """With 422, never 500, and nothing is stored."""
    task = new_id()
    assert error_of(put(shared, task, body)) == (422, "bad_registration")
    assert task_rows(shared, task) == []


@pytest.mark.parametrize(
    ("request_json", "shown"),
    [
        (b'{"a":NaN,"b":Infinity,"c":[-Infinity]}', {"a": None, "b": None, "c": [None]}),
        (b'{"a\\u0000":"b\\u0000c"}', {"a": "bc"}),
        (b'"text"', "text"),
        (b'{"a":1e400}', {"a": None}),
        (json.dumps(["x" * 4000] * 30).encode(), {"note": "longer than 20000 characters, left out"}),
    ],
)
def test_any_request_can_be_shown_again(shared: Running, request_json: bytes, shown: Any) -> None:
    """Values that JSON or a database cannot contain break neither the task nor a list with it."""
    task = new_id()
    assert put(shared, task, b'{"family":"x","attempt":"1","request":%b}' % request_json).status_code == 201
    assert show(shared, task)["request"] == shown
    assert get(shared, "/api/tasks").json()["tasks"][0]["request"] == shown


def test_texts_are_sanitized(shared: Running) -> None:
    """NUL is removed, any other character stays."""
    task = new_id()
    response = register(shared, task, model="m\0", tags=["\0", "tag \U0001f998"], attempt="one\0")
    assert response.status_code == 201
    assert (response.json()["task"]["model"], response.json()["task"]["tags"]) == ("m", ["tag \U0001f998"])
    assert response.json()["create"]


def test_a_registration_over_1_mb_is_refused(shared: Running) -> None:
    """Image bytes belong in the create, not in the registration."""
    body = {"family": IMAGES, "attempt": "1", "request": {"image": "x" * 1_000_001}}
    assert error_of(put(shared, new_id(), json.dumps(body).encode())) == (413, "too_large")


def test_a_registration_with_too_many_parts_is_refused(shared: Running) -> None:
    """Parsing hundreds of thousands of parts would delay callbacks; a long text does not."""
    body = {"family": IMAGES, "attempt": "1", "request": [[]] * 6_000}
    assert error_of(put(shared, new_id(), json.dumps(body).encode())) == (422, "bad_registration")
    assert register(shared, new_id(), request={"prompt": "x" * 900_000}).status_code == 201


@pytest.mark.parametrize("task", ["-x", ".x", "a%20b", "x" * 129, "%00", "a%2Fb", "%C3%A9", "~"])
def test_an_invalid_id_is_refused(shared: Running, task: str) -> None:
    """Ids are parts of URLs and file names."""
    before = rows(shared, "SELECT * FROM task")
    assert error_of(put(shared, task, b"{}"))[0] in (404, 422)
    assert error_of(get(shared, f"/api/tasks/{task}"))[0] == 404
    assert rows(shared, "SELECT * FROM task") == before


def test_a_client_may_have_either_key_of_the_account(start: Start) -> None:
    """The receiver has an API key and an access key; a client with only one of them is accepted."""
    running = start(access_key="access", secret_key="secret-secret-secret-secret-secret")
    for key in (KEY, "access"):
        fingerprint = key_fingerprint(key)
        assert register(running, new_id(), key_fingerprint=fingerprint).status_code == 201
    assert register(running, new_id(), key_fingerprint=key_fingerprint("other")).status_code == 409


def test_two_keys_of_one_account_during_a_rotation(start: Start, gateway: Sandbox) -> None:
    """A client may have either key or both; a task created with the old one is queried with the new one."""
    gateway.keys = (KEY, "new-key")
    gateway.hold()
    running = start(api_base=gateway.url, api_key=f"new-key, {KEY}")
    old, new, other = map(key_fingerprint, (KEY, "new-key", "other"))
    for fingerprint in (old, new, f"{new},{old}", f"{other},{old}"):
        assert register(running, new_id(), key_fingerprint=fingerprint).status_code == 201
    refused = register(running, new_id(), key_fingerprint=other)
    assert refused.status_code == 409
    assert "KLING_API_KEY=new,old" in refused.json()["error"]["hint"]
    assert register(running, new_id(), key_fingerprint=f"{other},{other[::-1]}").status_code == 409
    client: Any = {"api_base": gateway.url, "receiver_url": running.url, "signing_secrets": SECRET}
    with Kling(api_key=KEY, **client) as kling:
        task = kling.text_to_image("a cat")
    gateway.keys = ("new-key",)  # the old one is revoked
    gateway.release()
    assert finished(running, task.id)["status"] == "succeed"
    with Kling(api_key=f"new-key,{KEY}", **client) as kling:
        assert kling.text_to_image("a dog").wait(30).images


def test_a_database_that_cannot_be_written_is_answered_503(running: Running) -> None:
    """A registration gets Retry-After, like a callback."""
    engine = create_engine(running.settings.database)
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE event RENAME TO gone"))
    response = register(running, new_id())
    assert error_of(response) == (503, "unavailable")
    assert response.headers["Retry-After"]
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE gone RENAME TO event"))
    engine.dispose()


# --- lists -------------------------------------------------------------------------------------------------


def test_the_list_is_filtered(running: Running) -> None:
    """By each filter, also together; a filter that matches no task gives an empty page."""
    made = {}
    for family, tag in itertools.product((IMAGES, "videos/text2video"), ("a", "b")):
        made[family, tag] = new_id()
        register(running, made[family, tag], family, tags=[tag], model=f"kling-{tag}")
        register(running, made[family, tag], family, outcome="created", task_id=f"k-{family[0]}-{tag}")
    post(running, made[IMAGES, "a"], {"task_status": "processing"})

    def listed(**filters: str) -> set[str]:
        page = get(running, "/api/tasks", params=filters).json()
        assert page["next"] is None
        return {task["id"] for task in page["tasks"]}

    assert listed() == set(made.values())
    assert listed(status="processing") == {made[IMAGES, "a"]}
    assert listed(family=IMAGES) == {made[IMAGES, "a"], made[IMAGES, "b"]}
    assert listed(tag="b", family=IMAGES) == {made[IMAGES, "b"]}
    assert listed(tag="b", status="processing") == set()
    assert listed(model="kling-a") == {made[IMAGES, "a"], made["videos/text2video", "a"]}
    assert listed(model="kling-a", status="processing", family=IMAGES, tag="a") == {made[IMAGES, "a"]}
    assert listed(task_id="k-v-b") == {made["videos/text2video", "b"]}
    assert listed(task_id="k-v-b", tag="a") == listed(task_id="k-v-b", model="kling-a") == set()
    assert listed(task_id=made[IMAGES, "a"]) == set()  # it is Kling's id
    for odd in ("\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "' OR 1=1 --", "%"):
        assert listed(tag=odd) == listed(family=odd) == listed(model=odd) == listed(task_id=odd) == set()


def test_pages_follow_each_other(running: Running) -> None:
    """Newest first, each task on one page, also while tasks are added; the last page has no cursor."""
    made = [new_id() for _ in range(7)]
    for task in made:
        register(running, task)
    listed, cursor = [], ""
    while True:
        page = get(running, "/api/tasks", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        listed += [task["id"] for task in page["tasks"]]
        register(running, new_id())
        cursor = page["next"]
        if not cursor:
            break
    assert listed == made[::-1]


def cursor(value: str | bytes) -> str:
    """A cursor with any content."""
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else value.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"status": "cancelled"},
        {"since": "yesterday"},
        {"until": "1790000000"},
        {"until": "2026-13-01"},
        {"text": "x" * 201},
        {"limit": "0"},
        {"limit": "201"},
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": "\u0663"},
        {"limit": "9" * 5000},
        {"limit": "000000001999999999"},
        {"cursor": "x"},
        {"cursor": "\xe9"},
        {"cursor": cursor("null")},
        {"cursor": cursor("[1]")},
        {"cursor": cursor('[true, "a"]')},
        {"cursor": cursor('["1", "x"]')},
        {"cursor": cursor("[1, 2]")},
        {"cursor": cursor('[1, "../x"]')},
        {"cursor": cursor('[1e3, "x"]')},
        {"cursor": cursor('[99999999999999999999, "x"]')},
        {"cursor": cursor("[" * 9000)},
        {"cursor": cursor(b"\xff\xfe")},
        {"cursor": cursor("9" * 5000)},
    ],
    ids=lambda query: str(query)[:40],
)
def test_an_invalid_filter_is_refused(shared: Running, query: dict[str, str]) -> None:
    """With 422 and the values that are valid."""
    assert error_of(get(shared, "/api/tasks", params=query)) == (422, "bad_filter")


def test_tasks_are_found_by_their_prompt_and_time(running: Running) -> None:
    """Other than UTC, a time names its zone; the end is not in the range."""
    for prompt in ("Two Foxes", "一只熊猫", "two boats"):
        register(running, new_id(), request={"prompt": prompt})
    tasks = get(running, "/api/tasks").json()["tasks"]

    def found(**query: str) -> list[str]:
        return [task["request"]["prompt"] for task in get(running, "/api/tasks", params=query).json()["tasks"]]

    assert found(text="TWO ") == ["two boats", "Two Foxes"]
    assert found(text="熊猫") == ["一只熊猫"]
    assert found(text="") == found(since="") == found(since="2026-01-01T00:00", until="") != []
    newest = tasks[0]["created_at"]
    assert found(until=newest) == [task["request"]["prompt"] for task in tasks if task["created_at"] < newest]
    assert "two boats" in found(since=newest, until="9000-01-01T01:00+01:00")
    assert found(until="2000-01-01") == []


def test_all_problems_of_a_filter_are_reported_at_once(shared: Running) -> None:
    """One response names every parameter that must be fixed."""
    message = get(shared, "/api/tasks?status=x&limit=x&cursor=x").json()["error"]["message"]
    assert all(name in message for name in ("`status`", "`limit`", "`cursor`"))
