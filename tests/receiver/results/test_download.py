"""From a finished task to files on disk: one question in the normal course, and a loud end in every other."""

import hashlib
import io
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from kling_callback.auth import BearerAuth
from kling_callback.kling_api import KlingApi
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.reports import Output, Report
from kling_receiver.jobs.queue import ClaimedJob, Done, GiveUp, Outcome, RetryAt
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient, RequestFailed
from kling_receiver.net.guard import Allowlist, Refused
from kling_receiver.net.kling_http import create_kling_client
from kling_receiver.results import download
from kling_receiver.results.download import DOWNLOAD_BACKOFF, MAX_REFUSALS, MAX_RESUMES, Downloader
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
    post,
    register,
    show,
    submit,
    types,
)

IMAGES, VIDEOS = "images/generations", "videos/text2video"


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver whose Kling is the sandbox."""
    return start(api_base=gateway.url)


def picture(seed: int = 0, size: int = 300) -> bytes:
    """A real PNG that does not compress."""
    noise = hashlib.shake_256(bytes([seed])).digest(size * size * 3)
    file = io.BytesIO()
    Image.frombytes("RGB", (size, size), noise).save(file, "PNG")
    return file.getvalue()


def stored_bytes(running: Running, task: Json, index: int = 0) -> bytes:
    """A result file, fetched by its link and held against what the task says of it."""
    result = task["results"][index]
    content = httpx.get(result["href"]).raise_for_status().content
    assert (len(content), hashlib.sha256(content).hexdigest()) == (result["size"], result["sha256"])
    return content


# --- the normal course ------------------------------------------------------------------------------------


def test_the_normal_course_takes_one_question(running: Running, gateway: Sandbox) -> None:
    """Three callbacks, one question, every file stored and checksummed, and the events in order."""
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
    """Videos, sounds and both kinds of pictures are known by their own bytes."""
    done = finished(running, submit(running, gateway, family=family, **body)[0])
    assert [(result["kind"], result["content_type"]) for result in done["results"]] == kinds
    for index in range(len(kinds)):
        stored_bytes(running, done, index)
    assert len(gateway.queries) == 1


def test_a_failed_task_ends_with_klings_reason(running: Running, gateway: Sandbox) -> None:
    """`failed` is believed when Kling says it, with the reason, and there is nothing to fetch."""
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
def test_a_task_ends_right_whatever_the_callbacks_are_like(
    running: Running, gateway: Sandbox, switches: str, most: int
) -> None:
    """Its files are stored, Kling's word stands, and it is asked no oftener than its answers make needful."""
    task, theirs = submit(running, gateway, switches)
    done = finished(running, task)
    assert (done["status"], done["origin"], done["task_id"]) == ("succeed", "kling", theirs)
    assert [result["status"] for result in done["results"]] == ["stored"]
    stored_bytes(running, done)
    assert gateway.tasks[theirs].queries <= most


def test_an_outer_failure_without_a_record_is_a_failure(running: Running, gateway: Sandbox) -> None:
    """A relay that wraps twice may say FAILURE and nothing else."""
    done = finished(running, submit(running, gateway, "outer-failure")[0])
    assert (done["status"], done["origin"]) == ("failed", "kling")
    assert done["status_msg"] == "The sandbox was asked to fail this task"


def test_a_contradiction_is_logged_and_not_applied(running: Running, gateway: Sandbox) -> None:
    """After Kling's succeed a failed callback changes nothing but the log."""
    task, theirs = submit(running, gateway, "contradict")
    finished(running, task)
    gateway.wait_for(lambda: len(gateway.tasks[theirs].posted) == 4)
    ignored = [event["data"] for event in events(running, task, "never") if event["type"] == "callback.ignored"]
    assert [(each["status"], each["stands"]) for each in ignored] == [("failed", "succeed")]
    assert show(running, task)["status"] == "succeed"


def test_a_task_that_was_never_registered_ends_too(running: Running, gateway: Sandbox) -> None:
    """The signed address alone is enough: everything else follows from the callbacks."""
    task = new_id()
    theirs = create(running, gateway, task, family=VIDEOS)
    eventually(lambda: show(running, task).get("done"), running)
    done = show(running, task)
    assert (done["task_id"], done["family"], done["results"][0]["status"]) == (theirs, VIDEOS, "stored")


def test_an_unregistered_task_of_a_relay_that_drops_our_id(running: Running, gateway: Sandbox) -> None:
    """The relay knows nothing of our id; the id that the callback named is asked by first, and is enough."""
    task = new_id()
    theirs = create(running, gateway, task, "drop-external-id")
    eventually(lambda: show(running, task).get("done"), running)
    assert show(running, task)["task_id"] == theirs
    assert len(gateway.queries) == 1


def test_a_callback_cannot_borrow_another_tasks_files(running: Running, gateway: Sandbox) -> None:
    """The id in a body proves nothing: naming a task of ours, by its id or in its record, yields no files."""
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
    """A client sent our own id: a record of another name is not its task's, known to us or not."""
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
def test_a_file_that_can_be_had_is_had(running: Running, gateway: Sandbox, family: str, switches: str) -> None:
    """Cuts, errors, wrong types, missing lengths and redirects cost at most another attempt."""
    done = finished(running, submit(running, gateway, switches, family)[0])
    assert [result["status"] for result in done["results"]] == ["stored"]
    stored_bytes(running, done)
    assert len(gateway.queries) == 1


@pytest.mark.parametrize(
    ("switches", "downloads", "said"),
    [
        ("file-403", MAX_REFUSALS, "403"),
        ("file-html", MAX_REFUSALS, "not a valid image file: it begins with b'<h1>"),
        ("gzip-file", MAX_REFUSALS, "compressed"),
        ("redirect-private", 1, "169.254.169.254 is not a public address"),
    ],
)
def test_a_file_that_cannot_be_had_fails_loudly(
    running: Running, gateway: Sandbox, switches: str, downloads: int, said: str
) -> None:
    """The task is done with a failed result that says why; a refusal by the guard is final at once."""
    task, _ = submit(running, gateway, switches)
    happened = events(running, task)
    [result] = happened[-1]["task"]["results"]
    assert (result["status"], result["href"], result["sha256"]) == ("failed", None, None)
    assert said in result["error"]
    assert "result.failed" in types(happened)
    assert len(gateway.downloads) == downloads
    assert "ksTime" not in result["error"]
    assert list((running.settings.results / ".parts").iterdir()) == []
    assert metric(running, 'kling_downloads_total{outcome="failed"}') == downloads


class Parts:
    """The parts that ask and fetch, put together without a worker; jobs are made by hand."""

    def __init__(self, tmp_path: Path, base: str, *, largest: int = 1 << 30, database_url: str | None = None) -> None:
        self.database = Database(database_url or f"sqlite:///{tmp_path / 'parts.db'}")
        self.database.migrate()
        self.folder = LocalStorage(tmp_path / "results")
        self.folder.prepare()
        self.reader, self.writer, self.metrics = Reader(self.database), Writer(self.database), Metrics()
        self.outbound = GuardedClient(Allowlist.parse(["127.0.0.1"]))
        self.http = create_kling_client()
        self.later = 0.0  # seconds by which the asker's clock is ahead
        kling = KlingApi(base, BearerAuth(KEY), self.http)
        self.asker = Reconciler(kling, self.reader, self.metrics, clock=lambda: time.time() + self.later)
        self.fetcher = Downloader(self.outbound, self.folder, self.reader, self.metrics, max_bytes=largest)
        self.data: dict[tuple[str, str, int], Any] = {}

    async def close(self) -> None:
        """Give everything back."""
        await self.writer.close()
        await self.outbound.close()
        await self.http.aclose()
        await self.reader.close()
        self.database.close()

    async def succeeded(self, *urls: str, kind: str = "image") -> str:
        """A task that Kling said succeeded, with these files to fetch."""
        task = new_id()
        outputs = tuple(Output(kind, url) for url in urls)
        report = Report("succeed", outputs=outputs)
        await self.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, report, signed=True))
        return task

    async def hinted(self, theirs: str | None, status: str = "succeed") -> str:
        """A task of which a callback said that it ended."""
        task = new_id()
        if theirs:
            known = Registration(family=IMAGES, create_token="one", outcome="created", kling_id=theirs)
            await self.writer.run(lambda tx: task_registration.register(tx, task, known))
        report = Report(status, message="as the callback says")  # type: ignore[arg-type]
        await self.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, report))
        return task

    async def do(self, handler: Callable[[ClaimedJob], Any], task: str, attempts: int = 1, n: int = 0) -> Outcome:
        """What one attempt comes to, applied; the next one knows what this one left it."""
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
async def parts(tmp_path: Path, gateway: Sandbox) -> AsyncIterator[Parts]:
    """The parts, asking the sandbox."""
    parts = Parts(tmp_path, gateway.url)
    parts.writer.start()
    yield parts
    await parts.close()


def ranged(content: bytes, cuts: int, etag: str = '"one"') -> Callable[[Visit], None]:
    """A host that cuts the first answers after a third of what is left, and honours Range."""

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
async def test_a_cut_download_goes_on_where_it_was(parts: Parts, cuts: int) -> None:
    """By Range and If-Range, within one attempt, and the whole is what the host has."""
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
async def test_a_download_that_is_cut_for_ever_is_tried_later(parts: Parts) -> None:
    """Some cuts within one attempt, then the next attempt waits its turn and begins anew."""
    with host(ranged(picture(), 1000)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), RetryAt)
        assert len(there.visits) == MAX_RESUMES + 1
    assert (await parts.result(task))["status"] == "pending"


def dripping(visit: Visit) -> None:
    """A host that sends a byte now and then, and never comes to the end, while anybody listens."""
    visit.begin(200, Content_Length=str(1 << 20))
    visit.send(picture()[:64])
    visit.handler.connection.settimeout(0.01)
    listening = True
    while listening:
        try:
            listening = bool(visit.handler.connection.recv(1))
        except TimeoutError:
            visit.send(b".")


@pytest.mark.anyio
async def test_a_download_that_drips_for_ever_ends(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """No byte is late, but the attempt as a whole is; the next one waits its turn, and nothing is left over."""
    monkeypatch.setattr(download, "LONGEST_FETCH", 0.5)
    with host(dripping) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), RetryAt)
        assert len(there.visits) == 1
    assert (await parts.result(task))["status"] == "pending"
    assert [path for path in parts.folder.root.rglob("*") if path.is_file()] == []


def changed(visit: Visit) -> None:
    """A host whose file changed between the cut and the next request."""
    content = picture(visit.count)
    visit.begin(200, ETag=f'"{visit.count}"', Content_Length=str(len(content)))
    visit.send(content[: len(content) // 2] if visit.count == 0 else content)


def shifted(visit: Visit) -> None:
    """A host that answers a Range with another range than was asked for."""
    content = picture()
    visit.begin(206 if visit.count else 200, ETag='"1"', Content_Length="9", Content_Range="bytes 1-9/99")
    visit.send(content[:9] if visit.count else content[:5])


@pytest.mark.anyio
@pytest.mark.parametrize("respond", [changed, shifted])
async def test_two_halves_of_different_files_are_never_joined(parts: Parts, respond: Callable[[Visit], None]) -> None:
    """When the rest that comes is not the rest of what was begun, the attempt ends and nothing is kept."""
    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), RetryAt)
    assert (await parts.result(task))["status"] == "pending"
    assert list((parts.folder.root / ".parts").iterdir()) == []


def answering(body: bytes, status: int = 200, **headers: str) -> Callable[[Visit], None]:
    """A host that always answers the same."""
    return lambda visit: visit.answer(status, body, **headers)


WRONG: dict[str, tuple[Callable[[Visit], None], str]] = {
    "empty": (answering(b""), "the file is empty"),
    "html": (answering(b"<html>" + b" " * 100), "not a valid image file"),
    "a video where an image should be": (answering(b"\0\0\0\x20ftypisom" + b" " * 100), "not a valid image file"),
    "cut, of no said length": (lambda visit: unmeasured(visit, picture()[:5000]), "the image/png file is truncated"),
    "too large by its own word": (answering(b"\x89PNG", Content_Length="99999999"), "the file is larger than 1000000 bytes"),
    "too large without a word": (lambda visit: endless(visit), "the file is larger than 1000000 bytes"),
    "404": (answering(b"", 404), "the host answered 404"),
    "410": (answering(b"", 410), "the host answered 410"),
    "304 unasked": (answering(b"", 304), "the host answered 304"),
    "redirects for ever": (answering(b"", 302, Location="/again"), "the host answered 302"),
    "a redirect to nowhere": (answering(b"", 302), "the host answered 302"),
}


def unmeasured(visit: Visit, content: bytes) -> None:
    """A host that does not say how many bytes there are."""
    visit.begin(200)
    visit.send(content)


def endless(visit: Visit) -> None:
    """A host that sends a picture without an end."""
    visit.begin(200)
    visit.send(picture())
    for _ in range(40):
        visit.send(bytes(1 << 16))


@pytest.mark.anyio
@pytest.mark.parametrize(("respond", "said"), WRONG.values(), ids=WRONG.keys())
async def test_what_is_not_the_file_is_tried_thrice_and_fails(
    tmp_path: Path, respond: Callable[[Visit], None], said: str
) -> None:
    """The host may mend it once or twice; then the result fails, with the reason, and nothing is left."""
    parts = Parts(tmp_path, "http://127.0.0.1:9", largest=1_000_000)
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
        assert said in row["error"]
        assert "secret" not in row["error"]
        assert (await parts.types(task))[-2:] == ["result.failed", "task.done"]
        assert list((parts.folder.root / ".parts").iterdir()) == []
    finally:
        await parts.close()


@pytest.mark.anyio
@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_a_host_that_is_busy_is_tried_to_the_end_of_the_schedule(parts: Parts, status: int) -> None:
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
async def test_a_redirect_to_a_forbidden_place_is_final_at_once(parts: Parts, location: str) -> None:
    """Every hop is checked: the first attempt is the last, and the result fails."""
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
async def test_a_storage_that_breaks_is_never_the_files_end(parts: Parts) -> None:
    """The attempt does not count, the waits grow, and once the storage is mended the file is had."""
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
async def test_a_hosts_own_length_is_enough(parts: Parts) -> None:
    """A picture whose end looks odd is what its host has, when all the bytes that it names have come."""
    with host(answering(picture()[:-12])) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
    assert (await parts.result(task))["status"] == "stored"


@pytest.mark.anyio
async def test_a_file_that_is_settled_is_not_fetched_again(parts: Parts) -> None:
    """A second job for a stored file, or one for a file that is not known, does nothing."""
    with host(answering(picture())) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        for _ in range(2):
            assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert isinstance(await parts.do(parts.fetcher.download, task, n=7), Done)
        assert len(there.visits) == 1
    assert (await parts.types(task)).count("result.stored") == 1


# --- Kling, asked -----------------------------------------------------------------------------------------


def made(gateway: Sandbox, switches: str = "", **body: object) -> str:
    """A task at the sandbox of which no callback comes; Kling's id."""
    given = {"prompt": f"x [sandbox: {switches}]" if switches else "x", **body}
    answer = httpx.post(f"{gateway.url}/v1/{IMAGES}", json=given, headers={"Authorization": f"Bearer {KEY}"})
    return str(answer.json()["data"]["task_id"])


@pytest.mark.anyio
@pytest.mark.parametrize("switch", ["query-5xx", "query-garbage"])
async def test_when_kling_cannot_be_asked_the_callback_stands(parts: Parts, gateway: Sandbox, switch: str) -> None:
    """To the end of the schedule it is asked; then the callback's status stands and the files fail loudly."""
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


async def accused(parts: Parts, theirs: str) -> str:
    """A task whose create has no answer yet, of which an unsigned callback names another's id."""
    task = new_id()
    registration = Registration(family=IMAGES, create_token="one")
    await parts.writer.run(lambda tx: task_registration.register(tx, task, registration))
    await parts.writer.run_batched(ingest, Callback(task, IMAGES, "digest", b"", 0, Report("succeed", kling_id=theirs)))
    return task


@pytest.mark.anyio
async def test_an_id_that_a_callback_names_waits_for_the_creates_own(
    tmp_path: Path, gateway: Sandbox, database_url: str
) -> None:
    """It may be another task's, whose answer is out too: Kling is asked by our id, then by the right one."""
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
async def test_a_client_that_died_before_it_told_is_not_waited_for_for_ever(parts: Parts, gateway: Sandbox) -> None:
    """Then the callback's id is all that there is."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    task = await accused(parts, theirs)
    parts.later = CREATE_REPORT_TIMEOUT_MS / 1000
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["kling_id"]) == ("succeed", "kling", theirs)


@pytest.mark.anyio
async def test_klings_word_comes_even_after_the_callback_stood(parts: Parts, gateway: Sandbox) -> None:
    """A status that stood by the callback alone gives way, and the files that Kling names are owed."""
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
async def test_an_answer_that_is_no_http_is_no_answer(tmp_path: Path) -> None:
    """Neither from Kling's address nor from a file's host does it break more than the attempt."""
    with host(lambda visit: visit.send(b"\0\1\2\r\n\r\n")) as there:
        parts = Parts(tmp_path, there.url)
        parts.writer.start()
        assert isinstance(await parts.do(parts.asker.reconcile, await parts.hinted(None)), RetryAt)
        assert isinstance(await parts.do(parts.fetcher.download, await parts.succeeded(there.url)), RetryAt)
        await parts.close()


@pytest.mark.anyio
async def test_a_callback_that_kling_denies_is_called_false(parts: Parts, gateway: Sandbox) -> None:
    """Asked again and again Kling says `submitted`: it is believed, and the callback is logged as ignored."""
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
async def test_questions_are_counted_by_what_became_of_them(parts: Parts, gateway: Sandbox) -> None:
    """Restarts count for nothing, silence does not make a callback false, and taking turns ends too."""
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
async def test_a_task_that_kling_never_knows_stands_by_its_callback(parts: Parts) -> None:
    """Unknown by every id to the end of the schedule."""
    task = await parts.hinted(None, "failed")
    for _ in QUERY_BACKOFF.steps:
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), GiveUp)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["done"]) == ("failed", "callback", True)


@pytest.mark.anyio
async def test_a_succeed_that_names_no_file_fails_loudly(parts: Parts, gateway: Sandbox) -> None:
    """Kling may be slow to name the files; when it never does, the task ends with a failed result."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    gateway.tasks[theirs].body["n"] = 0
    task = await parts.hinted(theirs)
    for _ in range(MAX_UNDECIDED_RETRIES):
        assert isinstance(await parts.do(parts.asker.reconcile, task), RetryAt)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    assert (await parts.types(task))[-2:] == ["result.failed", "task.done"]


@pytest.mark.anyio
async def test_a_callback_that_comes_while_kling_is_asked_is_asked_about_too(parts: Parts, gateway: Sandbox) -> None:
    """Kling's answer may be older than the callback that came meanwhile: one more question, at once."""
    gateway.hold()
    task = await parts.hinted(made(gateway))
    job = ClaimedJob(1, "ask", "ask", "kling", task, "kling", {"undecided": 6}, 7, "claim")
    decide = await parts.asker.reconcile(job)
    late = Callback(task, IMAGES, "another digest", b"", 0, Report("succeed"))
    await parts.writer.run_batched(ingest, late)
    outcome = await parts.writer.run(lambda tx: decide(tx))
    assert isinstance(outcome, RetryAt)
    assert "while Kling was asked" in outcome.error
    gateway.release()


@pytest.mark.anyio
async def test_what_is_settled_is_not_asked_about(parts: Parts, gateway: Sandbox) -> None:
    """A question left over from before Kling's word, or for no task, is not sent."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    task = await parts.hinted(theirs)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    for one in (task, new_id()):
        assert isinstance(await parts.do(parts.asker.reconcile, one), Done)
    assert len(gateway.queries) == 1


def test_a_reason_holds_no_address() -> None:
    """Neither the query nor the path of an address reaches a log, and one line is enough."""
    text = "cannot read https://host/path?key=1 now\nmore"
    assert download.describe(RequestFailed(text)) == "cannot read (address) now"
    assert download.describe(RuntimeError(text)) == "RuntimeError: cannot read (address) now"
    assert download.describe(Refused()) == "Refused"
