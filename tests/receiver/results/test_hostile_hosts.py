"""Nothing that a file's host sends ends a result for good, fills the disk, or raises what nobody expects."""

import hashlib
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from kling_receiver.jobs.queue import Done, GiveUp, RetryAt
from kling_receiver.results import fetch
from kling_receiver.results.download import DOWNLOAD_BACKOFF
from tests.receiver.results.test_download import Parts, picture, ranged
from tests.support.web import Visit, host

pytestmark = pytest.mark.anyio
LONG_AGO, LATER = b"Mon, 02 Jan 2006 15:04:05 GMT", b"Mon, 01 Jan 2024 00:00:00 GMT"
DIGITS = b"9" * 6000


@pytest.fixture
async def parts(tmp_path: Path, sqlite_template: Path) -> AsyncIterator[Parts]:
    """The parts without a Kling."""
    shutil.copyfile(sqlite_template, tmp_path / "parts.db")
    parts = Parts(tmp_path, "http://127.0.0.1:9")
    parts.writer.start()
    yield parts
    await parts.close()


def respond_raw(visit: Visit, status: int, *headers: bytes, body: bytes = b"") -> None:
    """Send a response whose headers are any bytes."""
    visit.send(b"HTTP/1.1 %d Whatever\r\nConnection: close\r\n" % status)
    visit.send(b"".join(header + b"\r\n" for header in headers) + b"\r\n" + body)


HEADERS = {
    "year": [b"Date: " + LATER, b"Last-Modified: Mon, 01 Jan 99999999999999999999 00:00:00 GMT"],
    "zone": [b"Date: " + LATER, b"Last-Modified: Mon, 01 Jan 2024 00:00:00 +99999999999999"],
    "seconds": [b"Date: " + LATER, b"Last-Modified: Mon, 01 Jan 2024 00:00:0" + DIGITS + b" GMT"],
    "date": [b"Date: Mon, 01 Jan 99999999999999999999 00:00:00 GMT", b"Last-Modified: " + LONG_AGO],
    "date without a zone": [b"Date: Mon, 01 Jan 2024 00:00:00", b"Last-Modified: " + LONG_AGO],
    "control character in a date": [b"Date: " + LATER, b"Last-Modified: " + LONG_AGO + b" (\x01)"],
    "letters in a date": [b"Date: " + LATER, b"Last-Modified: " + LONG_AGO + b" (\xe9)"],
    "control character in an ETag": [b'ETag: "a\x01b"'],
    "letters in an ETag": [b'ETag: "\xe9\xff"'],
    "long ETag": [b'ETag: "' + b"x" * 8000 + b'"'],
    "two ETags": [b'ETag: "a"', b'ETag: "b"'],
    "end of a range": [b'ETag: "a"', b"Content-Range: bytes %d-" + DIGITS + b"/*"],
    "start of a range": [b'ETag: "a"', b"Content-Range: bytes " + DIGITS + b"-9/*"],
    "length of a range": [b'ETag: "a"', b"Content-Range: bytes %d-9/" + DIGITS],
    "no range": [b'ETag: "a"', b"Content-Range: \xff\xfe"],
    "type": [b"Content-Type: \xff\xfe\x01", b'ETag: "a"'],
    "encoding": [b"Content-Encoding: \xff\xfe\x01", b'ETag: "a"'],
    "retry": [b"Retry-After: " + DIGITS, b'ETag: "a"'],
    "cookie": [b"Set-Cookie: \xff=\x01; expires=" + DIGITS, b'ETag: "a"'],
}


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS.keys())
async def test_a_file_is_stored_whatever_its_host_s_headers_say(parts: Parts, headers: list[bytes]) -> None:
    """Also after a cut: what a host sent is sent back to it only if it can be."""
    content = picture(size=64)

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        sent = [header.replace(b"%d", b"%d" % start) for header in headers]
        if start and not any(header.startswith(b"Content-Range") for header in sent):
            sent.append(b"Content-Range: bytes %d-%d/%d" % (start, len(content) - 1, len(content)))
        body = content[start:] if visit.count else content[:5000]
        respond_raw(visit, 206 if start else 200, b"Content-Length: %d" % (len(content) - start), *sent, body=body)

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        outcome, errors = None, []
        for attempt in (1, 2):
            outcome = await parts.do(parts.fetcher.download, task, attempt)
            if isinstance(outcome, Done):
                break
            assert isinstance(outcome, RetryAt)
            errors.append(outcome.error)
        assert isinstance(outcome, Done), errors
    assert not [error for error in errors if not error.startswith("the ")], errors
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


REFUSED: list[tuple[int, list[bytes]]] = [
    (503, [b"Retry-After: " + DIGITS]),
    (503, [b"Retry-After: Mon, 01 Jan 99999999999999999999 00:00:00 GMT"]),
    (503, [b"Retry-After: " + LATER, b"Date: Mon, 01 Jan 2024 00:00:00 +99999999999999"]),
    (503, [b"Retry-After: \xd9\xa3"]),
    (200, [b"Content-Length: " + DIGITS]),
    (200, [b"Content-Length: -1"]),
    (200, [b"Content-Length: \xd9\xa3"]),
    (200, [b"Transfer-Encoding: \xff"]),
    (206, [b"Content-Range: bytes 0-" + DIGITS + b"/*"]),
    (416, [b"Content-Range: bytes */" + DIGITS]),
    (302, [b"Location: "]),
]


@pytest.mark.parametrize(("status", "headers"), REFUSED)
async def test_a_response_without_a_file_is_retried(parts: Parts, status: int, headers: list[bytes]) -> None:
    """The error says what the host did, and no attempt is due later than in an hour."""
    with host(lambda visit: respond_raw(visit, status, *headers)) as there:
        outcome = await parts.do(parts.fetcher.download, await parts.succeeded(f"{there.url}/0.png"))
    assert isinstance(outcome, RetryAt)
    assert outcome.error.startswith("the "), outcome.error


@pytest.mark.parametrize(
    "named", ["bytes {0}-{0}/50000", "bytes {0}-{0}/*", "bytes {0}-49999/50000", "bytes {0}-{0}/9999999"]
)
async def test_no_more_is_read_than_the_host_named(parts: Parts, named: str) -> None:
    """By the length of the file, and by the end of the range that it sends."""
    sent, content = [0], picture()

    def respond(visit: Visit) -> None:
        if "Range" not in visit.headers:
            visit.begin(200, ETag='"1"', Content_Length="50000" if "50000" in named else "9999999")
            visit.send(content[:1000])
            return
        head = {"Content_Range": named.format(1000), "Transfer_Encoding": "chunked"}
        visit.send(b"HTTP/1.1 206 Whatever\r\n")
        visit.send("".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in head.items()).encode() + b"\r\n")
        piece = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        for _ in range(640):
            visit.send(piece)
            sent[0] += len(piece)

    with host(respond) as there:
        outcome = await parts.do(parts.fetcher.download, await parts.succeeded(f"{there.url}/0.png"))
    assert isinstance(outcome, RetryAt)
    assert "more than the" in outcome.error
    assert sent[0] < 20 << 20
    assert list((parts.folder.root / ".parts").iterdir()) == []


async def test_a_host_may_send_the_rest_in_several_ranges(parts: Parts) -> None:
    """Each response ends before the file does: the next request is for what is missing."""
    content = picture(size=64)
    size = -(-len(content) // 4)

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        end = min(start + size, len(content))
        if start:
            visit.answer(206, content[start:end], Content_Range=f"bytes {start}-{end - 1}/{len(content)}")
        else:
            visit.begin(200, ETag='"1"', Transfer_Encoding="chunked")
            visit.send(b"%x\r\n" % size + content[:size])

    with host(respond) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert len(there.visits) == 4
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


def paced(content: bytes, pieces: list[int], seconds: float) -> Callable[[Visit], None]:
    """A host that pauses after each piece of the first response, and then closes the connection; resumed it is fast."""

    def respond(visit: Visit) -> None:
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        named = f"bytes {start}-{len(content) - 1}/{len(content)}"
        visit.begin(206 if start else 200, ETag='"1"', Content_Length=str(len(content) - start), Content_Range=named)
        for piece in pieces if visit.count == 0 else [len(content)]:
            visit.send(content[start : start + piece])
            start += piece
            time.sleep(seconds if visit.count == 0 else 0)

    return respond


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt must bring 1000 bytes in each 0.3 seconds."""
    monkeypatch.setattr(fetch, "PROGRESS_SECONDS", 0.3)
    monkeypatch.setattr(fetch, "MIN_PROGRESS_BYTES", 1000)


@pytest.mark.usefixtures("impatient")
async def test_a_host_that_is_too_slow_gives_its_place_to_others(parts: Parts) -> None:
    """The attempt ends with one connection, and the next one requests only what is missing."""
    content = picture(size=64)
    with host(paced(content, [10] * 40, 0.02)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        outcome = await parts.do(parts.fetcher.download, task)
        assert isinstance(outcome, RetryAt)
        assert outcome.error == "the host is too slow: less than 1000 bytes in 0.3 s"
        assert outcome.counts
        assert len(there.visits) == 1
        assert isinstance(await parts.do(parts.fetcher.download, task, 2), Done)
        assert 100 <= int(there.visits[1].headers["Range"][6:-1]) <= 200
    assert (await parts.result(task))["sha256"] == hashlib.sha256(content).hexdigest()


@pytest.mark.usefixtures("impatient")
async def test_a_slow_host_that_is_fast_enough_has_all_the_time_that_it_needs(parts: Parts) -> None:
    """Also without a byte for a moment: the average counts."""
    content = picture(size=64)
    with host(paced(content, [500] * 10 + [len(content)], 0.08)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        assert isinstance(await parts.do(parts.fetcher.download, task), Done)
        assert len(there.visits) == 1


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("cut", [True, False], ids=["cuts", "redirects"])
async def test_slow_cuts_and_redirects_are_an_attempt_too(parts: Parts, *, cut: bool) -> None:
    """The time is that of the attempt, not of each request."""
    content = picture(size=64)

    def respond(visit: Visit) -> None:
        time.sleep(0.12)
        start = int(visit.headers.get("Range", "bytes=0-")[6:-1])
        if cut:
            named = f"bytes {start}-{len(content) - 1}/{len(content)}"
            size = str(len(content) - start)
            visit.begin(206 if start else 200, ETag='"1"', Content_Length=size, Content_Range=named)
            visit.send(content[start : start + 1])
        else:
            visit.answer(302, Location="/again")

    with host(respond) as there:
        outcome = await parts.do(parts.fetcher.download, await parts.succeeded(f"{there.url}/0.png"))
        assert isinstance(outcome, RetryAt)
        assert outcome.error.startswith("the host is too slow")
        assert 2 <= len(there.visits) <= 4


async def test_an_attempt_that_brought_a_part_of_the_file_is_not_counted(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a long download is cut; but attempts that bring too little have an end."""
    content, last = picture(), len(DOWNLOAD_BACKOFF.steps) + 1
    monkeypatch.setattr(fetch, "MIN_PROGRESS_BYTES", len(content) // 2)
    with host(ranged(content, 99)) as there:
        task = await parts.succeeded(f"{there.url}/0.png")
        outcome = await parts.do(parts.fetcher.download, task, last)
        assert isinstance(outcome, RetryAt)
        assert not outcome.counts
        assert isinstance(await parts.do(parts.fetcher.download, task, last), GiveUp)
