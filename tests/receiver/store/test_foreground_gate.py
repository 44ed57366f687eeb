"""The foreground gate: background work yields to callbacks, for a limited time."""

import asyncio

import pytest

from kling_receiver.store.foreground_gate import ForegroundGate

pytestmark = pytest.mark.anyio


async def test_background_work_waits_for_foreground_writes() -> None:
    """Until the last of them is done."""
    calm = ForegroundGate(max_wait=1000)
    await calm.wait_idle()
    with calm.foreground():
        with calm.foreground():
            waiting = asyncio.ensure_future(calm.wait_idle())
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


async def test_background_work_waits_for_a_limited_time() -> None:
    """Even during endless foreground writes."""
    calm = ForegroundGate(max_wait=0.001)
    with calm.foreground():
        async with asyncio.timeout(20):
            await calm.wait_idle()
