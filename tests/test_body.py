"""Reading bodies: what is kept, what is only counted, and an end to every wait."""

import asyncio
import hashlib
from collections.abc import Iterable
from contextlib import ExitStack

import pytest
from starlette.requests import Request
from starlette.types import Message

from kling_receiver.store.errors import Unavailable
from kling_receiver.web.body import (
    DROPPED,
    KEPT,
    LARGE,
    MOST_UNPROVEN,
    Bodies,
    Body,
    Share,
    UnprovenShare,
    read_body,
)

pytestmark = pytest.mark.anyio


def request(messages: Iterable[Message]) -> Request:
    """A request whose body comes in these messages, and then never goes on."""
    coming = iter(messages)

    async def receive() -> Message:
        for message in coming:
            return message
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def pieces(*chunks: bytes, whole: bool = True) -> list[Message]:
    """A body's messages; not `whole`: more should come."""
    last = len(chunks) - 1
    return [
        {"type": "http.request", "body": chunk, "more_body": place < last or not whole}
        for place, chunk in enumerate(chunks)
    ]


@pytest.mark.parametrize(
    "chunks", [(b"",), (b"abc",), (b"a", b"", b"bc"), (b"x" * KEPT,), (b"x" * (KEPT - 1), b"yz")]
)
async def test_a_body_is_read_as_it_comes(chunks: tuple[bytes, ...]) -> None:
    """In one piece or in many, with its true size and digest, and KEPT bytes of it at most."""
    whole = b"".join(chunks)
    expected = Body(whole[:KEPT], len(whole), hashlib.sha256(whole).hexdigest())
    assert await read_body(request(pieces(*chunks)), Share(Bodies())) == expected


async def test_an_endless_body_ends() -> None:
    """Past 17 MB nothing more is read, and it is known to be oversized."""
    chunk = bytes(1_000_000)
    body = await read_body(request(pieces(*[chunk] * 100)), Share(Bodies()))
    assert (len(body.kept), body.trouble) == (KEPT, None)
    assert KEPT + DROPPED < body.size <= KEPT + DROPPED + len(chunk)


async def test_a_sender_that_goes_away() -> None:
    """What came until then is kept."""
    body = await read_body(
        request([*pieces(b"abc", whole=False), {"type": "http.disconnect"}]), Share(Bodies())
    )
    assert (body.kept, body.size, body.trouble) == (b"abc", 3, "cut off")


async def test_a_sender_that_falls_silent() -> None:
    """After the time for reading, what came is all."""
    body = await read_body(request(pieces(b"abc", whole=False)), Share(Bodies()), seconds=0.01)
    assert (body.kept, body.trouble) == (b"abc", "cut off")


async def test_large_bodies_wait_for_room() -> None:
    """One that finds none in time is refused, one whose turn comes is read; small ones never wait."""
    bodies = Bodies(large=1, seconds=0.01)
    large, small = pieces(bytes(LARGE), b"x"), pieces(bytes(LARGE))
    with Share(bodies) as first:
        await read_body(request(large), first)
        with pytest.raises(Unavailable, match="Too many large"), Share(bodies) as second:
            await read_body(request(large), second)
        with Share(bodies) as third:
            assert (await read_body(request(small), third)).size == LARGE
    patient = Bodies(large=1, seconds=20)

    async def read() -> int:
        with Share(patient) as share:
            return (await read_body(request(large), share)).size

    assert await asyncio.gather(*(read() for _ in range(5))) == [LARGE + 1] * 5
    assert not patient.large.locked()
    assert not bodies.large.locked()


async def test_few_large_bodies_are_read_of_those_who_have_proven_nothing() -> None:
    """So many at once; whoever comes then is refused, unless its body is small, or it has a token."""
    bodies = Bodies()
    large, small = pieces(bytes(LARGE), b"x"), pieces(b"abc")
    with ExitStack() as stack:
        for _ in range(MOST_UNPROVEN):
            await read_body(request(large), stack.enter_context(UnprovenShare(bodies)))
        with pytest.raises(Unavailable, match="without a token"), UnprovenShare(bodies) as late:
            await read_body(request(large), late)
        with UnprovenShare(bodies) as little:
            assert (await read_body(request(small), little)).kept == b"abc"
        with Share(bodies) as proven:
            assert (await read_body(request(large), proven)).size == LARGE + 1
    with UnprovenShare(bodies) as again:
        assert (await read_body(request(large), again)).size == LARGE + 1
    assert bodies.unproven == 0
