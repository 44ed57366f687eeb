"""Creates that the receiver sends: their outcomes, what is sent again, and what never is."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kling_callback.api.auth import BearerAuth
from kling_callback.api.kling import KlingApi
from kling_receiver.jobs.kinds import Kind, create_key
from kling_receiver.jobs.queue import ClaimedJob, Done, RetryAt
from kling_receiver.policy import SlotLimits
from kling_receiver.store.database import Database
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.reader import Reader
from kling_receiver.store.tables import SUBMISSION
from kling_receiver.tasks import creating, slots, submission
from kling_receiver.tasks.creating import Creator
from kling_receiver.tasks.submission import build
from kling_sandbox import Sandbox
from tests.support.database import METRICS, Ledger
from tests.support.receiver import KEY, Running, Start
from tests.support.submitting import IMAGES, QUICK_CREATES, events, finish, post, show, submit
from tests.support.web import Visit, host


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver that sends creates to the sandbox."""
    return start(api_base=gateway.url, delays=QUICK_CREATES)


def rows(running: Running) -> list[dict[str, object]]:
    """The submissions that the database has."""
    with running.receiver.store.database.read() as connection:
        return [dict(row._mapping) for row in connection.execute(SUBMISSION.select())]


def test_a_submission_is_answered_at_once_and_sent(running: Running, gateway: Sandbox) -> None:
    """Kling gets our id and a signed callback address; the body is deleted once it is sent."""
    response = post(running, {"prompt": "a kangaroo", "n": 2}, tags=["red"], external_task_id="mine")
    assert response.status_code == 201
    assert (response.json()["id"], response.json()["tags"], response.json()["status"]) == ("mine", ["red"], "created")
    types = events(running, "mine")
    assert types[0] == "task.created"
    assert [type_ for type_ in types if type_ in ("task.queued", "task.submitted", "task.done")] == [
        "task.submitted",
        "task.done",
    ]
    task = show(running, "mine")
    assert (task["status"], len(task["results"]), task["request"]) == ("succeed", 2, {"prompt": "a kangaroo", "n": 2})
    (create,) = gateway.creates
    assert create["external_task_id"] == "mine"
    assert create["callback_url"].startswith(f"{running.url}/callbacks/")
    assert rows(running) == []


@pytest.mark.parametrize("how", ["drop-after-create", "create-5002", "create-502", "create-504", "create-garbage"])
def test_an_unknown_outcome_is_looked_up_and_never_sent_again(running: Running, gateway: Sandbox, how: str) -> None:
    """Kling took it: the task is found by our id, and succeeds."""
    assert finish(running, submit(running, f"[sandbox: {how}]"))["status"] == "succeed"
    assert len(gateway.creates) == 1
    assert rows(running) == []


def test_a_create_that_kling_refuses_fails_the_task_with_its_words(running: Running, gateway: Sandbox) -> None:
    """Nothing was paid; the same id may be submitted again, with other parameters."""
    response = post(running, {"prompt": "[sandbox: nonsense]"}, external_task_id="mine", key="first")
    assert response.status_code == 201
    task = finish(running, "mine")
    assert (task["status"], task["origin"]) == ("failed", "local")
    assert "1201" in task["status_msg"]
    again = post(running, {"prompt": "[sandbox: nonsense]"}, external_task_id="mine", key="first")
    assert (again.status_code, again.json()["status"]) == (200, "failed")  # a repeat of the same request
    assert len(gateway.creates) == 1
    assert post(running, {"prompt": "y"}, external_task_id="mine", key="second").status_code == 201
    gateway.wait_for(lambda: gateway.tasks)
    assert len(gateway.creates) == 2


def test_a_repeat_is_the_same_task(running: Running, gateway: Sandbox) -> None:
    """By its external_task_id or its Idempotency-Key; with other parameters it is refused."""
    by_id = [post(running, external_task_id="mine").json()["id"] for _ in range(3)]
    by_key = [post(running, key="the key").json()["id"] for _ in range(3)]
    assert len(set(by_id)) == len(set(by_key)) == 1
    for fields in ({"external_task_id": "mine"}, {"key": "the key"}):
        response = post(running, {"prompt": "another"}, **fields)
        assert (response.status_code, response.json()["error"]["code"]) == (409, "conflict")
    for task_id in (by_id[0], by_key[0]):
        assert finish(running, task_id)["status"] == "succeed"
    assert len(gateway.creates) == 2


def test_a_create_that_comes_too_early_is_sent_again(running: Running, gateway: Sandbox) -> None:
    """1302 says that it was not accepted."""
    assert finish(running, submit(running, "[sandbox: busy-once]"))["status"] == "succeed"
    assert (len(gateway.creates), len(gateway.tasks)) == (2, 1)


def test_a_create_waits_for_a_gateway_that_is_not_reachable(start: Start, gateway: Sandbox) -> None:
    """Nothing is lost while there is no connection."""
    stopped = Sandbox(port=0)
    with stopped:
        pass
    running = start(api_base=stopped.url, delays=QUICK_CREATES)
    task_id = submit(running)
    with Sandbox(port=stopped.port) as again:
        assert finish(running, task_id)["status"] == "succeed"
        assert len(again.creates) == 1


def test_a_create_that_is_interrupted_is_never_sent_again(start: Start) -> None:
    """As at the end of the time that a stopping receiver gives it: the task is looked up, and found."""
    answers, sent = threading.Event(), threading.Event()

    def respond(visit: Visit) -> None:
        url = f"{gateway.url}{visit.path}"
        headers = {"Authorization": visit.headers["Authorization"]}
        response = httpx.request(visit.method, url, content=visit.body, headers=headers, trust_env=False)
        if visit.method == "POST":
            sent.set()
            answers.wait(20)
        visit.answer(response.status_code, response.content)

    with Sandbox() as gateway, host(respond) as slow:
        running = start(api_base=slow.url, delays=QUICK_CREATES)
        task_id = submit(running)
        assert sent.wait(10)
        jobs = running.receiver.work.worker._running
        (create,) = (task for task, job in list(jobs.items()) if job.kind == Kind.CREATE)
        create.get_loop().call_soon_threadsafe(create.cancel)
        assert finish(running, task_id)["status"] == "succeed"
        answers.set()
        assert len(gateway.creates) == 1
        assert rows(running) == []


class LosingWriter:
    """A writer whose first commit succeeds, but is reported as failed."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger, self.loses = ledger, True

    async def run(self, change: Any, **options: Any) -> Any:
        """Commit a change."""
        result = self.ledger.change(change)
        if self.loses:
            self.loses = False
            raise Unavailable("The database does not answer.")
        return result


def test_an_outage_before_the_first_byte_costs_no_task(any_database: Database, gateway: Sandbox) -> None:
    """The process knows that it did not send the create, although it may be recorded so; another process does not."""
    ledger = Ledger(any_database)
    for task_id in ("t", "other"):
        made = build(IMAGES, {"prompt": "x"}, limits=SlotLimits(), task_id=task_id)
        with ledger.transaction() as tx:
            submission.submit(tx, task_id, made)

    async def create_twice(task_id: str, *, restarted: bool) -> None:
        async with httpx.AsyncClient(trust_env=False) as http:
            kling_api = KlingApi(gateway.url, BearerAuth(KEY), http)
            reader = Reader(any_database)
            writer: Any = LosingWriter(ledger)
            creators = [
                Creator(kling_api, reader, writer, METRICS, callback_url=lambda task, family: "https://r.test/c")
                for _ in range(2)
            ]
            job = ClaimedJob(1, create_key(task_id), Kind.CREATE, "creates", task_id, "", None, 1, "c")
            with pytest.raises(Unavailable):
                await creators[0].create(job)
            effect = await creators[restarted].create(job)
            ledger.change(effect)
            await reader.close()

    asyncio.run(create_twice("t", restarted=False))
    asyncio.run(create_twice("other", restarted=True))
    assert [create["external_task_id"] for create in gateway.creates] == ["t"]
    assert (ledger.task()["outcome"], ledger.task("other")["outcome"]) == ("created", "unknown")


@pytest.fixture
def creator(any_database: Database, gateway: Sandbox) -> tuple[Ledger, Callable[[str, Any], Any]]:
    """A ledger with a claimed submission `t`, and a function that runs its job until its effect is to be applied."""
    ledger = Ledger(any_database)

    class HereWriter:
        async def run(self, change: Any, **options: Any) -> Any:
            return ledger.change(change)

    def run(task_id: str, before_begin: Callable[[], None] = lambda: None) -> Any:
        def address(task_id: str, family: str) -> str:  # made between the two steps
            before_begin()
            return "https://receiver.test/callbacks/c"

        async def create() -> Any:
            async with httpx.AsyncClient(trust_env=False) as http:
                kling_api, writer, reader = (
                    KlingApi(gateway.url, BearerAuth(KEY), http),
                    HereWriter(),
                    Reader(any_database),
                )
                creator = Creator(kling_api, reader, writer, METRICS, callback_url=address)  # type: ignore[arg-type]
                effect = await creator.create(job_of(task_id))
                await reader.close()
                return effect

        return asyncio.run(create())

    return ledger, run


def job_of(task_id: str) -> ClaimedJob:
    """A claimed create job."""
    return ClaimedJob(1, create_key(task_id), Kind.CREATE, "creates", task_id, "", None, 1, "c")


def put(ledger: Ledger, task_id: str, prompt: str = "x") -> None:
    """Submit a task."""
    made = build(IMAGES, {"prompt": prompt}, limits=SlotLimits(), task_id=task_id)
    ledger.change(lambda tx: submission.submit(tx, task_id, made))


def test_submissions_that_wait_again_get_the_slots_that_are_free_then(
    creator: tuple[Ledger, Callable[..., Any]], gateway: Sandbox
) -> None:
    """Two creates are queued again at once, each because of the other: one of them is sent."""
    ledger, run = creator
    put(ledger, "a")
    put(ledger, "b")
    ledger.change(lambda tx: slots.update_account(tx, {**slots.lock_account(tx), "slot_ceiling": 1}))
    effects = [run("a"), run("b")]
    assert [ledger.change(effect) for effect in effects] == [Done(), Done()]
    assert {row["task_id"]: row["state"] for row in ledger.rows(SUBMISSION)} == {"a": "claimed", "b": "queued"}
    assert gateway.creates == []


@pytest.mark.parametrize("when", ["before the send", "before the job ends"])
def test_a_task_that_is_cancelled_and_submitted_again_is_sent_as_it_is_then(
    creator: tuple[Ledger, Callable[..., Any]], gateway: Sandbox, when: str
) -> None:
    """The job of the first submission, which runs meanwhile, neither sends its body nor ends without the second."""
    ledger, run = creator
    put(ledger, "t", "old")

    def again() -> None:
        if ledger.rows(SUBMISSION, task_id="t"):
            ledger.change(lambda tx: submission.cancel(tx, "t"))
        put(ledger, "t", "new")

    if when == "before the send":
        effect = run("t", again)
    else:
        ledger.change(lambda tx: submission.cancel(tx, "t"))
        effect = run("t")
        again()
    assert isinstance(ledger.change(effect), RetryAt)
    assert isinstance(ledger.change(run("t")), Done)
    assert [create["prompt"] for create in gateway.creates] == ["new"]


def test_a_restored_queue_makes_no_second_task(creator: tuple[Ledger, Callable[..., Any]], gateway: Sandbox) -> None:
    """A create that was sent since the backup is sent again: Kling knows its id, and the first task is found."""
    ledger, run = creator
    put(ledger, "t")
    run("t")  # what it leads to is not in the backup
    ledger.change(lambda tx: creating.PUT_BACK.execute(tx.connection, task_id="t", state="claimed"))
    assert ledger.change(run("t")) == Done()
    (kling_id,) = gateway.tasks
    assert (ledger.task()["outcome"], ledger.task()["kling_id"]) == ("created", kling_id)
    assert (len(gateway.creates), ledger.rows(SUBMISSION)) == (2, [])
