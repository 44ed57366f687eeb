"""One AsyncKling in several event loops."""

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import httpx
import pytest

from kling_callback import AsyncKling, Event, KlingError
from kling_sandbox import Sandbox
from tests.client.loops.test_thread import Run, receiver, run, settings

__all__ = ["receiver", "run", "settings"]


def open_sockets() -> int:
    """The connections of this process to a server on this machine, from the client's end."""
    return sum(
        each.type is socket.SOCK_STREAM
        for each in gc.get_objects()
        if isinstance(each, socket.socket) and each.fileno() >= 0
    )


async def first(events: AsyncGenerator[Event, None]) -> Event:
    """The first one."""
    async with aclosing(events):
        return await anext(events)


async def use(kling: AsyncKling) -> None:
    """Every method."""
    task = await kling.text_to_image("x")
    result = await task.wait(20)
    assert await result.images[0].read()
    assert (await task.refresh()).done
    assert [event async for event in task.events()][-1].type == "task.done"
    assert (await kling.task(task.id)).id in [each.id for each in await kling.tasks()]
    assert await kling.last_event()
    assert (await first(kling.events())).type == "task.created"
    assert (await kling.call("account/costs?start_time=1&end_time=2"))["code"] == 0
    assert await kling.tasks_at_kling("images/generations")


def test_several_runs(settings: dict[str, Any], gateway: Sandbox) -> None:
    """Each asyncio.run has its own connections, also for tasks of an earlier one; nothing is paid twice."""
    kling = AsyncKling(**settings)
    for _ in range(3):
        asyncio.run(use(kling))
    task = asyncio.run(kling.text_to_image("x"))
    assert asyncio.run(task.wait(20)).images
    asyncio.run(kling.aclose())
    assert len(gateway.creates) == 4


def test_the_connections_of_closed_loops_are_dropped(settings: dict[str, Any]) -> None:
    """They would add up; each asyncio.run closes its own at its end, so that no socket is left to the collector."""
    kling, before = AsyncKling(**settings), open_sockets()
    for _ in range(3):
        asyncio.run(kling.tasks())
        assert open_sockets() == before
    assert len(kling._http._transport._by_loop) == 1  # type: ignore[attr-defined]
    asyncio.run(kling.aclose())


def test_loops_in_threads_at_once(settings: dict[str, Any], gateway: Sandbox) -> None:
    """Closing it in one of them does not disturb the calls of the others."""
    kling, threads = AsyncKling(**settings), list[threading.Thread]()
    for _ in range(3):
        threads.append(threading.Thread(target=asyncio.run, args=(use(kling),)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    asyncio.run(kling.aclose())
    assert len(gateway.creates) == 3


def test_a_fork(run: Run) -> None:
    """A new loop in the child, while the parent's goes on."""
    run(
        """
async def use(): assert (await (await kling.text_to_image("x")).wait(20)).images

async def parent():
    task = asyncio.create_task(use())
    await asyncio.sleep(0.05)
    fork(lambda: asyncio.run(use()))
    await task
    fork(lambda: asyncio.run(kling.aclose()))
    await use()
    await kling.aclose()

kling = AsyncKling()
asyncio.run(use())
fork(lambda: asyncio.run(use()))
asyncio.run(parent())
"""
    )


def test_an_http_client_of_the_caller_is_for_one_loop(settings: dict[str, Any], gateway: Sandbox) -> None:
    """In another one: an error before anything is sent, from every method, and closing leaves its connections alone."""
    http = httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
    kling = AsyncKling(**settings, http=http)
    task = asyncio.run(kling.text_to_image("x"))
    calls: list[Callable[[], Coroutine[Any, Any, Any]]] = [
        lambda: kling.text_to_image("x"),
        lambda: kling.create("images/generations", {"prompt": "x"}),
        lambda: kling.call("account/costs?start_time=1&end_time=2"),
        lambda: kling.tasks_at_kling("images/generations"),
        lambda: kling.task(task.id),
        lambda: kling.tasks(),
        lambda: kling.last_event(),
        lambda: first(kling.events()),
        lambda: task.wait(20),
        lambda: task.refresh(),
        lambda: first(task.events()),
    ]
    for call in calls:
        with pytest.raises(KlingError, match="another event loop") as raised:
            asyncio.run(call())
        assert raised.value.code == "other_loop"
    assert len(gateway.creates) == 1
    asyncio.run(kling.aclose())
    assert not http.is_closed


def test_a_closed_one_calls_nothing(settings: dict[str, Any], gateway: Sandbox) -> None:
    """Kling's own endpoints neither: an error of ours, and nothing was sent."""
    kling = AsyncKling(**settings)
    asyncio.run(kling.aclose())
    for path in ("account/costs?start_time=1&end_time=2", "videos/identify-face"):
        with pytest.raises(KlingError, match="This Kling is closed") as raised:
            asyncio.run(kling.call(path, {} if "identify" in path else None))
        assert (raised.value.code, raised.value.outcome) == ("closed", "not_created")
    with pytest.raises(KlingError, match="This Kling is closed"):
        asyncio.run(kling.tasks_at_kling("images/generations"))
    assert gateway.calls == []
