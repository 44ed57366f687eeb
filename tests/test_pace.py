"""How fast events go to one hook: turns, and how they end."""

import asyncio

import pytest

from kling_receiver.hooks.limiter import PROBE, STREAK, Pace

pytestmark = pytest.mark.anyio


async def waiting(pace: Pace, count: int) -> list[asyncio.Task[object]]:
    """So many who wait for a turn."""
    tasks: list[asyncio.Task[object]] = [asyncio.create_task(pace.turn()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def test_turns_are_given_in_order() -> None:
    """As many at once as may be; whoever waits longest is next."""
    pace = Pace(2, None)
    first, second = await pace.turn(), await pace.turn()
    one, two = await waiting(pace, 2)
    first.leave()
    await asyncio.wait_for(one, 5)
    assert not two.done()
    second.leave()
    await asyncio.wait_for(two, 5)


async def test_those_who_give_up_together_leave_no_trace() -> None:
    """Also when the turn ends in the same moment."""
    pace = Pace(1, None)
    turn = await pace.turn()
    tasks = await waiting(pace, 4)
    for each in tasks:
        each.cancel()
    turn.leave()
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in ended} == {asyncio.CancelledError}
    await asyncio.wait_for(pace.turn(), 5)


async def test_a_turn_that_came_too_late_goes_to_the_next() -> None:
    """It was given in the moment in which its holder gave up."""
    pace = Pace(1, None)
    turn = await pace.turn()
    one, two = await waiting(pace, 2)
    turn.leave()
    one.cancel()
    await asyncio.wait_for(two, 5)
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_a_dead_hook_is_given_one_turn_at_a_time() -> None:
    """After a streak of failures, until it takes something."""
    pace = Pace(3, None)
    for _ in range(STREAK):
        assert not pace.is_dead
        pace.note(False)
    assert pace.is_dead
    turn = await pace.turn()
    one, two = await waiting(pace, 2)
    assert not one.done()
    assert not two.done()
    pace.note(True)
    assert not pace.is_dead
    turn.leave()
    await asyncio.wait_for(asyncio.gather(one, two), 5)


async def test_it_is_left_alone_ever_longer() -> None:
    """Up to a limit; from the beginning after something was taken."""
    pace = Pace(1, None)
    assert [pace.put_off() for _ in range(len(PROBE) + 1)] == [*PROBE, PROBE[-1]]
    pace.note(True)
    assert pace.put_off() == PROBE[0]


async def test_it_is_left_alone_for_as_long_as_it_asks() -> None:
    """By `Retry-After`, an hour at most."""
    pace = Pace(1, None)
    assert pace.held == 0
    pace.note(False, retry_after=120)
    assert 100 < pace.held <= 120
    assert pace.put_off() > 100
    pace.note(False, retry_after=1e9)
    assert 3500 < pace.held <= 3600


async def test_gone_is_dead_at_once() -> None:
    """It wants nothing any more."""
    pace = Pace(1, None)
    pace.note(False, gone=True)
    assert pace.is_dead
