"""Tasks and events as they are shown: the JSON of the contract."""

import json
from typing import Any

import pytest

from kling_callback.protocol.signing import verify_link
from kling_receiver.events.payloads import LINK_SECONDS, Payloads, iso
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader, TaskDetail
from kling_receiver.tasks import transitions
from tests.support.database import FAMILY, FILE, NOW, Ledger, callback, says
from tests.support.receiver import SECRET

pytestmark = pytest.mark.anyio

URL = "https://receiver.example/kling"
VIEWS = Payloads((SECRET,), URL, clock=lambda: NOW / 1000)
AT = iso(NOW)


async def shown(ledger: Ledger, task: str = "t") -> dict[str, Any]:
    """A task as it is shown, fit for JSON."""
    full = (await Reader(ledger.database).details([task]))[task]
    view = VIEWS.task(full)
    assert json.loads(json.dumps(view, allow_nan=False)) == view
    return dict(view)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (None, None),
        (0, "1970-01-01T00:00:00.000Z"),
        (1_764_235_825_029, "2025-11-27T09:30:25.029Z"),
        (1_764_235_825_999, "2025-11-27T09:30:25.999Z"),
    ],
)
def test_times_are_iso_8601_in_utc(milliseconds: int | None, text: str | None) -> None:
    """With their milliseconds, and `Z`."""
    assert iso(milliseconds) == text


async def test_a_new_task(any_database: Database) -> None:
    """Every field of the contract is there from the beginning."""
    ledger = Ledger(any_database)
    ledger.register(model="kling-v3", request={"prompt": "x"}, tags=("b", "a"))
    assert await shown(ledger) == {
        "id": "t",
        "task_id": None,
        "external_task_id": None,
        "family": FAMILY,
        "model": "kling-v3",
        "tags": ["a", "b"],
        "status": "created",
        "status_msg": "",
        "origin": None,
        "request": {"prompt": "x"},
        "outputs": [],
        "results": [],
        "request_id": None,
        "cost": None,
        "queue_position": None,
        "done": False,
        "created_at": AT,
        "updated_at": AT,
        "kling_created_at": None,
        "kling_updated_at": None,
    }


async def test_a_task_with_files(any_database: Database) -> None:
    """One on disk, with a link that opens it; one on its way; one lost."""
    ledger = Ledger(any_database)
    ledger.register(outcome="created", kling_id="k1")
    ledger.apply_report("t", says("succeed", f"{FILE}?ksTime=6a9b5d00", FILE, FILE, cost="3.5", message="m"))
    stored = StoredFile("t/0.png", "image/png", 5, "ab" * 32, "odd")
    ledger.change(lambda tx: result_records.mark_stored(tx, tx.require_task("t"), 0, stored))
    ledger.change(lambda tx: result_records.mark_failed(tx, tx.require_task("t"), 2, "gone"))
    view = await shown(ledger)
    assert (view["status"], view["origin"], view["task_id"]) == ("succeed", "kling", "k1")
    assert (view["cost"], view["status_msg"], view["done"]) == ("3.5", "m", False)
    first, second, third = view["results"]
    href = first.pop("href")
    assert first == {
        "index": 0,
        "kind": "image",
        "id": None,
        "duration": None,
        "status": "stored",
        "content_type": "image/png",
        "size": 5,
        "sha256": "ab" * 32,
        "source_url": f"{FILE}?ksTime=6a9b5d00",
        "expires_at": iso(0x6A9B5D00 * 1000),
        "error": None,
        "warning": "odd",
    }
    assert (second["status"], second["href"], second["expires_at"], second["sha256"]) == (
        "pending",
        None,
        None,
        None,
    )
    assert (third["status"], third["href"], third["error"]) == ("failed", None, "gone")
    _assert_opens(href)


async def test_what_kling_says_beside_the_status(any_database: Database) -> None:
    """Outputs that are no files with Kling's names and numbers, Kling's times, and the latest request id."""
    ledger = Ledger(any_database)
    ledger.register(outcome="created", kling_id="k1", request_id="r1")
    assert (await shown(ledger))["request_id"] == "r1"
    element = {"element_id": 829836802793406551, "element_name": "kangaroo"}
    times = {"created_at": 1764235825029, "updated_at": 1764236054436}
    ledger.apply_report("t", says("processing", request_id="r2", created_at=times["created_at"]))
    ledger.apply_report("t", says("succeed", objects=(element,), cost=[{"a": 1}], **times))
    view = await shown(ledger)
    assert (view["outputs"], view["results"], view["cost"]) == ([element], [], [{"a": 1}])
    assert (view["kling_created_at"], view["kling_updated_at"]) == (
        "2025-11-27T09:30:25.029Z",
        "2025-11-27T09:34:14.436Z",
    )
    assert (view["status"], view["done"], view["request_id"]) == ("succeed", True, "r2")
    ledger.register(outcome="created", kling_id="k1", request_id="r1")
    assert (await shown(ledger))["request_id"] == "r2"


def _assert_opens(href: str) -> None:
    """A link holds for a day, for this file only."""
    address, _, query = href.partition("?")
    assert address == f"{URL}/api/tasks/t/results/0"
    given = dict(pair.split("=") for pair in query.split("&"))
    assert int(given["expires"]) == NOW // 1000 + LINK_SECONDS
    verify_link([SECRET], "t", 0, given["expires"], given["signature"], now=NOW / 1000)


async def test_a_success_without_a_known_file(any_database: Database) -> None:
    """The lost result has no address."""
    ledger = Ledger(any_database)
    ledger.record(callback(status="succeed"))
    ledger.change(lambda tx: transitions.accept_hint(tx, tx.require_task("t")))
    view = await shown(ledger)
    assert (view["status"], view["origin"], view["done"]) == ("succeed", "callback", True)
    (result,) = view["results"]
    assert (result["status"], result["kind"], result["source_url"]) == ("failed", "file", None)
    assert result["error"].startswith("Kling could not be queried")


async def test_an_event_shows_its_task_as_it_is_now(any_database: Database) -> None:
    """With its id, type, time and data."""
    ledger = Ledger(any_database)
    ledger.record(callback(task_id="k1", message="a\0b"))
    reader = Reader(any_database)
    full: TaskDetail = (await reader.details(["t"]))["t"]
    *_, last = await reader.events(0)
    assert VIEWS.event(last, full) == {
        "id": last["id"],
        "log_id": last["log_id"],
        "type": "task.processing",
        "at": AT,
        "data": {"by": "callback", "message": "ab"},
        "task": VIEWS.task(full),
    }


async def test_a_link_in_kling_s_format_lives_as_long_as_kling_s_files(any_database: Database) -> None:
    """A program written for Kling may open it weeks later."""
    ledger = Ledger(any_database)
    ledger.register(outcome="created", kling_id="k1")
    ledger.apply_report("t", says("succeed", FILE))
    ledger.store()
    record = VIEWS.kling((await Reader(any_database).details(["t"]))["t"])
    (image,) = record["task_result"]["images"]
    address, _, query = image["url"].partition("?")
    assert address == f"{URL}/api/tasks/t/results/0"
    given = dict(pair.split("=") for pair in query.split("&"))
    verify_link([SECRET], "t", 0, given["expires"], given["signature"], now=NOW / 1000 + 30 * 86_400 - 1)
