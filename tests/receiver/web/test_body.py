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
    LARGE_BYTES,
    MAX_DROPPED_BYTES,
    MAX_KEPT_BYTES,
    MAX_UNAUTHENTICATED,
    Body,
    BodyLimiter,
    Reservation,
    UnauthenticatedReservation,
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
    "chunks",
    [(b"",), (b"abc",), (b"a", b"", b"bc"), (b"x" * MAX_KEPT_BYTES,), (b"x" * (MAX_KEPT_BYTES - 1), b"yz")],
)
async def test_a_body_is_read_as_it_comes(chunks: tuple[bytes, ...]) -> None:
    """In one piece or in many, with its true size and digest, and KEPT bytes of it at most."""
    whole = b"".join(chunks)
    expected = Body(whole[:MAX_KEPT_BYTES], len(whole), hashlib.sha256(whole).hexdigest())
    assert await read_body(request(pieces(*chunks)), Reservation(BodyLimiter())) == expected


async def test_an_endless_body_ends() -> None:
    """Past 17 MB nothing more is read, and it is known to be oversized."""
    chunk = bytes(1_000_000)
    body = await read_body(request(pieces(*[chunk] * 100)), Reservation(BodyLimiter()))
    assert (len(body.content), body.problem) == (MAX_KEPT_BYTES, None)
    assert MAX_KEPT_BYTES + MAX_DROPPED_BYTES < body.size <= MAX_KEPT_BYTES + MAX_DROPPED_BYTES + len(chunk)


async def test_a_sender_that_goes_away() -> None:
    """What came until then is kept."""
    body = await read_body(
        request([*pieces(b"abc", whole=False), {"type": "http.disconnect"}]), Reservation(BodyLimiter())
    )
    assert (body.content, body.size, body.problem) == (b"abc", 3, "cut off")


async def test_a_sender_that_falls_silent() -> None:
    """After the time for reading, what came is all."""
    body = await read_body(request(pieces(b"abc", whole=False)), Reservation(BodyLimiter()), seconds=0.01)
    assert (body.content, body.problem) == (b"abc", "cut off")


async def test_large_bodies_wait_for_room() -> None:
    """One that finds none in time is refused, one whose turn comes is read; small ones never wait."""
    bodies = BodyLimiter(large=1, timeout=0.01)
    large, small = pieces(bytes(LARGE_BYTES), b"x"), pieces(bytes(LARGE_BYTES))
    with Reservation(bodies) as first:
        await read_body(request(large), first)
        with pytest.raises(Unavailable, match="Too many large"), Reservation(bodies) as second:
            await read_body(request(large), second)
        with Reservation(bodies) as third:
            assert (await read_body(request(small), third)).size == LARGE_BYTES
    patient = BodyLimiter(large=1, timeout=20)

    async def read() -> int:
        with Reservation(patient) as share:
            return (await read_body(request(large), share)).size

    assert await asyncio.gather(*(read() for _ in range(5))) == [LARGE_BYTES + 1] * 5
    assert not patient.large.locked()
    assert not bodies.large.locked()


async def test_few_large_bodies_are_read_of_those_who_have_proven_nothing() -> None:
    """So many at once; whoever comes then is refused, unless its body is small, or it has a token."""
    bodies = BodyLimiter()
    large, small = pieces(bytes(LARGE_BYTES), b"x"), pieces(b"abc")
    with ExitStack() as stack:
        for _ in range(MAX_UNAUTHENTICATED):
            await read_body(request(large), stack.enter_context(UnauthenticatedReservation(bodies)))
        with pytest.raises(Unavailable, match="without a token"), UnauthenticatedReservation(bodies) as late:
            await read_body(request(large), late)
        with UnauthenticatedReservation(bodies) as little:
            assert (await read_body(request(small), little)).content == b"abc"
        with Reservation(bodies) as proven:
            assert (await read_body(request(large), proven)).size == LARGE_BYTES + 1
    with UnauthenticatedReservation(bodies) as again:
        assert (await read_body(request(large), again)).size == LARGE_BYTES + 1
    assert bodies.unauthenticated == 0
