"""One intent, one paid task: whatever the outcome of a create, none is sent again, and each task reaches an end."""

import asyncio

import pytest

from kling_callback import AsyncKling, NotCreated, RetryPolicy, TaskFailed
from kling_callback.protocol.ids import new_id
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Running, Start
from tools.harness.submitting import events, types

pytestmark = pytest.mark.anyio

BRIEF = RetryPolicy(initial_wait=0.05, max_wait=0.2, lookup_waits=(0.05, 0.1), create_seconds=1)


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver with short deadlines whose Kling is the sandbox."""
    return start(api_base=gateway.url, overdue_seconds=0.5)


def open_client(running: Running, gateway: Sandbox) -> AsyncKling:
    """A client with few and short queries."""
    return AsyncKling(
        api_base=gateway.url, api_key=KEY, signing_secrets=[SECRET], receiver_url=running.url, retry=BRIEF
    )


UNKNOWN = ["drop-after-create", "create-5002", "create-504", "create-garbage"]


@pytest.mark.parametrize("answer", UNKNOWN)
@pytest.mark.parametrize("more", ["", "drop-external-id", "no-callback", "relay-id", "no-callback,query-5xx-once"])
async def test_a_create_without_a_usable_answer_is_paid_once_and_found(
    running: Running, gateway: Sandbox, answer: str, more: str
) -> None:
    """By our id, by its callback, or at its deadline: one task, with its file."""
    async with open_client(running, gateway) as kling:
        task = await kling.text_to_image(f"a kangaroo [sandbox: {answer},{more}]".replace(",]", "]"))
        result = await task.wait(30)
    assert len(result.images) == 1
    assert len(gateway.creates) == len(gateway.tasks) == 1


@pytest.mark.parametrize("answer", UNKNOWN)
async def test_a_create_without_any_report_fails_at_its_deadline(
    running: Running, gateway: Sandbox, answer: str
) -> None:
    """No answer, no callback, an id that the gateway does not know: the task fails after its deadlines."""
    async with open_client(running, gateway) as kling:
        task = await kling.text_to_image(f"x [sandbox: {answer},drop-external-id,no-callback]")
        assert task.outcome == "unknown"
        with pytest.raises(TaskFailed, match="does not know this task"):
            await task.wait(30)
    assert len(gateway.creates) == len(gateway.tasks) == 1


@pytest.mark.parametrize("answer", UNKNOWN)
async def test_the_same_intent_again_is_not_paid_again(running: Running, gateway: Sandbox, answer: str) -> None:
    """A restarted program submits with the same id again, and continues the task."""
    own, prompt = new_id(), f"x [sandbox: {answer},drop-external-id]"
    for _ in range(2):
        async with open_client(running, gateway) as kling:
            task = await kling.text_to_image(prompt, external_task_id=own)
            assert task.id == own
    assert types(events(running, own))[-1] == "task.done"
    assert len(gateway.creates) == len(gateway.tasks) == 1


async def test_many_clients_of_one_intent_pay_once(running: Running, gateway: Sandbox) -> None:
    """At the same moment, from several programs."""
    own = new_id()

    async def one() -> str:
        async with open_client(running, gateway) as kling:
            return (await kling.text_to_image("x", external_task_id=own)).id

    assert await asyncio.gather(*(one() for _ in range(6))) == [own] * 6
    assert len(gateway.creates) == len(gateway.tasks) == 1


@pytest.mark.parametrize("switch", ["arrears", "not-allowed", "full", "busy"])
async def test_a_create_that_was_not_taken_fails_on_both_sides(running: Running, gateway: Sandbox, switch: str) -> None:
    """No task at the gateway, an error with its outcome, and a failed task at the receiver."""
    own = new_id()
    async with open_client(running, gateway) as kling:
        with pytest.raises(NotCreated) as raised:
            await kling.text_to_image(f"x [sandbox: {switch}]", external_task_id=own)
    assert raised.value.outcome == "not_created"
    ended = events(running, own)[-1]["task"]
    assert (ended["status"], ended["origin"]) == ("failed", "local")
    assert gateway.tasks == {}


async def test_a_create_that_was_lost_in_transit_fails(running: Running, gateway: Sandbox) -> None:
    """Its outcome is unknown, until Kling does not know it at its deadlines."""
    async with open_client(running, gateway) as kling:
        task = await kling.text_to_image("x [sandbox: drop-before-create]")
        assert task.outcome == "unknown"
        with pytest.raises(TaskFailed, match="does not know this task"):
            await task.wait(30)
    assert len(gateway.creates) == 1
