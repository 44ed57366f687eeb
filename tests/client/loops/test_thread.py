"""A blocking client inside a running loop, after a fork, without `close`, and at the end of the program."""

import asyncio
import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from kling_callback import Kling, KlingError
from kling_callback.loops.thread import LoopThread
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Running, Start

PROGRAM_SECONDS = 30


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    return start(api_base=gateway.url)


@pytest.fixture
def settings(receiver: Running, gateway: Sandbox) -> dict[str, Any]:
    return {"api_base": gateway.url, "api_key": KEY, "signing_secrets": SECRET, "receiver_url": receiver.url}


Run = Callable[[str], str]


@pytest.fixture
def run(receiver: Running, gateway: Sandbox) -> Run:
    """Run a program in a process of its own, and return what it prints."""
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET, "RECEIVER_URL": receiver.url}

    def run(program: str) -> str:
        env = {**os.environ, **{f"KLING_{name}": value for name, value in settings.items()}}
        command = [sys.executable, "-W", "ignore::ResourceWarning", "-c", f"{PROGRAM}{program}"]
        ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PROGRAM_SECONDS, check=False)
        assert (ran.returncode, ran.stderr) == (0, ""), ran.stderr
        return ran.stdout

    return run


PROGRAM = """
import asyncio, atexit, builtins, multiprocessing, os, sys
from kling_callback import AsyncKling, Kling, KlingError

def image(kling):
    assert kling.text_to_image("x").wait(20).images

def fork(child):
    if not (pid := os.fork()):
        try:
            child()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

"""


def fail_with(kling: Kling) -> None:
    """A block with an error of the caller."""
    with kling:
        kling.tasks()
        raise ZeroDivisionError


@pytest.mark.anyio
async def test_inside_a_running_loop(settings: dict[str, Any], gateway: Sandbox) -> None:
    """As in a notebook: the README's example works, and the block can be left."""
    with Kling(**settings) as kling:
        result = kling.text_to_image("x").wait(20)
        assert result.images[0].read()
    assert len(gateway.creates) == 1
    assert [each.name for each in threading.enumerate() if each.name == "kling"] == []


@pytest.mark.anyio
async def test_an_error_of_the_caller_inside_a_running_loop(settings: dict[str, Any]) -> None:
    """It is raised as it is, with no other error in its context."""
    with pytest.raises(ZeroDivisionError) as raised:
        fail_with(Kling(**settings))
    assert raised.value.__context__ is None


@pytest.mark.anyio
async def test_an_error_while_closing_hides_nothing(settings: dict[str, Any]) -> None:
    """The caller's own error matters more than a connection that cannot be closed."""

    class Broken(httpx.AsyncHTTPTransport):
        async def aclose(self) -> None:
            await super().aclose()
            raise RuntimeError("cannot be closed")

    with pytest.raises(ZeroDivisionError):
        fail_with(Kling(**settings, http=httpx.AsyncClient(transport=Broken())))


def test_in_generators_within_generators(settings: dict[str, Any]) -> None:
    """One that is not read to its end closes its Kling when it is collected."""

    def inner(kling: Kling) -> Iterator[str]:
        task = kling.text_to_image("x")
        yield task.status
        task.wait(20)
        yield task.status

    def outer() -> Iterator[str]:
        with Kling(**settings) as kling:
            yield from inner(kling)

    assert list(outer())[-1] == "succeed"
    partly = outer()
    next(partly)
    del partly
    assert [each for each in threading.enumerate() if each.name == "kling"] == []


def test_without_close_the_thread_ends_with_its_last_user(settings: dict[str, Any]) -> None:
    """A task keeps it alive; then nothing is left of it."""
    kling = Kling(**settings)
    task = kling.text_to_image("x")
    del kling
    gc.collect()
    assert task.wait(20).images
    (loop_thread,) = [each for each in threading.enumerate() if each.name == "kling"]
    del task
    gc.collect()
    loop_thread.join(20)
    assert not loop_thread.is_alive()


def test_greenlets_in_place_of_threads(monkeypatch: pytest.MonkeyPatch, gateway: Sandbox) -> None:
    """A second loop cannot run in one thread: an error before anything is sent, and closing hides nothing."""

    class Greenlet:
        def __init__(self, target: Callable[[], None], **options: Any) -> None:
            self.start = target

    async def use() -> None:
        monkeypatch.setattr(threading, "Thread", Greenlet)
        with Kling(api_base=gateway.url, api_key=KEY, receiver_token="t", receiver_url=gateway.url) as kling:
            kling.text_to_image("x")

    with pytest.raises(KlingError, match=r"Another event loop runs in this thread.*AsyncKling") as raised:
        asyncio.run(use())
    assert raised.value.code == "no_thread"
    assert gateway.creates == []


def test_a_machine_without_threads_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own."""

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def nothing() -> None:
        pass

    monkeypatch.setattr(threading.Thread, "start", start)
    loop_thread = LoopThread(nothing)
    with pytest.raises(KlingError, match="No thread can be started: can't start new thread"):
        loop_thread.run(nothing)
    loop_thread.close()


def test_a_fork_starts_anew(run: Run, gateway: Sandbox) -> None:
    """Used before the fork, it works in the child; whatever the child closes, the parent's connections stay."""
    run(
        """
with Kling() as kling:
    image(kling)
    for _ in range(2):
        fork(lambda: (image(kling), kling.close()))
        image(kling)
    fork(kling.close)
    image(kling)
    fork(lambda: kling.__exit__(None, None, None))
    image(kling)
"""
    )
    assert len(gateway.creates) == 7


def test_a_fork_by_multiprocessing(run: Run) -> None:
    """In several children at once, whose ends disturb nothing."""
    run(
        """
kling = Kling()
image(kling)
context = multiprocessing.get_context("fork")
children = [context.Process(target=image, args=(kling,)) for _ in range(3)]
for child in children: child.start()
for child in children: child.join(20)
assert [child.exitcode for child in children] == [0] * 3
image(kling)
"""
    )


def test_uvloop(run: Run, gateway: Sandbox) -> None:
    """In its loop, with it as the loop of the thread, and after a fork."""
    run(
        """
import uvloop

async def use():
    image(kling)
    async with AsyncKling() as other: assert (await (await other.text_to_image("x")).wait(20)).images

asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
with Kling() as kling:
    asyncio.run(use())
    fork(lambda: (asyncio.run(use()), kling.close()))
    asyncio.run(use())
"""
    )
    assert len(gateway.creates) == 6


def test_a_fork_during_a_call(run: Run) -> None:
    """The child gets an error instead of waiting for the parent's thread; the parent gets its result."""
    printed = run(
        """
kling, children = Kling(), []
try:
    result = kling.text_to_image("x").wait(20, on_event=lambda event: children or children.append(os.fork()))
except KlingError as error:
    image(kling)
    print(error.code, children, flush=True)
    os._exit(0)
assert result.images and os.waitpid(children[0], 0)[1] == 0
"""
    )
    assert printed == "forked [0]\n"


def test_a_fork_while_other_threads_call(run: Run) -> None:
    """Whatever locks they hold."""
    run(
        """
import threading
kling = Kling()
threads = [threading.Thread(target=lambda: [kling.tasks() for _ in range(20)]) for _ in range(4)]
for thread in threads: thread.start()
for _ in range(5): fork(lambda: kling.tasks())
for thread in threads: thread.join()
kling.close()
"""
    )


def test_the_end_of_the_program(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call at exit works; one after the end of all threads is an error, and closing returns."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)  # measured, a program skips the last `__del__`
    printed = run(
        """
class Application:
    def __init__(self):
        self.kling = Kling()
        image(self.kling)
    def __del__(self):
        try:
            self.kling.tasks()
        except KlingError as error:
            print(error.code)
        self.kling.close()

builtins.application = Application()
kling = Kling()
image(kling)
atexit.register(lambda: print(len(kling.tasks(limit=1))))
"""
    )
    assert printed == "1\nclosed\n"
