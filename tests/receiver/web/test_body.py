"""Reading request bodies: what is kept, what is only counted, and the limits on time and memory."""

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
    """A request whose body arrives in these messages, and then stalls."""
    coming = iter(messages)

    async def receive() -> Message:
        for message in coming:
            return message
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    return Request({"type": "http", "method": "POST", "headers": []}, receive)


def pieces(*chunks: bytes, whole: bool = True) -> list[Message]:
    """A body's messages; `whole` False: more should arrive."""
    last = len(chunks) - 1
    return [
        {"type": "http.request", "body": chunk, "more_body": place < last or not whole}
        for place, chunk in enumerate(chunks)
    ]


@pytest.mark.parametrize(
    "chunks",
    [(b"",), (b"abc",), (b"a", b"", b"bc"), (b"x" * MAX_KEPT_BYTES,), (b"x" * (MAX_KEPT_BYTES - 1), b"yz")],
)
async def test_a_body_is_read_in_pieces(chunks: tuple[bytes, ...]) -> None:
    """One or many, with the size and digest of all of them, and at most MAX_KEPT_BYTES of content."""
    whole = b"".join(chunks)
    expected = Body(whole[:MAX_KEPT_BYTES], len(whole), hashlib.sha256(whole).hexdigest())
    assert await read_body(request(pieces(*chunks)), Reservation(BodyLimiter())) == expected


async def test_an_endless_body_is_cut() -> None:
    """Past 17 MB nothing more is read, and its size says that it is oversized."""
    chunk = bytes(1_000_000)
    body = await read_body(request(pieces(*[chunk] * 100)), Reservation(BodyLimiter()))
    assert (len(body.content), body.problem) == (MAX_KEPT_BYTES, None)
    assert MAX_KEPT_BYTES + MAX_DROPPED_BYTES < body.size <= MAX_KEPT_BYTES + MAX_DROPPED_BYTES + len(chunk)


async def test_a_sender_that_disconnects() -> None:
    """The bytes that arrived are kept."""
    body = await read_body(
        request([*pieces(b"abc", whole=False), {"type": "http.disconnect"}]), Reservation(BodyLimiter())
    )
    assert (body.content, body.size, body.problem) == (b"abc", 3, "cut off")


async def test_a_sender_that_stalls() -> None:
    """After the time limit, the bytes that arrived are kept."""
    body = await read_body(request(pieces(b"abc", whole=False)), Reservation(BodyLimiter()), seconds=0.01)
    assert (body.content, body.problem) == (b"abc", "cut off")


async def test_large_bodies_wait_for_a_reservation() -> None:
    """A body that gets none in time is refused, the others are read; small bodies never wait."""
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
        with Reservation(patient) as reservation:
            return (await read_body(request(large), reservation)).size

    assert await asyncio.gather(*(read() for _ in range(5))) == [LARGE_BYTES + 1] * 5
    assert not patient.large.locked()
    assert not bodies.large.locked()


async def test_few_large_bodies_are_read_without_authentication() -> None:
    """Past the limit a body is refused, unless it is small, or its sender has a token."""
    bodies = BodyLimiter()
    large, small = pieces(bytes(LARGE_BYTES), b"x"), pieces(b"abc")
    with ExitStack() as stack:
        for _ in range(MAX_UNAUTHENTICATED):
            await read_body(request(large), stack.enter_context(UnauthenticatedReservation(bodies)))
        with pytest.raises(Unavailable, match="without a token"), UnauthenticatedReservation(bodies) as late:
            await read_body(request(large), late)
        with UnauthenticatedReservation(bodies) as unlimited:
            assert (await read_body(request(small), unlimited)).content == b"abc"
        with Reservation(bodies) as authenticated:
            assert (await read_body(request(large), authenticated)).size == LARGE_BYTES + 1
    with UnauthenticatedReservation(bodies) as again:
        assert (await read_body(request(large), again)).size == LARGE_BYTES + 1
    assert bodies.unauthenticated == 0
