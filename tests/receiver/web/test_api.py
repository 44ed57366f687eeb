"""The JSON API: registration, lists, event streams and files, and one shape for every error."""

import asyncio
import base64
import functools
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine
from sqlalchemy import text as sql

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, key_fingerprint, sign_link
from kling_receiver.app import Receiver, create_app
from kling_receiver.events.bus import EventBus
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import EventRow
from kling_receiver.web.api.stream import StreamRoutes
from kling_sandbox import Sandbox
from tests.support.database import Ledger
from tests.support.receiver import KEY, SECRET, Running, Start, make_settings
from tools.harness.submitting import (
    IMAGES,
    Json,
    events,
    finished,
    post,
    register,
    rows,
    show,
    stream,
    submit,
    types,
)


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver whose Kling is the sandbox."""
    return start(api_base=gateway.url)


def get(running: Running, path: str, **more: Any) -> httpx.Response:
    """A GET by someone who may read."""
    return httpx.get(f"{running.url}{path}", **{"headers": running.headers("read"), **more})


def put(running: Running, task: str, content: bytes) -> httpx.Response:
    """A PUT of any bytes by a client."""
    return httpx.put(f"{running.url}/api/tasks/{task}", content=content, headers=running.headers())


def refusal(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which must have the one shape."""
    error = answer.json()
    assert error.keys() == {"error"}
    assert error["error"].keys() == {"code", "message", "hint"}
    assert all(isinstance(each, str) for each in error["error"].values())
    return answer.status_code, error["error"]["code"]


# --- registration ------------------------------------------------------------------------------------------


def test_a_registration_signs_the_callback_address(running: Running) -> None:
    """The first one makes the task, gives the right to create to its attempt, and signs the address."""
    task = new_id()
    request = {
        "prompt": "x",
        "callback_url": "http://secret",
        "nested": [{"API_KEY": "secret"}],
        "image": "A" * 9000,
    }
    answer = register(running, task, model="kling-v2", tags=["b", "a", "a"], request=request)
    assert (answer.status_code, answer.json()["create"]) == (201, True)
    shown = answer.json()["task"]
    assert shown == show(running, task)
    assert (shown["status"], shown["task_id"]) == ("created", None)
    assert (shown["model"], shown["tags"]) == ("kling-v2", ["a", "b"])
    assert shown["request"] == {"prompt": "x", "nested": [{}], "image": "(9000 characters, left out)"}
    assert httpx.post(answer.json()["callback_url"], json={"task_status": "processing"}).status_code == 200
    assert show(running, task)["status"] == "processing"


def test_only_one_attempt_may_create(running: Running) -> None:
    """The same attempt again may, another one may not: one intent, one paid task."""
    task = new_id()
    assert [register(running, task, attempt=name).json()["create"] for name in ("one", "one", "two")] == [
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


def test_a_create_that_was_not_taken_ends_the_task_and_may_be_tried_again(running: Running) -> None:
    """With the reason, by our own word; the next attempt may create."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="not_created", reason="The account is in arrears.")
    shown = show(running, task)
    assert (shown["status"], shown["origin"], shown["done"]) == ("failed", "local", True)
    assert shown["status_msg"] == "The account is in arrears."
    assert register(running, task, attempt="two").json()["create"]


def test_an_unknown_outcome_leaves_the_task_open(running: Running) -> None:
    """It may exist: no attempt may create it again."""
    task = new_id()
    register(running, task)
    register(running, task, outcome="unknown", reason="timed out")
    assert show(running, task)["status"] == "created"
    assert not register(running, task, attempt="two").json()["create"]


def test_another_family_or_account_is_a_conflict(running: Running, gateway: Sandbox) -> None:
    """A task keeps its family, and a receiver serves one account at one gateway."""
    task = new_id()
    register(running, task)
    assert refusal(register(running, task, "videos/text2video")) == (409, "conflict")
    assert refusal(register(running, new_id(), base="https://elsewhere.example")) == (409, "conflict")
    assert refusal(register(running, new_id(), key_fingerprint="0" * 16)) == (409, "conflict")
    good = {"base": f"{gateway.url}/v1/", "key_fingerprint": running.settings.key_fingerprint}
    assert register(running, new_id(), **good).status_code == 201


def test_all_problems_are_told_at_once(running: Running) -> None:
    """Nothing is kept of a registration with problems, and no value of it is in the answer."""
    bad = {"family": "../x", "model": "m" * 300, "tags": [""] * 30, "outcome": "maybe", "task_id": "t" * 300}
    answer = put(running, new_id(), json.dumps({**bad, "base": 5, "reason": "r" * 5000}).encode())
    assert refusal(answer) == (422, "bad_registration")
    for name in (*bad, "base", "reason"):
        assert f"{name}" in answer.json()["error"]["message"], name
    assert "mmmm" not in answer.text
    assert rows(running, "SELECT * FROM task") == []


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
        b'{"family":"images/generations","attempt":"x","request":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"family":"images/generations","attempt":"x","request":' + b"9" * 5000 + b"}",
        b'{"family":"\\u0000","attempt":"x"}',
        b'{"family":"images/generations","attempt":"\\ud800"}',
        b'{"family":"images//generations","attempt":"x"}',
        b'{"family":"images/../x","attempt":"x"}',
        json.dumps({"family": "a" * 201, "attempt": "x"}).encode(),
    ],
)
def test_what_is_no_registration(running: Running, body: bytes) -> None:
    """Answered 422, never 500."""
    assert refusal(put(running, new_id(), body)) == (422, "bad_registration")


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (b'{"a":NaN,"b":Infinity,"c":[-Infinity]}', {"a": None, "b": None, "c": [None]}),
        (b'{"a\\u0000":"b\\u0000c"}', {"a": "bc"}),
        (b'"text"', "text"),
        (b'{"a":1e400}', {"a": None}),
        (json.dumps(["x" * 4000] * 30).encode(), {"note": "longer than 20000 characters, left out"}),
    ],
)
def test_any_request_can_be_shown_again(running: Running, given: bytes, shown: Any) -> None:
    """What no JSON writer or database takes does not spoil the task, nor the list that it stands in."""
    task = new_id()
    assert put(running, task, b'{"family":"x","attempt":"1","request":%b}' % given).status_code == 201
    assert show(running, task)["request"] == shown
    assert get(running, "/api/tasks").json()["tasks"][0]["request"] == shown


def test_texts_that_no_database_takes_are_cleaned(running: Running) -> None:
    """NUL goes, everything else of the world's letters stays."""
    task = new_id()
    answer = register(running, task, model="m\0", tags=["\0", "tag \U0001f998"], attempt="one\0")
    assert answer.status_code == 201
    assert (answer.json()["task"]["model"], answer.json()["task"]["tags"]) == ("m", ["tag \U0001f998"])
    assert answer.json()["create"]


def test_a_registration_has_a_size(running: Running) -> None:
    """Image bytes belong in the create, not here: 413 over 1 MB."""
    body = {"family": IMAGES, "attempt": "1", "request": {"image": "x" * 1_000_001}}
    assert refusal(put(running, new_id(), json.dumps(body).encode())) == (413, "too_large")


def test_a_registration_has_few_parts(running: Running) -> None:
    """To look through hundreds of thousands of them would hold up callbacks; a long text is no matter."""
    body = {"family": IMAGES, "attempt": "1", "request": [[]] * 6_000}
    assert refusal(put(running, new_id(), json.dumps(body).encode())) == (422, "bad_registration")
    assert register(running, new_id(), request={"prompt": "x" * 900_000}).status_code == 201


@pytest.mark.parametrize("task", ["-x", ".x", "a%20b", "x" * 129, "%00", "a%2Fb", "%C3%A9", "~"])
def test_ids_have_few_letters(running: Running, task: str) -> None:
    """They stand in addresses and file names."""
    assert refusal(put(running, task, b"{}"))[0] in (404, 422)
    assert refusal(get(running, f"/api/tasks/{task}"))[0] == 404
    assert rows(running, "SELECT * FROM task") == []


def test_a_client_may_have_either_key_of_the_account(start: Start) -> None:
    """The receiver has an API key and an access key: who has only one of them is no stranger."""
    running = start(access_key="access", secret_key="secret-secret-secret-secret-secret")
    for key in (KEY, "access"):
        fingerprint = key_fingerprint(key)
        assert register(running, new_id(), key_fingerprint=fingerprint).status_code == 201
    assert register(running, new_id(), key_fingerprint=key_fingerprint("other")).status_code == 409


def test_a_database_that_cannot_be_written_is_told(running: Running) -> None:
    """Reports are answered 503 with Retry-After, like callbacks."""
    engine = create_engine(running.settings.database)
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE event RENAME TO gone"))
    answer = register(running, new_id())
    assert refusal(answer) == (503, "unavailable")
    assert answer.headers["Retry-After"]
    with engine.begin() as connection:
        connection.execute(sql("ALTER TABLE gone RENAME TO event"))
    engine.dispose()


# --- lists -------------------------------------------------------------------------------------------------


def test_the_list_is_filtered(running: Running) -> None:
    """By status, family and tag, together too; a filter that nothing fits finds nothing."""
    made = {}
    for family, tag in itertools.product((IMAGES, "videos/text2video"), ("a", "b")):
        made[family, tag] = new_id()
        register(running, made[family, tag], family, tags=[tag])
    post(running, made[IMAGES, "a"], {"task_status": "processing"})

    def found(**filters: str) -> set[str]:
        answer = get(running, "/api/tasks", params=filters).json()
        assert answer["next"] is None
        return {task["id"] for task in answer["tasks"]}

    assert found() == set(made.values())
    assert found(status="processing") == {made[IMAGES, "a"]}
    assert found(family=IMAGES) == {made[IMAGES, "a"], made[IMAGES, "b"]}
    assert found(tag="b", family=IMAGES) == {made[IMAGES, "b"]}
    assert found(tag="b", status="processing") == set()
    for odd in ("\0", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), "' OR 1=1 --", "%"):
        assert found(tag=odd) == found(family=odd) == set()


def test_pages_follow_each_other(running: Running) -> None:
    """Newest first, each task on one page, although new ones come meanwhile; the last page has no next."""
    made = [new_id() for _ in range(7)]
    for task in made:
        register(running, task)
    seen, cursor = [], ""
    while True:
        page = get(running, "/api/tasks", params={"limit": 3} | ({"cursor": cursor} if cursor else {})).json()
        seen += [task["id"] for task in page["tasks"]]
        register(running, new_id())
        cursor = page["next"]
        if not cursor:
            break
    assert seen == made[::-1]


def cursor(value: str | bytes) -> str:
    """A cursor with any content."""
    return base64.urlsafe_b64encode(value if isinstance(value, bytes) else value.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    "query",
    [
        {"status": "cancelled"},
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
def test_filters_that_mean_nothing(running: Running, query: dict[str, str]) -> None:
    """Answered 422 with what is right instead."""
    assert refusal(get(running, "/api/tasks", params=query)) == (422, "bad_filter")


def test_all_problems_of_a_filter_are_told_at_once(running: Running) -> None:
    """One look, one mending."""
    answer = get(running, "/api/tasks?status=x&limit=x&cursor=x").json()["error"]["message"]
    assert all(name in answer for name in ("`status`", "`limit`", "`cursor`"))


# --- streams -----------------------------------------------------------------------------------------------


def test_a_stream_tells_what_was_and_what_comes_and_ends(running: Running, gateway: Sandbox) -> None:
    """History first, then live, each with a growing id and its task, and the end after `task.done`."""
    gateway.hold()
    task, theirs = submit(running, gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].posted)
    with stream(running, f"/api/tasks/{task}/events") as coming:
        happened = [next(coming) for _ in range(3)]
        gateway.release()
        happened += list(coming)
    assert types(happened)[0] == "task.created"
    assert types(happened)[-1] == "task.done"
    assert types(happened).count("callback.received") == 3
    ids = [event["id"] for event in happened]
    assert ids == sorted(set(ids))
    assert {event["task"]["id"] for event in happened} == {task}
    assert happened[-1].keys() == {"id", "type", "at", "data", "task"}


def test_a_stream_goes_on_where_it_was(running: Running, gateway: Sandbox) -> None:
    """From `Last-Event-ID`, or `?after=`, every later event comes once, and none before."""
    task, _ = submit(running, gateway)
    happened = events(running, task)
    for place in (0, 2, len(happened) - 2):
        last = happened[place]["id"]
        with stream(running, f"/api/tasks/{task}/events", last) as coming:
            assert [event["id"] for event in coming] == [event["id"] for event in happened[place + 1 :]]
        with stream(running, f"/api/tasks/{task}/events?after={last}") as coming:
            assert [event["id"] for event in coming] == [event["id"] for event in happened[place + 1 :]]
    with stream(running, f"/api/tasks/{task}/events", happened[-1]["id"]) as coming:
        assert list(coming) == []


def test_the_stream_of_all_has_every_task(running: Running) -> None:
    """It tells of tasks that did not exist when it began, and `latest` leaves the past out."""
    old, new = new_id(), new_id()
    register(running, old)
    with stream(running, "/api/events") as all_, stream(running, "/api/events?after=latest") as latest:
        assert next(all_)["task"]["id"] == old
        register(running, new)
        assert next(all_)["task"]["id"] == next(latest)["task"]["id"] == new


def test_many_streams_of_one_task(running: Running) -> None:
    """Whoever waits is woken; the ids of a stream's frames are where it begins, and those of its events."""

    async def follow(http: httpx.AsyncClient, task: str, ready: asyncio.Semaphore) -> list[str]:
        found: list[str] = []
        url = f"{running.url}/api/tasks/{task}/events"
        async with http.stream("GET", url, headers=running.headers()) as response:
            async for line in response.aiter_lines():
                found += re.findall(r"^(?:id|event): (.*)", line)
                if len(found) == 3:
                    ready.release()
                if "task.processing" in line:
                    break
        return found

    async def all_of_them() -> list[list[str]]:
        task, ready = new_id(), asyncio.Semaphore(0)
        await asyncio.to_thread(register, running, task)
        async with httpx.AsyncClient(timeout=20) as http:
            waiting = [asyncio.create_task(follow(http, task, ready)) for _ in range(40)]
            for _ in waiting:
                await ready.acquire()
            await asyncio.to_thread(post, running, task, {"task_status": "processing"})
            return await asyncio.gather(*waiting)

    found = asyncio.run(all_of_them())
    assert all(each == found[0] for each in found)
    assert found[0] == ["0", "1", "task.created", "2", "callback.received", "3", "task.processing"]


@pytest.mark.parametrize("said", ["x", "-1", "1.5", "9" * 19, "\u0663".encode().decode("latin-1"), " 1 1 "])
def test_event_ids_are_numbers(running: Running, said: str) -> None:
    """Anything else is answered 422, before a stream begins."""
    assert refusal(get(running, "/api/events", params={"after": said})) == (422, "bad_event_id")


def test_streams_answer_head_without_waiting(running: Running) -> None:
    """A HEAD has no body to wait for, and its connection serves the next request."""
    with httpx.Client(headers=running.headers(), timeout=5) as http:
        assert http.head(f"{running.url}/api/events").headers["Content-Type"].startswith("text/event-stream")
        assert http.get(f"{running.url}/healthz").status_code == 200


@pytest.mark.anyio
async def test_a_silent_stream_shows_that_it_lives(tmp_path: Path) -> None:
    """An empty batch is a comment line, which keeps proxies from closing the connection."""

    class Silent(EventBus):
        async def follow(self, task: str | None, after: int) -> AsyncIterator[list[EventRow]]:
            yield []

    answer = await _follow(tmp_path, Silent)
    assert answer.text.endswith("\n\n:\n\n")
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.anyio
async def test_there_are_so_many_streams(tmp_path: Path) -> None:
    """Whoever asks for one more is asked to come later."""
    answer = await _follow(tmp_path, functools.partial(EventBus, max_streams=0))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    assert answer.json()["error"]["code"] == "too_many_streams"


async def _follow(tmp_path: Path, feed: Callable[[Reader], EventBus]) -> httpx.Response:
    """What is answered to who follows all tasks, by a receiver with this feed."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    await receiver.start()
    receiver.stream_routes = StreamRoutes(
        receiver.settings, reader=receiver.reader, bus=feed(receiver.reader), payloads=receiver.payloads
    )
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
        headers = {"Authorization": Running.headers(receiver)["Authorization"]}  # type: ignore[arg-type]
        answer = await http.get("http://receiver/api/events", headers=headers)
    await receiver.stop()
    return answer


# --- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def stored(running: Running, gateway: Sandbox) -> Json:
    """A task with two stored files."""
    return finished(running, submit(running, gateway, n=2)[0])


def test_a_file_is_served_as_what_it_is(running: Running, stored: Json) -> None:
    """With its type, checksum as ETag, and so that no browser runs anything in it."""
    result = stored["results"][0]
    answer = httpx.get(result["href"])
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["ETag"] == f'"{result["sha256"]}"'
    assert answer.headers["Content-Length"] == str(result["size"])
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in answer.headers["Content-Security-Policy"]
    assert answer.headers["Content-Disposition"] == f'inline; filename="{stored["id"]}-0.png"'
    head = httpx.head(result["href"])
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(result["size"]))


@pytest.mark.parametrize(
    ("wanted", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=5-99999999", 206, slice(5, None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=9-5", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=a-b", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("items=0-5", 200, slice(None)),
        ("bytes=" + "0-1," * 500 + "0-1", 200, slice(None)),
        ("bytes=" + "9" * 6000 + "-", 200, slice(None)),
        ("nonsense", 200, slice(None)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_part_of_a_file(stored: Json, wanted: str, status: int, part: slice | None) -> None:
    """One range is honoured, past the end is 416, and what is no range is the whole file."""
    result = stored["results"][0]
    whole = httpx.get(result["href"]).content
    answer = httpx.get(result["href"], headers={"Range": wanted})
    assert answer.status_code == status
    if part is None:
        assert refusal(answer) == (416, "bad_range")
        assert answer.headers["Content-Range"] == f"bytes */{len(whole)}"
    else:
        assert answer.content == whole[part]
        assert ("Content-Range" in answer.headers) == (status == 206)


def test_a_range_is_for_one_version(stored: Json) -> None:
    """If-Range with our tag gives the part; with another, even of a range past the end, the whole."""
    href, etag = stored["results"][0]["href"], f'"{stored["results"][0]["sha256"]}"'
    assert httpx.get(href, headers={"Range": "bytes=0-4", "If-Range": etag}).status_code == 206
    for wanted in ("bytes=0-4", "bytes=99999999-"):
        assert httpx.get(href, headers={"Range": wanted, "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(("tag", "status"), [("{}", 304), ("W/{}", 304), ('"a", {}', 304), ("*", 304), ('"a"', 200)])
def test_a_file_that_one_has_is_not_sent_again(stored: Json, tag: str, status: int) -> None:
    """304 for our tag, also among others and marked weak by a proxy."""
    etag = f'"{stored["results"][0]["sha256"]}"'
    answer = httpx.get(stored["results"][0]["href"], headers={"If-None-Match": tag.format(etag)})
    assert (answer.status_code, answer.headers["ETag"]) == (status, etag)
    assert bool(answer.content) == (status == 200)


def test_a_link_opens_one_file_for_a_time(running: Running, stored: Json) -> None:
    """Altered, expired, or of another file or task, it opens nothing."""
    href, second = (result["href"] for result in stored["results"])
    good = httpx.URL(href)
    signature = good.params["signature"]
    expired = sign_link([SECRET], running.url, stored["id"], 0, 1_000_000_000)
    bad = [
        expired,
        sign_link(["another-secret-that-is-32-characters!"], running.url, stored["id"], 0, 9_999_999_999),
        str(httpx.URL(second).copy_set_param("signature", signature)),
        str(good.copy_set_param("expires", "9999999999")),
        str(good.copy_set_param("expires", "")),
        str(good.copy_set_param("expires", "\u0663\0")),
        str(good.copy_set_param("signature", "")),
        str(good.copy_set_param("signature", signature + "x")),
        str(good.copy_set_param("signature", "\xe9\0")),
        str(good.copy_remove_param("expires")),
        href.replace("/results/0", "/results/1"),
        href.replace(stored["id"], new_id()),
    ]
    for url in bad:
        assert refusal(httpx.get(url)) == (401, "bad_link"), url
    assert refusal(httpx.get(str(good.copy_remove_param("signature")))) == (401, "no_token")
    assert httpx.get(href).status_code == 200


def test_a_bearer_opens_every_file(running: Running, stored: Json) -> None:
    """Whoever may read may fetch, by the plain address."""
    assert get(running, f"/api/tasks/{stored['id']}/results/1").status_code == 200
    for n in ("2", "99999999999999999999", "00"):
        found = get(running, f"/api/tasks/{stored['id']}/results/{n}")
        assert found.status_code == (200 if n == "00" else 404)
    for odd in ("x", "-1", "1.5", "%00", "9" * 5_000, "%C2%B2"):
        assert refusal(get(running, f"/api/tasks/{stored['id']}/results/{odd}")) == (404, "unknown_result")
    assert refusal(get(running, "/api/tasks/~x/results/0")) == (404, "unknown_result")


def test_files_that_are_not_there(running: Running, gateway: Sandbox, stored: Json) -> None:
    """Not yet, never, and no longer: three answers, each with what to do."""
    path = running.settings.results / stored["id"] / "0.png"
    content = path.read_bytes()
    for altered in (content[:-1], content + b"x", b"", content[:-1] + b"x"):
        path.write_bytes(altered)
        assert refusal(httpx.get(stored["results"][0]["href"])) == (410, "result_lost")
    path.unlink()
    assert refusal(httpx.get(stored["results"][0]["href"])) == (410, "result_lost")
    path.write_bytes(content)
    assert httpx.get(stored["results"][0]["href"]).content == content
    path.unlink()
    task, _ = submit(running, gateway, "redirect-private")
    assert finished(running, task)["results"][0]["href"] is None
    assert refusal(get(running, f"/api/tasks/{task}/results/0")) == (409, "result_failed")
    waiting, _ = submit(running, gateway, "file-500-once")
    events(running, waiting, "task.succeed")
    assert refusal(get(running, f"/api/tasks/{waiting}/results/0")) == (409, "result_pending")


# --- every error -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api", 404),
        ("GET", "/api/tasks/", 404),
        ("GET", "/healthz/", 404),
        ("GET", "/api/tasks/unknown", 404),
        ("GET", "/api/tasks/unknown/events", 404),
        ("POST", "/api/tasks", 405),
        ("DELETE", "/api/tasks/x", 405),
        ("POST", "/healthz", 405),
        ("PATCH", "/api/events", 405),
    ],
)
def test_errors_have_one_shape(running: Running, method: str, path: str, status: int) -> None:
    """Code, message and hint, whatever went wrong; 405 names every method that is right."""
    answer = httpx.request(method, f"{running.url}{path}", headers=running.headers("admin"))
    assert refusal(answer)[0] == status
    if path == "/api/tasks/x":
        assert {"GET", "PUT"} <= set(answer.headers["Allow"].split(", "))


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("UPDATE task SET request = 'no JSON'", (500, "internal")),
        ("ALTER TABLE task RENAME TO gone", (503, "unavailable")),
    ],
)
async def test_a_failure_of_ours_has_the_shape_too(tmp_path: Path, fault: str, code: tuple[int, str]) -> None:
    """500 without a word of what happened inside, for the log has it; 503 when the database cannot be used."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    Ledger(receiver.database).put_task()
    engine = create_engine(receiver.settings.database)
    with engine.begin() as connection:
        connection.execute(sql(fault))
    engine.dispose()
    transport = httpx.ASGITransport(create_app(receiver), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport) as http:
        headers = {"Authorization": Running.headers(receiver)["Authorization"]}  # type: ignore[arg-type]
        answer = await http.get("http://receiver/api/tasks", headers=headers)
    receiver.database.close()
    assert refusal(answer) == code
    assert "JSON" not in answer.text
    assert "SELECT" not in answer.text


def test_a_receiver_that_lost_its_storage_is_not_ready(running: Running) -> None:
    """It tries to write there, says so to whoever asks, is alive all the same, and ready once it is mended."""
    (running.settings.results / ".parts").rmdir()
    running.settings.results.rmdir()
    running.settings.results.write_text("in the way")
    answer = httpx.get(f"{running.url}/readyz")
    assert refusal(answer) == (503, "not_ready")
    assert "The folder for result files cannot be written" in answer.json()["error"]["message"]
    assert httpx.get(f"{running.url}/healthz").status_code == 200
    running.settings.results.unlink()
    answer = httpx.get(f"{running.url}/readyz")
    assert "Mount its volume again, or start the receiver anew" in answer.json()["error"]["message"]
    (running.settings.results / ".parts").mkdir(parents=True)
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_a_receiver_that_cannot_write_its_database_is_not_ready(running: Running) -> None:
    """Readiness is a write that was committed."""
    with running.receiver.database.write() as connection:
        connection.execute(sql("PRAGMA busy_timeout = 20"))
    blocker = Database(running.settings.database)
    with blocker.write():
        assert refusal(httpx.get(f"{running.url}/readyz")) == (503, "not_ready")
    blocker.close()
    assert httpx.get(f"{running.url}/readyz").status_code == 200


@pytest.mark.anyio
async def test_a_receiver_that_has_not_begun_is_not_ready(tmp_path: Path) -> None:
    """Until its writer runs nothing can be made durable, and callbacks are answered 503."""
    receiver = Receiver(make_settings(tmp_path))
    receiver.prepare()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(create_app(receiver))) as http:
        assert refusal(await http.get("http://receiver/readyz")) == (503, "not_ready")
        address = CallbackSigner([SECRET]).url(receiver.settings.receiver_url, new_id(), IMAGES)
        assert refusal(await http.post(address, json={})) == (503, "unavailable")
    receiver.database.close()
