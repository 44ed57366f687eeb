"""The API of Kling or a gateway: what each answer, truncation or silence proves about a create or a query."""

import gzip
import json
import socket
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any

import httpx
import pytest

from kling_callback.api.auth import BearerAuth, JwtAuth
from kling_callback.api.http import retry_after_seconds
from kling_callback.api.kling import MAX_ANSWER_BYTES, KlingApi, auth_from
from kling_callback.errors import CreateUnknown, GatewayError, NotCreated
from kling_callback.settings import ClientSettings
from kling_sandbox import Sandbox
from tests.support.wire import Wire, reply

pytestmark = pytest.mark.anyio

IMAGES = "images/generations"
NEW = "/text-to-video/kling-3.0-turbo"
TAKEN = {
    "code": 0,
    "message": "SUCCEED",
    "request_id": "r",
    "data": {"task_id": "t", "task_status": "submitted"},
}


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient() as client:
        yield client


def at(url: str, http: httpx.AsyncClient, auth: httpx.Auth | None = None) -> KlingApi:
    return KlingApi(url, auth or BearerAuth("sandbox-key"), http)


def wanted(prompt: str, **more: Any) -> dict[str, Any]:
    return {"prompt": prompt, "external_task_id": "mine", **more}


async def refused(gateway: KlingApi, body: dict[str, Any], family: str = IMAGES) -> GatewayError:
    with pytest.raises(GatewayError) as error:
        await gateway.create(family, body)
    return error.value


async def test_a_create_that_kling_took_has_its_id(gateway: Sandbox, http: httpx.AsyncClient) -> None:
    """The report has Kling's id, and a query by it or by ours finds the same task."""
    kling = at(gateway.url, http)
    report = await kling.create(IMAGES, wanted("a kangaroo"))
    for id_ in ({"kling_id": report.kling_id}, {"task_id": "mine"}):
        found = await kling.query(IMAGES, **id_)
        assert found is not None
        assert (found.kling_id, found.external_task_id) == (report.kling_id, "mine")


async def test_the_new_standard_has_its_own_addresses(gateway: Sandbox, http: httpx.AsyncClient) -> None:
    """A family with a leading slash is its own path; its tasks are queried by the batch query."""
    kling = at(gateway.url, http)
    report = await kling.create(NEW, {"prompt": "x", "options": {"external_task_id": "mine"}})
    found = await kling.query(NEW, task_id="mine")
    assert found is not None
    assert found.kling_id == report.kling_id


async def test_a_gateway_under_a_prefix_that_wraps_twice(http: httpx.AsyncClient) -> None:
    """A gateway's path prefix is kept, and its second envelope parsed."""
    with Sandbox(base_path="/kling", misbehave=["wrap-twice"]) as gateway:
        kling = at(gateway.url, http)
        report = await kling.create(IMAGES, wanted("x"))
        assert report.kling_id in gateway.tasks
        found = await kling.query(IMAGES, kling_id=report.kling_id)
        assert found is not None


@pytest.mark.parametrize(
    ("switch", "code", "retryable"),
    [("busy", 1302, True), ("full", 1303, True), ("arrears", 1101, False), ("not-allowed", 1304, False)],
)
async def test_kling_s_refusals_took_nothing(
    gateway: Sandbox, http: httpx.AsyncClient, switch: str, code: int, retryable: bool
) -> None:
    """All of these are HTTP 429; the code says which may be retried."""
    error = await refused(at(gateway.url, http), wanted(f"x [sandbox: {switch}]"))
    assert isinstance(error, NotCreated)
    assert (error.code, error.http_status, error.retryable) == (code, 429, retryable)
    assert error.request_id
    assert not gateway.tasks


async def test_an_id_that_is_taken_is_refused(gateway: Sandbox, http: httpx.AsyncClient) -> None:
    """A second create with our id makes no second task: code 1201."""
    kling = at(gateway.url, http)
    await kling.create(IMAGES, wanted("x"))
    error = await refused(kling, wanted("x"))
    assert isinstance(error, NotCreated)
    assert (error.code, len(gateway.tasks)) == (1201, 1)


@pytest.mark.parametrize(
    "switch", ["drop-after-create", "drop-before-create", "create-5002", "create-504", "create-garbage"]
)
async def test_no_clear_answer_is_unknown(gateway: Sandbox, http: httpx.AsyncClient, switch: str) -> None:
    """Hung up, timed out, garbled: the task may exist, so the create must not be sent again."""
    error = await refused(at(gateway.url, http), wanted(f"x [sandbox: {switch}]"))
    assert isinstance(error, CreateUnknown)
    assert error.outcome == "unknown"


async def test_no_connection_took_nothing(http: httpx.AsyncClient) -> None:
    """Without a listener at the port: surely not created, and retryable."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    error = await refused(at(f"http://127.0.0.1:{port}", http), wanted("x"))
    assert isinstance(error, NotCreated)
    assert error.retryable
    assert "KLING_API_BASE" in str(error)


async def test_an_impossible_base_took_nothing(http: httpx.AsyncClient) -> None:
    """An address that no client can call is not created, and not retryable."""
    error = await refused(at("nonsense://host", http), wanted("x"))
    assert isinstance(error, NotCreated)
    assert not error.retryable


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", CreateUnknown),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{", CreateUnknown),
        (b"not http at all\r\n\r\n", CreateUnknown),
        (reply(200, b"<html>welcome"), CreateUnknown),
        (reply(200, {"code": 0, "data": {}}), CreateUnknown),
        (reply(200, b"x" * (MAX_ANSWER_BYTES + 1)), CreateUnknown),
        (reply(200, b"x", Content_Encoding="gzip"), CreateUnknown),
        (reply(408, b""), CreateUnknown),
        (reply(409, b""), CreateUnknown),
        (reply(499, b""), CreateUnknown),
        (reply(500, b"oops"), CreateUnknown),
        (reply(502, {"error": {"message": "upstream"}}), CreateUnknown),
        (reply(400, {"code": 5000, "message": "x"}), CreateUnknown),
        (reply(200, {**TAKEN, "code": 5001}), CreateUnknown),
        (reply(301, b"", Location="https://elsewhere.example/"), NotCreated),
        (reply(401, {"error": {"message": "no such key"}}), NotCreated),
        (reply(404, b"<html>"), NotCreated),
        (reply(413, b""), NotCreated),
        (reply(429, b"slow down"), NotCreated),
        (reply(500, {"code": 1301, "message": "unsafe"}), NotCreated),
        (reply(200, {"code": "1101", "message": "arrears"}), NotCreated),
        (reply(200, {**TAKEN, "code": 1102}), CreateUnknown),
    ],
)
async def test_each_answer_proves_something(http: httpx.AsyncClient, answer: bytes, kind: type[GatewayError]) -> None:
    """A refusal proves that nothing was taken; a truncated, late or unreadable answer proves nothing."""
    with Wire(answer) as wire:
        error = await refused(at(wire.url, http), wanted("x"))
    assert type(error) is kind
    assert len(wire.requests) == 1


@pytest.mark.parametrize("code", [0, "0", "success", 200, None])
async def test_kling_s_id_proves_a_task_whatever_the_code_for_success(
    http: httpx.AsyncClient, code: int | str | None
) -> None:
    """Gateways have codes of their own; an id in a good answer is a task."""
    with Wire(reply(200, {**TAKEN, "code": code})) as wire:
        assert (await at(wire.url, http).create(IMAGES, wanted("x"))).kling_id == "t"


async def test_the_body_arrives_unchanged(http: httpx.AsyncClient) -> None:
    """JSON in UTF-8 at the family's path, with the key as bearer token."""
    with Wire(reply(200, TAKEN)) as wire:
        await at(wire.url, http).create(IMAGES, {"prompt": "袋鼠 🦘"})
    head, _, body = wire.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/images/generations HTTP/1.1\r\n")
    assert b"authorization: bearer sandbox-key" in head.lower()
    assert json.loads(body) == {"prompt": "袋鼠 🦘"}


async def test_the_key_follows_no_redirect(http: httpx.AsyncClient) -> None:
    """A redirect is a refusal: the key and the prompt go to one address only."""
    with Wire(reply(200, TAKEN)) as other, Wire(reply(307, b"", Location=other.url)) as wire:
        await refused(at(wire.url, http), wanted("x"))
    assert other.requests == []


async def test_a_stale_token_is_signed_anew_once(http: httpx.AsyncClient) -> None:
    """Kling refused the JWT as expired: the create is sent once more, with another, and is taken."""
    with Sandbox(misbehave=["expired-token-once"]) as gateway:
        auth = JwtAuth(gateway.access_key, gateway.secret_key)
        report = await at(gateway.url, http, auth).create(IMAGES, wanted("x"))
        assert report.kling_id in gateway.tasks
        assert len(gateway.creates) == 2


async def test_a_token_that_stays_stale_is_refused(http: httpx.AsyncClient) -> None:
    """After two attempts, the hint is to check this machine's clock."""
    with Wire(reply(401, {"code": 1003, "message": "not yet valid"})) as wire:
        error = await refused(at(wire.url, http, JwtAuth("a", "s")), wanted("x"))
    assert isinstance(error, NotCreated)
    assert "clock" in str(error)
    assert len(wire.requests) == 2


async def test_a_wrong_key_says_what_to_check(gateway: Sandbox, http: httpx.AsyncClient) -> None:
    """The hint names the variable; the key itself is not shown."""
    error = await refused(at(gateway.url, http, BearerAuth("hunter2")), wanted("x"))
    assert "KLING_API_KEY" in str(error)
    assert "hunter2" not in str(error)


@pytest.mark.parametrize(
    ("settings", "family", "key"),
    [
        ({"api_key": "new-key,old-key"}, IMAGES, "KLING_API_KEY, number 1 of 2"),
        ({"access_key": "a,b", "secret_key": "s,t"}, IMAGES, "KLING_ACCESS_KEY, number 1 of 2"),
        ({"access_key": "a", "secret_key": "s", "api_key": "new-key,old-key"}, NEW, "KLING_API_KEY, number 1 of 2"),
        ({"api_key": "only-key"}, IMAGES, ""),
    ],
)
async def test_a_refused_key_is_named_during_a_rotation(
    http: httpx.AsyncClient, settings: dict[str, str], family: str, key: str
) -> None:
    """By its place, also in answers without a code; the key itself is not shown, and one key has no number."""
    auth = auth_from(ClientSettings.load(require=(), **settings))
    for body in ({"code": 1000, "message": "no"}, {"code": 1002, "message": "no"}, {"message": "no"}):
        with Wire(reply(401, body)) as wire:
            error = await refused(KlingApi(wire.url, auth, http), wanted("x"), family)
        assert ("The key that was sent is" in str(error), key in str(error)) == (bool(key), True)
        assert "new-key" not in str(error)


@pytest.mark.parametrize("family", [IMAGES, NEW])
async def test_an_unknown_task_is_none(gateway: Sandbox, http: httpx.AsyncClient, family: str) -> None:
    """Kling answers 1201 for a task that it does not know, in both standards."""
    assert await at(gateway.url, http).query(family, task_id="nobody") is None


@pytest.mark.parametrize("switch", ["query-5xx", "query-garbage"])
async def test_a_query_without_a_usable_answer_is_an_error(
    gateway: Sandbox, http: httpx.AsyncClient, switch: str
) -> None:
    """It proves nothing about the task, so it is not None; it is retryable."""
    kling = at(gateway.url, http)
    report = await kling.create(IMAGES, wanted(f"x [sandbox: {switch}]"))
    with pytest.raises(GatewayError) as error:
        await kling.query(IMAGES, kling_id=report.kling_id)
    assert not isinstance(error.value, NotCreated | CreateUnknown)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (reply(404, {"error": "no such task"}), None),
        (reply(200, {"code": 0, "data": []}), None),
        (reply(200, {"code": 0, "data": {}}), None),
        (reply(200, {"code": 0, "data": [{"task_id": "a"}, {"task_id": "b"}]}), None),
        (reply(200, {"code": 0, "data": [{"task_id": "a"}, {"task_id": "mine"}]}), "mine"),
        (reply(200, {"code": 0, "data": {"task_id": "another", "task_status": "submitted"}}), "another"),
    ],
)
async def test_the_queried_task_is_found(http: httpx.AsyncClient, answer: bytes, found: str | None) -> None:
    """In a list only the queried one; alone also under another id, because gateways have their own."""
    with Wire(answer) as wire:
        report = await at(wire.url, http).query(IMAGES, kling_id="mine")
    assert (report and report.kling_id) == found


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        reply(404, b"<html>"),
        reply(404, {"code": 1202, "message": "wrong method"}),
        reply(302, TAKEN),
        reply(200, {"code": 1001, "message": "who are you"}),
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
    ],
)
async def test_a_refused_query_proves_nothing_about_the_task(http: httpx.AsyncClient, answer: bytes) -> None:
    """Authentication, a wrong path, a truncated answer: the task may exist."""
    with Wire(answer) as wire, pytest.raises(GatewayError):
        await at(wire.url, http).query(IMAGES, kling_id="mine")


async def test_a_batch_query_that_fails_is_an_error(http: httpx.AsyncClient) -> None:
    """5001 proves nothing about the task, and is no reason to query by path."""
    for answer in (reply(503, {"code": 5001, "message": "later"}), reply(502, b"<html>502 Bad Gateway")):
        with Wire(answer) as wire, pytest.raises(GatewayError):
            await at(wire.url, http).query(NEW, kling_id="t")
        assert len(wire.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        reply(404, b"<html>"),
        reply(200, b"<!DOCTYPE html><title>The relay's console</title>"),
        reply(400, {"error": {"message": "Invalid URL (GET /tasks)", "type": "invalid_request_error"}}),
        reply(200, {"object": "list", "data": []}),
    ],
)
async def test_a_gateway_without_the_batch_query_is_queried_by_path(http: httpx.AsyncClient, answer: bytes) -> None:
    """A 404, a page or an OpenAI endpoint at /tasks is no such query; the task's own path has the answer."""
    found = {"code": 0, "data": {"id": "t", "status": "processing"}}
    with Wire(answer, reply(200, found)) as wire:
        report = await at(wire.url, http).query(NEW, kling_id="t")
    assert report is not None
    assert report.status == "processing"
    assert wire.requests[1].startswith(b"GET /text-to-video/kling-3.0-turbo/t ")


async def test_an_id_is_quoted_in_the_address(http: httpx.AsyncClient) -> None:
    """An id from Kling cannot lead a query to another address."""
    with Wire(reply(200, TAKEN)) as wire:
        await at(wire.url, http).query(IMAGES, kling_id="../x?y#z")
    assert wire.requests[0].startswith(b"GET /v1/images/generations/..%2Fx%3Fy%23z ")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("9999999999999", 999999999.0),
        (formatdate(100, usegmt=True), 90.0),
        (formatdate(0, usegmt=True), 0.0),
        ("soon", None),
        ("Mon, 01 Jan 99999999999999999999 00:00:00 GMT", None),
        ("²", None),
        ("", None),
    ],
)
def test_retry_after_comes_in_two_forms(header: str, seconds: float | None) -> None:
    """Seconds, or a date by the server's clock; any other value is ignored."""
    headers = [("Retry-After", header.encode("latin-1")), ("Date", formatdate(10, usegmt=True).encode())]
    response = httpx.Response(429, headers=[(name.encode(), value) for name, value in headers])
    assert retry_after_seconds(response.headers) == seconds


async def test_retry_after_is_on_the_error(http: httpx.AsyncClient) -> None:
    """Callers that retry know how long to wait."""
    with Wire(reply(429, {"code": 1302, "message": "slow"}, Retry_After="3")) as wire:
        assert (await refused(at(wire.url, http), wanted("x"))).retry_after == 3.0


@pytest.mark.parametrize(
    ("given", "legacy", "new"),
    [
        ({"api_key": "k"}, BearerAuth, BearerAuth),
        ({"api_key": "k", "access_key": "a", "secret_key": "s"}, JwtAuth, BearerAuth),
        ({"access_key": "a", "secret_key": "s"}, JwtAuth, JwtAuth),
    ],
)
def test_each_standard_has_its_authentication(given: dict[str, str], legacy: type, new: type) -> None:
    """Access key and secret key take precedence for legacy calls; the new standard uses the key, if there is one."""
    proofs = auth_from(ClientSettings.load(require=(), **given))
    assert (type(proofs.for_family(IMAGES)), type(proofs.for_family(NEW))) == (legacy, new)


async def test_both_kinds_of_keys_open_both_standards(gateway: Sandbox, http: httpx.AsyncClient) -> None:
    """A JWT where Kling accepts one, else the key: creates and queries."""
    settings = ClientSettings.load(
        require=(), api_key="sandbox-key", access_key=gateway.access_key, secret_key=gateway.secret_key
    )
    kling = KlingApi(gateway.url, auth_from(settings), http)
    for family, own in ((IMAGES, "old"), (NEW, "new")):
        body = {"prompt": "x", "external_task_id": own, "options": {"external_task_id": own}}
        report = await kling.create(family, body)
        found = await kling.query(family, task_id=own)
        assert (found and found.kling_id) == report.kling_id


async def test_a_record_counts_more_than_a_gateway_s_code_for_success(http: httpx.AsyncClient) -> None:
    """A query answered with `code` 200 and the task's record is an answer; one with a known error is not."""
    record = {"task_id": "7", "task_status": "processing"}
    with Wire(reply(body={"code": 200, "data": record})) as wire:
        report = await at(wire.url, http).query(IMAGES, kling_id="7")
    assert report is not None
    assert report.status == "processing"
    with (
        Wire(reply(body={"code": 1302, "message": "slow", "data": record})) as wire,
        pytest.raises(GatewayError),
    ):
        await at(wire.url, http).query(IMAGES, kling_id="7")


async def test_a_message_is_one_line_in_every_log(http: httpx.AsyncClient) -> None:
    """A gateway's message cannot forge a line, nor control a terminal."""
    forged = reply(500, {"code": 5000, "message": "x\n2026 ERROR forged \x1b[31m"})
    with Wire(forged) as wire, pytest.raises(GatewayError) as raised:
        await at(wire.url, http).query(IMAGES, kling_id="7")
    assert str(raised.value).isprintable()


async def test_the_key_is_removed_from_an_answer_that_quotes_it(http: httpx.AsyncClient) -> None:
    """Some gateways quote it; the message is in logs, tasks and events."""
    key = "sk-0123456789abcdef"
    with Wire(reply(401, {"code": 1001, "message": f"Incorrect API key provided: {key}."})) as wire:
        error = await refused(at(wire.url, http, BearerAuth(key)), wanted("x"))
    assert "Incorrect API key provided: (key)" in error.message
    assert key not in str(error)


def bomb(encoding: str) -> bytes:
    """An answer of some 200 KB that inflates to 200 MB."""
    squeeze = zlib.compressobj(wbits=zlib.MAX_WBITS | 16 if encoding == "gzip" else zlib.MAX_WBITS)
    megabyte = b" " * 1_000_000
    body = b"".join(squeeze.compress(megabyte) for _ in range(200)) + squeeze.flush()
    return reply(200, body, Content_Encoding=encoding)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compressed_answer_is_inflated_up_to_the_limit(http: httpx.AsyncClient, encoding: str) -> None:
    """Memory stays small; the create is not sent again, because Kling may have taken it."""
    with Wire(bomb(encoding)) as wire:
        tracemalloc.start()
        try:
            error = await refused(at(wire.url, http), wanted("x"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert isinstance(error, CreateUnknown)
    assert "longer than any of Kling's" in str(error)
    assert len(wire.requests) == 1
    assert b"Accept-Encoding: identity" in wire.requests[0]
    assert peak < 5 * MAX_ANSWER_BYTES


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_a_compressed_answer_is_read(http: httpx.AsyncClient, encoding: str) -> None:
    """Some gateways ignore Accept-Encoding."""
    body = json.dumps(TAKEN).encode()
    squeezed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}[encoding]
    with Wire(reply(200, squeezed, Content_Encoding=encoding)) as wire:
        assert (await at(wire.url, http).create(IMAGES, wanted("x"))).kling_id == "t"


async def test_an_answer_in_an_unknown_encoding_is_unreadable(http: httpx.AsyncClient) -> None:
    """The error names the encoding; the outcome is unknown."""
    with Wire(reply(200, b"x", Content_Encoding="br")) as wire:
        error = await refused(at(wire.url, http), wanted("x"))
    assert isinstance(error, CreateUnknown)
    assert "encoded as br, although" in str(error)
