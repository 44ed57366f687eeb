"""Callbacks go first, and keep nothing from its turn for long."""

import asyncio

import pytest

from kling_receiver.store.priority import ForegroundGate

pytestmark = pytest.mark.anyio


async def test_who_may_wait_waits_while_a_callback_is_taken_in() -> None:
    """Until the last of them is."""
    calm = ForegroundGate(max_wait=1000)
    await calm.wait_idle()
    with calm.foreground():
        with calm.foreground():
            waiting = asyncio.ensure_future(calm.wait_idle())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_callbacks_without_end_hold_nobody_up() -> None:
    """Whoever waited long enough goes on amid them."""
    calm = ForegroundGate(max_wait=0.001)
    with calm.foreground():
        async with asyncio.timeout(20):
            await calm.wait_idle()
