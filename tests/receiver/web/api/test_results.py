"""Result files over the API: headers, ranges, signed links and files that are missing."""

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import sign_link
from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.receiver import SECRET, Running, Start
from tools.harness.submitting import Json, events, finished, submit


@pytest.fixture(scope="module")
def stored(shared: Running, shared_gateway: Sandbox) -> Json:
    """A task with two stored files."""
    return finished(shared, submit(shared, shared_gateway, n=2)[0])


def test_the_headers_of_a_file(stored: Json) -> None:
    """The content type, the checksum as ETag, and a policy by which no browser runs anything in it."""
    result = stored["results"][0]
    response = httpx.get(result["href"])
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["ETag"] == f'"{result["sha256"]}"'
    assert response.headers["Content-Length"] == str(result["size"])
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response.headers["Content-Security-Policy"]
    assert response.headers["Content-Disposition"] == f'inline; filename="{stored["id"]}-0.png"'
    head = httpx.head(result["href"])
    assert (head.status_code, head.content, head.headers["Content-Length"]) == (200, b"", str(result["size"]))


@pytest.mark.parametrize(
    ("header", "status", "part"),
    [
        ("bytes=0-9", 206, slice(0, 10)),
        ("bytes=10-", 206, slice(10, None)),
        ("bytes=-10", 206, slice(-10, None)),
        ("bytes=-99999999", 206, slice(0, None)),
        ("bytes=5-99999999", 206, slice(5, None)),
        ("bytes=0-0", 206, slice(0, 1)),
        ("bytes=99999999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=9-5", 200, slice(None)),
        ("bytes=-", 200, slice(None)),
        ("bytes=a-b", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("items=0-5", 200, slice(None)),
        ("bytes=" + "0-1," * 500 + "0-1", 200, slice(None)),
        ("bytes=" + "9" * 6000 + "-", 200, slice(None)),
        ("nonsense", 200, slice(None)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_range_of_a_file(stored: Json, header: str, status: int, part: slice | None) -> None:
    """One range is served, a range past the end gets 416, and an invalid range gets the whole file."""
    result = stored["results"][0]
    whole = httpx.get(result["href"]).content
    response = httpx.get(result["href"], headers={"Range": header})
    assert response.status_code == status
    if part is None:
        assert error_of(response) == (416, "bad_range")
        assert response.headers["Content-Range"] == f"bytes */{len(whole)}"
    else:
        assert response.content == whole[part]
        assert ("Content-Range" in response.headers) == (status == 206)


def test_links_have_the_address_of_people(start: Start, gateway: Sandbox) -> None:
    """Also in Kling's format; a proxy may keep the path of KLING_LINKS_URL."""
    running = start(api_base=gateway.url, links_url="http://files.example/archive/", compat_api="on")
    task = finished(running, submit(running, gateway, n=1)[0])
    record = httpx.get(f"{running.url}/v1/{task['family']}/{task['id']}", headers=running.headers()).json()["data"]
    for link in (task["results"][0]["href"], record["task_result"]["images"][0]["url"]):
        assert link.startswith("http://files.example/archive/api/tasks/")
        for base in ("http://files.example", "http://files.example/archive"):
            assert httpx.get(link.replace(base, running.url)).headers["Content-Type"] == "image/png"
    assert gateway.creates[-1]["callback_url"].startswith(f"{running.url}/callbacks/")


def test_if_range_must_match_the_etag(stored: Json) -> None:
    """With another tag the whole file is sent, even if the range is past the end."""
    href, etag = stored["results"][0]["href"], f'"{stored["results"][0]["sha256"]}"'
    assert httpx.get(href, headers={"Range": "bytes=0-4", "If-Range": etag}).status_code == 206
    for header in ("bytes=0-4", "bytes=99999999-"):
        assert httpx.get(href, headers={"Range": header, "If-Range": '"other"'}).status_code == 200


@pytest.mark.parametrize(("tag", "status"), [("{}", 304), ("W/{}", 304), ('"a", {}', 304), ("*", 304), ('"a"', 200)])
def test_a_file_that_the_client_has_is_not_sent_again(stored: Json, tag: str, status: int) -> None:
    """304 for the file's tag, also among others, and marked weak by a proxy."""
    etag = f'"{stored["results"][0]["sha256"]}"'
    response = httpx.get(stored["results"][0]["href"], headers={"If-None-Match": tag.format(etag)})
    assert (response.status_code, response.headers["ETag"]) == (status, etag)
    assert bool(response.content) == (status == 200)


def test_a_link_opens_one_file_for_a_limited_time(shared: Running, stored: Json) -> None:
    """A link that is altered, expired, or of another file or task, is refused."""
    href, second = (result["href"] for result in stored["results"])
    good = httpx.URL(href)
    signature = good.params["signature"]
    expired = sign_link([SECRET], shared.url, stored["id"], 0, 1_000_000_000)
    bad = [
        expired,
        sign_link(["another-secret-that-is-32-characters!"], shared.url, stored["id"], 0, 9_999_999_999),
        str(httpx.URL(second).copy_set_param("signature", signature)),
        str(good.copy_set_param("expires", "9999999999")),
        str(good.copy_set_param("expires", "")),
        str(good.copy_set_param("expires", "\u0663\0")),
        str(good.copy_set_param("signature", "")),
        str(good.copy_set_param("signature", signature + "x")),
        str(good.copy_set_param("signature", "\xe9\0")),
        str(good.copy_remove_param("expires")),
        href.replace("/results/0", "/results/1"),
        href.replace(stored["id"], new_id()),
    ]
    for url in bad:
        assert error_of(httpx.get(url)) == (401, "bad_link"), url
    assert error_of(httpx.get(str(good.copy_remove_param("signature")))) == (401, "no_token")
    assert httpx.get(href).status_code == 200


def test_a_bearer_token_opens_every_file(shared: Running, stored: Json) -> None:
    """With the role `read`, by the URL without a signature."""
    assert get(shared, f"/api/tasks/{stored['id']}/results/1").status_code == 200
    for n in ("2", "99999999999999999999", "00"):
        response = get(shared, f"/api/tasks/{stored['id']}/results/{n}")
        assert response.status_code == (200 if n == "00" else 404)
    for odd in ("x", "-1", "1.5", "%00", "9" * 5_000, "%C2%B2"):
        assert error_of(get(shared, f"/api/tasks/{stored['id']}/results/{odd}")) == (404, "unknown_result")
    assert error_of(get(shared, "/api/tasks/~x/results/0")) == (404, "unknown_task")


def test_a_file_that_is_missing(running: Running, gateway: Sandbox) -> None:
    """Pending, failed and lost files have an error of their own, each with what to do."""
    stored = finished(running, submit(running, gateway, n=2)[0])
    path = running.settings.results / stored["id"] / "0.png"
    content = path.read_bytes()
    for altered in (content[:-1], content + b"x", b"", content[:-1] + b"x"):
        path.write_bytes(altered)
        assert error_of(httpx.get(stored["results"][0]["href"])) == (410, "result_lost")
    path.unlink()
    assert error_of(httpx.get(stored["results"][0]["href"])) == (410, "result_lost")
    path.write_bytes(content)
    assert httpx.get(stored["results"][0]["href"]).content == content
    path.unlink()
    failed, _ = submit(running, gateway, "redirect-private")
    assert finished(running, failed)["results"][0]["href"] is None
    assert error_of(get(running, f"/api/tasks/{failed}/results/0")) == (409, "result_failed")
    pending, _ = submit(running, gateway, "file-500-once")
    events(running, pending, "task.succeed")
    assert error_of(get(running, f"/api/tasks/{pending}/results/0")) == (409, "result_pending")
