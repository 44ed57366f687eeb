"""Values that many ask for at once: made once, kept for a while."""

import asyncio

import pytest

from kling_receiver.web.shared import Shared

pytestmark = pytest.mark.anyio


class Maker:
    """Counts how often a value is made; each takes until `may_end` is set."""

    def __init__(self) -> None:
        self.calls, self.may_end, self.error = 0, asyncio.Event(), False

    async def __call__(self) -> int:
        self.calls += 1
        number = self.calls
        await self.may_end.wait()
        if self.error:
            raise OSError("no")
        return number


async def test_all_who_ask_share_one_value() -> None:
    """Those that ask meanwhile, and later while it is kept."""
    maker = Maker()
    shared = Shared(maker, 60)
    waiting = [asyncio.create_task(shared.get()) for _ in range(50)]
    await asyncio.sleep(0)
    maker.may_end.set()
    assert await asyncio.gather(*waiting) == [1] * 50
    assert await shared.get() == 1
    assert maker.calls == 1


async def test_a_value_is_made_again_when_it_is_old() -> None:
    """At the next question."""
    maker = Maker()
    maker.may_end.set()
    shared = Shared(maker, 0.0)
    assert await shared.get() == 1
    await asyncio.sleep(0.05)
    assert await shared.get() == 2


async def test_a_value_that_takes_long_is_kept_longer() -> None:
    """Nine times as long as that: however many ask, making it takes a tenth of the time."""
    maker = Maker()
    shared = Shared(maker, 0.0)
    asking = asyncio.create_task(shared.get())
    await asyncio.sleep(0.1)
    maker.may_end.set()
    assert await asking == 1
    await asyncio.sleep(0.2)
    assert await shared.get() == 1
    assert maker.calls == 1


async def test_an_error_is_not_kept() -> None:
    """Those that wait have it, the next one tries again."""
    maker = Maker()
    shared = Shared(maker, 60)
    maker.may_end.set()
    maker.error = True
    with pytest.raises(OSError, match="no"):
        await shared.get()
    maker.error = False
    assert await shared.get() == 2


async def test_one_who_stops_waiting_stops_nobody() -> None:
    """The value is made for the others."""
    maker = Maker()
    shared = Shared(maker, 60)
    leaving, staying = asyncio.create_task(shared.get()), asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    leaving.cancel()
    maker.may_end.set()
    assert await staying == 1
    assert leaving.cancelled()
    assert maker.calls == 1
