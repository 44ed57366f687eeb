"""Downloads and queries: one query in the normal course, an error that is shown in every other."""

import asyncio
import gzip
import hashlib
import io
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from kling_callback.api.auth import BearerAuth
from kling_callback.api.kling import KlingApi
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.reports import Report
from kling_callback.protocol.results.outputs import Output
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.jobs.queue import ClaimedJob, Done, GiveUp, Outcome, RetryAt
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient, RequestFailed
from kling_receiver.net.guard import Allowlist, Refused
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.parts import Delays
from kling_receiver.results import download, fetch
from kling_receiver.results.download import DOWNLOAD_BACKOFF, MAX_REFUSALS, REFUSALS_BEFORE_QUERY, Downloader
from kling_receiver.results.fetch import MAX_RESUMES, InvalidFile
from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import ResultRow
from kling_receiver.store.writer import Writer
from kling_receiver.tasks import registration as task_registration
from kling_receiver.tasks import transitions
from kling_receiver.tasks.ingest import Callback, ingest
from kling_receiver.tasks.reconcile import CREATE_REPORT_TIMEOUT_MS, MAX_UNDECIDED_RETRIES, QUERY_BACKOFF, Reconciler
from kling_receiver.tasks.registration import Registration
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, Running, Start
from tests.support.web import Visit, host
from tools.harness.submitting import (
    Json,
    create,
    events,
    eventually,
    finished,
    metric,
    poll_until,
    post,
    register,
    show,
    submit,
    types,
)

IMAGES, VIDEOS = "images/generations", "videos/text2video"


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver whose Kling is the sandbox; it retries downloads after milliseconds."""
    backoff = Backoff(tuple(step / 1000 for step in DOWNLOAD_BACKOFF.steps))
    return start(api_base=gateway.url, delays=Delays(download=backoff))


def picture(seed: int = 0, size: int = 300) -> bytes:
    """A real PNG that does not compress."""
    noise = hashlib.shake_256(bytes([seed])).digest(size * size * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), noise).save(file, "PNG")
    return file.getvalue()


def stored_bytes(running: Running, task: Json, index: int = 0) -> bytes:
    """A result file, downloaded by its link and compared with the size and checksum in the task."""
    result = task["results"][index]
    content = httpx.get(result["href"]).raise_for_status().content
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result["size"], result["sha256"])
    return content


# --- the normal course ------------------------------------------------------------------------------------


def test_the_normal_course_takes_one_query(running: Running, gateway: Sandbox) -> None:
    """Three callbacks, one query, every file stored with its checksum, and the events in order."""
    task, theirs = submit(running, gateway, n=3)
    happened = events(running, task)
    done = happened[-1]["task"]
    assert [name for name in types(happened) if name != "callback.received"] == [
        *("task.created", "task.submitted", "task.processing", "task.succeed"),
        *("result.stored",) * 3,
        "task.done",
    ]
    assert gateway.tasks[theirs].queries == len(gateway.queries) == 1
    assert (done["status"], done["origin"], done["task_id"], done["cost"]) == ("succeed", "kling", theirs, "3")
    for index in range(3):
        Image.open(io.BytesIO(stored_bytes(running, done, index))).verify()
    assert len({result["sha256"] for result in done["results"]}) == 3
    assert metric(running, 'kling_queries_total{outcome="answered"}') == 1
    assert metric(running, 'kling_downloads_total{outcome="stored"}') == 3


@pytest.mark.parametrize(
    ("family", "body", "kinds"),
    [
        (VIDEOS, {}, [("video", "video/mp4")]),
        ("audio/text-to-audio", {}, [("audio", "audio/mpeg"), ("audio", "audio/wav")]),
        (IMAGES, {"output_format": "jpg"}, [("image", "image/jpeg")]),
    ],
    ids=["video", "audio", "jpeg"],
)
def test_every_kind_of_file(
    running: Running, gateway: Sandbox, family: str, body: Json, kinds: list[tuple[str, str]]
) -> None:
    """Videos, sounds and both types of images are detected by their bytes."""
    done = finished(running, submit(running, gateway, family=family, **body)[0])
    assert [(result["kind"], result["content_type"]) for result in done["results"]] == kinds
    for index in range(len(kinds)):
        stored_bytes(running, done, index)
    assert len(gateway.queries) == 1


def test_a_failed_task_ends_with_klings_reason(running: Running, gateway: Sandbox) -> None:
    """`failed` from Kling is authoritative; the reason is stored, and there are no files."""
    done = finished(running, submit(running, gateway, "failed")[0])
    assert (done["status"], done["origin"], done["results"]) == ("failed", "kling", [])
    assert done["status_msg"] == "The sandbox was asked to fail this task"
    assert len(gateway.queries) == 1


@pytest.mark.parametrize(
    ("switches", "most"),
    [
        ("no-results", 1),
        ("other-spelling", 1),
        ("wrap-once", 1),
        ("wrap-twice", 1),
        ("repeat", 1),
        ("reorder", 1),
        ("repeat, reorder", 1),
        ("final-only", 1),
        ("relay-id", 1),
        ("nul", 1),
        ("early-callback", 1),
        ("early-final", 1),
        ("contradict", 1),
        ("unreadable", 2),
        ("oversized", 2),
        ("false-succeed", 9),
        ("query-5xx-once", 2),
        ("query-lag", 2),
        ("early-final, relay-id, wrap-twice, repeat, reorder", 2),
        ("drop-external-id, wrap-once", 1),
        ("drop-external-id, relay-id", 1),
    ],
)
def test_a_task_ends_right_with_every_kind_of_callback(
    running: Running, gateway: Sandbox, switches: str, most: int
) -> None:
    """Its files are stored, Kling's status is authoritative, and the number of queries is limited."""
    task, theirs = submit(running, gateway, switches)
    done = finished(running, task)
    assert (done["status"], done["origin"], done["task_id"]) == ("succeed", "kling", theirs)
    assert [result["status"] for result in done["results"]] == ["stored"]
    stored_bytes(running, done)
    assert gateway.tasks[theirs].queries <= most


def test_an_outer_failure_without_a_record_is_a_failure(running: Running, gateway: Sandbox) -> None:
    """A relay that wraps twice may send FAILURE without a record."""
    done = finished(running, submit(running, gateway, "outer-failure")[0])
    assert (done["status"], done["origin"]) == ("failed", "kling")
    assert done["status_msg"] == "The sandbox was asked to fail this task"


def test_a_contradiction_is_logged_and_not_applied(running: Running, gateway: Sandbox) -> None:
    """After Kling's `succeed` a `failed` callback changes only the event log."""
    task, theirs = submit(running, gateway, "contradict")
    finished(running, task)
    gateway.wait_for(lambda: len(gateway.tasks[theirs].posted) == 4)
    ignored = [event["data"] for event in events(running, task, "never") if event["type"] == "callback.ignored"]
    assert [(each["status"], each["stands"]) for each in ignored] == [("failed", "succeed")]
    assert show(running, task)["status"] == "succeed"


def test_a_task_that_was_never_registered_ends_too(running: Running, gateway: Sandbox) -> None:
    """The signed callback URL is enough: everything else follows from the callbacks."""
    task = new_id()
    theirs = create(running, gateway, task, family=VIDEOS)
    eventually(lambda: show(running, task).get("done"), running)
    done = show(running, task)
    assert (done["task_id"], done["family"], done["results"][0]["status"]) == (theirs, VIDEOS, "stored")


def test_an_unregistered_task_of_a_relay_that_drops_our_id(running: Running, gateway: Sandbox) -> None:
    """The relay does not know our id; the first query is by the id in the callback, and is enough."""
    task = new_id()
    theirs = create(running, gateway, task, "drop-external-id")
    eventually(lambda: show(running, task).get("done"), running)
    assert show(running, task)["task_id"] == theirs
    assert len(gateway.queries) == 1


def test_a_callback_cannot_borrow_another_tasks_files(running: Running, gateway: Sandbox) -> None:
    """The id in a body is not authoritative: naming another task's id yields no files."""
    victim, theirs = submit(running, gateway)
    finished(running, victim)
    pending = new_id()
    register(running, pending)
    stranger = create(running, gateway, pending, "no-callback")
    gateway.wait_for(lambda: gateway.tasks[stranger].finished_at)
    for named in (theirs, stranger):
        thief = new_id()
        before = len(gateway.queries)
        assert post(running, thief, {"task_id": named, "task_status": "succeed"}).status_code == 200
        gateway.wait_for(lambda: any(thief in query.ids for query in gateway.queries[before:]))  # noqa: B023
        assert (show(running, thief)["status"], show(running, thief)["results"]) == ("created", [])


def test_a_registered_task_takes_no_strangers_files(running: Running, gateway: Sandbox) -> None:
    """For a task with an id of its own, the record of another Kling id is rejected, registered or not."""
    stranger = create(running, gateway, new_id(), "no-callback")
    gateway.wait_for(lambda: gateway.tasks[stranger].finished_at)
    thief = new_id()
    register(running, thief)
    register(running, thief, outcome="unknown")
    assert post(running, thief, {"task_id": stranger, "task_status": "succeed"}).status_code == 200
    gateway.wait_for(lambda: any(stranger in query.ids for query in gateway.queries))
    assert (show(running, thief)["status"], show(running, thief)["results"]) == ("created", [])


# --- files that misbehave -----------------------------------------------------------------------------------


@pytest.mark.parametrize("switches", ["cut-once", "file-500-once", "wrong-type", "no-length", "redirect-file"])
@pytest.mark.parametrize("family", [IMAGES, VIDEOS])
def test_a_file_is_stored_in_spite_of_faults(running: Running, gateway: Sandbox, family: str, switches: str) -> None:
    """Cuts, errors, wrong content types, missing lengths and redirects cost at most another attempt."""
    done = finished(running, submit(running, gateway, switches, family)[0])
    assert [result["status"] for result in done["results"]] == ["stored"]
    stored_bytes(running, done)
    assert len(gateway.queries) == 1


@pytest.mark.parametrize(
    ("switches", "downloads", "error"),
    [
        ("file-403", MAX_REFUSALS, "403"),
        ("file-html", MAX_REFUSALS, "not a valid image file: it begins with b'<h1>"),
        ("gzip-file", MAX_REFUSALS, "compressed"),
        ("redirect-private", 1, "169.254.169.254 is not a public address"),
    ],
)
def test_a_download_that_keeps_failing_ends_with_its_error(
    running: Running, gateway: Sandbox, switches: str, downloads: int, error: str
) -> None:
    """The task is done, with a failed result that has the error; a refusal by the guard is final at once."""
    task, _ = submit(running, gateway, switches)
    happened = events(running, task)
    [result] = happened[-1]["task"]["results"]
    assert (result["status"], result["href"], result["sha256"]) == ("failed", None, None)
    assert error in result["error"]
    assert "result.failed" in types(happened)
    with_key = downloads if switches == "file-403" else 0  # the sandbox is the API base, which may want the key
    assert len(gateway.downloads) == downloads + with_key
    assert "ksTime" not in result["error"]
    assert list((running.settings.results / ".parts").iterdir()) == []
    assert metric(running, 'kling_downloads_total{outcome="failed"}') == downloads


class Parts:
    """The Reconciler and the Downloader without a worker; the tests make the jobs."""

    def __init__(
        self,
        tmp_path: Path,
        base: str,
        *,
        max_bytes: int = 1 << 30,
        database_url: str | None = None,
    ) -> None:
        self.database = Database(database_url or f"sqlite:///{tmp_path / 'parts.db'}")
        self.database.migrate()
        self.folder = LocalStorage(tmp_path / "results")
        self.folder.prepare()
        self.reader, self.writer, self.metrics = Reader(self.database), Writer(self.database), Metrics()
        self.outbound = GuardedClient(Allowlist.parse(["127.0.0.1"]))
        self.http = create_kling_client()
        self.later = 0.0  # seconds by which the Reconciler's clock is ahead
        kling = KlingApi(base, BearerAuth(KEY), self.http)
        self.asker = Reconciler(kling, self.reader, self.metrics, clock=lambda: time.time() + self.later)
        self.fetcher = Downloader(
            self.outbound,
            self.folder,
            self.reader,
            self.metrics,
            self.asker.query,
            max_bytes=max_bytes,
        )
        self.data: dict[tuple[str, str, int], Any] = {}

    async def close(self) -> None:
        """Close all connections."""
        await self.writer.close()
        await self.outbound.close()
        await self.http.aclose()
        await self.reader.close()
        self.database.close()

    async def succeeded(self, *urls: str, kind: str = "image") -> str:
        """A task that succeeded by Kling's own status, with these files to download."""
        task = new_id()
        outputs = tuple(Output(kind, url) for url in urls)
        report = Report("succeed", outputs=outputs)
        await self.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, report, signed=True))
        return task

    async def hinted(self, theirs: str | None, status: str = "succeed") -> str:
        """A task with a final status by an unsigned callback only."""
        task = new_id()
        if theirs:
            known = Registration(family=IMAGES, create_token="one", outcome="created", kling_id=theirs)
            await self.writer.run(lambda tx: task_registration.register(tx, task, known))
        report = Report(status, message="as the callback says")  # type: ignore[arg-type]
        await self.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, report))
        return task

    async def do(self, handler: Callable[[ClaimedJob], Any], task: str, attempts: int = 1, n: int = 0) -> Outcome:
        """Run one attempt and apply its outcome; the arguments that it leaves go to the next attempt."""
        kind = handler.__name__, task, n
        data = self.data.get(kind, {"index": n} if handler == self.fetcher.download else None)
        job = ClaimedJob(1, f"job/{task}", "job", "kling", task, "key", data, attempts, "claim")
        decide = await handler(job)
        outcome: Outcome = await self.writer.run(lambda tx: decide(tx))
        if isinstance(outcome, RetryAt) and outcome.args is not None:
            self.data[kind] = outcome.args
        return outcome

    async def types(self, task: str) -> list[str]:
        """The types of a task's events."""
        return [event["type"] for event in await self.reader.events(0, task)]

    async def result(self, task: str, n: int = 0) -> ResultRow:
        """A result's row."""
        row = await self.reader.result(task, n)
        assert row
        return row


@pytest.fixture
async def parts(tmp_path: Path, gateway: Sandbox, sqlite_template: Path) -> AsyncIterator[Parts]:
    """The parts, with the sandbox as Kling."""
    shutil.copyfile(sqlite_template, tmp_path / "parts.db")
    parts = Parts(tmp_path, gateway.url)
    parts.writer.start()
    yield parts
    await parts.close()


def ranged(content: bytes, cuts: int, etag: str = '"one"') -> Callable[[Visit], None]:
    """A host that cuts the first responses after a third of the remaining bytes, and supports Range."""

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        rest = content[start:]
        visit.begin(
            206 if start else 200,
            ETag=etag,
            Content_Length=str(len(rest)),
            Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}",
        )
        visit.send(rest if visit.count >= cuts else rest[: len(rest) // 3])

    return respond


@pytest.mark.anyio
@pytest.mark.parametrize("cuts", [1, 3, MAX_RESUMES])
async def test_a_cut_download_is_resumed(parts: Parts, cuts: int) -> None:
    """By Range and If-Range, within one attempt; the file is stored whole."""
    content = picture()
    with host(ranged(content, cuts)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert len(there.visits) == cuts + 1
        for visit in there.visits[1:]:
            assert visit.headers["If-Range"] == '"one"'
            assert visit.headers["Range"].startswith("bytes=")
    row = await parts.result(task)
    assert (row["status"], row["sha256"]) == ("stored", hashlib.sha256(content).hexdigest())
    assert (parts.folder.path(str(row["path"]))).read_bytes() == content


@pytest.mark.anyio
async def test_a_download_that_is_always_cut_is_retried_later(parts: Parts) -> None:
    """After the last resume of an attempt the job is retried, from the byte where it was cut."""
    content = picture()
    with host(ranged(content, MAX_RESUMES + 1)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), RetryAt)
        assert len(there.visits) == MAX_RESUMES + 1
        assert (await parts.result(task))["status"] == "pending"
        assert isinstance(await parts.do(parts.fetcher.download, task, 2), Done)
        assert len(there.visits) == MAX_RESUMES + 2
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


def sizes_of_parts(parts: Parts) -> list[int]:
    """Bytes of each unfinished file, without the notes."""
    return [path.stat().st_size for path in (parts.folder.root / ".parts").iterdir() if not path.suffix]


@pytest.mark.anyio
async def test_a_slow_download_has_no_time_limit(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as bytes arrive. They are on disk soon, and a stop keeps them: the next attempt gets the rest."""
    monkeypatch.setattr(fetch, "BUFFER_SECONDS", 0.02)
    content, resume = picture(size=32), threading.Event()

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        named = f"bytes {start}-{len(content) - 1}/{len(content)}"
        visit.begin(206 if start else 200, ETag='"1"', Content_Length=str(len(content) - start), Content_Range=named)
        visit.send(content[start : start + 1000])
        if start:
            visit.send(content[start + 1000 :])
        else:
            resume.wait(20)

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png?signature=1")
        attempt = asyncio.create_task(parts.do(parts.fetcher.download, task))
        await asyncio.to_thread(poll_until, lambda: 1000 in sizes_of_parts(parts))
        attempt.cancel()
        await asyncio.gather(attempt, return_exceptions=True)
        resume.set()
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert there.visits[1].headers["Range"] == "bytes=1000-"
    row = await parts.result(task)
    assert (row["status"], row["sha256"]) == ("stored", hashlib.sha256(content).hexdigest())
    assert list((parts.folder.root / ".parts").iterdir()) == []


@pytest.mark.anyio
async def test_a_silent_host_ends_the_attempt(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte for a while: the attempt is retried later, from the last byte on."""
    monkeypatch.setattr(GuardedClient.send, "__kwdefaults__", {**SEND_DEFAULTS, "read_timeout": 0.1})
    content, ended = picture(size=32), threading.Event()

    def respond(visit: Visit) -> None:
        visit.begin(200, ETag='"1"', Content_Length=str(len(content)))
        visit.send(content[:1000])
        ended.wait(20)

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        outcome = await parts.do(parts.fetcher.download, task)
        ended.set()
        assert isinstance(outcome, RetryAt)
        assert "the host sent nothing for 0.1 s" in outcome.error
        assert [visit.headers.get("Range") for visit in there.visits] == [None] + ["bytes=1000-"] * MAX_RESUMES
    assert sizes_of_parts(parts) == [1000]


@pytest.mark.anyio
async def test_the_head_of_a_response_has_a_time_limit(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that sends it byte by byte is retried later."""
    monkeypatch.setattr(fetch, "RESPONSE_SECONDS", 0.2)
    ended = threading.Event()

    def respond(visit: Visit) -> None:
        visit.send(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while not ended.wait(0.02):
            visit.send(b".")

    with host(respond) as there:
        outcome = await parts.do(parts.fetcher.download, await parts.succeeded(f"{there.url}/0.png"))
        ended.set()
    assert isinstance(outcome, RetryAt)
    assert outcome.error == "the host did not answer within 0.2 s"


SEND_DEFAULTS = dict(GuardedClient.send.__kwdefaults__ or {})


def changed(visit: Visit) -> None:
    """A host whose file changed between the cut and the next request."""
    content = picture(visit.count)
    visit.begin(200, ETag=f'"{visit.count}"', Content_Length=str(len(content)))
    visit.send(content[: len(content) // 2] if visit.count == 0 else content)


def shifted(visit: Visit) -> None:
    """A host that answers a Range with another range than was requested."""
    content = picture()
    visit.begin(206 if visit.count else 200, ETag='"1"', Content_Length="9", Content_Range="bytes 1-9/99")
    visit.send(content[:9] if visit.count else content[:5])


def renamed(visit: Visit) -> None:
    """A host that sends the requested range, of another version of the file."""
    content = picture(visit.count)
    start = len(content) // 2 if visit.count else 0
    named = f"bytes {start}-{len(content) - 1}/{len(content)}"
    visit.begin(206 if start else 200, ETag=f'"{visit.count}"', Content_Length=str(len(content)), Content_Range=named)
    visit.send(content[start:] if start else content[: len(content) // 2])


def shorter(visit: Visit) -> None:
    """A host whose file ends before the part of it that was received."""
    if visit.count:
        visit.answer(416, Content_Range="bytes */9")
    else:
        visit.begin(200, ETag='"1"', Content_Length="99999")
        visit.send(picture(size=32))


@pytest.mark.anyio
@pytest.mark.parametrize("respond", [shifted, renamed, shorter])
async def test_two_halves_of_different_files_are_never_joined(parts: Parts, respond: Callable[[Visit], None]) -> None:
    """If the resumed bytes belong to another file, the attempt fails and its bytes are discarded."""
    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), RetryAt)
    assert (await parts.result(task))["status"] == "pending"
    assert list((parts.folder.root / ".parts").iterdir()) == []


@pytest.mark.anyio
async def test_a_file_that_changed_is_downloaded_from_its_first_byte_on(parts: Parts) -> None:
    """A host that sends the whole file in place of the rest: it has another one now."""
    with host(changed) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    assert (await parts.result(task))["sha256"] == hashlib.sha256(picture(1)).hexdigest()


LONG_AGO, NOW = "Mon, 02 Jan 2006 15:04:05 GMT", "now"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("headers", "if_range"),
    [
        ({"ETag": '"1"'}, '"1"'),
        ({"ETag": '"1"', "Last_Modified": LONG_AGO}, '"1"'),
        ({"Last_Modified": LONG_AGO}, LONG_AGO),
        ({"ETag": 'W/"1"'}, None),
        ({"ETag": 'W/"1"', "Last_Modified": LONG_AGO}, None),
        ({"Last_Modified": NOW}, None),
        ({"Last_Modified": "yesterday"}, None),
        ({}, None),
    ],
)
async def test_only_a_strong_validator_resumes(parts: Parts, headers: dict[str, str], if_range: str | None) -> None:
    """Without one, nothing tells whether the rest belongs to the first half: the next attempt begins anew."""
    content = picture(size=64)

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        named = f"bytes {start}-{len(content) - 1}/{len(content)}"
        length = str(len(content) - start)
        sent = {name: formatdate(usegmt=True) if value == NOW else value for name, value in headers.items()}
        visit.begin(206 if start else 200, Content_Length=length, Content_Range=named, **sent)
        visit.send(content[start:] if visit.count else content[:5000])

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        first = await parts.do(parts.fetcher.download, task)
        if if_range is None:
            assert isinstance(first, RetryAt)
            assert list((parts.folder.root / ".parts").iterdir()) == []
            first = await parts.do(parts.fetcher.download, task, 2)
        assert isinstance(first, Done)
        assert [visit.headers.get("If-Range") for visit in there.visits] == [None, if_range]
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.anyio
async def test_a_file_that_was_whole_before_a_kill_is_not_requested_again(parts: Parts) -> None:
    """It is checked and stored as it is."""
    content = picture(size=32)
    with host(answering(content)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        part = parts.folder.part(f"{task}/0", f"{there.url}/0.png")
        part.validator, part.length = '"1"', len(content)
        part.write(content)
        part.close()
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert there.visits == []
    row = await parts.result(task)
    assert (row["content_type"], row["sha256"]) == ("image/png", hashlib.sha256(content).hexdigest())


def answering(body: bytes, status: int = 200, **headers: str) -> Callable[[Visit], None]:
    """A host with one and the same response."""
    return lambda visit: visit.answer(status, body, **headers)


WRONG: dict[str, tuple[Callable[[Visit], None], str]] = {
    "empty": (answering(b""), "the file is empty"),
    "html": (answering(b"<html>" + b" " * 100), "not a valid image file"),
    "a video where an image should be": (answering(b"\0\0\0\x20ftypisom" + b" " * 100), "not a valid image file"),
    "cut, without a length": (lambda visit: unmeasured(visit, picture()[:5000]), "the image/png file is truncated"),
    "too large by its length": (
        answering(b"\x89PNG", Content_Length="99999999"),
        "the file is larger than 1000000 bytes",
    ),
    "too large, without a length": (lambda visit: endless(visit), "the file is larger than 1000000 bytes"),
    "404": (answering(b"", 404), "the host answered 404"),
    "410": (answering(b"", 410), "the host answered 410"),
    "304, not requested": (answering(b"", 304), "the host answered 304"),
    "JSON": (answering(b'  {"code": 1, "message": "expired"}', Content_Type="image/png"), "not a valid image file"),
    "a text": (answering(b"Access denied.", Content_Type="application/octet-stream"), "not a valid image file"),
    "a long text": (answering(b"Access denied. " * 99, Content_Type="text/plain"), "not a valid image file"),
    "XML": (answering(b"\xef\xbb\xbf<?xml version='1.0'?>" + b"<Error/>" * 99), "not a valid image file"),
    "gzip": (answering(gzip.compress(picture(size=32))), "compressed"),
    "gzip, by its name": (answering(gzip.compress(picture(size=32)), Content_Encoding="gzip"), "compressed"),
    "zstd": (answering(b"\x28\xb5\x2f\xfd" + bytes(999)), "compressed"),
    "br": (answering(b"\x8b\x02\x80" + bytes(999), Content_Encoding="br"), "compressed"),
    "redirects for ever": (answering(b"", 302, Location="/again"), "the host answered 302"),
    "a redirect to nowhere": (answering(b"", 302), "the host answered 302"),
}


def unmeasured(visit: Visit, content: bytes) -> None:
    """A host that names no length."""
    visit.begin(200)
    visit.send(content)


def endless(visit: Visit) -> None:
    """A host that sends an image without an end."""
    visit.begin(200)
    visit.send(picture())
    for _ in range(40):
        visit.send(bytes(1 << 16))


@pytest.mark.anyio
@pytest.mark.parametrize(("respond", "error"), WRONG.values(), ids=WRONG.keys())
async def test_an_invalid_file_is_retried_and_fails(
    tmp_path: Path, sqlite_template: Path, respond: Callable[[Visit], None], error: str
) -> None:
    """After some attempts, in case the host is repaired, the result fails with the error; no partial file is left."""
    shutil.copyfile(sqlite_template, tmp_path / "parts.db")
    parts = Parts(tmp_path, "http://127.0.0.1:9", max_bytes=1_000_000)
    parts.writer.start()
    try:
        with host(respond) as there:
            task = await parts.succeeded(f"{there.url}/0.png?secret=1")
            for attempt in range(1, MAX_REFUSALS):
                assert isinstance(await parts.do(parts.fetcher.download, task, attempt), RetryAt)
            outcome = await parts.do(parts.fetcher.download, task, MAX_REFUSALS)
        assert isinstance(outcome, GiveUp)
        row = await parts.result(task)
        assert row["status"] == "failed"
        assert error in row["error"]
        assert "secret" not in row["error"]
        assert (await parts.types(task))[-2:] == ["result.failed", "task.done"]
        assert list((parts.folder.root / ".parts").iterdir()) == []
    finally:
        await parts.close()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_a_busy_host_is_retried_to_the_end_of_the_schedule(parts: Parts, status: int) -> None:
    """Retry-After is respected; after the last attempt the result fails."""
    with host(answering(b"", status, Retry_After="1000")) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        first = await parts.do(parts.fetcher.download, task)
        now = (await parts.reader.events(0, task))[0]["created_at"]
        assert isinstance(first, RetryAt)
        assert first.due_at - now >= 1_000_000
        last = await parts.do(parts.fetcher.download, task, len(DOWNLOAD_BACKOFF.steps) + 1)
        assert isinstance(last, GiveUp)
    assert (await parts.result(task))["status"] == "failed"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/x.png",
        "http://[::1]/x.png",
        "http://0xa9fea9fe/x.png",
        "//169.254.169.254/latest/meta-data",
        "http://169.254.169.254./latest/meta-data",
        "http://2852039166/latest/meta-data",
        "http://0251.0376.43518/latest/meta-data",
        "http://[::ffff:169.254.169.254]/latest/meta-data",
        "http://[64:ff9b::a9fe:a9fe]/latest/meta-data",
        "http://[fd00:ec2::254]/latest/meta-data",
        "http://100.100.100.200/latest/meta-data",
        "https://168.63.129.16/machine",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://127.0.0.1:6379/_",
        "http://user:password@127.0.0.1/",
        "http://[",
        "http://[::1/",
        "http://a:99999/",
        "http://" + "a" * 70 + ".example/x",
        "http://a..example/x",
        "javascript:alert(1)",
    ],
)
async def test_a_redirect_to_a_forbidden_address_is_final_at_once(parts: Parts, location: str) -> None:
    """Each target of a redirect is checked: the first attempt is the last, and the result fails."""
    with host(answering(b"", 302, Location=location)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        outcome = await parts.do(parts.fetcher.download, task)
    assert isinstance(outcome, GiveUp)
    assert (await parts.result(task))["error"] == outcome.error != ""
    assert (await parts.types(task))[-2:] == ["result.failed", "task.done"]


@pytest.mark.anyio
async def test_one_lost_file_does_not_harm_the_others(parts: Parts) -> None:
    """Of three files one is gone from its host: two are stored, one fails, and then the task is done."""

    def respond(visit: Visit) -> None:
        visit.answer(404 if visit.path == "/1.png" else 200, picture())

    with host(respond) as there:
        task = await parts.succeeded(*(f"{there.url}/{n}.png" for n in range(3)))
        for n in range(3):
            await parts.do(parts.fetcher.download, task, MAX_REFUSALS, n)
    happened = await parts.types(task)
    assert happened[-4:] == ["result.stored", "result.failed", "result.stored", "task.done"]


@pytest.mark.anyio
async def test_a_storage_failure_never_fails_the_file(parts: Parts) -> None:
    """The attempt is not counted, the waits grow, and once the storage works again the file is stored."""
    with host(answering(picture())) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        in_the_way = parts.folder.root / task
        in_the_way.write_text("a file where the folder should be")
        for _ in range(len(DOWNLOAD_BACKOFF.steps) + 2):
            outcome = await parts.do(parts.fetcher.download, task, 99)
            assert isinstance(outcome, RetryAt)
            assert not outcome.counts
            assert outcome.error.startswith("the storage failed: ")
        assert isinstance(outcome, RetryAt)
        assert outcome.due_at - int(time.time() * 1000) > DOWNLOAD_BACKOFF.steps[-1] * 400
        assert (await parts.result(task))["status"] == "pending"
        in_the_way.unlink()
        assert isinstance(await parts.do(parts.fetcher.download, task, 99), Done)
    assert (await parts.result(task))["status"] == "stored"


@pytest.mark.anyio
async def test_a_content_length_that_is_met_is_enough(parts: Parts) -> None:
    """An image without its trailer is stored if all bytes of the host's Content-Length were received."""
    with host(answering(picture()[:-12])) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    assert (await parts.result(task))["status"] == "stored"


@pytest.mark.anyio
async def test_a_settled_file_is_not_downloaded_again(parts: Parts) -> None:
    """A second job for a stored file, or a job for an unknown file, does nothing."""
    with host(answering(picture())) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        for _ in range(2):
            assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert isinstance(await parts.do(parts.fetcher.download, task, n=7), Done)
        assert len(there.visits) == 1
    assert (await parts.types(task)).count("result.stored") == 1


# --- queries -----------------------------------------------------------------------------------------------


def made(gateway: Sandbox, switches: str = "", **body: object) -> str:
    """A task at the sandbox that sends no callback. Returns Kling's id."""
    given = {"prompt": f"x [sandbox: {switches}]" if switches else "x", **body}
    answer = httpx.post(f"{gateway.url}/v1/{IMAGES}", json=given, headers={"Authorization": f"Bearer {KEY}"})
    return str(answer.json()["data"]["task_id"])


@pytest.mark.anyio
@pytest.mark.parametrize("switch", ["query-5xx", "query-garbage"])
async def test_when_kling_cannot_be_queried_the_callback_is_accepted(
    parts: Parts, gateway: Sandbox, switch: str
) -> None:
    """After the last retry the callback's status is accepted, and the result fails with an error."""
    task = await parts.hinted(made(gateway, switch))
    for _ in QUERY_BACKOFF.steps:
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), GiveUp)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["status_msg"], row["done"]) == (
        *("succeed", "callback", "as the callback says"),
        True,
    )
    assert (await parts.types(task))[-3:] == ["task.succeed", "result.failed", "task.done"]
    assert "Kling answered" in (await parts.result(task))["error"]


async def accused(parts: Parts, theirs: str) -> str:
    """A task whose create is not reported yet, with an unsigned callback that names another task's id."""
    task = new_id()
    registration = Registration(family=IMAGES, create_token="one")
    await parts.writer.run(lambda tx: task_registration.register(tx, task, registration))
    await parts.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, Report("succeed", kling_id=theirs)))
    return task


@pytest.mark.anyio
async def test_the_id_in_a_callback_waits_for_the_id_of_the_create(
    tmp_path: Path, gateway: Sandbox, database_url: str
) -> None:
    """It may be another task's: the first query is by our id, the next one by the id that the create reports."""
    parts = Parts(tmp_path, gateway.url, database_url=database_url)
    parts.writer.start()
    mine, others = made(gateway), made(gateway)
    gateway.wait_for(lambda: gateway.tasks[mine].finished_at and gateway.tasks[others].finished_at)
    task = await accused(parts, others)
    assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    told = Registration(family=IMAGES, create_token="one", outcome="created", kling_id=mine)
    await parts.writer.run(lambda tx: task_registration.register(tx, task, told))
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["kling_id"]) == ("succeed", "kling", mine)
    assert gateway.tasks[others].queries == 0
    await parts.close()


@pytest.mark.anyio
async def test_the_wait_for_the_report_of_a_create_has_a_limit(parts: Parts, gateway: Sandbox) -> None:
    """After it, the callback's id is used for the query."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    task = await accused(parts, theirs)
    parts.later = CREATE_REPORT_TIMEOUT_MS / 1000
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["kling_id"]) == ("succeed", "kling", theirs)


@pytest.mark.anyio
async def test_klings_status_is_applied_after_a_callback_was_accepted(parts: Parts, gateway: Sandbox) -> None:
    """It replaces the callback's status, and the downloads of its files are enqueued."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    task = await parts.hinted(theirs, "failed")
    await parts.writer.run(lambda tx: transitions.accept_hint(tx, tx.require_task(task)))
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["done"]) == ("succeed", "kling", False)
    assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    assert (await parts.types(task))[-2:] == ["result.stored", "task.done"]


@pytest.mark.anyio
async def test_a_response_that_is_not_http_is_retried(tmp_path: Path) -> None:
    """From Kling's API and from the host of a file: only the attempt fails."""
    with host(lambda visit: visit.send(b"\0\1\2\r\n\r\n")) as there:
        parts = Parts(tmp_path, there.url)
        parts.writer.start()
        assert isinstance(await parts.do(parts.asker.reconcile, await parts.hinted(None)), RetryAt)
        assert isinstance(await parts.do(parts.fetcher.download, await parts.succeeded(there.url)), RetryAt)
        await parts.close()


@pytest.mark.anyio
async def test_a_callback_that_kling_contradicts_is_rejected(parts: Parts, gateway: Sandbox) -> None:
    """Kling's status stays `submitted` in every query: it is authoritative, and the callback is logged as ignored."""
    gateway.hold()
    task = await parts.hinted(made(gateway))
    for _ in range(MAX_UNDECIDED_RETRIES):
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["hint"]) == ("submitted", None)
    assert (await parts.types(task))[-1] == "callback.ignored"
    gateway.release()


@pytest.mark.anyio
async def test_queries_are_counted_by_their_outcome(parts: Parts, gateway: Sandbox) -> None:
    """Attempts of an earlier process do not count; unanswered and undecided queries are counted apart."""
    gateway.hold()
    theirs = made(gateway)
    task = await parts.hinted(theirs)
    first = await parts.do(parts.asker.reconcile, task, 99)
    assert isinstance(first, RetryAt)
    assert first.args == {"undecided": 1}
    for times in range(1, MAX_UNDECIDED_RETRIES):
        gateway.tasks[theirs].has = lambda switch: switch == "query-5xx"
        silent = await parts.do(parts.asker.reconcile, task)
        gateway.tasks[theirs].has = lambda switch: False
        again = await parts.do(parts.asker.reconcile, task)
        assert isinstance(silent, RetryAt)
        assert isinstance(again, RetryAt)
        assert again.args == {"unanswered": times, "undecided": times + 1}
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    gateway.release()


@pytest.mark.anyio
async def test_the_callback_of_a_task_unknown_to_kling_is_accepted(parts: Parts) -> None:
    """After the last retry, if every id is unknown in each query."""
    task = await parts.hinted(None, "failed")
    for _ in QUERY_BACKOFF.steps:
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), GiveUp)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["done"]) == ("failed", "callback", True)


@pytest.mark.anyio
async def test_a_succeed_without_files_ends_with_a_failed_result(parts: Parts, gateway: Sandbox) -> None:
    """Kling may name the files late: the query is retried, then the result fails."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    gateway.tasks[theirs].body["n"] = 0
    task = await parts.hinted(theirs)
    for _ in range(MAX_UNDECIDED_RETRIES):
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    assert (await parts.types(task))[-2:] == ["result.failed", "task.done"]


@pytest.mark.anyio
async def test_a_callback_during_a_query_causes_another_query(parts: Parts, gateway: Sandbox) -> None:
    """Kling's answer may be older than the callback: one more query, at once."""
    gateway.hold()
    task = await parts.hinted(made(gateway))
    job = ClaimedJob(1, "ask", "ask", "kling", task, "kling", {"undecided": 6}, 7, "claim")
    decide = await parts.asker.reconcile(job)
    late = Callback(task, IMAGES, "another digest", b"", 0, Report("succeed"))
    await parts.writer.run_batched(ingest, late)
    outcome = await parts.writer.run(lambda tx: decide(tx))
    assert isinstance(outcome, RetryAt)
    assert "during the query" in outcome.error
    gateway.release()


@pytest.mark.anyio
async def test_a_settled_task_is_not_queried(parts: Parts, gateway: Sandbox) -> None:
    """A job left over from before Kling's status, or for an unknown task, sends no query."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    task = await parts.hinted(theirs)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    for one in (task, new_id()):
        assert isinstance(await parts.do(parts.asker.reconcile, one), Done)
    assert len(gateway.queries) == 1


def test_the_text_of_an_error_has_no_url() -> None:
    """No path or query of a URL reaches a log, and only the first line is kept."""
    text = "cannot read https://host/path?key=1 now\nmore"
    assert download.describe(RequestFailed(text)) == "cannot read (address) now"
    assert download.describe(RuntimeError(text)) == "RuntimeError: cannot read (address) now"
    assert download.describe(Refused()) == "Refused"


# --- what files are taken ----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize(
    "encoding", ["aws-chunked", "identity", "", "none", "utf-8", "binary", "aws-chunked, utf-8", "gzip", "br", "x-new"]
)
async def test_the_bytes_tell_whether_a_file_is_compressed(parts: Parts, encoding: str) -> None:
    """A plain file is taken, whatever its host says of its encoding."""
    content = picture(size=32)
    with host(answering(content, Content_Encoding=encoding)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.anyio
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
async def test_a_file_of_unknown_type_is_kept_with_a_warning(
    parts: Parts, caplog: pytest.LogCaptureFixture, framing: str
) -> None:
    """In the result, in the event and in the log: it is paid for, also if nothing tells whether it is whole."""
    content = b"\x00NEW\x01" + bytes(range(256)) * 9

    def respond(visit: Visit) -> None:
        if framing == "none":
            unmeasured(visit, content)
        elif framing == "chunked":
            visit.handler.protocol_version = "HTTP/1.1"
            visit.begin(200, Transfer_Encoding="chunked", Connection="close")
            visit.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(content), content))
        else:
            visit.answer(200, content, Content_Type="image/x-new")

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.new")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    row = await parts.result(task)
    assert (row["status"], row["content_type"], row["path"]) == ("stored", "application/octet-stream", f"{task}/0.bin")
    assert row["size"] == len(content)
    assert "its type is unknown: it begins with b'\\x00NEW" in row["warning"]
    assert ("may be truncated" in row["warning"]) == (framing != "length")
    (event,) = [event for event in await parts.reader.events(0, task) if event["type"] == "result.stored"]
    assert event["data"]["warning"] == row["warning"]
    assert "its type is unknown" in caplog.text


@pytest.mark.anyio
async def test_a_sound_in_a_videos_container_is_a_sound(parts: Parts) -> None:
    """Kling names it as audio: it is stored as one."""
    content = b"\0\0\0\x18ftypisom" + bytes(2000)
    with host(answering(content)) as there:
        task = await parts.succeeded(f"{there.url}/0", kind="audio")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    row = await parts.result(task)
    assert (row["content_type"], row["path"]) == ("audio/mp4", f"{task}/0.m4a")


# --- another address ---------------------------------------------------------------------------------------------


async def refused(
    tmp_path: Path, *, now_at: str, expired: bool = False, outputs: int = 1, status: str = "succeed"
) -> tuple[list[str], list[int], ResultRow]:
    """A file whose first address answers 403. Returns the paths that were requested, the attempts, and the result.

    `now_at`: its address by Kling's answer.
    """

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/v1/"):
            files = [{"url": f"{there.url}{now_at}", "index": n} for n in range(outputs)]
            record = {"task_id": "k", "task_status": status, "task_result": {"images": files}}
            visit.answer(200, json.dumps({"code": 0, "data": record}).encode())
        else:
            visit.answer(200 if visit.path == "/new.png?s=2" else 403, picture(size=32))

    with host(respond) as there:
        parts = Parts(tmp_path, there.url)
        parts.writer.start()
        stamp = f"&ksTime={int(time.time()) - 60:08x}" if expired else ""
        task = await parts.succeeded(f"{there.url}/old.png?s=1{stamp}")
        attempts: list[int] = []
        outcome: Outcome = RetryAt(0, "")
        while isinstance(outcome, RetryAt):
            attempts.append(len(attempts) + 1)
            outcome = await parts.do(parts.fetcher.download, task, attempts[-1])
        row = await parts.result(task)
        await parts.close()
        return [visit.path.partition("?")[0].partition(task)[0] for visit in there.visits], attempts, row


QUERIED = "/v1/images/generations/"


@pytest.mark.anyio
async def test_kling_is_asked_once_for_another_address(tmp_path: Path) -> None:
    """After some refusals, in case the first one has expired; the file is then stored from the new one."""
    paths, _, row = await refused(tmp_path, now_at="/new.png?s=2")
    assert paths == ["/old.png"] * REFUSALS_BEFORE_QUERY + [QUERIED, "/new.png"]
    assert (row["status"], row["source_url"].partition("?")[2]) == ("stored", "s=2")


@pytest.mark.anyio
async def test_an_address_that_says_that_it_expired_is_replaced_at_once(tmp_path: Path) -> None:
    """Waiting does not help it."""
    paths, attempts, row = await refused(tmp_path, now_at="/new.png?s=2", expired=True)
    assert (paths, attempts, row["status"]) == (["/old.png", QUERIED, "/new.png"], [1, 2], "stored")


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("now_at", "outputs", "status"),
    [("/old.png?s=1", 1, "succeed"), ("/new.png?s=2", 0, "succeed"), ("/new.png?s=2", 1, "failed")],
)
async def test_without_another_address_the_file_is_retried_for_minutes(
    tmp_path: Path, now_at: str, outputs: int, status: str
) -> None:
    """A new file may take that long to reach every host. Kling is not asked again."""
    paths, attempts, row = await refused(tmp_path, now_at=now_at, outputs=outputs, status=status)
    assert (paths.count("/old.png"), paths.count(QUERIED), len(attempts)) == (MAX_REFUSALS, 1, MAX_REFUSALS)
    assert (row["status"], row["error"]) == ("failed", "the host answered 403")
    assert sum(DOWNLOAD_BACKOFF.steps[: MAX_REFUSALS - 1]) / 2 > 120


@pytest.mark.anyio
async def test_kling_is_asked_once_for_all_files_of_a_task(tmp_path: Path) -> None:
    """A file whose own address was refused meanwhile uses the new one."""
    names = ("a", "b")

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/v1/"):
            files = [{"url": f"{there.url}/new-{name}.png"} for name in names]
            record = {"task_id": "k", "task_status": "succeed", "task_result": {"images": files}}
            visit.answer(200, json.dumps({"code": 0, "data": record}).encode())
        else:
            visit.answer(200 if "new" in visit.path else 404, picture(size=32))

    with host(respond) as there:
        parts = Parts(tmp_path, there.url)
        parts.writer.start()
        task = await parts.succeeded(*(f"{there.url}/old-{name}.png" for name in names))
        row = await parts.result(task, 1)
        job = ClaimedJob(1, "download", "download", "downloads", task, "key", {"index": 1}, 5, "claim")
        assert isinstance(await parts.do(parts.fetcher.download, task, REFUSALS_BEFORE_QUERY), RetryAt)
        failed = await parts.fetcher._failed(job, row, InvalidFile("as before"))
        outcome = await parts.writer.run(lambda tx: failed(tx))
        assert isinstance(outcome, RetryAt)
        assert outcome.args == {"index": 1, "asked_after": 5}
        for n in (0, 1):
            assert isinstance(await parts.do(parts.fetcher.download, task, 6, n), Done)
        await parts.close()
        assert [visit.path for visit in there.visits if visit.path.startswith("/v1/")] == [f"{QUERIED}{task}"]


@pytest.mark.anyio
async def test_another_address_is_tried_as_long_as_the_first(tmp_path: Path) -> None:
    """Its refusals are counted anew, and there is no third address."""
    paths, _, row = await refused(tmp_path, now_at="/newer.png?s=2")
    assert paths == ["/old.png"] * REFUSALS_BEFORE_QUERY + [QUERIED] + ["/newer.png"] * MAX_REFUSALS
    assert row["status"] == "failed"
