"""How fast events go to one hook: turns, and how they end."""

import asyncio

import pytest

from kling_receiver.hooks.limiter import FAILURE_THRESHOLD, PROBE_DELAYS, HookLimiter

pytestmark = pytest.mark.anyio


async def waiting(pace: HookLimiter, count: int) -> list[asyncio.Task[object]]:
    """So many who wait for a turn."""
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pace.acquire()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_turns_are_given_in_order() -> None:
    """As many at once as may be; whoever waits longest is next."""
    pace = HookLimiter(2, None)
    first, second = await pace.acquire(), await pace.acquire()
    one, two = await waiting(pace, 2)
    first.release()
    await asyncio.wait_for(one, 5)
    assert not two.done()
    second.release()
    await asyncio.wait_for(two, 5)


async def test_those_who_give_up_together_leave_no_trace() -> None:
    """Also when the turn ends in the same moment."""
    pace = HookLimiter(1, None)
    turn = await pace.acquire()
    tasks = await waiting(pace, 4)
    for each in tasks:
        each.cancel()
    turn.release()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}
    await asyncio.wait_for(pace.acquire(), 5)


async def test_a_turn_that_came_too_late_goes_to_the_next() -> None:
    """It was given in the moment in which its holder gave up."""
    pace = HookLimiter(1, None)
    turn = await pace.acquire()
    one, two = await waiting(pace, 2)
    turn.release()
    one.cancel()
    await asyncio.wait_for(two, 5)
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_a_dead_hook_is_given_one_turn_at_a_time() -> None:
    """After a streak of failures, until it takes something."""
    pace = HookLimiter(3, None)
    for _ in range(FAILURE_THRESHOLD):
        assert not pace.is_open
        pace.record(False)
    assert pace.is_open
    turn = await pace.acquire()
    one, two = await waiting(pace, 2)
    assert not one.done()
    assert not two.done()
    pace.record(True)
    assert not pace.is_open
    turn.release()
    await asyncio.wait_for(asyncio.gather(one, two), 5)


async def test_it_is_left_alone_ever_longer() -> None:
    """Up to a limit; from the beginning after something was taken."""
    pace = HookLimiter(1, None)
    assert [pace.next_probe_delay() for _ in range(len(PROBE_DELAYS) + 1)] == [*PROBE_DELAYS, PROBE_DELAYS[-1]]
    pace.record(True)
    assert pace.next_probe_delay() == PROBE_DELAYS[0]


async def test_it_is_left_alone_for_as_long_as_it_asks() -> None:
    """By `Retry-After`, an hour at most."""
    pace = HookLimiter(1, None)
    assert pace.retry_after == 0
    pace.record(False, retry_after=120)
    assert 100 < pace.retry_after <= 120
    assert pace.next_probe_delay() > 100
    pace.record(False, retry_after=1e9)
    assert 3500 < pace.retry_after <= 3600


async def test_gone_is_dead_at_once() -> None:
    """It wants nothing any more."""
    pace = HookLimiter(1, None)
    pace.record(False, gone=True)
    assert pace.is_open
