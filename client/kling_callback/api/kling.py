"""The HTTP API of Kling or a gateway: one create, one query, and what their answers prove. Without retries.

`family` names the job: a path under `/v1` (`videos/text2video`), or with a leading slash a path of the
new standard (`/text-to-video/kling-3.0-turbo`).
"""

import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote

import anyio
import httpx

from kling_callback.api.auth import STALE_TOKEN_CODES, AuthPair, BearerAuth, JwtAuth
from kling_callback.api.http import retry_after_seconds
from kling_callback.api.refusals import (
    OUTCOME_UNKNOWN_CODES,
    POLICY_CODES,
    REFUSED_CODES,
    RETRYABLE,
    Reply,
    first_words,
    is_html,
    is_kling,
    refusal,
)
from kling_callback.display import data_url
from kling_callback.errors import CreateUnknown, GatewayError, NotCreated
from kling_callback.protocol.families import is_new_standard, usual_kind
from kling_callback.protocol.relays import ANY_KIND, CONTENT_PATH, content_path, whole_address
from kling_callback.protocol.reports import UNKNOWN_TASK, Answer, Report, parse_answer
from kling_callback.protocol.results.outputs import Output
from kling_callback.protocol.values import is_too_complex
from kling_callback.settings import CommonSettings

NOT_SENT_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
"""Failures before a request is sent: a create was certainly not accepted."""

MAX_ANSWER_BYTES = 8_000_000
"""Bytes of an answer; a longer one is not Kling's."""

GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

TIMEOUT = httpx.Timeout(60, connect=15)
"""Seconds: a create may contain a 10 MB image; Kling answers it within a few seconds."""

MAX_CALL_SECONDS = 180
"""Seconds for a whole call, however slowly its answer arrives."""

TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError)
"""All failures between sending a request and having read its answer."""


UNKNOWN_CALL_HINT = (
    "The call may have been carried out and paid for, so it is not sent again. Check the account before you repeat it."
)
MAX_REFUSAL_BYTES = 4_000
"""Bytes of an answer that refuses a create, and that others may want to see as it is."""
MIN_KEY_CHARS = 8
"""Characters: a shorter text is not a key, and may occur in any answer."""


def auth_of_each_key(settings: CommonSettings) -> list[tuple[str, httpx.Auth]]:
    """The authentication by each key of the account, after a name that does not show the key."""
    pairs = [JwtAuth(*pair) for pair in settings.access_keys]
    bearers = [BearerAuth(key) for key in settings.api_keys]
    return [
        (f"{setting}, number {place} of {len(auths)}" if len(auths) > 1 else setting, auth)
        for setting, auths in (("KLING_ACCESS_KEY", pairs), ("KLING_API_KEY", bearers))
        for place, auth in enumerate(auths, 1)
    ]


def auth_from(settings: CommonSettings) -> AuthPair:
    """The authentication by the newest key. For legacy calls, access key and secret key take precedence."""
    key = BearerAuth(next(iter(settings.api_keys), ""), _first_of("KLING_API_KEY", settings.api_keys))
    if not settings.access_keys:
        return AuthPair(key, key)
    jwt = JwtAuth(*settings.access_keys[0], _first_of("KLING_ACCESS_KEY", settings.access_keys))
    return AuthPair(jwt, key if settings.api_keys else jwt)


@dataclass(frozen=True, slots=True)
class Forwarded:
    """Kling's answer to a call of another program, without the account's key. `retry_after`: seconds, if it has any."""

    status: int
    content: bytes
    content_type: str
    retry_after: float | None


def _first_of(setting: str, keys: Sequence[object]) -> str:
    """The name of the newest of several keys; "" for the only one."""
    return f"{setting}, number 1 of {len(keys)}" if len(keys) > 1 else ""


class _NoBatchQuery(GatewayError):
    """The batch query is not there: a gateway has not all of Kling's API."""


class KlingApi:
    """Kling or a gateway, at one address with one key. Redirects are not followed: they would get the key."""

    def __init__(self, base: str, auth: httpx.Auth | AuthPair, http: httpx.AsyncClient) -> None:
        self._base, self._http = base.rstrip("/"), http
        self._auth = auth if isinstance(auth, AuthPair) else AuthPair(auth, auth)

    def address(self, family: str) -> str:
        """The address at which a job of this family is created."""
        return f"{self._base}{family}" if is_new_standard(family) else f"{self._base}/v1/{family}"

    async def create(self, family: str, body: dict[str, Any]) -> Report:
        """Send one create. The report has a `kling_id`.

        Raises NotCreated when Kling certainly did not accept it, CreateUnknown when it may have.
        """
        self._check_open(NotCreated)
        try:
            reply, content = await self._exchange(family, "POST", self.address(family), json=body)
        except NOT_SENT_ERRORS as error:
            raise self._not_sent(error) from error
        except TRANSPORT_ERRORS as error:
            raise CreateUnknown(f"The create got no answer: {_reason(error)}.") from error
        report = _created_task(reply)
        if report is None or reply.http_status >= 300 or reply.code in (*REFUSED_CODES, *OUTCOME_UNKNOWN_CODES):
            # An answer that names a task proves no refusal, whatever else it says.
            failure = refusal(NotCreated if reply.proves_refusal and not report else CreateUnknown, reply, self._base)
            if isinstance(failure, NotCreated) and reply.answer and len(content) <= MAX_REFUSAL_BYTES:
                failure.answer = content.decode("utf-8", "replace")
            raise failure
        return report

    async def query(self, family: str, *, kling_id: str | None = None, task_id: str | None = None) -> Report | None:
        """Query one task, by Kling's id or by ours; None when Kling answers that it does not know the task.

        Tasks of the new standard are queried by the batch query, or by path at a gateway without that query.
        Raises GatewayError for any answer that is not usable.
        """
        identifier = kling_id or task_id or ""
        quoted = quote(identifier, safe="")
        if is_new_standard(family):
            name = "task_ids" if kling_id else "external_task_ids"
            try:
                return await self._query_once(family, f"{self._base}/tasks?{name}={quoted}", identifier)
            except _NoBatchQuery:
                pass
        return await self._query_once(family, f"{self.address(family)}/{quoted}", identifier, in_path=True)

    async def _query_once(self, family: str, url: str, identifier: str, *, in_path: bool = False) -> Report | None:
        """Send one query. `in_path`: the path names the task, so that a gateway's bare 404 is about the task."""
        self._check_open(GatewayError)
        try:
            reply = await self._call(family, "GET", url)
        except TRANSPORT_ERRORS as error:
            raise GatewayError(f"Kling gave no answer: {_reason(error)}.", retryable=True) from error
        status, code, answer = reply.status, reply.code, reply.answer
        about_task = in_path and answer is not None and not answer.is_openai and code not in REFUSED_CODES
        if code in UNKNOWN_TASK or (about_task and status == 404):
            return None
        report = _find_report(answer, identifier) if answer is not None and status < 300 else None
        is_about_task = code not in REFUSED_CODES or (code in POLICY_CODES and report and report.status == "failed")
        if report and report.status and code not in RETRYABLE and is_about_task:
            return self._located(family, report)  # gateways have various codes for success
        if answer is None or not answer.ok or answer.is_openai or status >= 300:
            raise refusal(GatewayError if in_path or not reply.lacks_path else _NoBatchQuery, reply, self._base)
        return report

    async def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call an endpoint that answers at once, and return its answer's JSON, unchanged: GET, or POST with a body.

        `path`: under `/v1`, or with a leading slash from the root; it may have a query.
        Raises NotCreated when Kling certainly did not accept the call, CreateUnknown with the answer when it may have.
        """
        self._check_open(NotCreated)
        try:
            method = "GET" if body is None else "POST"
            reply, content = await self._exchange(path, method, self.address(path), json=body)
        except NOT_SENT_ERRORS as error:
            raise self._not_sent(error) from error
        except TRANSPORT_ERRORS as error:
            raise CreateUnknown(f"The call got no answer: {_reason(error)}.", hint=UNKNOWN_CALL_HINT) from error
        answer = reply.answer
        if reply.status < 300 and not reply.proves_refusal and reply.code not in OUTCOME_UNKNOWN_CODES:
            with suppress(ValueError, RecursionError):
                document = json.loads(content)
                # `answer` is None for a long document; gateways have various codes for success.
                if isinstance(document, dict) and (answer is None or answer.ok or document.get("data")):
                    return document
        failure = refusal(NotCreated if reply.proves_refusal else CreateUnknown, reply, self._base)
        if isinstance(failure, CreateUnknown):
            failure.hint, failure.answer = UNKNOWN_CALL_HINT, "" if reply.is_html else _text(content, reply)
        raise failure

    async def forward(self, path: str, method: str, query: str = "", content: bytes | None = None) -> Forwarded:
        """Send a call of another program, and return Kling's answer as it is. Never sent twice.

        `path`: of an endpoint that answers at once; `query`: as it stands in an address; `content`: JSON. Only a JWT
        that Kling finds stale is signed anew. Raises NotCreated if nothing was sent, CreateUnknown without an answer.
        """
        self._check_open(NotCreated)
        url = f"{self.address(path)}{'?' if query else ''}{query}"
        try:
            reply, answer = await self._exchange(
                path, method, url, content=content, content_type="application/json" if content is not None else ""
            )
        except NOT_SENT_ERRORS as error:
            raise self._not_sent(error) from error
        except TRANSPORT_ERRORS as error:
            raise CreateUnknown(f"The call got no answer: {_reason(error)}.", hint=UNKNOWN_CALL_HINT) from error
        return Forwarded(reply.http_status, answer, reply.content_type, reply.retry_after)

    async def list_tasks(self, family: str, page: int, size: int) -> list[dict[str, Any]]:
        """One page of Kling's own list of a legacy family's tasks: its records, unchanged. `page`: from 1.

        Raises GatewayError for any answer that is not a list.
        """
        self._check_open(GatewayError)
        url = f"{self.address(family)}?pageNum={page}&pageSize={size}"
        try:
            reply, content = await self._exchange(family, "GET", url)
        except TRANSPORT_ERRORS as error:
            raise GatewayError(f"Kling gave no answer: {_reason(error)}.", retryable=True) from error
        if reply.answer is None or not reply.answer.ok or reply.answer.is_openai or reply.status >= 300:
            raise refusal(GatewayError, reply, self._base)
        data = json.loads(content).get("data")
        if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
            raise GatewayError(f"The answer has no list of the tasks of {family}.", http_status=reply.http_status)
        return data

    def _check_open(self, kind: type[GatewayError]) -> None:
        if self._http.is_closed:
            raise kind("This Kling is closed.", code="closed", hint="Use it inside its `with` block.")

    def _not_sent(self, error: Exception) -> NotCreated:
        return NotCreated(
            f"Kling could not be reached at {self._base}: {_reason(error)}.",
            retryable=not isinstance(error, httpx.UnsupportedProtocol),
            hint="Check KLING_API_BASE and the network.",
        )

    def authorization(self) -> str:
        """The header that proves the account, for a file that a relay serves at its own host."""
        request = httpx.Request("GET", self._base)
        next(self._auth.new.auth_flow(request))
        return str(request.headers["Authorization"])

    def content(self, family: str, kling_id: str | None) -> Output | None:
        """The file of a success without an address, where a relay may serve it; None at Kling itself.

        A relay's own record gets it from `query` at once; in Kling's shape the address may just come late.
        """
        if not kling_id or usual_kind(family) != "video" or is_kling(self._base):
            return None
        return Output("video", whole_address(self._base, content_path(kling_id)))

    def _located(self, family: str, report: Report) -> Report:
        """The report with whole addresses and the kind of each file, which a relay may leave out."""
        kind = usual_kind(family)
        outputs = [
            replace(
                output,
                url=whole_address(self._base, output.url),
                kind=kind if output.kind == ANY_KIND else output.kind,
            )
            for output in report.outputs
            if kind == "video" or not CONTENT_PATH.fullmatch(output.url)
        ]
        return replace(report, outputs=tuple(outputs))

    async def _call(self, family: str, method: str, url: str, **body: Any) -> Reply:
        return (await self._exchange(family, method, url, **body))[0]

    async def _exchange(self, family: str, method: str, url: str, **body: Any) -> tuple[Reply, bytes]:
        """Send one request, and read its answer. Sent once more, with a new JWT, if the JWT was stale."""
        auth = self._auth.for_family(family)
        reply, content = await self._once(auth, method, url, **body)
        if reply.code in STALE_TOKEN_CODES and isinstance(auth, JwtAuth):
            auth.invalidate()
            return await self._once(auth, method, url, **body)
        return reply, content

    async def _once(
        self, auth: httpx.Auth, method: str, url: str, *, content_type: str = "", **body: Any
    ) -> tuple[Reply, bytes]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if content_type:
            headers["Content-Type"] = content_type
        request = self._http.build_request(method, url, timeout=TIMEOUT, headers=headers, **body)
        with anyio.fail_after(MAX_CALL_SECONDS):
            response = await self._http.send(request, auth=auth, follow_redirects=False, stream=True)
            try:
                content = _without_key(await _content(response), response.request)
                return _reply(response, content, key=getattr(auth, "name", "")), content
            finally:
                await response.aclose()


def _created_task(reply: Reply) -> Report | None:
    """The task that the answer to a create names: its id, with its status or under a success.

    Under an error, a relay's `failed` is the state of its request.
    """
    for report in reply.answer.reports if reply.answer else ():
        has_status = report.status and (reply.http_status < 300 or report.status != "failed")
        if report.kling_id and (has_status or (reply.status < 300 and not reply.proves_refusal)):
            return report
    return None


def _reply(response: httpx.Response, content: bytes, *, key: str) -> Reply:
    answer = parse_answer(content, response.status_code)
    has_words = answer is not None and answer.message
    return Reply(
        response.status_code,
        answer,
        words="" if has_words else first_words(content, response.headers.get("Content-Type", "")),
        is_html=answer is None and is_html(content),
        content_type=response.headers.get("Content-Type", ""),
        retry_after=retry_after_seconds(response.headers),
        key=key,
    )


def _text(content: bytes, reply: Reply) -> str:
    """A whole answer as text; one that is no text, such as a sound, as an address that holds it."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return data_url(content, reply.content_type)


def _without_key(content: bytes, request: httpx.Request) -> bytes:
    """Replace the request's key in an answer that quotes it: answers appear in logs, tasks and events."""
    key = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    if len(key) < MIN_KEY_CHARS:
        return content
    if b"\\u" in content and key not in content and not is_too_complex(content):
        with suppress(ValueError, RecursionError):
            plain = json.dumps(json.loads(content), ensure_ascii=False).encode("utf-8", "replace")
            content = plain if key in plain else content
    return content.replace(key, b"(key)")


async def _content(response: httpx.Response) -> bytes:
    """The whole answer. One that is compressed, although uncompressed was requested, is inflated up to the limit."""
    inflate, content = _inflater(response), bytearray()
    assert isinstance(response.stream, httpx.AsyncByteStream)
    async for chunk in response.stream:
        try:
            content += inflate(chunk, MAX_ANSWER_BYTES + 1 - len(content))
        except zlib.error as error:
            raise httpx.DecodingError(f"the answer is damaged ({error})", request=response.request) from error
        if len(content) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("the answer is longer than any of Kling's", request=response.request)
    return bytes(content)


def _inflater(response: httpx.Response) -> Callable[[bytes, int], bytes]:
    """A function that decodes a chunk of the answer into at most so many bytes."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding == "identity":
        return lambda chunk, max_bytes: chunk
    if encoding in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(GZIP_OR_ZLIB).decompress
    message = f"the answer is encoded as {encoding[:20]}, although identity was requested"
    raise httpx.DecodingError(message, request=response.request)


def _find_report(answer: Answer, identifier: str) -> Report | None:
    """The report about this id. A batch may contain others; a gateway may answer with an id of its own."""
    for report in answer.reports:
        if identifier in (report.kling_id, report.external_task_id):
            return report
    return answer.reports[0] if len(answer.reports) == 1 else None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
