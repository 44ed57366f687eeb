"""A success of several files of which one has no address yet: it is asked about again, and ends stored or failed."""

import hashlib

import httpx
import pytest

from kling_callback.protocol.reports import Report
from kling_callback.protocol.results.outputs import Output
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.parts import Delays
from kling_receiver.results import records as result_records
from kling_receiver.results.download import DOWNLOAD_BACKOFF
from kling_receiver.store.database import Database
from kling_receiver.tasks.reconcile import MAX_UNDECIDED_RETRIES, QUERY_BACKOFF
from kling_sandbox import Sandbox
from tests.support.database import FILE, Ledger, callback, view
from tests.support.receiver import Running, Start
from tools.harness.submitting import Json, events, eventually, show, submit, types

QUICK = Delays(
    query=Backoff(tuple(step / 1000 for step in QUERY_BACKOFF.steps)),
    download=Backoff(tuple(step / 1000 for step in DOWNLOAD_BACKOFF.steps)),
)


@pytest.fixture
def running(start: Start, gateway: Sandbox, database_url: str) -> Running:
    """A receiver on each engine, whose Kling is the sandbox."""
    return start(api_base=gateway.url, database_url=database_url, delays=QUICK)


def assert_stored(results: list[Json]) -> None:
    """Each of these results is stored, and has the bytes of its own file at the sandbox."""
    names = {result["source_url"].partition("?")[0].rpartition("/")[2] for result in results}
    assert len(names) == len(results)
    for result in results:
        assert result["status"] == "stored", result
        content = httpx.get(result["href"]).content
        assert hashlib.sha256(content).hexdigest() == result["sha256"]
        assert content == httpx.get(result["source_url"]).content


@pytest.mark.parametrize(
    ("family", "body", "files"),
    [
        ("images/generations", {"n": 4}, 4),
        ("images/generations", {"n": 3, "watermark_info": {"enabled": True}}, 6),
        ("general/ai-multi-shot", {"element_frontal_image": "https://files.example.com/a.png"}, 3),
        ("audio/text-to-audio", {"duration": 5}, 2),
        ("videos/multi-elements", {"session_id": "session-1"}, 1),
    ],
)
def test_a_late_file_is_stored(running: Running, gateway: Sandbox, family: str, body: Json, files: int) -> None:
    """With the others, each once and at the place that Kling gives it, after one more query."""
    task, theirs = submit(running, gateway, "late-url", family, **body)
    happened = events(running, task)
    done = happened[-1]["task"]
    assert (done["status"], done["origin"], len(done["results"])) == ("succeed", "kling", files)
    assert_stored(done["results"])
    urls = [result["source_url"].partition("?")[0] for result in done["results"]]
    main = [url for url in urls if "watermark" not in url]
    assert main == sorted(main)
    assert urls[: len(main)] == main
    assert types(happened).count("result.stored") == files
    assert "result.failed" not in types(happened)
    assert gateway.tasks[theirs].queries == 2


def test_a_file_that_never_has_an_address_is_a_visible_failure(running: Running, gateway: Sandbox) -> None:
    """The others are stored without it. It is downloaded once Kling names it after all, at an operator's request."""
    gateway.misbehave.add("lost-url")
    task, theirs = submit(running, gateway, "", "images/generations", n=3)
    happened = events(running, task)
    first, lost, last = happened[-1]["task"]["results"]
    assert_stored([first, last])
    assert (lost["status"], lost["source_url"]) == ("failed", None)
    assert lost["error"] == "Kling says succeed, and names no address of this file."
    failures = [event["data"] for event in happened if event["type"] == "result.failed"]
    assert failures == [{"index": 1, "reason": lost["error"]}]
    assert gateway.tasks[theirs].queries == 1 + MAX_UNDECIDED_RETRIES
    gateway.misbehave.clear()
    fetched = httpx.post(f"{running.url}/api/tasks/{task}/fetch", headers=running.headers("admin"))
    assert fetched.status_code == 200, fetched.text
    eventually(lambda: show(running, task)["done"], running)
    results = show(running, task)["results"]
    assert_stored(results)
    assert [results[0]["sha256"], results[2]["sha256"]] == [first["sha256"], last["sha256"]]


@pytest.fixture
def ledger(any_database: Database) -> Ledger:
    """A ledger of no tasks."""
    return Ledger(any_database)


def named(*urls: str) -> Report:
    """Kling's report of a success with these images; "" for one without address."""
    outputs = tuple(Output("image", url) for url in urls)
    return Report(status="succeed", outputs=outputs, awaits_file="" in urls)


def shown(ledger: Ledger) -> list[tuple[str, str]]:
    """Status and address of each file of the task `t`."""
    return [(result["status"], result["source_url"].removeprefix(FILE)) for result in ledger.results()]


def missing(ledger: Ledger) -> None:
    """End the task `t` as the last query about it does."""
    ledger.change(lambda tx: result_records.mark_missing(tx, tx.require_task("t"), "no address"))


def test_the_others_are_downloaded_at_once(ledger: Ledger) -> None:
    """From a body that Kling signed, too, which causes a query for the one that it lacks."""
    ledger.record(callback(status="succeed", files=[f"{FILE}0", "", f"{FILE}2"], signed=True))
    assert shown(ledger) == [("pending", "0"), ("pending", ""), ("pending", "2")]
    assert sorted(ledger.jobs()) == ["ask/t", "download/t/0", "download/t/2"]
    ledger.store(0)
    ledger.store(2)
    assert view(ledger.task()) == ("succeed", "kling", False)
    ledger.accept_hint()
    assert shown(ledger) == [("stored", "0"), ("failed", ""), ("stored", "2")]
    assert view(ledger.task()) == ("succeed", "kling", True)
    assert ledger.types().count("result.failed") == 1


def test_a_file_that_is_named_after_its_failure_opens_the_task_again(ledger: Ledger) -> None:
    """Its address comes in a later callback that Kling signed."""
    ledger.record(callback(status="succeed", files=[f"{FILE}0", ""], signed=True))
    ledger.store(0)
    missing(ledger)
    assert ledger.task()["done"]
    ledger.record(callback(status="succeed", files=[f"{FILE}0", f"{FILE}1"], signed=True))
    assert shown(ledger) == [("stored", "0"), ("pending", "1")]
    assert view(ledger.task()) == ("succeed", "kling", False)
    assert "download/t/1" in ledger.jobs()


@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        (("a", ""), ("a", "b"), ["a", "b"]),
        (("", "b"), ("a", "b"), ["a", "b"]),
        (("", "b", "mark"), ("a", "b", "mark", "more"), ["a", "b", "mark", "more"]),
        (("a", "", "mark"), ("a", "b1", "b2", "mark"), ["a", "b1", "mark", "b2"]),
        (("", "b?sign=1", "mark?sign=1"), ("a?sign=2", "b?sign=2", "m?sign=2", "mark?sign=2"), None),
        (("", "file?id=2"), ("file?id=1", "file?id=2"), ["file?id=1", "file?id=2"]),
        (("a", "", ""), ("a", "b"), ["a", "b"]),
        (("a", "a", ""), ("a", "a", "a"), ["a", "a", "a"]),
        (("a", ""), ("a",), ["a"]),
        (("a", ""), ("", "b"), ["a", "b"]),
        (("a", "", "c"), ("", "", "c"), ["a", "", "c"]),
        (("a", ""), ("b",), ["a", "b"]),
        (("a", "", ""), ("b", ""), ["a", "b", ""]),
    ],
)
def test_no_file_takes_the_place_of_another(
    ledger: Ledger, first: tuple[str, ...], then: tuple[str, ...], expected: list[str] | None
) -> None:
    """However the list of files changes: a stored one stays, every other is downloaded, each at a place of its own."""
    ledger.register()
    ledger.apply_report("t", named(*(url and FILE + url for url in first)))
    for index, url in enumerate(first):
        if url:
            ledger.store(index)
    ledger.apply_report("t", named(*(url and FILE + url for url in then)))
    after = shown(ledger)
    stored = [url for status, url in after if status == "stored"]
    assert stored == [url for url in first if url]
    if expected is None:  # signed anew: the paths tell the files apart
        expected = ["a?sign=2", "b?sign=1", "mark?sign=1", "m?sign=2"]
    assert [url for _, url in after] == expected
    assert ledger.task()["done"] == all(status == "stored" for status, _ in after)
    downloads = {key for key in ledger.jobs() if key.startswith("download/")}
    assert {f"download/t/{n}" for n, (status, url) in enumerate(after) if status == "pending" and url} <= downloads


def test_another_output_in_place_of_files_ends_the_task(ledger: Ledger) -> None:
    """No file is awaited any more."""
    ledger.register()
    ledger.apply_report("t", named(FILE, ""))
    ledger.store(0)
    ledger.apply_report("t", Report(status="succeed", objects=({"element_id": 1},)))
    assert shown(ledger) == [("stored", "")]
    assert ledger.task()["done"]


def test_an_answer_about_another_file_names_no_awaited_one(ledger: Ledger) -> None:
    """A download asks Kling for its own file's latest address; the query about the task names the awaited one."""
    outputs = (Output("image", f"{FILE}new"), Output("image", f"{FILE}1"))
    ledger.register()
    ledger.apply_report("t", named(FILE, ""))
    ledger.change(lambda tx: result_records.set_addresses(tx, "t", outputs))
    assert shown(ledger) == [("pending", "new"), ("pending", "")]
    assert moved(ledger, FILE, "") == [0]
    assert moved(ledger, "", FILE) == []
    assert moved(ledger, "", f"{FILE}new") == []


def moved(ledger: Ledger, *urls: str) -> list[int]:
    """The positions of the files of the task `t` that have another address by an answer that names these."""
    known, outputs = ledger.results(), named(*urls).outputs
    return [row["position"] for row in known if row["source_url"] and result_records.has_moved(known, row, outputs)]


def readdress(ledger: Ledger, *urls: str) -> None:
    """Download the pending files of the task `t` from the addresses in this answer."""
    outputs = named(*urls).outputs
    ledger.change(lambda tx: result_records.set_addresses(tx, "t", outputs))


def fetch(ledger: Ledger, *urls: str) -> None:
    """Download again what is not stored, as an operator's `tasks fetch` with this answer."""
    outputs = named(*urls).outputs
    ledger.change(lambda tx: result_records.refresh_downloads(tx, tx.require_task("t"), outputs))


@pytest.mark.parametrize("loss", ["failed", "lost"])
@pytest.mark.parametrize(
    ("then", "expected"),
    [
        (("", "c"), ["a", "c"]),
        (("", "b"), ["a", "b"]),
        (("b", ""), ["a", "b"]),
        (("b",), ["a", "b"]),
        (("b", "a2"), ["a2", "b"]),
        (("a2", "b2"), ["a2", "b2"]),
        (("c",), ["a", "b", "c"]),
        (("",), ["a", "b"]),
    ],
)
def test_a_fetch_forgets_no_file(ledger: Ledger, loss: str, then: tuple[str, ...], expected: list[str]) -> None:
    """A failed or lost file that Kling does not name, or not yet, is downloaded from its known address."""
    ledger.register()
    ledger.apply_report("t", named(f"{FILE}a", f"{FILE}b"))
    for index in (0, 1):
        if loss == "failed":
            ledger.fail(index)
        else:
            ledger.store(index)
            ledger.change(lambda tx, n=index: result_records.mark_lost(tx, tx.require_task("t"), n, "gone"))  # type: ignore[misc]
    fetch(ledger, *(url and FILE + url for url in then))
    assert shown(ledger) == [("pending", url) for url in expected]
    assert {f"download/t/{n}" for n in range(len(expected))} <= ledger.jobs().keys()
    assert not ledger.task()["done"]
    for index in range(len(expected)):
        ledger.store(index)
    assert ledger.task()["done"]


def test_a_fetch_names_a_file_that_no_answer_named_before(ledger: Ledger) -> None:
    """First without its address, then with it."""
    ledger.register()
    ledger.apply_report("t", named(f"{FILE}a", ""))
    ledger.fail(0)
    missing(ledger)
    fetch(ledger, "", f"{FILE}b")
    assert shown(ledger) == [("pending", "a"), ("pending", "b")]
    ledger.fail(0)
    fetch(ledger, f"{FILE}a2", f"{FILE}b")
    assert shown(ledger) == [("pending", "a2"), ("pending", "b")]


def test_a_download_takes_no_other_files_address(ledger: Ledger) -> None:
    """Kling's answer about a refused file may name fewer files, or in another order, or more before it."""
    urls = [f"{FILE}{name}" for name in "abc"]
    a, b, c = urls
    ledger.register()
    ledger.apply_report("t", named(*urls))
    for answer in ([b, c], [c], [c, b, a], [a, f"{FILE}new", b, c], [], [""], ["", b, c]):
        assert moved(ledger, *answer) == []
        readdress(ledger, *answer)
        assert shown(ledger) == [("pending", "a"), ("pending", "b"), ("pending", "c")]
    assert moved(ledger, b, f"{FILE}new", c) == [0]
    readdress(ledger, b, f"{FILE}new", c)
    assert shown(ledger) == [("pending", "new"), ("pending", "b"), ("pending", "c")]
