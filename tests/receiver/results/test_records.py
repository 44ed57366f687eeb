"""The files of a task: pending, stored or failed, each with one event."""

import itertools
import re
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_callback.protocol.ids import PATTERN, new_id
from kling_receiver.jobs import enqueue
from kling_receiver.results import records as result_records
from kling_receiver.results.records import StoredFile
from kling_receiver.store.database import Database
from tests.support.database import FILE, Ledger, callback, says, view


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(database)


def test_files_that_are_named_after_all_are_downloaded(ledger: Ledger) -> None:
    """After a success without files had ended: the task is open again until they are stored."""
    ledger.record(callback(status="succeed", signed=True))
    ledger.accept_hint()
    assert ledger.task()["done"]
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert "download/t/0" in ledger.jobs()
    ledger.store()
    assert view(ledger.task()) == ("succeed", "kling", True)


def test_a_stored_file_adds_one_event(ledger: Ledger) -> None:
    """With its type, size and digest; the last file makes the task done."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.store()
    ledger.store()
    (result,) = ledger.results()
    assert (result["status"], result["size"], result["sha256"], result["path"]) == (
        "stored",
        5,
        "ab" * 32,
        "t/0.png",
    )
    assert ledger.types()[-3:] == ["task.succeed", "result.stored", "task.done"]
    assert ledger.events()[-2]["data"] == {
        "index": 0,
        "name": "t/0.png",
        "content_type": "image/png",
        "size": 5,
        "sha256": "ab" * 32,
    }


def test_a_failed_file_adds_one_event(ledger: Ledger) -> None:
    """The task is done nevertheless. A file that is stored after all replaces the failure."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.fail()
    ledger.fail()
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types()[-2:] == ["result.failed", "task.done"]
    assert ledger.events()[-2]["data"] == {"index": 0, "reason": "gone"}
    ledger.store()
    assert (ledger.results()[0]["status"], ledger.results()[0]["error"]) == ("stored", "")
    ledger.fail()
    assert ledger.results()[0]["status"] == "stored"
    assert ledger.types()[-2:] == ["task.done", "result.stored"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_task_is_done_with_its_last_file(ledger: Ledger, order: tuple[int, ...]) -> None:
    """In any order, stored or failed; not before."""
    ledger.record(callback(status="succeed", files=[FILE, f"{FILE}1", f"{FILE}2"], signed=True))
    for place, n in enumerate(order):
        assert not ledger.task()["done"]
        (ledger.store if place % 2 else ledger.fail)(n)
    assert ledger.task()["done"]
    assert ledger.types().count("task.done") == 1


def test_files_are_named_once(ledger: Ledger) -> None:
    """A second answer of Kling, with other addresses, changes none and enqueues no second download."""
    ledger.record(callback(status="succeed", files=[FILE], signed=True))
    ledger.apply_report("t", says("succeed", "https://other/1.png", "https://other/2.png"))
    assert [result["source_url"] for result in ledger.results()] == [FILE]
    assert list(ledger.jobs()) == ["download/t/0"]


@pytest.mark.parametrize(
    ("url", "lane"),
    [
        ("https://User:secret@CDN.example:8443/a", "download cdn.example"),
        ("https://cdn.example./a", "download cdn.example"),
        ("http://[2001:DB8::1]:8080/a", "download 2001:db8::1"),
        ("https://[::1/broken", "download "),
        ("nonsense", "download "),
    ],
)
def test_files_of_one_host_share_a_concurrency_key(ledger: Ledger, url: str, lane: str) -> None:
    """The host as it is written, without credentials and port; a malformed address has a key too."""
    ledger.register()
    ledger.change(lambda tx: enqueue.download(tx, "t", 0, url))
    assert ledger.jobs()["download/t/0"]["concurrency_key"] == lane


def test_files_are_downloaded_from_the_latest_address(ledger: Ledger) -> None:
    """For each file that is not stored; a stored one stays."""
    ledger.record(callback(status="succeed", files=[FILE, FILE, FILE], signed=True))
    ledger.change(
        lambda tx: result_records.mark_stored(tx, tx.require_task("t"), 0, StoredFile("t/0.png", "image/png", 1, "s"))
    )
    ledger.change(lambda tx: result_records.mark_failed(tx, tx.require_task("t"), 1, "gone"))
    ledger.kill_job("download/t/1")
    now = says("succeed", *(f"{FILE}?new={n}" for n in range(3)))
    ledger.change(lambda tx: result_records.refresh_downloads(tx, tx.require_task("t"), now.outputs))
    found = [(row["status"], row["source_url"]) for row in ledger.results()]
    assert found == [("stored", FILE), ("pending", f"{FILE}?new=1"), ("pending", f"{FILE}?new=2")]
    job = ledger.jobs()["download/t/1"]
    assert (job["state"], job["attempts"], job["args"]) == ("ready", 0, {"index": 1})


IDS = ["A", "a", "a.", "a:", "a:b", "A:B", "a-b", "con", "CON", "con.x", "nul", "lpt1.a.b", "com10", "a=b"]
OURS = ["01K0ABCDEFGHJKMNPQRSTVWXYZ", "01k0abcdefghjkmnpqrstvwxyz", "01K0abcdefghjkmnpqrstvwxyz"]
SAME_ON_SMB = str.maketrans(dict.fromkeys(':*?"<>|', "_"))


def as_kept_by_windows(name: str) -> str:
    """What a file system keeps of a name that ignores case, and ends no folder with a dot."""
    folder, _, file = name.partition("/")
    return f"{folder.rstrip('. ').translate(SAME_ON_SMB)}/{file}".casefold()


def test_file_names_differ_where_case_is_ignored() -> None:
    """And where colons, dots at the end and the names of devices are not allowed."""
    names = [result_records.file_name(each, 0, "png") for each in (*IDS, *OURS)]
    assert len({as_kept_by_windows(name) for name in names}) == len(names)
    folders = [name.partition("/")[0] for name in names]
    for folder in folders:
        assert re.fullmatch(r"[A-Za-z0-9_.=@+-]*[^.]", folder)
        assert folder.partition(".")[0].upper() not in {"CON", "NUL", "LPT1"}


def test_usual_ids_are_the_names_of_their_folders() -> None:
    """As they were before: their files are found by people."""
    for task_id in (OURS[0], new_id(), "a", "order-17", "a.b@c", str(uuid.uuid4())):
        assert result_records.file_name(task_id, 3, "mp4") == f"{task_id}/3.mp4"


@given(st.sets(st.from_regex(PATTERN, fullmatch=True), min_size=2, max_size=20))
def test_no_two_ids_share_a_folder(task_ids: set[str]) -> None:
    """Whatever ids clients choose."""
    twins = {twin for each in task_ids for twin in (each, each.swapcase(), each.lower(), each.upper())}
    names = {as_kept_by_windows(result_records.file_name(each, 0, "png")) for each in twins}
    assert len(names) == len(twins)
    assert all(len(name) < 140 for name in names)
