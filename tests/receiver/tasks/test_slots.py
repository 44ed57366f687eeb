"""Slots: who holds them, what releases them, and which submissions get those that are free."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kling_callback.api.create import CreateOutcome
from kling_callback.protocol.reports import Report
from kling_receiver.policy import Policy, SlotLimits
from kling_receiver.store.database import Database
from kling_receiver.store.tables import SUBMISSION, TASK
from kling_receiver.tasks import creating, slots, startup, submission, transitions
from kling_receiver.tasks.registration import Registration
from kling_receiver.tasks.submission import SubmissionResult, build
from kling_sandbox import Sandbox
from kling_sandbox.receiver import API_KEY
from tests.support.database import FAMILY, Ledger, callback, statements
from tests.support.receiver import Start
from tests.support.submitting import QUICK_CREATES, cancel, finish, post, show, submit

FIVE = SlotLimits(5)


def put(ledger: Ledger, task_id: str, n: int = 1, *, priority: int = 0, model: str = "") -> SubmissionResult:
    """Submit an image task."""
    body = {"prompt": "x", "n": n, **({"model_name": model} if model else {})}
    made = build(FAMILY, body, limits=SlotLimits(), task_id=task_id, priority=priority)
    return ledger.change(lambda tx: submission.submit(tx, task_id, made))


def states(ledger: Ledger) -> dict[str, str]:
    """The state of each submission."""
    return {row["task_id"]: row["state"] for row in ledger.rows(SUBMISSION)}


def send(ledger: Ledger, task_id: str) -> None:
    """Do what the job of a create does when Kling accepts it."""

    def change(tx: Any) -> None:
        row = submission.SELECT.first(tx.connection, task_id=task_id)
        assert row is not None
        assert row["state"] == "claimed"
        creating.BEGIN.execute(tx.connection, task_id=task_id, attempt="a")
        tx.update_task(tx.require_task(task_id), slots=row["slots"])
        transitions.enqueue_deadline(tx, tx.require_task(task_id))

    ledger.change(change)
    created = CreateOutcome("created", kling_id=f"k-{task_id}")

    def settle(tx: Any) -> None:
        row = submission.SELECT.first(tx.connection, task_id=task_id)
        assert row
        creating._record(tx, tx.require_task(task_id), row, created)

    ledger.change(settle)


@pytest.fixture
def ledger(database: Database) -> Ledger:
    """A ledger of an account with five slots."""
    return Ledger(database, rules=Policy(slots=FIVE))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"n": 3}, 3),
        ({}, 1),
        ({"n": None}, 1),
        ({"n": "4"}, 4),
        ({"n": 2.0}, 2),
        ({"n": True}, 1),
        ({"n": -7}, 1),
        ({"result_type": "series", "series_amount": 4, "n": 2}, 4),
        ({"result_type": "series", "series_amount": "auto"}, slots.AUTO_SLOTS),
    ],
)
def test_an_image_task_holds_a_slot_for_each_image(body: Any, expected: int) -> None:
    """Every other task holds one."""
    assert slots.slots_of("images/omni-image", body) == expected
    assert slots.slots_of("videos/text2video", body) == slots.slots_of("/text-to-video/kling-3.0-turbo", body) == 1


def test_the_highest_priority_is_sent_first_then_first_in_first_out(ledger: Ledger) -> None:
    """Nothing overtakes a larger task that waits for the total, except what has a higher priority."""
    put(ledger, "first", 4)
    put(ledger, "large", 3)
    put(ledger, "small", 1)
    put(ledger, "urgent", 1, priority=2)
    assert states(ledger) == {"first": "claimed", "large": "queued", "small": "queued", "urgent": "claimed"}
    assert ledger.types("large") == ledger.types("small") == ["task.created", "task.queued"]
    assert ledger.types("urgent") == ["task.created"]
    assert sorted(key for key in ledger.jobs() if key.startswith("create/")) == ["create/first", "create/urgent"]
    send(ledger, "first")
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("first"), "over"))
    assert states(ledger) == {"large": "claimed", "small": "claimed", "urgent": "claimed"}


def test_a_model_at_its_limit_is_passed_over(database: Database) -> None:
    """Other models are sent meanwhile; within the model the order stays."""
    ledger = Ledger(database, rules=Policy(slots=SlotLimits(5, {"kling-v3": 2})))
    put(ledger, "a", 2, model="kling-v3")
    put(ledger, "b", 1, model="kling-v3")
    put(ledger, "c", 1, model="kling-v2")
    assert states(ledger) == {"a": "claimed", "b": "queued", "c": "claimed"}


ENDS: dict[str, Callable[[Ledger], None]] = {
    "by Kling": lambda ledger: ledger.apply_report("t", Report(kling_id="k-t", status="failed")),
    "success": lambda ledger: ledger.apply_report("t", Report(kling_id="k-t", status="succeed")),
    "deadline": lambda ledger: ledger.change(
        lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "Kling does not know this task.")
    ),
}


@pytest.mark.parametrize("how", ENDS)
def test_whatever_ends_a_task_releases_its_slots_in_that_transaction(ledger: Ledger, how: str) -> None:
    """Until then they are held, whatever else happens to the task."""
    put(ledger, "t", 5)
    put(ledger, "next", 2)
    send(ledger, "t")
    ledger.apply_report("t", Report(kling_id="k-t", status="processing"))
    assert (ledger.task()["slots"], states(ledger)) == (5, {"next": "queued"})
    ENDS[how](ledger)
    assert (ledger.task()["slots"], states(ledger)) == (0, {"next": "claimed"})
    assert ledger.jobs()["create/next"]["due_at"] == ledger.now


def test_a_task_that_kling_reopens_holds_its_slots_again(ledger: Ledger) -> None:
    """It had failed here, at its deadline, but goes on at Kling."""
    put(ledger, "t", 5)
    send(ledger, "t")
    ledger.change(lambda tx: transitions.fail_locally(tx, tx.require_task("t"), "over"))
    ledger.apply_report("t", Report(kling_id="k-t", status="processing"))
    assert ledger.task()["slots"] == 5
    put(ledger, "next")
    assert states(ledger) == {"next": "queued"}


def test_a_task_that_its_client_creates_holds_slots_too(database: Database) -> None:
    """While KLING_CONCURRENCY is set; a registration never waits."""
    for limits, held in ((FIVE, 3), (SlotLimits(), 0)):
        ledger = Ledger(database, rules=Policy(slots=limits))
        name = f"with {limits.total}"
        assert ledger.register(name, request={"n": 3}).may_create
        assert ledger.task(name)["slots"] == held
        ledger.register(name, outcome="not_created", reason="no")
        assert ledger.task(name)["slots"] == 0


def test_a_start_corrects_the_slots(database: Database) -> None:
    """KLING_CONCURRENCY was not set before: open tasks hold slots from now on, and too large a task fails."""
    before = Ledger(database, rules=Policy(slots=SlotLimits()))
    before.register("open", request={"n": 4})
    before.register("ended")
    before.register("ended", outcome="not_created", reason="no")
    ledger = Ledger(database, rules=Policy(slots=FIVE))
    put(ledger, "waits", 2)
    put(ledger, "first", 3)
    assert states(ledger) == {"waits": "claimed", "first": "claimed"}
    with database.write() as connection:
        connection.execute(SUBMISSION.update().values(state="queued"))
    less = Ledger(database, rules=Policy(slots=SlotLimits(2)))
    less.change(startup.correct_slots)
    assert [less.task(name)["slots"] for name in ("open", "ended")] == [4, 0]
    assert (states(less), less.task("first")["status"]) == ({"waits": "queued"}, "failed")
    assert "KLING_CONCURRENCY=2" in less.task("first")["status_msg"]
    unlimited = Ledger(database, rules=Policy(slots=SlotLimits()))
    unlimited.change(startup.correct_slots)
    assert (unlimited.task("open")["slots"], states(unlimited)) == (0, {"waits": "claimed"})
    assert unlimited.change(startup.repair) == 0


def test_a_start_shares_its_transaction_with_requests(database: Database) -> None:
    """What they submit, or end, holds no slots for it: nothing would ever release them."""
    ledger = Ledger(database, rules=Policy(slots=SlotLimits(1)))
    Ledger(database).register("ends")
    with ledger.transaction() as tx:
        for name in ("first", "second"):
            made = build(FAMILY, {"prompt": "x"}, limits=SlotLimits(), task_id=name)
            submission.submit(tx, name, made)
        transitions.fail_locally(tx, tx.require_task("ends"), "over")
        startup.correct_slots(tx)
    assert [ledger.task(name)["slots"] for name in ("first", "second", "ends")] == [0, 0, 0]
    assert states(ledger) == {"first": "claimed", "second": "queued"}
    with database.write() as connection:  # an earlier start did that
        connection.execute(TASK.update().where(TASK.c.id == "second").values(slots=1))
    ledger.change(startup.correct_slots)
    assert ledger.task("second")["slots"] == 0


def test_no_statement_is_added_to_callbacks_without_limits(database: Database) -> None:
    """Nor to the end of a task, while nothing was submitted here: no table of submissions is touched."""
    ledger = Ledger(database, rules=Policy())
    ledger.register()
    with statements(database) as seen:
        ledger.record(callback(status="processing"))
        ledger.apply_report("t", Report(kling_id="k-t", status="failed"))
    assert [each for each in seen if "submission" in each or "account" in each] == []
    assert ledger.task()["status"] == "failed"


def test_filling_slots_reads_little_however_long_the_queue_is(ledger: Ledger) -> None:
    """Three reads for each transaction in which tasks end."""
    for number in range(40):
        put(ledger, f"t{number}")
    for number in range(5):
        send(ledger, f"t{number}")
    with statements(ledger.database) as seen, ledger.transaction() as tx:
        for number in range(5):
            transitions.fail_locally(tx, tx.require_task(f"t{number}"), "over")
    reads = [
        each for each in seen if each.lstrip().startswith("SELECT") and ("submission" in each or "account" in each)
    ]
    assert len(reads) == 3
    assert sum(state == "claimed" for state in states(ledger).values()) == 5


def test_the_deadline_of_a_queued_task_begins_with_its_create(ledger: Ledger) -> None:
    """It may wait for days; a start does not find that a job is missing either."""
    put(ledger, "first", 5)
    put(ledger, "t")
    assert not [key for key in ledger.jobs() if key.startswith("overdue/")]
    assert ledger.change(startup.repair) == 0
    assert ledger.change(lambda tx: submission.waits(tx, tx.require_task("t")))
    send(ledger, "first")
    assert "overdue/first" in ledger.jobs()


@pytest.mark.parametrize("by", ["callback", "adoption"])
def test_a_task_that_kling_knows_is_not_sent(ledger: Ledger, by: str) -> None:
    """However it came there: it must not be paid for twice."""
    put(ledger, "first", 5)
    put(ledger, "t")
    if by == "callback":
        ledger.record(callback(status="processing"))
    else:
        ledger.apply_report("t", Report(kling_id="k", status="submitted"))
    assert submission.is_known(ledger.task())
    assert ledger.change(lambda tx: submission.cancel(tx, "t")) == "sent"


def test_a_client_cannot_take_over_the_create_of_a_submission(ledger: Ledger) -> None:
    """It may neither send it nor say that it failed, which would let it be sent again."""
    put(ledger, "t")
    token = ledger.task()["create_token"]
    for attempt in ("mine", ""):
        assert not ledger.register("t", create_token=attempt).may_create
        ledger.register("t", create_token=attempt, outcome="not_created", reason="no")
    assert (ledger.task()["outcome"], ledger.task()["create_token"]) == ("pending", token)
    with pytest.raises(ValueError, match="must not begin with"):
        Registration(family=FAMILY, create_token=token)


def test_a_full_gateway_never_receives_a_task_too_many(start: Start) -> None:
    """Five slots, and tasks of one to three images: none is refused, each is sent once."""
    with Sandbox(concurrency=5) as gateway:
        running = start(api_base=gateway.url, concurrency="5", delays=QUICK_CREATES)
        gateway.hold()
        ids = [submit(running, n=1 + number % 3) for number in range(12)]
        gateway.wait_for(lambda: len(gateway.tasks) >= 2)
        waiting = [show(running, task_id)["queue_position"] for task_id in ids]
        assert waiting[-3:] == [waiting[-1] - 2, waiting[-1] - 1, waiting[-1]]
        refused = post(running, {"prompt": "x", "n": 6})
        assert (refused.status_code, "6 slots" in refused.json()["error"]["message"]) == (422, True)
        cancelled = cancel(running, ids[-1])
        assert (cancelled.status_code, cancelled.json()["status_msg"]) == (200, submission.CANCELLED)
        assert cancel(running, ids[-1]).status_code == 200
        sent = cancel(running, ids[0])
        assert (sent.status_code, sent.json()["error"]["code"]) == (409, "already_sent")
        gateway.release()
        assert [finish(running, task_id)["status"] for task_id in ids[:-1]] == ["succeed"] * 11
        assert len(gateway.creates) == len(gateway.tasks) == 11
        assert gateway.external.keys() == set(ids[:-1])
        assert slots_held(running) == 0


def slots_held(running: Any) -> int:
    """The slots that the tasks of a receiver hold."""
    with running.receiver.store.database.read() as connection:
        return sum(int(row["slots"]) for row in slots.HELD.all(connection))


@pytest.mark.parametrize("concurrency", ["", "5"])
def test_other_programs_hold_slots_of_the_account(start: Start, concurrency: str) -> None:
    """1303 says so: the create waits until a task ends, and is paid once."""
    with Sandbox(concurrency=3) as gateway:
        running = start(api_base=gateway.url, concurrency=concurrency, delays=QUICK_CREATES)
        gateway.hold()
        headers = {"Authorization": f"Bearer {API_KEY}"}
        url = f"{gateway.url}/v1/images/generations"
        httpx.post(url, json={"prompt": "foreign", "n": 2}, headers=headers, trust_env=False).raise_for_status()
        ids = [submit(running) for _ in range(4)]
        gateway.wait_for(lambda: len(gateway.creates) >= 3)
        gateway.release()
        assert [finish(running, task_id)["status"] for task_id in ids] == ["succeed"] * 4
        assert len(gateway.tasks) == 5
        assert len(gateway.creates) <= 5 + 5  # at most one refusal for each end


def test_a_create_without_a_free_slot_is_sent_when_the_account_has_one(start: Start, database_url: str) -> None:
    """No task of ours will end: it is sent again after a wait."""
    with Sandbox(concurrency=1) as gateway:
        running = start(api_base=gateway.url, database_url=database_url, delays=QUICK_CREATES)
        gateway.hold()
        headers = {"Authorization": f"Bearer {API_KEY}"}
        url = f"{gateway.url}/v1/images/generations"
        httpx.post(url, json={"prompt": "foreign"}, headers=headers, trust_env=False).raise_for_status()
        task_id = submit(running)
        gateway.wait_for(lambda: len(gateway.creates) >= 3)
        gateway.release()
        assert finish(running, task_id)["status"] == "succeed"
        assert len(gateway.tasks) == 2
