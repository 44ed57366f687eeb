"""Overdue tasks: queried at their deadline, with doubling waits, and failed in the end."""

import pytest

from kling_callback.protocol.ids import new_id
from kling_receiver.jobs.queue import ClaimedJob, Done, Outcome, RetryAt
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import transitions
from kling_receiver.tasks.overdue import MAX_QUERIES, MAX_QUERIES_UNKNOWN, OverdueTasks
from kling_receiver.tasks.registration import Registration, register
from kling_sandbox import Sandbox
from tests.receiver.results.test_download import Parts, made, parts  # noqa: F401  # a fixture
from tests.support.receiver import Start
from tools.harness.submitting import IMAGES, create, events, eventually, finished, post, show, submit, types
from tools.harness.submitting import register as put

OVERDUE = 0.5


def test_a_task_without_callbacks_is_found_at_its_deadline(start: Start, gateway: Sandbox) -> None:
    """One question finds the end and the files."""
    running = start(api_base=gateway.url, overdue_seconds=OVERDUE)
    task, theirs = submit(running, gateway, "no-callback")
    happened = events(running, task)
    named = [name for name in types(happened) if name != "callback.received"]
    assert named == [
        *("task.created", "task.submitted", "task.overdue", "task.succeed", "task.recovered"),
        *("result.stored", "task.done"),
    ]
    recovered = next(event for event in happened if event["type"] == "task.recovered")
    assert recovered["data"] == {"by": "deadline"}
    assert gateway.tasks[theirs].queries == 1


def test_a_task_that_ended_in_time_is_not_queried_at_its_deadline(start: Start, gateway: Sandbox) -> None:
    """Its deadline is cancelled: a later task's deadline passes, and the first one was queried once."""
    running = start(api_base=gateway.url, overdue_seconds=OVERDUE)
    task, theirs = submit(running, gateway)
    finished(running, task)
    late, _ = submit(running, gateway, "no-callback")
    assert "task.overdue" in types(events(running, late))
    assert gateway.tasks[theirs].queries == 1
    assert "task.overdue" not in types(events(running, task, "never"))


def test_a_task_that_kling_does_not_know_fails(start: Start, gateway: Sandbox) -> None:
    """After some queries, locally; if a callback arrives after all, Kling is queried, and its status is applied."""
    running = start(api_base=gateway.url, overdue_seconds=0.1)
    task = new_id()
    put(running, task)
    ended = finished(running, task)
    assert (ended["status"], ended["origin"]) == ("failed", "local")
    assert "does not know this task" in ended["status_msg"]
    assert len(gateway.queries) == MAX_QUERIES_UNKNOWN
    create(running, gateway, task)
    eventually(lambda: (now := show(running, task))["done"] and now["origin"] == "kling", running)
    assert show(running, task)["status"] == "succeed"


def test_a_local_failure_is_not_replaced_by_a_callback_alone(start: Start, gateway: Sandbox) -> None:
    """A forged callback of a finished task causes a query, and nothing else."""
    running = start(api_base=gateway.url)
    task = new_id()
    put(running, task)
    put(running, task, outcome="not_created", reason="refused")
    post(running, task, {"task_status": "succeed"})
    gateway.wait_for(lambda: gateway.queries)
    shown = show(running, task)
    assert (shown["status"], shown["origin"], shown["status_msg"]) == ("failed", "local", "refused")


async def look(parts: Parts, task: str, attempts: int = 1) -> Outcome:  # noqa: F811
    """What one look comes to; the next one knows what this one left it."""
    return await parts.do(OverdueTasks(parts.asker, parts.reader).check, task, attempts)


async def known(parts: Parts, theirs: str | None) -> str:  # noqa: F811
    """A task that was created, or may have been."""
    task = new_id()
    given = Registration(family=IMAGES, create_token="one", outcome="created" if theirs else "unknown", kling_id=theirs)
    await parts.writer.run(lambda tx: register(tx, task, given))
    return task


@pytest.mark.anyio
async def test_the_waits_double_from_the_length_of_the_deadline(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """A task that Kling still processes is queried a few times, then failed; Kling's status reopens it."""
    gateway.hold()
    theirs = made(gateway)
    task = await known(parts, theirs)
    waits = []
    for _ in range(1, MAX_QUERIES):
        outcome = await look(parts, task)
        assert isinstance(outcome, RetryAt)
        row = await parts.reader.task(task)
        assert row
        waits.append(round((outcome.due_at - row["created_at"]) / 180_000))
    assert waits == [1, 2, 4, 8, 16]
    assert isinstance(await look(parts, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["done"]) == ("failed", "local", True)
    assert "Kling was queried 6 times" in row["status_msg"]
    assert (await parts.types(task)).count("task.overdue") == 1
    gateway.release()
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    assert isinstance(await parts.do(parts.asker.reconcile, task), Done)
    revived = await parts.reader.task(task)
    assert revived
    assert (revived["status"], revived["origin"]) == ("succeed", "kling")


@pytest.mark.anyio
async def test_a_query_without_an_answer_is_retried(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """Only after the last query the task fails, with the error."""
    task = await known(parts, made(gateway, "query-5xx"))
    for _ in range(1, MAX_QUERIES):
        assert isinstance(await look(parts, task), RetryAt)
    assert isinstance(await look(parts, task), Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"]) == ("failed", "local")
    assert "5001" in row["status_msg"]


BAD_GATEWAY = "Kling answered HTTP 502: 502 Bad Gateway."


@pytest.mark.anyio
@pytest.mark.parametrize(("switch", "queries"), [("", MAX_QUERIES_UNKNOWN), ("query-5xx", MAX_QUERIES)])
async def test_the_last_message_has_the_words_of_an_unknown_create(
    parts: Parts,  # noqa: F811
    gateway: Sandbox,
    switch: str,
    queries: int,
) -> None:
    """Whoever looks for the reason reads what was answered to the create."""
    task = new_id()
    if switch:
        made(gateway, switch, external_task_id=task)
    before = Registration(family=IMAGES, create_token="one")
    after = Registration(family=IMAGES, create_token="one", outcome="unknown", reason=BAD_GATEWAY)
    await parts.writer.run(lambda tx: register(tx, task, before))
    await parts.writer.run(lambda tx: register(tx, task, after))
    for _ in range(queries):
        await look(parts, task)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"]) == ("failed", "local")
    assert row["status_msg"].endswith(BAD_GATEWAY)
    assert ("does not know" in row["status_msg"]) == (not switch)


@pytest.mark.anyio
async def test_an_interrupted_query_is_not_counted(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """However often the process was stopped, all queries are made, and there is one event."""
    task = await known(parts, made(gateway, "query-5xx"))
    for _ in range(1, MAX_QUERIES):
        assert isinstance(await look(parts, task, attempts=99), RetryAt)
    assert (await parts.types(task)).count("task.overdue") == 1


@pytest.mark.anyio
async def test_after_the_last_query_a_callbacks_status_is_accepted(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """Kling never answered: the callback's status is better than a local one."""
    task = await parts.hinted(made(gateway, "query-5xx"))
    for _ in range(MAX_QUERIES):
        outcome = await look(parts, task)
    assert isinstance(outcome, Done)
    row = await parts.reader.task(task)
    assert row
    assert (row["status"], row["origin"], row["done"]) == ("succeed", "callback", True)
    assert (await parts.types(task))[-3:] == ["task.succeed", "result.failed", "task.done"]


@pytest.mark.anyio
async def test_a_success_without_files_is_queried(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """`succeed` and no address yet: a query is enqueued."""
    theirs = made(gateway)
    gateway.wait_for(lambda: gateway.tasks[theirs].finished_at)
    gateway.tasks[theirs].body["n"] = 0
    task = await known(parts, theirs)
    assert isinstance(await look(parts, task), Done)
    with parts.database.read() as connection:
        keys = [row.unique_key for row in connection.exec_driver_sql("SELECT unique_key FROM job")]
    assert f"ask/{task}" in keys


@pytest.mark.anyio
async def test_an_ended_or_missing_task_is_not_checked(parts: Parts) -> None:  # noqa: F811
    """The job is done."""
    ended = await parts.succeeded()
    for task in (ended, new_id()):
        assert isinstance(await look(parts, task), Done)


@pytest.mark.anyio
async def test_a_final_status_during_the_query_stands(parts: Parts, gateway: Sandbox) -> None:  # noqa: F811
    """The callback was faster: the check changes nothing, and adds no overdue event."""
    theirs = made(gateway)
    task = await known(parts, theirs)
    decide = await OverdueTasks(parts.asker, parts.reader).check(
        ClaimedJob(1, "overdue", "overdue", "kling", task, "overdue", None, 1, "claim")
    )
    await parts.writer.run(lambda tx: _end(tx, task))
    assert isinstance(await parts.writer.run(lambda tx: decide(tx)), Done)
    assert "task.overdue" not in await parts.types(task)


def _end(tx: Transaction, task: str) -> None:
    transitions.fail_locally(tx, tx.require_task(task), "meanwhile")
