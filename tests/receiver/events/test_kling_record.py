"""A task in Kling's own format is the record that Kling made of it, with our links to the stored files."""

import json
from typing import Any

import pytest

from kling_callback.protocol.reports import parse_callback
from kling_receiver.events.kling_record import kling_record
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.tasks import transitions
from kling_sandbox.api.families import FAMILIES, Family
from kling_sandbox.records.kling import task_record
from kling_sandbox.tasks import Task
from tests.support.database import FILE, NOW, Ledger, callback, says

pytestmark = pytest.mark.anyio

OTHER_NAMES = {"group_id"}
"""Fields of Kling's that are not stored."""
NEW = "/text-to-video/kling-3.0"


async def detail(ledger: Ledger, task: str = "t") -> TaskDetail:
    """A task as the database has it."""
    return (await Reader(ledger.database).details([task]))[task]


async def record(ledger: Ledger) -> dict[str, Any]:
    """Kling's record of the task `t`, fit for JSON."""
    found = kling_record(await detail(ledger), href=lambda result: f"https://ours/{result['position']}")
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def store(ledger: Ledger, position: int, content_type: str = "") -> None:
    """Mark a file of the task `t` as stored."""
    stored = StoredFile("t/0", content_type, 5, "ab" * 32)
    ledger.change(lambda tx: result_records.mark_stored(tx, tx.require_task("t"), position, stored))


def sandbox_task(family: Family, parameters: dict[str, Any]) -> Task:
    """A task of ours that Kling has finished."""
    body = (
        {"options": {**parameters, "external_task_id": "t"}} if family.new else parameters | {"external_task_id": "t"}
    )
    return Task(
        id="8229",
        alias="a",
        result_id="777",
        variant=0,
        path=family.path,
        family=family,
        body=body,
        has=lambda switch: False,
        base_url="https://v16-kling.klingai.com",
        result_seconds=60,
        status="succeed",
        created_at=NOW - 5000,
        updated_at=NOW + 5000,
        finished_at=NOW + 5000,
    )


def without(value: Any) -> Any:
    """A record without the fields that are not stored."""
    if isinstance(value, dict):
        return {name: without(each) for name, each in value.items() if name not in OTHER_NAMES}
    return [without(each) for each in value] if isinstance(value, list) else value


BODIES: dict[str, dict[str, Any]] = {
    "images/generations": {"n": 3, "watermark_info": {"enabled": True}},
    "images/omni-image": {"result_type": "series", "series_amount": 2},
    "videos/text2video": {"watermark_info": {"enabled": True}},
    "videos/multi-elements": {"session_id": "s"},
    "videos/video-extend": {"video_id": "v"},
    NEW: {"watermark_info": {"enabled": True}},
}


@pytest.mark.parametrize("family", FAMILIES.values(), ids=lambda each: each.path)
async def test_a_record_of_every_family_is_kling_s(any_database: Database, family: Family) -> None:
    """While no file is stored, every address in it is Kling's too."""
    task = sandbox_task(family, BODIES.get(family.path, {}))
    theirs = json.loads(json.dumps(task_record(task, new=family.new)))
    ledger = Ledger(any_database)
    ledger.register(family=family.path, request=task.body, outcome="created", kling_id=task.id)
    report = parse_callback(json.dumps(theirs).encode())
    assert report
    ledger.apply_report("t", report)
    for row in ledger.results():
        ledger.fail(row["position"])
    assert await record(ledger) == without(theirs)
    assert len(task.files) == len([row for row in ledger.results() if row["kind"] != "watermark"])
    for row in ledger.results():
        store(ledger, row["position"])
    ours = json.dumps(await record(ledger))
    assert task.base_url not in ours
    assert [f"https://ours/{row['position']}" in ours for row in ledger.results()] == [True] * len(ledger.results())


STATUS = {"images/generations": "task_status", NEW: "status"}
"""The field of the status, for a family of each standard."""


@pytest.mark.parametrize("family", STATUS)
async def test_a_success_is_reported_once_its_files_are_stored(any_database: Database, family: str) -> None:
    """Until then the task is `processing`, without results, cost and reason."""
    ledger, seen = Ledger(any_database), []
    ledger.register(family=family)
    seen.append(await record(ledger))
    ledger.register(family=family, outcome="created", kling_id="k1")
    seen.append(await record(ledger))
    ledger.record(callback(family=family))
    seen.append(await record(ledger))
    ledger.record(callback(family=family, status="succeed"))
    seen.append(await record(ledger))
    ledger.apply_report("t", says("succeed", FILE, f"{FILE}?2", cost="3.5", message="m"))
    ledger.store(1)
    seen.append(await record(ledger))
    ledger.fail(0)
    seen.append(await record(ledger))
    names = ["submitted", "submitted", "processing", "processing", "processing"]
    assert [each[STATUS[family]] for each in seen[:-1]] == names
    assert {each.get("task_id", each.get("id")) for each in seen} == {"t", "k1"}
    assert not any(FILE in str(each) or "3.5" in str(each) or "m" in each.values() for each in seen[:-1])
    if family == NEW:
        assert seen[0] == {"id": "t", "status": "submitted", "message": "", "create_time": NOW, "update_time": NOW} | {
            "external_id": "t"
        }
        outputs = [{"type": "image", "url": FILE}, {"type": "image", "url": "https://ours/1"}]
        assert (seen[-1]["status"], seen[-1]["outputs"], seen[-1]["message"]) == ("succeeded", outputs, "m")
    else:
        assert seen[0] == {
            "task_id": "t",
            "task_status": "submitted",
            "task_status_msg": "",
            "task_info": {"external_task_id": "t"},
            "task_result": {},
            "created_at": NOW,
            "updated_at": NOW,
        }
        images = [{"index": 0, "url": FILE}, {"index": 1, "url": "https://ours/1"}]
        assert (seen[-1]["task_status"], seen[-1]["task_result"]) == ("succeed", {"images": images})
    assert seen[-1]["final_unit_deduction"] == "3.5"


async def test_a_failure_has_its_reason(any_database: Database) -> None:
    """Whether Kling or the receiver says so."""
    ledger = Ledger(any_database)
    ledger.register(outcome="created", kling_id="k1")
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "No answer."))
    local = await record(ledger)
    assert (local["task_status"], local["task_status_msg"], local["task_result"]) == ("failed", "No answer.", {})
    ledger.apply_report("t", says("processing"))
    assert (await record(ledger))["task_status_msg"] == ""
    ledger.apply_report("t", says("failed", message="content safety"))
    assert (await record(ledger))["task_status_msg"] == "content safety"


async def test_a_success_without_an_address_says_why(any_database: Database) -> None:
    """A path at a relay is no address for its caller: only the relay's key opens it."""
    ledger = Ledger(any_database)
    ledger.register(family="videos/text2video")
    ledger.apply_report("t", says("succeed", "/v1/videos/k1/content"))
    ledger.fail(0)
    lost = await record(ledger)
    assert (lost["task_status"], lost["task_status_msg"], lost["task_result"]) == ("succeed", "gone", {})
    ledger.register("u")
    ledger.apply_report("u", says("succeed"))
    ledger.change(lambda tx: result_records.mark_missing(tx, tx.require_task("u"), "no file"))
    nothing = kling_record(await detail(ledger, "u"), href=lambda result: "")
    assert (nothing["task_status_msg"], nothing["task_result"]) == ("no file", {})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("3.5", {"final_unit_deduction": "3.5"}),
        (3.5, {"final_unit_deduction": "3.5"}),
        ([{"amount": "1"}], {"billing": [{"amount": "1"}]}),
        ({"quota": "1", "list_price": "2"}, {"final_balance_deduction": {"quota": "1", "list_price": "2"}}),
        (
            {"final_unit_deduction": "1", "final_balance_deduction": {"quota": "2"}},
            {"final_unit_deduction": "1", "final_balance_deduction": {"quota": "2"}},
        ),
        (None, {}),
    ],
)
async def test_a_cost_is_in_kling_s_field(any_database: Database, given: Any, expected: dict[str, Any]) -> None:
    """By its form, in each of the ways to pay."""
    ledger = Ledger(any_database)
    ledger.register()
    ledger.apply_report("t", says("failed", cost=given))
    found = await record(ledger)
    assert {name: value for name, value in found.items() if name.startswith(("final", "billing"))} == expected


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"videos": [{"id": "v", "url": f"{FILE}.mp4", "last_frame_url": FILE}]}, ["videos", "images"]),
        ({"session_id": "s", "videos": [{"url": f"{FILE}.mp4"}]}, ["videos", "session_id"]),
        ({"videos": [{"id": "v", "session_id": "s"}]}, ["videos"]),
        ({"models": [{"url": "https://h/x.glb"}]}, ["models"]),
        ({"audios": [{"id": "a", "url": "https://h/x"}, {"id": "a", "url_mp3": "https://h/x.mp3"}]}, ["audios"]),
    ],
)
async def test_unusual_results_keep_every_address(
    any_database: Database, result: dict[str, Any], expected: list[str]
) -> None:
    """What has no list of its own is not lost."""
    ledger = Ledger(any_database)
    ledger.register(family="videos/text2video")
    report = parse_callback(json.dumps({"task_id": "k", "task_status": "succeed", "task_result": result}).encode())
    assert report
    ledger.apply_report("t", report)
    for row in ledger.results():
        ledger.fail(row["position"])
    if report.awaits_file:
        ledger.change(lambda tx: result_records.mark_missing(tx, tx.require_task("t"), "no address"))
    found = await record(ledger)
    assert list(found["task_result"]) == expected
    again = parse_callback(json.dumps(found).encode())
    assert again
    assert {each.url for each in again.outputs} == {each.url for each in report.outputs}
    assert "s" not in json.dumps(report.objects) or '"session_id": "s"' in json.dumps(found)


async def test_a_later_record_has_no_earlier_time(any_database: Database) -> None:
    """Whatever Kling's clock says: a handler may order records by their times."""
    ledger = Ledger(any_database)
    ledger.register(outcome="created", kling_id="k")
    first = await record(ledger)
    ledger.now += 5000
    ledger.apply_report("t", says("succeed", FILE, created_at=NOW - 90_000, updated_at=NOW - 80_000))
    ledger.store()
    last = await record(ledger)
    assert (last["created_at"], last["updated_at"]) == (NOW - 90_000, NOW + 5000)
    assert last["updated_at"] > first["updated_at"]


async def test_a_task_keeps_the_id_that_a_program_was_answered(any_database: Database) -> None:
    """Ours, if Kling's was not known then: by it the program recognizes the callbacks of its task."""
    ledger = Ledger(any_database)
    ledger.register()
    assert ledger.change(lambda tx: transitions.keep_our_id(tx, tx.require_task("t")))
    ledger.register(outcome="created", kling_id="k1")
    assert (await record(ledger))["task_id"] == "t"
    assert ledger.change(lambda tx: transitions.keep_our_id(tx, tx.require_task("t")))
    ledger.register("u", outcome="created", kling_id="k2")
    assert not ledger.change(lambda tx: transitions.keep_our_id(tx, tx.require_task("u")))
    assert kling_record(await detail(ledger, "u"), href=lambda result: "")["task_id"] == "k2"


async def test_a_task_of_another_program_has_its_caller_s_id(any_database: Database) -> None:
    """Our id of it is not shown where it is only Kling's."""
    ledger = Ledger(any_database)
    ledger.put_task("t", kling_id="t", external_task_id=None)
    assert (await record(ledger))["task_info"] == {}
    ledger.put_task("u", kling_id="k", external_task_id="order-42")
    found = kling_record(await detail(ledger, "u"), href=lambda result: "")
    assert found["task_info"] == {"external_task_id": "order-42"}
