"""The limits of one hook: concurrency in order, the circuit breaker, probes and Retry-After."""

import asyncio

import pytest

from kling_receiver.hooks.limiter import FAILURE_THRESHOLD, PROBE_DELAYS, HookLimiter, Slot

pytestmark = pytest.mark.anyio


async def waiting(limiter: HookLimiter, count: int) -> list[asyncio.Task[Slot]]:
    """Attempts that wait for a slot."""
    tasks = [asyncio.create_task(limiter.acquire()) for _ in range(count)]
    await asyncio.sleep(0)
    return tasks


async def settled() -> None:
    """Let every task run that can."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_slots_are_granted_in_order() -> None:
    """As many at once as the limit; the attempt that waits longest is next."""
    limiter = HookLimiter(2, None)
    first, second = await limiter.acquire(), await limiter.acquire()
    one, two = await waiting(limiter, 2)
    first.release()
    await asyncio.wait_for(one, 5)
    assert not two.done()
    second.release()
    await asyncio.wait_for(two, 5)


async def test_a_new_attempt_never_overtakes_a_waiting_one() -> None:
    """Also in the moment between the release of a slot and the next attempt's turn in the event loop."""
    limiter = HookLimiter(1, None)
    slot = await limiter.acquire()
    [waiter] = await waiting(limiter, 1)
    slot.release()
    late = asyncio.create_task(limiter.acquire())
    slot = await asyncio.wait_for(waiter, 5)
    await settled()
    assert not late.done()
    slot.release()
    await asyncio.wait_for(late, 5)


async def test_attempts_that_are_cancelled_together_hold_no_slot() -> None:
    """Also if the slot is released in the same moment."""
    limiter = HookLimiter(1, None)
    slot = await limiter.acquire()
    tasks = await waiting(limiter, 4)
    for each in tasks:
        each.cancel()
    slot.release()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(each) for each in results} == {asyncio.CancelledError}
    await asyncio.wait_for(limiter.acquire(), 5)


async def test_a_slot_granted_to_a_cancelled_attempt_goes_to_the_next() -> None:
    """The attempt was cancelled in the moment in which it was admitted."""
    limiter = HookLimiter(1, None)
    slot = await limiter.acquire()
    one, two = await waiting(limiter, 2)
    slot.release()
    one.cancel()
    await asyncio.wait_for(two, 5)
    with pytest.raises(asyncio.CancelledError):
        await one


async def test_a_second_release_admits_no_further_attempt() -> None:
    """A slot counts once."""
    limiter = HookLimiter(1, None)
    slot = await limiter.acquire()
    one, two = await waiting(limiter, 2)
    slot.release()
    slot.release()
    await asyncio.wait_for(one, 5)
    await settled()
    assert not two.done()


async def test_an_attempt_cancelled_during_its_rate_wait_uses_no_start() -> None:
    """Its slot is released, too."""
    limiter = HookLimiter(1, 0.01)
    (await limiter.acquire()).release()
    [waiter] = await waiting(limiter, 1)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    limiter.set_limits(1, None)
    await asyncio.wait_for(limiter.acquire(), 5)


async def test_an_open_circuit_allows_one_attempt_at_a_time() -> None:
    """After consecutive failures, until the first success."""
    limiter = HookLimiter(3, None)
    for _ in range(FAILURE_THRESHOLD):
        assert not limiter.is_open
        limiter.record(False)
    assert limiter.is_open
    slot = await limiter.acquire()
    one, two = await waiting(limiter, 2)
    assert not one.done()
    assert not two.done()
    limiter.record(True)
    assert not limiter.is_open
    slot.release()
    await asyncio.wait_for(asyncio.gather(one, two), 5)


async def test_a_circuit_that_opens_admits_no_attempt_before_all_running_ones_end() -> None:
    """Three run when it opens; the next one starts after the last of them."""
    limiter = HookLimiter(3, None)
    slots = [await limiter.acquire() for _ in range(3)]
    one, two = await waiting(limiter, 2)
    limiter.record(False, gone=True)
    for slot in slots[:2]:
        slot.release()
        await settled()
        assert not one.done()
    slots[2].release()
    probe = await asyncio.wait_for(one, 5)
    await settled()
    assert not two.done()
    probe.release()
    await asyncio.wait_for(two, 5)


async def test_a_higher_limit_admits_waiting_attempts_at_once() -> None:
    """And a reset of the circuit does."""
    limiter = HookLimiter(1, None)
    await limiter.acquire()
    one, two, three = await waiting(limiter, 3)
    limiter.set_limits(2, None)
    await asyncio.wait_for(one, 5)
    limiter.record(False, gone=True)
    limiter.set_limits(4, None)
    await settled()
    assert not two.done()
    limiter.reset()
    await asyncio.wait_for(asyncio.gather(two, three), 5)


async def test_probe_delays_grow() -> None:
    """Up to a limit; after a success they start again."""
    limiter = HookLimiter(1, None)
    assert [limiter.next_probe_delay() for _ in range(len(PROBE_DELAYS) + 1)] == [*PROBE_DELAYS, PROBE_DELAYS[-1]]
    limiter.record(True)
    assert limiter.next_probe_delay() == PROBE_DELAYS[0]


async def test_retry_after_delays_the_next_attempt() -> None:
    """By one hour at most."""
    limiter = HookLimiter(1, None)
    assert limiter.retry_after == 0
    limiter.record(False, retry_after=120)
    assert 100 < limiter.retry_after <= 120
    assert limiter.next_probe_delay() > 100
    limiter.record(False, retry_after=1e9)
    assert 3500 < limiter.retry_after <= 3600


async def test_a_hook_that_is_gone_opens_its_circuit_at_once() -> None:
    """HTTP 410: it wants no more events."""
    limiter = HookLimiter(1, None)
    limiter.record(False, gone=True)
    assert limiter.is_open
