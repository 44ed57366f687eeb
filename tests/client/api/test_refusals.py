"""What the answers of relays and of wrong addresses prove, and what their errors say."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from kling_callback.api.auth import BearerAuth
from kling_callback.api.create import may_resend
from kling_callback.api.kling import KlingApi
from kling_callback.api.refusals import HINTS, MAX_WORDS, Reply, first_words, refusal
from kling_callback.errors import CreateUnknown, GatewayError, NotCreated
from kling_callback.protocol.reports import Report, parse_answer
from kling_callback.protocol.results.outputs import Output
from tests.support.wire import Wire, reply

pytestmark = pytest.mark.anyio

VIDEOS, IMAGES = "videos/text2video", "images/generations"
KEY = "sk-0123456789abcdef"
PAGE = "<html><head><title>502 Bad Gateway</title><style>b {}</style></head><body><h1>Too&nbsp;bad</h1></body></html>"


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


async def create(http: httpx.AsyncClient, answer: bytes, *, path: str = "/kling", family: str = VIDEOS) -> GatewayError:
    """The error of a create that gets this answer, once."""
    with Wire(answer) as wire, pytest.raises(GatewayError) as raised:
        await KlingApi(f"{wire.url}{path}", BearerAuth(KEY), http).create(family, {"prompt": "x"})
    assert len(wire.requests) == 1
    assert b"\r\nAccept: application/json\r\n" in wire.requests[0]
    return raised.value


async def query(http: httpx.AsyncClient, answer: bytes, *, path: str = "/kling", family: str = VIDEOS) -> Report | None:
    with Wire(answer) as wire:
        return await KlingApi(f"{wire.url}{path}", BearerAuth(KEY), http).query(family, kling_id="T")


def nested(code: int, message: str) -> dict[str, Any]:
    """A relay's refusal with Kling's as text inside."""
    return {"code": "fail_to_fetch_task", "message": json.dumps({"code": code, "message": message}), "data": None}


def error(code: str, message: str, **more: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "type": "new_api_error", **more}}


@pytest.mark.parametrize(
    ("status", "body", "code", "words", "hint"),
    [
        (429, nested(1303, "parallel task over resource pack limit"), 1303, "parallel task over", HINTS[1303]),
        (429, nested(1302, "rate limit"), 1302, "rate limit", HINTS[1302]),
        (400, nested(1302, "rate limit"), 1302, "rate limit", HINTS[1302]),
        (400, nested(1102, "Resource pack consumed"), 1102, "Resource pack consumed", HINTS[1102]),
        (500, nested(1301, "unsafe"), 1301, "unsafe", HINTS[1301]),
        (400, nested(1201, "duration is wrong"), 1201, "duration is wrong", HINTS[1201]),
        (503, error("model_not_found", "模型 kling-v9 无可用渠道"), "model_not_found", "v9 无可用", "model_name"),
        (503, error("", "分组 default 下对于模型 kling-v9 无可用渠道"), "new_api_error", "无可用渠道", "model_name"),
        (403, error("insufficient_user_quota", "用户额度不足"), "insufficient_user_quota", "用户额度不足", "quota"),
        (403, error("", "预扣费额度失败, 用户剩余额度: 0"), "new_api_error", "预扣费额度失败", "quota"),
        (402, {"message": "Insufficient balance"}, None, "Insufficient balance", "quota"),
        (500, error("pre_consume_token_quota_failed", "no"), "pre_consume_token_quota_failed", "no", "quota"),
        (403, error("", "you are not allowed"), "new_api_error", "not allowed", "KLING_API_KEY"),
        (200, {"code": 401, "message": "invalid token"}, 401, "invalid token", "KLING_API_KEY"),
        (200, {"code": "403", "msg": "无权限"}, 403, "无权限", "KLING_API_KEY"),
        (200, {"code": 429, "message": "too many"}, 429, "too many", "later"),
        (307, {}, None, "{}", "redirects"),
        (403, {"status": "error", **error("insufficient_user_quota", "no")}, "insufficient_user_quota", "no", "quota"),
        (429, {"status": "failed", "error": {"code": 1303}}, 1303, '"code": 1303', HINTS[1303]),
        (429, {"id": "r", "status": "failed", "error": {"code": 1303, "message": "full"}}, 1303, "full", HINTS[1303]),
        (403, {"status": "fail", "msg": "余额不足"}, None, "余额不足", "quota"),
        (400, {"status": "fail", "reason": "bad ratio", "code": 1201}, 1201, "bad ratio", HINTS[1201]),
        (200, {"status": "error", "error": {"code": 1102, "message": "used up"}}, 1102, "used up", HINTS[1102]),
    ],
)  # fmt: skip
async def test_a_refusal_of_a_relay_is_final_and_has_its_words(
    http: httpx.AsyncClient, status: int, body: Any, code: int | str | None, words: str, hint: str
) -> None:
    """Not created, with the relay's words at once, and a hint about what is really missing."""
    refused = await create(http, reply(status, body))
    assert (type(refused), refused.code, refused.http_status) == (NotCreated, code, status)
    assert words in refused.message
    assert refused.hint
    assert hint in refused.hint
    assert ("KLING_API_KEY" in refused.hint) == (hint == "KLING_API_KEY")
    assert may_resend(refused) == (code in (1302, 1303))


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (502, b"<html><body>502 Bad Gateway</body></html>", "HTTP 502: 502 Bad Gateway."),
        (502, PAGE.encode(), "HTTP 502: 502 Bad Gateway Too bad."),
        (504, b"upstream request timeout", "HTTP 504: upstream request timeout."),
        (500, {"reason": {"upstream": "gone"}}, 'HTTP 500: {"reason": {"upstream": "gone"}}.'),
        (500, error("do_request_failed", "上游超时"), "do_request_failed, HTTP 500: 上游超时."),
        (503, b"", "HTTP 503: an empty answer."),
        (500, nested(5002, "timeout"), "5002, HTTP 500: timeout."),
        (504, {"message": 'request was {"prompt": "x", "code": 1303}'}, '{"prompt": "x", "code": 1303}.'),
        (500, {"status": "failed", "error": "上游超时"}, "HTTP 500: 上游超时."),
        (400, nested(5000, "busy"), "5000, HTTP 400: busy."),
        (200, {"code": 500, "message": "服务异常"}, "500, HTTP 200: 服务异常."),
        (200, {"message": "ok"}, "HTTP 200: ok."),
        (200, {"id": "request-1", "error": {"message": "overloaded"}}, "HTTP 200: overloaded."),
        (200, ["a", "list"], 'HTTP 200: ["a", "list"].'),
    ],
)
async def test_an_unknown_outcome_has_the_words_of_the_answer(
    http: httpx.AsyncClient, status: int, body: Any, words: str
) -> None:
    """The task may exist: the create must not be sent again, and whoever looks for it reads what was said."""
    unknown = await create(http, reply(status, body))
    assert type(unknown) is CreateUnknown
    assert unknown.message.endswith(words)
    assert not may_resend(unknown)


OPENAI_404 = {"error": {"message": "Invalid URL (POST /v1/videos/text2video)", "type": "invalid_request_error"}}
PAID = {"created": 1, "data": [{"url": "https://files.example.com/a.png?signature=secret"}]}


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply(404, OPENAI_404), NotCreated),
        (reply(404, {"detail": "Not Found"}), NotCreated),
        (reply(404, b"404 page not found"), NotCreated),
        (reply(405, b"<html>405"), NotCreated),
        (reply(503, error("model_not_found", "no available channel")), NotCreated),
        (reply(200, b"<!DOCTYPE html><title>The relay's console</title>"), CreateUnknown),
        (reply(200, PAID), CreateUnknown),
        (reply(200, {"id": "c", "object": "chat.completion", "created": 1, "choices": []}), CreateUnknown),
    ],
)
@pytest.mark.parametrize("path", ["", "/v1", "/kling/v1"])
async def test_an_address_without_kling_s_api_suggests_the_suffix(
    http: httpx.AsyncClient, answer: bytes, kind: type[GatewayError], path: str
) -> None:
    """A relay's host alone answers as an OpenAI endpoint: what it took may be paid, and is never sent again."""
    refused = await create(http, answer, path=path)
    assert type(refused) is kind
    assert re.search(r"KLING_API_BASE=http://127.0.0.1:\d+/kling$", str(refused))


async def test_what_an_openai_endpoint_made_is_named(http: httpx.AsyncClient) -> None:
    """The image may be paid: its address is in the error, without the query, which may be a secret."""
    unknown = await create(http, reply(200, PAID), path="", family=IMAGES)
    assert "https://files.example.com/a.png" in unknown.message
    assert "signature" not in str(unknown)


def hint_at(base: str, status: int, body: bytes) -> str:
    return str(refusal(GatewayError, Reply(status, parse_answer(body), is_html=body.startswith(b"<html")), base).hint)


@pytest.mark.parametrize(
    ("base", "status", "body", "hint"),
    [
        ("https://relay.example", 200, b"<html>", "KLING_API_BASE=https://relay.example/kling"),
        ("https://relay.example/api", 200, b"<html>", "check KLING_API_BASE."),
        ("https://api-singapore.klingai.com", 404, b"<html>", "check KLING_API_BASE."),
        ("https://api-singapore.klingai.com", 502, b"<html>", "None"),
        ("https://relay.example", 502, b"<html>", "None"),
        ("https://relay.example/kling", 404, b"{}", "Check KLING_API_BASE and the family"),
        ("https://relay.example", 404, b'{"code": 1203, "message": "no such model"}', "Check model_name."),
    ],
)
def test_the_suffix_is_suggested_only_where_it_is_missing(base: str, status: int, body: bytes, hint: str) -> None:
    """Not for Kling's own address, nor after a failure of the server."""
    assert hint in hint_at(base, status, body)


@pytest.mark.parametrize("code", [1200, 1201, 1302, 1303, 5000, 5001, 5002])
def test_every_code_of_kling_has_a_hint(code: int) -> None:
    """One sentence or two about what to do."""
    assert HINTS[code].endswith(".")


@pytest.mark.parametrize(
    "answer",
    [
        reply(400, {"code": "task_not_exist", "message": "task_not_exist", "data": None}),
        reply(200, {"code": "task_not_exist", "message": "task_not_exist"}),
        reply(400, nested(1201, "task not found")),
        reply(404, error("not_found", "no such task")),
        reply(200, {"code": 404, "message": "任务不存在"}),
        reply(400, {"status": "error", "error": {"code": 1201, "message": "task not found"}}),
        reply(200, {"status": "error", "error": {"code": "task_not_exist"}}),
    ],
)
async def test_a_relay_does_not_know_a_task(http: httpx.AsyncClient, answer: bytes) -> None:
    """As by Kling's 1201."""
    assert await query(http, answer) is None


@pytest.mark.parametrize(
    ("code", "message"), [(1301, "unsafe"), (1001, None), (1303, None), (5000, None), ("x", "unsafe"), (None, "unsafe")]
)
async def test_a_failed_task_without_an_id_is_no_failed_query(
    http: httpx.AsyncClient, code: int | str | None, message: str | None
) -> None:
    """Unless its code is about the query: a key, a limit, a fault of Kling's."""
    answer = reply(200, {"status": "failed", "error": {"code": code, "message": "unsafe"}})
    if message is None:
        with pytest.raises(GatewayError):
            await query(http, answer)
    else:
        found = await query(http, answer)
        assert found
        assert (found.status, found.message) == ("failed", message)


@pytest.mark.parametrize("answer", [reply(404, OPENAI_404), reply(200, PAGE.encode()), reply(200, PAID)])
async def test_a_query_at_a_wrong_address_is_an_error(http: httpx.AsyncClient, answer: bytes) -> None:
    """It says nothing about the task, and names the address that is missing."""
    with pytest.raises(GatewayError) as raised:
        await query(http, answer, path="")
    assert "/kling" in str(raised.value)


@pytest.mark.parametrize(
    ("family", "record", "outputs"),
    [
        (VIDEOS, {"url": "https://f.example/1"}, [("video", "https://f.example/1")]),
        (IMAGES, {"url": "https://f.example/1"}, [("image", "https://f.example/1")]),
        ("general/x", {"url": "https://f.example/1"}, [("file", "https://f.example/1")]),
        (VIDEOS, {}, [("video", "{origin}/v1/videos/T/content")]),
        (IMAGES, {}, []),
        (VIDEOS, {"url": "/files/T.mp4"}, [("video", "{origin}/files/T.mp4")]),
    ],
)
async def test_the_family_tells_what_a_relay_leaves_out(
    http: httpx.AsyncClient, family: str, record: dict[str, Any], outputs: list[tuple[str, str]]
) -> None:
    """The kind of a file, and the address of one that the relay serves at its own host."""
    with Wire(reply(200, {"id": "T", "status": "completed", **record})) as wire:
        found = await KlingApi(f"{wire.url}/kling", BearerAuth(KEY), http).query(family, kling_id="T")
    assert found
    assert list(found.outputs) == [Output(kind, url.format(origin=wire.url)) for kind, url in outputs]


@pytest.mark.parametrize(
    ("base", "family", "url"),
    [
        ("https://relay.example/kling", VIDEOS, "https://relay.example/v1/videos/T%20/content"),
        ("https://relay.example/kling", IMAGES, None),
        ("https://api-singapore.klingai.com", VIDEOS, None),
    ],
)
async def test_a_relay_may_serve_a_video_without_an_address(
    http: httpx.AsyncClient, base: str, family: str, url: str | None
) -> None:
    """Kling itself names every file."""
    kling = KlingApi(base, BearerAuth(KEY), http)
    assert kling.content(family, "T ") == (Output("video", url) if url else None)
    assert kling.content(family, None) is None


async def test_no_answer_shows_the_key(http: httpx.AsyncClient) -> None:
    """Pages and JSON that quote it have a placeholder instead."""
    for answer in (reply(502, f"<html>{KEY} is wrong".encode()), reply(500, nested(5000, f"{KEY} is wrong"))):
        unknown = await create(http, answer)
        assert KEY not in str(unknown)
        assert "(key) is wrong" in unknown.message


@pytest.mark.parametrize(
    ("content", "content_type", "words"),
    [
        ("<html>网关错误".encode("gbk"), "text/html; charset=gbk", "网关错误"),
        ('<html><meta charset="gb2312">网关错误'.encode("gbk"), "text/html", "网关错误"),
        ("网关错误".encode(), "text/plain", "网关错误"),
        ("网关错误".encode(), "text/html; charset=nonsense", "网关错误"),
        (b"\xff\xfe\x00", "", "\ufffd\ufffd"),
        (b"<!-- a -->x<script>y</script >z &lt;b&gt;", "", "x z <b>"),
        (b"x" * 500, "", "x" * MAX_WORDS + "…"),
    ],
)
def test_the_first_words_of_a_page_are_readable(content: bytes, content_type: str, words: str) -> None:
    """In any encoding, without markup, limited."""
    assert first_words(content, content_type) == words


NAMED = {"task_id": "T", "task_status": "submitted"}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, {"code": 0, "detail": 'prompt: {"code": 1302, "message": "x"}', "data": {"task_id": "T"}}, None),
        (200, {"code": 0, "message": 'ok {"code": 1101, "message": "x"}', "data": NAMED}, None),
        (200, {"id": "T", "status": "queued", "code": 429}, None),
        (429, {"code": 1303, "message": "busy", "data": NAMED}, CreateUnknown),
        (200, {"code": 1302, "message": "busy", "data": NAMED}, CreateUnknown),
        (400, {"code": 0, "data": NAMED}, CreateUnknown),
        (503, {"code": "model_not_found", "message": "x", "data": NAMED}, CreateUnknown),
    ],
)
async def test_an_answer_that_names_a_task_proves_no_refusal(
    http: httpx.AsyncClient, status: int, body: Any, kind: type[GatewayError] | None
) -> None:
    """It was created, or it may have been: a create is never sent again because of words beside its id."""
    with Wire(reply(status, json.dumps(body).encode())) as wire:
        kling = KlingApi(wire.url, BearerAuth("sandbox-key"), http)
        if kind is None:
            assert (await kling.create(IMAGES, {"prompt": "x"})).kling_id == "T"
        else:
            with pytest.raises(GatewayError) as unknown:
                await kling.create(IMAGES, {"prompt": "x"})
            assert type(unknown.value) is kind


async def test_a_key_that_an_answer_spells_in_escapes_is_removed(http: httpx.AsyncClient) -> None:
    """It would appear in logs, tasks and events."""
    spelt = b'{"code": 1201, "message": "bad key \\u0073andbox-key"}'
    with Wire(reply(400, spelt)) as wire, pytest.raises(GatewayError) as refused:
        await KlingApi(wire.url, BearerAuth("sandbox-key"), http).create(IMAGES, {"prompt": "x"})
    assert "bad key (key)" in refused.value.message
