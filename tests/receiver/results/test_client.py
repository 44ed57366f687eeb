"""Files that a relay serves itself are requested with the key, which is sent to no other origin."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kling_receiver.net.guard import Allowlist, Refused
from kling_receiver.results.client import ResultClient
from kling_receiver.results.fetch import fetch
from kling_receiver.results.storage import PartialFile
from tests.support.relay import BEARER, CONTENT, MP4
from tests.support.web import Visit, host

pytestmark = pytest.mark.anyio
LOOPBACK = Allowlist.parse(["127.0.0.1"])
NOBODY = Allowlist()
OTHER = "https://files.example/a.mp4"


async def get(
    base: str, url: str, allowed: Allowlist = LOOPBACK, redirected_by: Sequence[str] = (), **headers: str
) -> tuple[int, bytes]:
    """The status and body that a client for the relay at `base` gets."""
    client = ResultClient(allowed, base, lambda: BEARER)
    try:
        response = await client.send("GET", url, headers=headers, redirected_by=redirected_by)
        body = b"".join([chunk async for chunk in response.iter_bytes()])
        await response.close()
        return response.status, body
    finally:
        await client.close()


def guarded(*paths: str, refusal: int = 401) -> Callable[[Visit], None]:
    """A host whose files at these paths need the key."""

    def respond(visit: Visit) -> None:
        if visit.path not in paths:
            visit.answer(404)
        elif visit.headers.get("Authorization") == BEARER:
            visit.answer(200, MP4)
        else:
            visit.answer(refusal)

    return respond


@pytest.mark.parametrize(
    ("path", "named"), [(CONTENT, CONTENT), (f"/kling{CONTENT}", CONTENT), (f"/kling{CONTENT}", f"/kling{CONTENT}")]
)
async def test_a_video_s_content_is_found_at_the_host_or_under_the_base(path: str, named: str) -> None:
    """With the key at once, and although the relay is private: that is the operator's own address."""
    with host(guarded(path)) as relay:
        assert await get(f"{relay.url}/kling", f"{relay.url}{named}", NOBODY) == (200, MP4)
        assert all(visit.headers["Authorization"] == BEARER for visit in relay.visits)


async def test_a_page_in_the_place_of_a_video_is_not_the_video() -> None:
    """The host may have a web site at every path that it does not know."""

    def respond(visit: Visit) -> None:
        if visit.path.startswith("/kling"):
            visit.answer(200, MP4)
        else:
            visit.answer(200, b"<!doctype html>", Content_Type="text/html; charset=utf-8")

    with host(respond) as relay:
        assert await get(f"{relay.url}/kling", f"{relay.url}{CONTENT}", NOBODY) == (200, MP4)


@pytest.mark.parametrize("refusal", [401, 403])
async def test_another_file_of_the_relay_gets_the_key_once_it_has_refused(refusal: int) -> None:
    """A signed address would not work with it; all other headers stay."""
    with host(guarded("/a.mp4", refusal=refusal)) as relay:
        assert await get(f"{relay.url}/kling", f"{relay.url}/a.mp4", Range="bytes=0-") == (200, MP4)
        assert [visit.headers.get("Authorization") for visit in relay.visits] == [None, BEARER]
        assert [visit.headers.get("Range") for visit in relay.visits] == ["bytes=0-"] * 2


async def test_a_file_that_needs_no_key_gets_none() -> None:
    """It is requested once."""
    with host(lambda visit: visit.answer(200, MP4)) as relay:
        assert await get(f"{relay.url}/kling", f"{relay.url}/a.mp4") == (200, MP4)
        assert [visit.headers.get("Authorization") for visit in relay.visits] == [None]


async def test_no_other_origin_gets_the_key() -> None:
    """Another port, another scheme, or an address that only begins like the base."""
    with host(guarded(CONTENT)) as relay, host(guarded(CONTENT)) as other:
        assert await get(relay.url, f"{other.url}{CONTENT}") == (401, b"")
        assert await get(relay.url.replace("http:", "https:"), f"{relay.url}{CONTENT}") == (401, b"")
        assert await get(relay.url[:-1], f"{relay.url}{CONTENT}") == (401, b"")
        visits = [*relay.visits, *other.visits]
    assert len(visits) == 3
    assert not any("Authorization" in visit.headers for visit in visits)


async def test_no_other_host_chooses_what_is_requested_with_the_key() -> None:
    """A redirect by another host leads to a public address, without the key, also by way of the relay itself."""
    with host(guarded(CONTENT, "/a.mp4")) as relay:
        for via in ([OTHER], [OTHER, f"{relay.url}/open"], [f"{relay.url}/open", OTHER]):
            with pytest.raises(Refused):
                await get(relay.url, f"{relay.url}{CONTENT}", NOBODY, via)
            assert await get(relay.url, f"{relay.url}{CONTENT}", LOOPBACK, via) == (401, b"")
            assert await get(relay.url, f"{relay.url}/a.mp4", LOOPBACK, via) == (401, b"")
        assert not any("Authorization" in visit.headers for visit in relay.visits)


async def test_the_relay_s_own_redirect_may_lead_to_its_files() -> None:
    """With the key, and if the relay is private."""
    with host(guarded(CONTENT, "/a.mp4")) as relay:
        assert await get(relay.url, f"{relay.url}{CONTENT}", NOBODY, [f"{relay.url}/open"]) == (200, MP4)
        assert await get(relay.url, f"{relay.url}/a.mp4", LOOPBACK, [f"{relay.url}/open"]) == (200, MP4)


async def test_a_download_tells_whose_redirect_it_follows(tmp_path: Path) -> None:
    """A host of files cannot make the receiver store what the private base has for those with the key."""
    with host(guarded(CONTENT)) as relay:
        with host(lambda visit: visit.answer(302, Location=f"{relay.url}{CONTENT}")) as files:
            client = ResultClient(Allowlist.parse([files.url.partition("//")[2]]), relay.url, lambda: BEARER)
            part = PartialFile(tmp_path / "part", "")
            try:
                with pytest.raises(Refused):
                    await fetch(client, f"{files.url}/a.mp4", part, kind="video", max_bytes=1 << 20)
            finally:
                part.discard()
                await client.close()
            assert len(files.visits) == 1
        assert relay.visits == []


@pytest.mark.parametrize("url", ["{base}@127.0.0.1:9/v1/videos/T/content", "{base}.example/v1/videos/T/content"])
async def test_an_address_that_begins_like_the_base_is_another(url: str) -> None:
    """It is checked as any other."""
    with host(guarded(CONTENT)) as relay, pytest.raises(Refused):
        await get(relay.url, url.format(base=relay.url), NOBODY)


@pytest.mark.parametrize(
    "path",
    [
        "/a.mp4",
        "/v1/videos/../../admin/content",
        "/v1/videos/..%2f..%2fadmin%2fkeys%3Bx=@y/content",
        "/v1/videos/T;x/content",
        "/v1/videos/T%00/content",
        "/v1/videos/T\x7f/content",
        "/v1/videos/T/content/../x",
        "/",
    ],
)
async def test_only_a_video_s_content_may_be_private_with_the_base(path: str) -> None:
    """Any other path of a private host needs KLING_PRIVATE_RESULT_HOSTS, as at any other host."""
    with host(guarded(path)) as relay:
        with pytest.raises(Refused):
            await get(relay.url, f"{relay.url}{path}", NOBODY)
        assert relay.visits == []
