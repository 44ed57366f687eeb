"""Callbacks go first, and keep nothing from its turn for long."""

import asyncio

import pytest

from kling_receiver.store.priority import Calm

pytestmark = pytest.mark.anyio


async def test_who_may_wait_waits_while_a_callback_is_taken_in() -> None:
    """Until the last of them is."""
    calm = Calm(longest=1000)
    await calm.wait()
    with calm.broken():
        with calm.broken():
            waiting = asyncio.ensure_future(calm.wait())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_callbacks_without_end_hold_nobody_up() -> None:
    """Whoever waited long enough goes on amid them."""
    calm = Calm(longest=0.001)
    with calm.broken():
        async with asyncio.timeout(20):
            await calm.wait()
