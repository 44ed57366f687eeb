"""The sandbox gateway keeps to the protocol page, and each of its switches does what its line says."""

import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import av
import httpx
import jwt
import pytest
from click.testing import CliRunner
from PIL import Image
from standardwebhooks import Webhook

from kling_sandbox import Sandbox
from kling_sandbox.__main__ import main
from kling_sandbox.callbacks import webhook_headers
from kling_sandbox.misbehaviour import SWITCHES
from tests.support.sandbox import HEADERS, IMAGES, NEW, VIDEOS, bodies, code, create, finished, made

ROOT = Path(__file__).parents[2]
ALL = ["submitted", "processing", "succeed"]
SECRET = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="


def statuses(gateway: Sandbox) -> list[str]:
    return [callback.status for callback in gateway.callbacks]


# The protocol


def test_create_answers_the_envelope_with_a_submitted_task(api: httpx.Client) -> None:
    answer = create(api, external_task_id="order-42").json()
    assert answer.keys() == {"code", "message", "request_id", "data"}
    assert (answer["code"], answer["message"]) == (0, "SUCCEED")
    assert answer["data"].keys() == {"task_id", "task_status", "task_info", "created_at", "updated_at"}
    assert answer["data"]["task_status"] == "submitted"
    assert answer["data"]["task_info"] == {"external_task_id": "order-42"}
    assert re.fullmatch(r"\d{18}", answer["data"]["task_id"])


def test_new_standard_speaks_its_own_spelling(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    options = {"callback_url": recipient, "external_task_id": "order-42"}
    answer = create(api, path=NEW, options=options, settings={"duration": 5}).json()["data"]
    assert answer.keys() == {"id", "status", "message", "create_time", "update_time", "external_id"}
    last = bodies(gateway)[-1]
    assert (last["id"], last["status"], last["external_id"]) == (answer["id"], "succeeded", "order-42")
    assert last["outputs"][0]["type"] == "video"
    assert api.get("/tasks", params={"external_task_ids": "order-42"}).json()["data"] == [last]
    assert gateway.creates[0]["settings"] == {"duration": 5}


def test_callbacks_are_bare_records_of_each_change(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    number = made(api, external_task_id="order-42", callback_url=recipient, n=2)
    records = bodies(gateway)
    assert [record["task_status"] for record in records] == ALL
    assert {record["task_id"] for record in records} == {number}
    assert [record["task_result"] for record in records[:2]] == [{}, {}]
    assert [image["index"] for image in records[2]["task_result"]["images"]] == [0, 1]
    assert records[2]["final_unit_deduction"] == "2"
    assert records[2] == api.get(f"{IMAGES}/{number}").json()["data"]


def test_a_refused_callback_is_recorded_and_not_sent_again(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    made(api, callback_url=recipient.replace("200", "503"))
    made(api, callback_url="http://127.0.0.1:1/")
    gateway.wait_for(lambda: len(gateway.callbacks) == 6)
    assert sorted(str(callback.answered) for callback in gateway.callbacks) == ["503"] * 3 + ["ConnectError"] * 3
    assert api.get("/sandbox/account").json()["totals"]["callbacks_refused"] == 6


def test_query_goes_by_either_id_under_the_path_that_created(gateway: Sandbox, api: httpx.Client) -> None:
    number = made(api, external_task_id="order-42")
    assert api.get(f"{IMAGES}/order-42").json()["data"]["task_id"] == number
    assert code(api.get(f"{VIDEOS}/{number}")) == (1201, 400)
    assert code(api.get(f"{IMAGES}/unknown")) == (1201, 400)
    assert [query.ids for query in gateway.queries] == [["order-42"], [number], ["unknown"]]


def test_list_shows_a_page_of_the_family_newest_first(api: httpx.Client) -> None:
    numbers = [made(api) for _ in range(3)]
    made(api, path=VIDEOS)
    page = api.get(IMAGES, params={"pageNum": 1, "pageSize": 2}).json()["data"]
    assert [record["task_id"] for record in page] == numbers[:0:-1]
    assert [record["task_id"] for record in api.get(f"{IMAGES}?pageNum=2&pageSize=2").json()["data"]] == numbers[:1]
    assert code(api.get(IMAGES, params={"pageSize": 501})) == (1201, 400)


def test_batch_query_answers_both_standards_in_the_new_spelling(api: httpx.Client) -> None:
    numbers = [made(api), made(api, path=NEW)]
    numbers.append(made(api, external_task_id="order-42"))
    query = {"task_ids": ",".join([*numbers[:2], "unknown"]), "external_task_ids": "order-42,unknown"}
    found = api.get("/tasks", params=query).json()["data"]
    assert [record["id"] for record in found] == numbers
    assert api.get("/tasks", params={"task_ids": "unknown"}).json()["data"] == []


def test_batch_query_takes_20_ids_of_both_kinds_together(api: httpx.Client) -> None:
    assert code(api.get("/tasks", params={"task_ids": ",".join("x" * 20)})) == (0, 200)
    for query in (
        {"task_ids": ",".join("x" * 21)},
        {"task_ids": ",".join("x" * 11), "external_task_ids": ",".join("x" * 10)},
    ):
        assert code(api.get("/tasks", params=query)) == (1201, 400)
    assert code(api.get("/tasks")) == (1201, 400)


def test_an_external_id_makes_one_task_only(gateway: Sandbox, api: httpx.Client) -> None:
    made(api, external_task_id="order-42")
    again = create(api, external_task_id="order-42")
    assert code(again) == (1201, 400)
    assert "already exists" in again.json()["message"]
    assert len(gateway.tasks) == 1
    assert len(gateway.creates) == 2


@pytest.mark.parametrize(
    ("expected", "path"),
    [((1202, 404), "/v1/images/nothing"), ((1202, 404), "/elsewhere"), ((1203, 404), "/text-to-video/sora")],
)
def test_other_addresses_do_not_exist(api: httpx.Client, expected: Any, path: str) -> None:
    assert code(create(api, path=path)) == expected


@pytest.mark.parametrize("content", ["[]", "{", '{"options": 1}'])
def test_a_body_must_be_an_object(api: httpx.Client, content: str) -> None:
    assert code(api.post(NEW, content=content)) == (1200, 400)


def token(*, secret: str = "sandbox-secret-sandbox-secret-sandbox", **claims: Any) -> str:
    now = int(time.time())
    claims = {"iss": "sandbox-access", "exp": now + 86_400, "nbf": now - 5} | claims
    return "Bearer " + jwt.encode(claims, secret, "HS256")


@pytest.mark.parametrize(
    ("expected", "header"),
    [
        (0, "Bearer sandbox-key"),
        (0, token()),
        (1000, token(secret="another secret that is long enough to sign")),
        (1001, ""),
        (1002, "Basic sandbox-key"),
        (1002, "Bearer another-key"),
        (1002, "Bearer a.b.c"),
        (1002, token(iss="another")),
        (1003, token(nbf=int(time.time()) + 86_400)),
        (1004, token(exp=int(time.time()) - 1)),
    ],
)
def test_callers_are_known_by_key_or_token(gateway: Sandbox, expected: int, header: str) -> None:
    with httpx.Client(base_url=gateway.url, headers={"authorization": header}) as api:
        assert code(create(api)) == (expected, 401 if expected else 200)


def test_new_standard_takes_api_keys_only(gateway: Sandbox) -> None:
    with httpx.Client(base_url=gateway.url, headers={"authorization": token()}) as api:
        assert code(create(api, path=NEW)) == (1002, 401)
        assert code(api.get("/tasks", params={"task_ids": "x"})) == (1002, 401)


def test_official_signature_vector() -> None:
    body = (
        b'{"id":"1234567890","status":"succeeded","message":"","create_time":1781080778802,"update_time":1781080794151}'
    )
    headers = webhook_headers(SECRET, "9876543210", body, 1781080794)
    assert headers["webhook-signature"] == "v1,UsKlJP00XoQyOn410NM9xv34sP+Gl0jnOO9Lcpr7NJ4="


def test_callbacks_are_signed_with_a_webhook_secret(recipient: str) -> None:
    with Sandbox(webhook_secret=SECRET) as gateway, httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
        made(api, "repeat", callback_url=recipient)
        gateway.wait_for(lambda: len(gateway.callbacks) == 6)
        for callback in gateway.callbacks:
            Webhook(SECRET).verify(callback.body, callback.headers)
        assert len({callback.headers["webhook-id"] for callback in gateway.callbacks}) == 3


def test_concurrency_counts_pictures_until_they_end() -> None:
    with Sandbox(concurrency=3) as gateway, httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
        gateway.hold()
        number = made(api, n=2)
        assert code(create(api, n=2)) == (1303, 429)
        assert code(create(api)) == (0, 200)
        gateway.release()
        gateway.wait_for(lambda: gateway.tasks[number].finished_at)
        assert code(create(api, n=2)) == (0, 200)


def test_everything_moves_under_a_base_path(recipient: str) -> None:
    with Sandbox(base_path="/kling") as gateway, httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
        assert gateway.url.endswith("/kling")
        data = finished(gateway, api)
        assert data["task_result"]["images"][0]["url"].startswith(f"{gateway.url}/files/")
        assert api.get(data["task_result"]["images"][0]["url"]).status_code == 200
        assert httpx.get(f"{gateway.url.removesuffix('/kling')}{IMAGES}").status_code == 404


def test_the_same_seed_makes_the_same_ids() -> None:
    def numbers(seed: int) -> list[str]:
        with Sandbox(seed=seed) as gateway, httpx.Client(base_url=gateway.url, headers=HEADERS) as api:
            return [made(api), made(api)]

    assert numbers(7) == numbers(7) != numbers(8)


def test_the_account_tells_what_happened(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    data = finished(gateway, api, external_task_id="order-42", callback_url=recipient)
    bodies(gateway)
    api.get(data["task_result"]["images"][0]["url"])
    account = api.get("/sandbox/account").json()
    assert account == gateway.account()
    (task,) = account["tasks"]
    assert (task["task_id"], task["external_task_id"]) == (data["task_id"], "order-42")
    assert (task["family"], task["queries"]) == ("images/generations", 1)
    assert task["created_at"] <= task["finished_at"] <= task["callbacks"][-1]["at"]
    assert [(sent["status"], sent["answered"]) for sent in task["callbacks"]] == [(name, 200) for name in ALL]
    assert account["totals"] == {
        "creates": 1,
        "callbacks": 3,
        "callbacks_refused": 0,
        "queries": 1,
        "downloads": 1,
    }


def test_tests_decide_when_tasks_move(gateway: Sandbox, api: httpx.Client) -> None:
    gateway.hold()
    first, second = made(api), made(api)
    gateway.advance(first)
    gateway.wait_for(lambda: gateway.tasks[first].status == "processing")
    assert api.get(f"{IMAGES}/{second}").json()["data"]["task_status"] == "submitted"
    gateway.release()
    gateway.wait_for(lambda: all(task.finished_at for task in gateway.tasks.values()))


def test_waiting_in_vain_says_so(gateway: Sandbox) -> None:
    with pytest.raises(TimeoutError, match="callbacks"):
        gateway.wait_for(lambda: gateway.creates, timeout=0.01)


def test_ending_cancels_what_is_pending(capfd: pytest.CaptureFixture[str], recipient: str) -> None:
    def hang(url: str) -> None:
        with httpx.Client(base_url=url, headers=HEADERS) as api, pytest.raises(httpx.TransportError):
            create(api, "early-final", callback_url=recipient)

    with Sandbox() as gateway:
        gateway.hold()
        thread = threading.Thread(target=hang, args=[gateway.url])
        thread.start()
        gateway.wait_for(lambda: gateway.callbacks)
    thread.join()
    assert capfd.readouterr().err == ""


# Result files


def addresses(gateway: Sandbox, api: httpx.Client, mark: str = "", path: str = IMAGES, **body: Any) -> list[str]:
    (results,) = finished(gateway, api, mark, path, **body)["task_result"].values()
    return [value for result in results for name, value in result.items() if name.startswith("url")]


@pytest.mark.parametrize(("ending", "name"), [("png", "PNG"), ("jpg", "JPEG")])
def test_pictures_open_and_no_two_are_alike(gateway: Sandbox, api: httpx.Client, ending: str, name: str) -> None:
    pictures = [api.get(url) for url in addresses(gateway, api, output_format=ending, n=9)]
    assert len({picture.content for picture in pictures}) == 9
    for picture in pictures:
        with Image.open(io.BytesIO(picture.content)) as image:
            image.load()
            assert image.format == name
        assert picture.headers["content-type"] == f"image/{name.lower()}"


def test_a_series_is_told_apart(gateway: Sandbox, api: httpx.Client) -> None:
    data = finished(gateway, api, path="/v1/images/omni-image", result_type="series", series_amount=4)
    assert len(data["task_result"]["series_images"]) == 4


def seconds(content: bytes) -> float:
    with av.open(io.BytesIO(content), "r") as container:
        frames = [*container.decode(video=0)] if container.streams.video else [*container.decode(audio=0)]
    return frames[-1].time or 0


@pytest.mark.parametrize(
    ("path", "types", "length"),
    [(VIDEOS, ["video/mp4"], 5), ("/v1/audio/text-to-audio", ["audio/mpeg", "audio/wav"], 2)],
)
def test_films_and_sounds_play(gateway: Sandbox, api: httpx.Client, path: str, types: Any, length: int) -> None:
    files = [[api.get(url) for url in addresses(gateway, api, path=path)] for _ in range(2)]
    assert [file.headers["content-type"] for file in files[0]] == types
    assert len({file.content for made in files for file in made}) == 2 * len(types)
    for file in files[0]:
        assert seconds(file.content) == pytest.approx(length, abs=0.2)


def test_other_formats_open_and_no_two_are_alike(gateway: Sandbox, api: httpx.Client) -> None:
    images = [api.get(url) for url in addresses(gateway, api, "other-formats", n=2)]
    (film,) = (api.get(url) for url in addresses(gateway, api, "other-formats", VIDEOS))
    sounds = [api.get(url) for url in addresses(gateway, api, "other-formats", "/v1/audio/text-to-audio")]
    types = [file.headers["content-type"] for file in (*images, film, *sounds)]
    assert types == ["image/avif", "image/avif", "video/quicktime", "audio/mp4", "audio/flac"]
    assert images[0].content != images[1].content
    for image in images:
        with Image.open(io.BytesIO(image.content)) as opened:
            opened.load()
            assert opened.format == "AVIF"
    assert film.content[4:12] == b"ftypqt  "
    assert seconds(film.content) > 4.8
    assert [seconds(sound.content) for sound in sounds] == [pytest.approx(2, abs=0.2)] * 2


def test_files_can_be_padded() -> None:
    with (
        Sandbox(image_bytes=300_000, video_bytes=400_000) as gateway,
        httpx.Client(base_url=gateway.url, headers=HEADERS) as api,
    ):
        for ending in ("png", "jpg"):
            (url,) = addresses(gateway, api, output_format=ending)
            content = api.get(url).content
            assert 300_000 <= len(content) < 301_000
            with Image.open(io.BytesIO(content)) as image:
                image.load()
        (url,) = addresses(gateway, api, path=VIDEOS)
        assert 400_000 <= len(api.get(url).content) < 401_000
        assert seconds(api.get(url).content) > 4.8


def test_addresses_expire(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api)
    address, _, stamp = url.partition("?ksTime=")
    assert int(stamp, 16) == pytest.approx(time.time() + 30 * 86400, abs=60)
    assert api.get(f"{address}?ksTime={int(time.time()) - 1:x}").status_code == 403
    assert api.get(address).status_code == 403
    assert api.get(f"{gateway.url}/files/unknown/0.png").status_code == 404
    assert [download.name for download in gateway.downloads] == ["0.png"] * 3


def test_files_come_in_ranges(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api)
    whole = api.get(url)
    etag = whole.headers["etag"]

    def part(span: str, **headers: str) -> httpx.Response:
        return api.get(url, headers={"range": span, **headers})

    assert int(whole.headers["content-length"]) == len(whole.content)
    assert part("bytes=0-9").status_code == 206
    assert part("bytes=0-9").content == whole.content[:10]
    assert part("bytes=10-", **{"if-range": etag}).content == whole.content[10:]
    assert part("bytes=-10").content == whole.content[-10:]
    assert part("bytes=0-9").headers["content-range"] == f"bytes 0-9/{len(whole.content)}"
    assert part("bytes=10-", **{"if-range": '"another"'}).content == whole.content
    assert part("bytes=9999999-").status_code == 416
    assert part("lines=1-2").status_code == 200


# Misbehaviours: the task and its callbacks


def test_every_switch_is_done_somewhere_and_tested() -> None:
    sources = [path for path in (ROOT / "scripts/kling_sandbox").rglob("*.py") if path.stem != "misbehaviour"]
    done = set(re.findall(r'"([a-z0-9-]+)"', "".join(path.read_text() for path in sources)))
    tested = set(re.findall(r"[a-z0-9-]+", "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))))
    assert SWITCHES.keys() <= done
    assert SWITCHES.keys() <= tested


def test_an_unknown_switch_is_named() -> None:
    with pytest.raises(ValueError, match="wrap-thrice"):
        Sandbox(misbehave=["wrap-thrice"])


def test_switches_can_be_turned_for_all(gateway: Sandbox, api: httpx.Client) -> None:
    gateway.misbehave.add("busy")
    assert code(create(api)) == (1302, 429)
    gateway.misbehave.clear()
    assert code(create(api)) == (0, 200)


@pytest.mark.parametrize(
    ("mark", "expected"),
    [
        ("failed", ["submitted", "processing", "failed"]),
        ("repeat", ["submitted", "submitted", "processing", "processing", "succeed", "succeed"]),
        ("reorder", ["succeed", "processing", "submitted"]),
        ("repeat, reorder", ["succeed", "succeed", "processing", "processing", "submitted", "submitted"]),
        ("final-only", ["succeed"]),
        ("contradict", ["submitted", "processing", "succeed", "failed"]),
        ("false-succeed", ["submitted", "succeed", "processing", "succeed"]),
    ],
)
def test_callbacks_come_in_odd_orders(
    gateway: Sandbox, api: httpx.Client, recipient: str, mark: str, expected: list[str]
) -> None:
    made(api, mark, callback_url=recipient)
    gateway.wait_for(lambda: len(gateway.callbacks) >= len(expected))
    assert statuses(gateway) == expected
    assert [body["task_status"] for body in bodies(gateway, 1)] == expected


def test_failed_gives_a_reason_and_no_result(gateway: Sandbox, api: httpx.Client) -> None:
    data = finished(gateway, api, "failed")
    assert (data["task_status"], data["task_result"]) == ("failed", {})
    assert data["task_status_msg"]
    assert api.get(f"{IMAGES}/{data['task_id']}").json()["message"] == "SUCCEED"


def test_slow_takes_ten_times_as_long(gateway: Sandbox, api: httpx.Client) -> None:
    data = finished(gateway, api, "slow")
    assert data["updated_at"] - data["created_at"] >= 100


def test_wrap_once_adds_an_envelope(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    data = finished(gateway, api, "wrap-once", callback_url=recipient)
    assert data["data"]["task_status"] == "succeed"
    assert bodies(gateway)[-1]["data"] == data["data"]


def test_wrap_twice_speaks_in_other_words(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    answer = create(api, "wrap-twice", callback_url=recipient).json()
    assert answer["code"] == "success"
    assert answer["data"]["status"] == "SUBMITTED"
    last = bodies(gateway)[-1]
    assert [body["data"]["status"] for body in bodies(gateway)] == ["SUBMITTED", "IN_PROGRESS", "SUCCESS"]
    assert last["data"]["data"]["data"]["task_status"] == "succeed"
    query = api.get(f"{IMAGES}/{answer['data']['task_id']}").json()
    assert query["data"]["data"]["data"] == last["data"]["data"]["data"]


def test_outer_failure_has_no_record_inside(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    data = finished(gateway, api, "outer-failure", callback_url=recipient)
    assert (data["status"], data["data"]) == ("FAILURE", None)
    assert bodies(gateway)[-1]["data"] == data


def test_relay_id_hides_whose_callback_it_is(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    number = made(api, "relay-id", external_task_id="order-42", callback_url=recipient)
    (alias,) = {body["task_id"] for body in bodies(gateway)}
    assert alias != number
    assert "order-42" not in str(bodies(gateway))
    assert code(api.get(f"{IMAGES}/{alias}")) == (1201, 400)
    assert api.get(f"{IMAGES}/order-42").json()["data"]["task_id"] == number


def test_drop_external_id_forgets_it(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    gateway.misbehave.add("drop-external-id")
    made(api, external_task_id="order-42", callback_url=recipient)
    made(api, external_task_id="order-42")
    assert len(gateway.tasks) == 2
    assert code(api.get(f"{IMAGES}/order-42")) == (1201, 400)
    assert "order-42" not in str(bodies(gateway))


def test_early_callback_beats_the_answer(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    gateway.hold()
    made(api, "early-callback", callback_url=recipient)
    assert statuses(gateway) == ["submitted"]
    gateway.release()
    bodies(gateway)
    assert statuses(gateway) == ALL


def test_early_final_beats_the_answer(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    number = made(api, "early-final", callback_url=recipient)
    assert statuses(gateway) == ALL
    assert api.get(f"{IMAGES}/{number}").json()["data"]["task_status"] == "succeed"


def test_no_callback_comes(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    made(api, "no-callback, early-final", callback_url=recipient)
    assert gateway.callbacks == []


def test_no_results_are_in_callbacks_only(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    data = finished(gateway, api, "no-results", callback_url=recipient)
    assert bodies(gateway)[-1]["task_result"] == {}
    assert data["task_result"]["images"]


@pytest.mark.parametrize(("mark", "hidden"), [("late-url", [True, False]), ("lost-url", [True, True])])
def test_the_second_file_has_no_address(
    gateway: Sandbox, api: httpx.Client, recipient: str, mark: str, hidden: list[bool]
) -> None:
    data = finished(gateway, api, mark, callback_url=recipient, n=3)
    again = api.get(f"{IMAGES}/{data['task_id']}").json()["data"]
    for record, is_hidden in zip((bodies(gateway)[-1], data, again), [True, *hidden], strict=True):
        urls = [bool(image["url"]) for image in record["task_result"]["images"]]
        assert urls == [True, not is_hidden, True]


@pytest.mark.parametrize(("path", "key"), [(IMAGES, "id"), (NEW, "task_id")])
def test_other_spelling_is_in_callbacks_only(
    gateway: Sandbox, api: httpx.Client, recipient: str, path: str, key: str
) -> None:
    body = {"callback_url": recipient, "options": {"callback_url": recipient}}
    number = made(api, "other-spelling", path, **body)
    assert {body[key] for body in bodies(gateway)} == {number}


def test_unreadable_is_the_final_callback(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    made(api, "unreadable", callback_url=recipient)
    gateway.wait_for(lambda: len(gateway.callbacks) == 3)
    json.loads(gateway.callbacks[1].body)
    with pytest.raises(ValueError, match=r"line 1 column"):
        json.loads(gateway.callbacks[2].body)


def test_oversized_is_the_final_callback(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    made(api, "oversized", callback_url=recipient)
    bodies(gateway)
    assert [len(callback.body) > 2_000_000 for callback in gateway.callbacks] == [False, False, True]


def test_nul_is_in_the_message(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    made(api, "nul", callback_url=recipient)
    assert "\0" in bodies(gateway)[-1]["task_status_msg"]


def test_false_succeed_is_denied_by_the_query(gateway: Sandbox, api: httpx.Client, recipient: str) -> None:
    gateway.hold()
    number = made(api, "false-succeed", callback_url=recipient)
    gateway.wait_for(lambda: len(gateway.callbacks) == 3)
    assert api.get(f"{IMAGES}/{number}").json()["data"]["task_status"] == "processing"
    false = json.loads(gateway.callbacks[1].body)
    assert false["task_status"] == "succeed"
    assert false["task_result"]["images"][0]["url"].startswith("http://localhost:")


# Misbehaviours: create


@pytest.mark.parametrize(("mark", "tasks"), [("drop-after-create", 1), ("drop-before-create", 0)])
def test_dropped_connections_have_no_answer(gateway: Sandbox, api: httpx.Client, mark: str, tasks: int) -> None:
    with pytest.raises(httpx.RemoteProtocolError, match="without sending a response"):
        create(api, mark, external_task_id="order-42")
    assert len(gateway.tasks) == tasks
    gateway.wait_for(lambda: all(task.finished_at for task in gateway.tasks.values()))
    assert code(api.get(f"{IMAGES}/order-42"))[0] == (0 if tasks else 1201)


@pytest.mark.parametrize(
    ("mark", "status", "beginning"),
    [
        ("create-5002", 504, '{"code":5002'),
        ("create-502", 502, "<html>"),
        ("create-504", 504, "<h1>"),
        ("create-garbage", 200, '{"code": 0, '),
    ],
)
def test_answers_get_lost_though_the_task_is_taken(
    gateway: Sandbox, api: httpx.Client, mark: str, status: int, beginning: str
) -> None:
    answer = create(api, mark, external_task_id="order-42")
    assert answer.status_code == status
    assert answer.text.startswith(beginning)
    gateway.wait_for(lambda: gateway.external["order-42"].finished_at)


@pytest.mark.parametrize(
    ("mark", "expected"), [("busy", 1302), ("full", 1303), ("arrears", 1101), ("used-up", 1102), ("not-allowed", 1304)]
)
def test_refusals_take_no_task(gateway: Sandbox, api: httpx.Client, mark: str, expected: int) -> None:
    assert code(create(api, mark)) == (expected, 429)
    assert code(create(api, mark)) == (expected, 429)
    assert gateway.tasks == {}


def test_discontinued_names_the_model(gateway: Sandbox, api: httpx.Client) -> None:
    for path, body, name in ((VIDEOS, {"model_name": "kling-v1-6"}, "kling-v1-6"), (NEW, {}, "kling-3.0-turbo")):
        answer = create(api, "discontinued", path, **body)
        assert code(answer) == (1203, 404)
        assert answer.json()["message"] == f"The model '{name}' has been discontinued and is no longer available."
    assert gateway.tasks == {}


def test_busy_once_is_once_for_each_external_id(gateway: Sandbox, api: httpx.Client) -> None:
    gateway.misbehave.add("busy-once")
    codes = [code(create(api, external_task_id=name))[0] for name in ("a", "b", "a", "b")]
    assert codes == [1302, 1302, 0, 0]


def test_expired_token_once_is_once_for_each_key(gateway: Sandbox, api: httpx.Client) -> None:
    gateway.misbehave.add("expired-token-once")
    for header in ("Bearer sandbox-key", token()):
        api.headers["authorization"] = header
        assert code(create(api)) == (1004, 401)
        assert code(api.get(IMAGES)) == (0, 200)


# Misbehaviours: query and files


def test_query_5xx_once_passes(gateway: Sandbox, api: httpx.Client) -> None:
    number = made(api, "query-5xx-once")
    assert code(api.get(f"{IMAGES}/{number}")) == (5001, 503)
    assert code(api.get(f"{IMAGES}/{number}")) == (0, 200)


def test_query_5xx_stays(gateway: Sandbox, api: httpx.Client) -> None:
    number = made(api, "query-5xx")
    for address in (f"{IMAGES}/{number}", f"/tasks?task_ids={number}", f"{IMAGES}/{number}"):
        assert code(api.get(address)) == (5001, 503)
    assert gateway.tasks[number].queries == 3


def test_query_garbage_is_not_json(gateway: Sandbox, api: httpx.Client) -> None:
    answer = api.get(f"{IMAGES}/{made(api, 'query-garbage')}")
    assert answer.status_code == 200
    with pytest.raises(ValueError, match="Unterminated"):
        answer.json()


def test_query_lag_is_one_query_long(gateway: Sandbox, api: httpx.Client) -> None:
    gateway.misbehave.add("query-lag")
    first = finished(gateway, api)
    assert (first["task_status"], first["task_result"]) == ("processing", {})
    assert api.get(f"{IMAGES}/{first['task_id']}").json()["data"]["task_status"] == "succeed"


def test_cut_once_ends_in_mid_file(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api, "cut-once")
    with pytest.raises(httpx.RemoteProtocolError, match="without sending complete"):
        api.get(url)
    assert api.get(url).status_code == 200


@pytest.mark.parametrize(("mark", "expected"), [("file-403", [403, 403]), ("file-500-once", [500, 200])])
def test_files_are_refused(gateway: Sandbox, api: httpx.Client, mark: str, expected: list[int]) -> None:
    (url,) = addresses(gateway, api, mark)
    assert [api.get(url).status_code for _ in range(2)] == expected


@pytest.mark.parametrize(("mark", "kind", "start"), [("file-html", "html", b"<h1>"), ("wrong-type", "plain", b"\x89")])
def test_files_are_not_what_they_say(gateway: Sandbox, api: httpx.Client, mark: str, kind: str, start: bytes) -> None:
    (url,) = addresses(gateway, api, mark)
    assert api.get(url).headers["content-type"].startswith(f"text/{kind}")
    assert api.get(url).content.startswith(start)


def test_no_length_comes_in_chunks(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api, "no-length")
    answer = api.get(url)
    assert answer.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in answer.headers
    assert answer.content.startswith(b"\x89PNG")


def test_gzip_file_is_encoded(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api, "gzip-file")
    assert api.get(url).headers["content-encoding"] == "gzip"
    assert api.get(url).content.startswith(b"\x89PNG")


def test_redirect_file_leads_to_the_file(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api, "redirect-file")
    assert api.get(url).status_code == 302
    assert api.get(url, follow_redirects=True).content.startswith(b"\x89PNG")


def test_redirect_private_leads_inside(gateway: Sandbox, api: httpx.Client) -> None:
    (url,) = addresses(gateway, api, "redirect-private")
    assert api.get(url).headers["location"] == "http://169.254.169.254/"


# The command


def test_help_says_first_that_this_is_not_kling() -> None:
    output = CliRunner().invoke(main, ["--help"]).output
    assert "sandbox (not Kling)" in output.splitlines()[0]
    assert all(f"  {name} " in output for name in SWITCHES)


def test_misbehave_lists_and_knows_its_names() -> None:
    listed = CliRunner().invoke(main, ["--misbehave", "list"])
    assert [line.split()[0] for line in listed.output.splitlines()] == list(SWITCHES)
    assert CliRunner().invoke(main, ["--misbehave", "unheard-of"]).exit_code == 2


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_it_is_ended(tmp_path: Path, end: signal.Signals) -> None:
    ready = tmp_path / "ready"
    command = [
        str(Path(sys.executable).with_name("kling-sandbox")),
        "--ready-file",
        ready.name,
        "--key",
        "mine",
        "--video-seconds",
        "60",
    ]
    with subprocess.Popen(command, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        url = process.stdout.readline().removeprefix("sandbox gateway (not Kling) on ").strip()
        with httpx.Client(base_url=url) as api:
            assert code(create(api, path=VIDEOS)) == (1001, 401)
            api.headers["authorization"] = "Bearer mine"
            assert code(create(api, path=VIDEOS)) == (0, 200)
            assert ready.read_text() == url
            process.send_signal(end)
            assert process.wait(timeout=5) == 0
        assert process.stderr
        lines = process.stderr.read().splitlines()
        assert f"export KLING_API_BASE={url} KLING_API_KEY=mine" in lines[1]
        assert "  export KLING_PRIVATE_CLIENT_HOOK_HOSTS=127.0.0.1" in lines
        assert lines[5].startswith("  export KLING_SIGNING_SECRETS=")
        assert len(lines) == 6


def test_a_taken_port_is_an_error_of_one_line(gateway: Sandbox) -> None:
    result = CliRunner().invoke(main, ["--port", str(gateway.port)])
    assert result.exit_code == 1
    assert "in use" in result.output
