"""A task of each relay's dialect, from the create to the stored file: client, receiver and relay over HTTP."""

import logging
from typing import Any

import httpx
import pytest

from kling_callback import Kling
from kling_callback.api.retry import RetryPolicy
from kling_callback.errors import CreateUnknown, NotCreated, TaskFailed
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.parts import Delays
from kling_receiver.results.download import DOWNLOAD_BACKOFF
from kling_receiver.tasks.reconcile import MAX_UNDECIDED_RETRIES, QUERY_BACKOFF
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.relay import CONTENT, MP4, Reply, relay
from tests.support.web import Host
from tools.harness.submitting import eventually, show

DEADLINE = 0.3
QUICK = Delays(
    query=Backoff(tuple(step / 1000 for step in QUERY_BACKOFF.steps)),
    download=Backoff(tuple(step / 1000 for step in DOWNLOAD_BACKOFF.steps)),
)
CREATED: Reply = (200, {"id": "T", "task_id": "T", "object": "video", "status": "queued", "created_at": 1_790_000_000})
UNKNOWN_TASK: Reply = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})


def begin(start: Start, there: Host, **settings: Any) -> Running:
    return start(api_base=f"{there.url}/kling", overdue_seconds=DEADLINE, **settings)


def client(running: Running, there: Host, path: str = "/kling") -> Kling:
    retry = RetryPolicy(initial_wait=0, max_wait=0.1, lookup_waits=(0,))
    base = f"{there.url}{path}"
    return Kling(api_base=base, api_key=KEY, signing_secrets=SECRET, receiver_url=running.url, retry=retry)


OPEN = "{url}/open.mp4"
GONE = {"videos": [{"id": "1", "url": "{url}/gone.mp4"}]}
VIDEO = {"id": "T", "object": "video", "status": "completed"}


@pytest.mark.parametrize(
    "record",
    [
        {"task_id": "T", "status": "completed", "url": OPEN, "format": "mp4", "metadata": {"duration": 5}},
        {"code": "success", "message": "", "data": {"task_id": "T", "status": "SUCCESS", "result_url": OPEN}},
        {**VIDEO, "metadata": {"url": OPEN}},
        {**VIDEO, "content": {"video_url": OPEN}},
        {**VIDEO, "video_url": "{url}/closed.mp4"},
        {**VIDEO, "metadata": {"url": f"{{url}}{CONTENT}"}},
        VIDEO,
    ],
    ids=["flat", "wrapped", "metadata", "content", "key", "address of its content", "no address"],
)
def test_a_relay_s_video_is_stored(start: Start, record: Any) -> None:
    """One question at the deadline, no callback: the file is stored, also where it needs the key."""
    with relay(CREATED, (200, record)) as there:
        running = begin(start, there)
        with client(running, there) as kling:
            task = kling.text_to_video("a kangaroo")
            result = task.wait(timeout=20)
            assert [video.read() for video in result.videos] == [MP4]
        queries = [visit for visit in there.visits if visit.method == "GET" and "text2video" in visit.path]
        assert len(queries) == 1
        assert KEY not in str(result.task)


def test_a_content_at_a_private_relay_needs_no_setting(start: Start) -> None:
    """The API base is the operator's own address, and no other path of it is requested."""
    with relay(CREATED, (200, VIDEO)) as there:
        running = begin(start, there, private_result_hosts=())
        with client(running, there) as kling:
            assert len(kling.text_to_video("x").wait(timeout=20).videos) == 1
        assert there.visits[-1].path == CONTENT


def test_a_queued_task_is_asked_about_again(start: Start) -> None:
    """With the usual waits, until it has ended."""
    with relay(CREATED, (200, {**VIDEO, "status": "queued"}), (200, VIDEO)) as there:
        running = begin(start, there)
        with client(running, there) as kling:
            assert len(kling.text_to_video("x").wait(timeout=20).videos) == 1


def test_a_failed_task_has_the_relay_s_reason(start: Start) -> None:
    """Wherever the relay put it, in the language in which it was given."""
    failed = {**VIDEO, "status": "failed", "error": {"message": "内容审核未通过"}}
    with relay(CREATED, (200, failed)) as there:
        running = begin(start, there)
        with client(running, there) as kling, pytest.raises(TaskFailed, match="内容审核未通过"):
            kling.text_to_video("x").wait(timeout=20)


def test_an_unknown_create_ends_with_the_words_of_the_relay(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """In the log, in the task's message, and in the final one; the create is sent once."""
    words = "Kling answered HTTP 502: 502 Bad Gateway."
    page = (502, b"<html><body>502 Bad Gateway</body></html>")
    with relay(page, UNKNOWN_TASK) as there, caplog.at_level(logging.WARNING):
        running = begin(start, there)
        with client(running, there) as kling:
            task = kling.text_to_video("x")
            assert task.status_msg == words
            with pytest.raises(TaskFailed) as failed:
                task.wait(timeout=20)
        assert len([visit for visit in there.visits if visit.method == "POST"]) == 1
    assert str(failed.value).endswith(f"Kling does not know this task: its create did not arrive. {words}")
    assert words in caplog.text


def test_the_host_alone_suggests_the_suffix(start: Start) -> None:
    """Its OpenAI routes do not know the path: nothing was taken, and the hint names the address to set."""
    with relay() as there:
        running = start(api_base=there.url)
        with client(running, there, "") as kling, pytest.raises(NotCreated) as refused:
            kling.text_to_video("x")
    assert refused.value.hint
    assert refused.value.hint.endswith(f"KLING_API_BASE={there.url}/kling")


def test_the_images_of_an_openai_endpoint_end_the_create(start: Start) -> None:
    """They may be paid, and no task of Kling's comes of them: an error at once, and one paid image; then the end."""
    with Sandbox(base_path="/kling") as gateway:
        host = gateway.url.removesuffix("/kling")
        running = start(api_base=host, overdue_seconds=DEADLINE)
        with Kling(api_base=host, api_key=KEY, signing_secrets=SECRET, receiver_url=running.url) as kling:
            with pytest.raises(CreateUnknown) as refused:
                kling.text_to_image("x", external_task_id="order-1")
            assert refused.value.code == "not_kling"
            assert f"KLING_API_BASE={gateway.url}" in str(refused.value)
            with pytest.raises(TaskFailed, match="did not reach Kling's API"):
                kling.text_to_image("x", external_task_id="order-1").wait(timeout=20)
        assert len(gateway.calls) == 1


@pytest.mark.parametrize("switches", [["no-url"], ["no-url", "wrap-twice"], ["no-url", "relay-flat"]])
def test_a_video_that_never_gets_an_address_is_the_relay_s_content(start: Start, switches: list[str]) -> None:
    """In a relay's own shape at once; in Kling's shape after some more questions, for the address may come late."""
    with Sandbox(base_path="/kling", misbehave=switches) as gateway:
        running = start(api_base=gateway.url, delays=QUICK)
        with Kling(api_base=gateway.url, api_key=KEY, signing_secrets=SECRET, receiver_url=running.url) as kling:
            result = kling.text_to_video("x").wait(timeout=20)
        assert [video.content_type for video in result.videos] == ["video/mp4"]
        asked = 1 if "relay-flat" in switches else 1 + MAX_UNDECIDED_RETRIES
        assert len(gateway.queries) == asked


NO_ADDRESS: Reply = (200, {"code": 0, "data": {"task_id": "another-id", "task_status": "succeed"}})


def test_fetch_downloads_the_relay_s_content_again(start: Start) -> None:
    """Which is found by the id that the relay gave the task, whatever id its report names; by one question."""
    with relay(CREATED, NO_ADDRESS) as there:
        running = begin(start, there, delays=QUICK)
        with client(running, there) as kling:
            task = kling.text_to_video("x")
            assert [video.read() for video in task.wait(timeout=20).videos] == [MP4]
        for path in running.settings.data_dir.rglob("*.mp4"):
            path.unlink()
        before = len(there.visits)
        fetched = httpx.post(f"{running.url}/api/tasks/{task.id}/fetch", headers=running.headers("admin"), timeout=20)
        assert (fetched.status_code, fetched.json()["kling"]) == (200, "succeed")
        eventually(lambda: show(running, task.id)["done"], running)
        assert [result["status"] for result in show(running, task.id)["results"]] == ["stored"]
        assert [visit.path for visit in there.visits[before:]] == ["/kling/v1/videos/text2video/T", CONTENT]


def test_a_file_whose_address_is_refused_is_the_relay_s_content(start: Start) -> None:
    """When the relay is asked for another address, and names none any more."""
    named = {"code": 0, "data": {"task_id": "T", "task_status": "succeed", "task_result": GONE}}
    with relay(CREATED, (200, named), NO_ADDRESS) as there:
        running = begin(start, there, delays=QUICK)
        with client(running, there) as kling:
            assert [video.read() for video in kling.text_to_video("x").wait(timeout=20).videos] == [MP4]


@pytest.mark.parametrize("switch", ["relay-flat", "relay-result-url", "relay-openai-video", "wrap-twice"])
@pytest.mark.parametrize("family", ["videos/text2video", "images/generations"])
def test_the_sandbox_as_a_relay(start: Start, switch: str, family: str) -> None:
    """Every dialect, with and without callbacks: the file has the kind of its family."""
    with Sandbox(base_path="/kling", misbehave=[switch]) as gateway:
        running = start(api_base=gateway.url, overdue_seconds=2)
        retry = RetryPolicy(lookup_waits=(0,))
        with Kling(
            api_base=gateway.url, api_key=KEY, signing_secrets=SECRET, receiver_url=running.url, retry=retry
        ) as kling:
            for prompt in ("x", "x [sandbox: no-callback]"):
                (file,) = kling.create(family, {"prompt": prompt}).wait(timeout=20).files
                assert file.kind == family.partition("s/")[0]
        assert len(gateway.queries) == 2
