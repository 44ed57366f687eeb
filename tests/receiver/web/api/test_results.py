"""Result files over the API: headers, ranges, signed links, other origins, and files that are missing."""

import json
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import text

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.media_types import EXTENSIONS
from kling_callback.protocol.signing import sign_link
from kling_receiver.results.media import INLINE_TYPES
from kling_sandbox import Sandbox
from tests.support.api import error_of, get
from tests.support.commands import run_here
from tests.support.receiver import SECRET, Running, Start
from tests.support.web import Host, host
from tools.harness.process import environment
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
    assert response.headers["Content-Security-Policy"] == (
        "sandbox; default-src 'none'; img-src 'self'; style-src 'unsafe-inline'"
    )
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


def retyped(running: Running, task: Json, content_type: str | None) -> httpx.Response:
    """The first file of a task, as if the database said that it has this type."""
    with running.receiver.store.database.write() as connection:
        connection.execute(
            text("UPDATE result SET content_type = :type WHERE task_id = :id AND position = 0"),
            {"type": content_type, "id": task["id"]},
        )
    return httpx.get(task["results"][0]["href"])


def test_only_images_videos_and_sounds_are_shown(running: Running, gateway: Sandbox) -> None:
    """By their own type, without scripts, frames or plugins. Any other file is an attachment of no type."""
    task = finished(running, submit(running, gateway)[0])
    for media_type in sorted(INLINE_TYPES):
        headers = retyped(running, task, media_type).headers
        assert headers["Content-Type"] == media_type
        assert headers["Content-Disposition"] == f'inline; filename="{task["id"]}-0.{EXTENSIONS[media_type]}"'
        policy = headers["Content-Security-Policy"].split("; ")
        assert "default-src 'none'" in policy
        assert "script" not in str(policy)
        assert ("sandbox" in policy) == media_type.startswith("image/")
        assert ("media-src 'self'" in policy) == media_type.startswith(("video/", "audio/"))
    active = ("text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/pdf", "text/javascript")
    odd = ("IMAGE/PNG", "image/png; charset=x", "image/png\r\nX-Y: z", "", None, "application/octet-stream")
    for other in (*active, *odd):
        headers = retyped(running, task, other).headers
        assert headers["Content-Type"] == "application/octet-stream"
        assert headers["Content-Disposition"] == f'attachment; filename="{task["id"]}-0.bin"'
        assert headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_what_is_shown_cannot_hold_a_script() -> None:
    """Each is a type of pixels or sound that we detect by its bytes."""
    assert EXTENSIONS.keys() - {"application/octet-stream"} >= INLINE_TYPES
    assert not {each for each in INLINE_TYPES if "svg" in each or "xml" in each or "pdf" in each or "html" in each}


def cors(response: httpx.Response) -> dict[str, str]:
    """The headers of a response that let other origins use it, and the one that forbids it."""
    names = ("access-control-", "cross-origin-")
    return {name: value for name, value in response.headers.items() if name.startswith(names)}


SHARED = {
    "access-control-allow-origin": "*",
    "access-control-expose-headers": "Content-Length, Content-Range, ETag, Accept-Ranges",
    "cross-origin-resource-policy": "cross-origin",
}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Range": "bytes=0-9"}, 206),
        ({"Range": "bytes=99999999-"}, 416),
        ({"If-None-Match": "*"}, 304),
        ({"Authorization": "Bearer nonsense", "Cookie": "session=x"}, 200),
    ],
)
def test_a_page_of_any_origin_reads_a_signed_link(stored: Json, headers: dict[str, str], status: int) -> None:
    """Also the errors. What else the request carries has no part in it: the browser sends nothing with `*`."""
    response = httpx.get(stored["results"][0]["href"], headers={**headers, "Origin": "https://other.example"})
    assert response.status_code == status
    assert cors(response) == SHARED
    assert "Vary" not in response.headers


def test_no_other_origin_reads_what_a_token_opens(shared: Running, stored: Json) -> None:
    """Nor the refusal of a link, nor a preflight without one."""
    path = f"/api/tasks/{stored['id']}/results/0"
    assert cors(get(shared, path)) == {"cross-origin-resource-policy": "same-origin"}
    assert cors(httpx.get(f"{shared.url}{path}", headers={"Origin": "https://other.example"})) == {}
    bad = f"{shared.url}{path}?expires=1&signature=x"
    assert cors(httpx.get(bad)) == cors(httpx.options(bad)) == {}
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "authorization"}
    refused = httpx.options(f"{shared.url}{path}", headers={"Origin": "https://other.example", **asked})
    assert (error_of(refused), cors(refused)) == ((401, "bad_link"), {})


def test_a_preflight_permits_ranges_of_a_signed_link(stored: Json) -> None:
    """And no token."""
    href = stored["results"][0]["href"]
    asked = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "range"}
    response = httpx.options(href, headers={"Origin": "https://other.example", **asked})
    assert (response.status_code, response.content) == (204, b"")
    assert cors(response) == {
        **SHARED,
        "access-control-allow-headers": "Range, If-Range, If-None-Match",
        "access-control-allow-methods": "GET, HEAD",
        "access-control-max-age": "7200",
    }


def test_the_link_of_the_doctor(shared: Running) -> None:
    """Answered with its number, to who has the secret; a token finds no such task."""

    def link(secret: str, number: int) -> str:
        return sign_link([secret], shared.url, "~doctor", number, int(time.time()) + 60)

    response = httpx.get(link(SECRET, 123456789))
    assert response.json() == {"doctor": "123456789"}
    assert response.headers["Cache-Control"] == "no-store"
    assert error_of(httpx.get(link("another-secret-that-is-32-characters!", 5))) == (401, "bad_link")
    assert error_of(httpx.get(link(SECRET, 5).replace("/results/5", "/results/6"))) == (401, "bad_link")
    assert error_of(get(shared, "/api/tasks/~doctor/results/5")) == (404, "unknown_task")


def delivered(hook: Host, type_: str) -> Json:
    """The first event of a type that a hook received; empty if there is none yet."""
    events = (json.loads(visit.body) for visit in hook.visits)
    return next((event for event in events if event["type"] == type_), {})


def test_links_have_the_address_of_people(start: Start, gateway: Sandbox, tmp_path: Path) -> None:
    """In the API, in Kling's format, in hooks, in commands; a proxy may keep the path of KLING_LINKS_URL."""
    begin = "http://files.example/archive/api/tasks/"
    with host(lambda visit: visit.answer(204)) as hook:
        settings = {"hook_url": hook.url, "hook_secret": f"whsec_{'a' * 44}", "compat_api": "on"}
        running = start(api_base=gateway.url, links_url="http://files.example/archive/", **settings)
        task = finished(running, submit(running, gateway, n=1)[0])
        with hook.changed:
            event = hook.changed.wait_for(lambda: delivered(hook, "task.done"), 20)
    record = httpx.get(f"{running.url}/v1/{task['family']}/{task['id']}", headers=running.headers()).json()["data"]
    assert event["task"]["results"][0]["href"].startswith(begin)
    for link in (task["results"][0]["href"], record["task_result"]["images"][0]["url"]):
        assert link.startswith(begin)
        for base in ("http://files.example", "http://files.example/archive"):
            assert httpx.get(link.replace(base, running.url)).headers["Content-Type"] == "image/png"
    assert gateway.creates[-1]["callback_url"].startswith(f"{running.url}/callbacks/")
    env = environment(tmp_path, KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    shown = run_here("tasks", "show", task["id"], env=env)
    assert json.loads(shown.stdout)["results"][0]["href"].startswith(begin)
    running.stop()
    env |= {"KLING_DATA_DIR": str(running.settings.data_dir), "KLING_LINKS_URL": "http://files.example/archive"}
    offline = run_here("tasks", "show", task["id"], env=env)
    assert json.loads(offline.stdout)["results"][0]["href"].startswith(begin)


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
