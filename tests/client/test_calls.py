"""Calls of endpoints that answer at once, and Kling's own list: what is sent, how often, and what is returned."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from kling_callback.api.auth import JwtAuth
from kling_callback.calls import call_path
from kling_callback.errors import CreateUnknown, GatewayError, KlingError, NotCreated, ParameterError, SettingsError
from kling_callback.settings import TO_CALL, TO_WAIT, ClientSettings
from kling_callback.sync import Kling
from tests.support.kling import SETTINGS, Stage, answer, kling_says
from tests.support.web import host

pytestmark = pytest.mark.anyio

FACES = {
    "code": 0,
    "message": "SUCCEED",
    "request_id": "r",
    "data": {"session_id": "s", "face_data": [{"face_id": "0"}]},
}
SOUND = "data:audio/mpeg;base64,//ttcDM="
FACE_BODY = {"video_url": "https://example.com/x.mp4"}


async def call(stage: Stage, path: str = "videos/identify-face", body: Any = None, **settings: Any) -> dict[str, Any]:
    async with stage.kling(**settings) as kling:
        return await kling.call(path, FACE_BODY if body is None and path == "videos/identify-face" else body)


async def refused(stage: Stage, *arguments: Any) -> KlingError:
    with pytest.raises(KlingError) as error:
        await call(stage, *arguments)
    return error.value


async def test_the_answer_is_returned_unchanged() -> None:
    """With its envelope; the body is sent as it is, by POST, with the key, and nothing goes to the receiver."""
    stage = Stage(create=[answer(200, FACES)])
    assert await call(stage) == FACES
    (request,) = stage.requests["create"]
    assert (request.method, str(request.url)) == ("POST", "https://kling.test/v1/videos/identify-face")
    assert json.loads(request.content) == FACE_BODY
    assert request.headers["Authorization"] == "Bearer the-kling-key"
    assert request.headers["Accept"] == "application/json"
    assert stage.order == ["create"]


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("general/presets-voices", "https://kling.test/v1/general/presets-voices"),
        ("/v1/general/presets-voices?pageNum=2", "https://kling.test/v1/general/presets-voices?pageNum=2"),
        ("/general/presets-voices", "https://kling.test/v1/general/presets-voices"),
        ("account/costs?start_time=1&end_time=2", "https://kling.test/account/costs?start_time=1&end_time=2"),
        ("/account/costs", "https://kling.test/account/costs"),
        ("videos/text2video/822953089408827433", "https://kling.test/v1/videos/text2video/822953089408827433"),
        ("/tasks/new-route", "https://kling.test/tasks/new-route"),
    ],
)
async def test_a_call_without_a_body_is_a_get(path: str, url: str) -> None:
    """Paths of the account are at the root, others under /v1; a query stays as it is."""
    costs = {"code": 0, "data": {"code": 0, "msg": "", "resource_pack_subscribe_infos": [{"n": 1}] * 5000}}
    stage = Stage(query=[answer(200, costs)])
    assert await call(stage, path) == costs
    (request,) = stage.requests["query"]
    assert (request.method, str(request.url), request.content) == ("GET", url, b"")


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("videos/text2video", {"prompt": "x"}, "kling create"),
        ("videos/text2video", None, "kling list --at-kling"),
        ("/v1/images/generations", {"prompt": "x"}, "kling create"),
        ("/text-to-video/kling-3.0-turbo", {"prompt": "x"}, "kling create"),
        ("videos/multi-elements", {}, "kling create"),
        ("audio/tts", None, "body: audio/tts needs one"),
        ("general/presets-voices", {"x": 1}, "body: general/presets-voices takes none"),
        ("videos/identify-face", [], "body: must be a JSON object"),
        ("videos/identify-face", {"x": float("nan")}, "body: is not valid JSON"),
        *((path, None, "path: ") for path in ("", "x", "https://a.test/b/c", "a/../b", "a/b#c", "a/b?c d", "a/b?c#d")),
    ],
)
async def test_what_cannot_be_called_is_refused_before_it_is_sent(path: str, body: Any, says: str) -> None:
    """Above all what would create a task whose callback goes nowhere."""
    stage = Stage()
    async with stage.kling() as kling:
        with pytest.raises(ParameterError, match=says):
            await kling.call(path, body)
    assert stage.order == []


@pytest.mark.parametrize("body", [None, {"prompt": "x"}])
@pytest.mark.parametrize("create", ["videos/text2video", "images/generations", "text-to-video/kling-3.0-turbo"])
@pytest.mark.parametrize(
    "spelling",
    [
        "/{}",
        "/v1/v1/{}",
        "v1/v1/{}",
        "/v1/v1/v1/{}",
        "/V1/v1/{}",
        "//{}",
        "/v1//{}",
        "//v1/{}",
        "/v1//v1/{}",
        "/v1/./{}",
        "/v1/../{}",
        "/v1%2f{}",
        "%2f{}",
        "/{}/",
        "/{}//",
        "/{}/.",
        "/{}?x=1",
        "/{}#x",
        "/v1\\{}",
        " /{}",
        "/{} ",
    ],
)
async def test_no_spelling_of_a_path_creates_a_task(spelling: str, create: str, body: Any) -> None:
    """Slashes, points, escapes and prefixes, in small and in capital letters: what is checked is what is sent."""
    if not create.startswith("text") or "v1" not in spelling.lower():  # the new standard is not under /v1
        stage = Stage()
        for path in (create, create.upper(), create.replace("/", "//"), create.replace("/", "%2F")):
            with pytest.raises(ParameterError):
                await call(stage, spelling.format(path), body)
        assert stage.order == []


@pytest.mark.parametrize(
    "path",
    [
        "/kling/v1/videos/text2video",
        "kling/v1/images/generations",
        "/v2/videos/text2video",
        "/x/text-to-video/kling-3.0",
    ],
)
async def test_no_prefix_of_a_gateway_hides_a_create(path: str) -> None:
    """A GET there costs nothing."""
    stage = Stage()
    with pytest.raises(ParameterError, match="kling create"):
        await call(stage, path, {"prompt": "x"})
    assert stage.order == []
    await call(Stage(query=[answer(200, FACES)]), f"{path}/822953089408827433")


@pytest.mark.parametrize("path", ["v1/videos/identify-face", "/v1/v1/videos/identify-face", "V1/videos/identify-face"])
async def test_prefixes_are_removed(path: str) -> None:
    """All of them, so that a path that was checked is never another one."""
    assert call_path(path, FACE_BODY) == call_path(call_path(path, FACE_BODY), FACE_BODY) == "videos/identify-face"
    assert call_path("/v1/v1/account/costs?x=1") == "/account/costs?x=1"


async def test_all_problems_are_reported_at_once() -> None:
    """Of the path and of the body."""
    with pytest.raises(ParameterError) as error:
        call_path("videos/text2video", [])
    assert [problem.split(":")[0] for problem in error.value.problems] == ["path", "body"]


@pytest.mark.parametrize(
    "step",
    [
        lambda: httpx.ReadError("cut"),
        lambda: httpx.ReadTimeout("late"),
        lambda: httpx.RemoteProtocolError("gone"),
        lambda: kling_says(5000, status=500),
        lambda: kling_says(5002, status=504),
        lambda: answer(504, None),
        lambda: answer(408, None),
        lambda: httpx.Response(200, content=b"<html>"),
        lambda: httpx.Response(200, content=b"[]"),
        lambda: kling_says(9999, status=200),
    ],
)
@pytest.mark.parametrize("path", ["videos/identify-face", "general/presets-voices"])
async def test_a_call_that_may_have_arrived_is_not_repeated(step: Callable[[], Any], path: str) -> None:
    """Its outcome is unknown, and the error says so."""
    stage = Stage(create=[step()], query=[step()])
    error = await refused(stage, path)
    assert isinstance(error, CreateUnknown)
    assert error.outcome == "unknown"
    assert "may have been carried out and paid for" in str(error)
    assert len(stage.order) == 1


@pytest.mark.parametrize(
    ("step", "whole"),
    [
        (lambda: httpx.Response(200, content=b'["a"]'), '["a"]'),
        (lambda: httpx.Response(200, content=b"\xff\xfbmp3", headers={"Content-Type": "audio/mpeg"}), SOUND),
        (lambda: httpx.Response(200, content=b"<html>"), ""),
        (lambda: httpx.ReadError("cut"), ""),
        (lambda: kling_says(9999, status=200), '"code": 9999'),
    ],
)
async def test_an_answer_that_is_not_kling_s_is_not_lost(step: Callable[[], Any], whole: str) -> None:
    """It may be what was paid for."""
    error = await refused(Stage(create=[step()]))
    assert isinstance(error, CreateUnknown)
    assert (whole in error.answer.replace('":9999', '": 9999')) if whole else not error.answer


@pytest.mark.parametrize("code", [0, 200, "200", "ok", "OK", "success", None])
async def test_relays_have_their_own_codes_for_success(code: int | str | None) -> None:
    """Of a call, also without `data`, and of a list."""
    speech = {"code": code, "audio_url": "https://files.example.com/a.mp3"}
    assert await call(Stage(create=[answer(200, speech)])) == speech
    assert await listed(Stage(query=[page(records(0, 1), code=code)])) == records(0, 1)


@pytest.mark.parametrize(
    "step",
    [lambda: httpx.ConnectError("refused"), lambda: kling_says(1302, status=429), lambda: kling_says(1303, status=429)],
)
async def test_a_call_that_was_not_accepted_is_repeated(step: Callable[[], Any]) -> None:
    """Without a connection, and at a busy Kling."""
    stage = Stage(create=[step(), step(), answer(200, FACES)])
    assert await call(stage) == FACES
    assert stage.order == ["create"] * 3


@pytest.mark.parametrize(
    ("step", "code", "hint"),
    [
        (lambda: kling_says(1102, "used up", 429), 1102, "resource pack"),
        (lambda: kling_says(1301, "no", 400), 1301, "content safety"),
        (lambda: kling_says(1201, "no", 200), 1201, ""),
        (lambda: answer(404, None), None, "KLING_API_BASE"),
        (lambda: answer(302, None, Location="https://elsewhere.test"), None, ""),
    ],
)
async def test_a_refusal_has_kling_s_code_and_a_hint(step: Callable[[], Any], code: int | None, hint: str) -> None:
    """It is final, and nothing was paid."""
    stage = Stage(create=[step()])
    error = await refused(stage)
    assert isinstance(error, NotCreated)
    assert (error.code, error.outcome) == (code, "not_created")
    assert hint in (error.hint or "")
    assert code is None or str(code) in error.message
    assert len(stage.order) == 1


async def test_a_stale_jwt_is_signed_anew() -> None:
    """The call was not accepted with the old one; account paths accept a JWT too."""
    stage = Stage(query=[kling_says(1004, status=401), answer(200, FACES)])
    async with stage.kling(api_key="", access_key="access", secret_key="s" * 32) as kling:
        assert isinstance(kling._kling_api._auth.new, JwtAuth)
        assert await kling.call("account/costs") == FACES
    assert len(stage.order) == 2


async def test_a_call_needs_a_key() -> None:
    """And says which."""
    async with Stage().kling(settings=ClientSettings.load(require=TO_WAIT, **{**SETTINGS, "api_key": ""})) as kling:
        for call in (lambda: kling.call("general/presets-voices"), lambda: kling.tasks_at_kling("videos/text2video")):
            with pytest.raises(SettingsError, match="KLING_API_KEY"):
                await call()


async def test_all_problems_of_a_call_are_reported_at_once() -> None:
    """Path, files and key, before anything is sent; of a list, family and key."""
    stage = Stage()
    async with stage.kling(settings=ClientSettings.load(require=TO_WAIT, **{**SETTINGS, "api_key": ""})) as kling:
        with pytest.raises(ParameterError) as error:
            await kling.call("images/generations", {"image": "missing.png", "mask": "lost.png"})
        assert [line.split()[0] for line in error.value.problems] == ["path:", "image:", "mask:", "KLING_API_KEY"]
        with pytest.raises(ParameterError) as error:
            await kling.tasks_at_kling("audio/tts")
        assert [line.split()[0] for line in error.value.problems] == ["family:", "KLING_API_KEY"]
    assert stage.order == []


def test_a_call_needs_no_receiver() -> None:
    """Nor its settings; the blocking client returns the same."""
    with host(lambda visit: visit.answer(200, json.dumps(FACES).encode())) as web:
        settings = ClientSettings.load(require=TO_CALL, api_base=web.url, api_key="the-kling-key")
        for kling in (Kling(api_base=web.url, api_key="the-kling-key"), Kling(settings=settings)):
            with kling:
                assert kling.call("videos/identify-face", FACE_BODY) == FACES
                for method in (lambda: kling.create("images/generations", {}), kling.tasks):  # noqa: B023
                    with pytest.raises(SettingsError) as error:
                        method()
                    assert len(error.value.problems) == 2
        assert [visit.path for visit in web.visits] == ["/v1/videos/identify-face"] * 2


@pytest.mark.parametrize(
    "given", [{}, {"api_key": "k", "receiver_url": "https://receiver.test"}, {"signing_secrets": "x"}]
)
def test_half_the_settings_are_refused_at_once(given: dict[str, str]) -> None:
    """Without any, and with a receiver whose other setting is missing or wrong."""
    with pytest.raises(SettingsError) as error:
        Kling(**given)  # type: ignore[arg-type]
    assert len(error.value.problems) == {0: 3, 1: 2, 2: 1}[len(given)]


# --- Kling's own list --------------------------------------------------------------------------------------


def records(first: int, count: int) -> list[dict[str, Any]]:
    return [{"task_id": f"k{number}", "task_status": "succeed"} for number in range(first, first + count)]


def page(content: Any, **more: Any) -> httpx.Response:
    return answer(200, {"code": 0, "message": "SUCCEED", "data": content, **more})


async def listed(stage: Stage, family: str = "videos/text2video", limit: int = 100) -> list[dict[str, Any]]:
    async with stage.kling() as kling:
        return await kling.tasks_at_kling(family, limit=limit)


@pytest.mark.parametrize(
    ("pages", "limit", "count", "requests"),
    [
        ([records(0, 30), records(30, 30), records(60, 5)], 100, 65, 3),
        ([records(0, 30), []], 100, 30, 2),
        ([records(0, 30), records(30, 30)], 40, 40, 2),
        ([records(0, 30)], 30, 30, 1),
        ([[]], 100, 0, 1),
        ([records(0, 30), records(1, 30), records(31, 2)], 100, 33, 3),
        ([records(0, 30)] * 5, 100, 30, 2),
    ],
)
async def test_a_list_is_read_to_its_end_or_the_limit(pages: list[Any], limit: int, count: int, requests: int) -> None:
    """Each task once, also if new ones move the pages; a relay that has one page only does not loop."""
    stage = Stage(query=[page(each) for each in pages])
    found = await listed(stage, limit=limit)
    assert [record["task_id"] for record in found] == [f"k{number}" for number in range(count)]
    urls = [str(request.url) for request in stage.requests["query"]]
    assert urls == [f"https://kling.test/v1/videos/text2video?pageNum={n}&pageSize=30" for n in range(1, requests + 1)]
    assert stage.requests["query"][0].headers["Accept"] == "application/json"


async def test_a_list_is_read_again_after_an_outage() -> None:
    """Reading costs nothing."""
    stage = Stage(query=[httpx.ReadError("cut"), kling_says(5001, status=503), page(records(0, 1))])
    assert len(await listed(stage)) == 1


@pytest.mark.parametrize(
    "step",
    [
        kling_says(1101, status=429),
        page({"task_id": "k"}),
        page(["k"]),
        page(None),
        httpx.Response(200, content=b"<html>"),
    ],
)
async def test_an_answer_that_is_no_list_is_an_error(step: httpx.Response) -> None:
    """Not an empty list."""
    with pytest.raises(GatewayError):
        await listed(Stage(query=[step] * 9))


@pytest.mark.parametrize(
    ("family", "says"), [("/text-to-video/kling-3.0", "no list"), ("audio/tts", "kling call"), ("..", "family")]
)
async def test_a_family_without_a_list_is_refused(family: str, says: str) -> None:
    """Before anything is sent."""
    stage = Stage()
    with pytest.raises(ParameterError, match=says):
        await listed(stage, family)
    assert stage.order == []
