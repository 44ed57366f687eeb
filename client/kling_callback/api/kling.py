"""The HTTP API of Kling or a gateway: one create, one query, and what their answers prove. Without retries.

`family` names the job: a path under `/v1` (`videos/text2video`), or with a leading slash a path of the
new standard (`/text-to-video/kling-3.0-turbo`).
"""

import json
import zlib
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import anyio
import httpx

from kling_callback.api.auth import STALE_TOKEN_CODES, AuthPair, BearerAuth, JwtAuth
from kling_callback.api.http import retry_after_seconds
from kling_callback.errors import CreateUnknown, GatewayError, NotCreated
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.reports import UNKNOWN_TASK, Answer, Report, parse_answer
from kling_callback.settings import CommonSettings

NOT_SENT_ERRORS = (
    httpx.ConnectError,
    httpx.ConnectTimeout,
    httpx.PoolTimeout,
    httpx.ProxyError,
    httpx.UnsupportedProtocol,
)
"""Failures before a request is sent: a create was certainly not accepted."""

RATE_LIMITED, CONCURRENCY_LIMITED = 1302, 1303
RETRYABLE = frozenset({RATE_LIMITED, CONCURRENCY_LIMITED, 5000, 5001, 5002})
OUTCOME_UNKNOWN_CODES = frozenset({5000, 5001, 5002})
REFUSED_CODES = range(1000, 1400)
HTTP_REFUSED = frozenset(range(300, 500)) - {408, 409, 425, 499}
"""Statuses that prove, without one of Kling's codes, that a create was not taken. After a timeout or 5xx it may be."""

NO_SUCH_QUERY = frozenset({404, 405, 501})
"""Statuses of a gateway that has no batch query."""

MAX_ANSWER_BYTES = 8_000_000
"""Bytes of an answer; a longer one is not Kling's."""

GZIP_OR_ZLIB = zlib.MAX_WBITS | 32

TIMEOUT = httpx.Timeout(60, connect=15)
"""Seconds: a create may contain a 10 MB image; Kling answers it within a few seconds."""

MAX_CALL_SECONDS = 180
"""Seconds for a whole call, however slowly its answer arrives."""

TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError)
"""All failures between sending a request and having read its answer."""


def auth_from(settings: CommonSettings) -> AuthPair:
    """The authentication that the settings name. For legacy calls, access key and secret key take precedence."""
    key = BearerAuth(settings.api_key)
    if not settings.access_key:
        return AuthPair(key, key)
    jwt = JwtAuth(settings.access_key, settings.secret_key)
    return AuthPair(jwt, key if settings.api_key else jwt)


MIN_KEY_CHARS = 8
"""Characters: a shorter text is not a key, and may occur in any answer."""


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
        try:
            response, answer = await self._call(family, "POST", self.address(family), json=body)
        except NOT_SENT_ERRORS as error:
            raise self._not_sent(error) from error
        except TRANSPORT_ERRORS as error:
            raise CreateUnknown(f"The create got no answer: {_reason(error)}.") from error
        return _created(response.status_code, answer, retry_after_seconds(response.headers))

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
            except GatewayError as error:
                if error.http_status not in NO_SUCH_QUERY:
                    raise
        return await self._query_once(family, f"{self.address(family)}/{quoted}", identifier, in_path=True)

    async def _query_once(self, family: str, url: str, identifier: str, *, in_path: bool = False) -> Report | None:
        """Send one query. `in_path`: the path names the task, so that a gateway's bare 404 is about the task."""
        try:
            response, answer = await self._call(family, "GET", url)
        except TRANSPORT_ERRORS as error:
            raise GatewayError(f"Kling gave no answer: {_reason(error)}.", retryable=True) from error
        status, code = response.status_code, answer.code if answer else None
        if code in UNKNOWN_TASK or (in_path and answer and status == 404 and not isinstance(code, int)):
            return None
        report = _find_report(answer, identifier) if answer is not None and status < 300 else None
        if report and report.status and code not in RETRYABLE and code not in REFUSED_CODES:
            return report  # gateways have various codes for success
        if answer is None or not answer.ok or status >= 300:
            raise _refusal(GatewayError, status, answer, retry_after_seconds(response.headers))
        return report

    async def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call an endpoint that answers at once, and return its answer's JSON, unchanged: GET, or POST with a body.

        `path`: under `/v1`, or with a leading slash from the root; it may have a query.
        Raises NotCreated when Kling certainly did not accept the call, CreateUnknown when it may have.
        """
        try:
            method = "GET" if body is None else "POST"
            response, content = await self._exchange(path, method, self.address(path), json=body)
        except NOT_SENT_ERRORS as error:
            raise self._not_sent(error) from error
        except TRANSPORT_ERRORS as error:
            raise CreateUnknown(f"The call got no answer: {_reason(error)}.", hint=UNKNOWN_CALL_HINT) from error
        answer, status = parse_answer(content), response.status_code
        code = answer.code if answer else None
        refused = _is_refused(code, status)
        if status < 300 and not refused and code not in OUTCOME_UNKNOWN_CODES:
            with suppress(ValueError, RecursionError):
                document = json.loads(content)
                # `answer` is None for a long document; gateways have various codes for success.
                if isinstance(document, dict) and (answer is None or answer.ok or document.get("data")):
                    return document
        kind = NotCreated if refused else CreateUnknown
        refusal = _refusal(kind, status, answer, retry_after_seconds(response.headers))
        if not refused:
            refusal.hint = UNKNOWN_CALL_HINT
        raise refusal

    async def list_tasks(self, family: str, page: int, size: int) -> list[dict[str, Any]]:
        """One page of Kling's own list of a legacy family's tasks: its records, unchanged. `page`: from 1.

        Raises GatewayError for any answer that is not a list.
        """
        url = f"{self.address(family)}?pageNum={page}&pageSize={size}"
        try:
            response, content = await self._exchange(family, "GET", url)
        except TRANSPORT_ERRORS as error:
            raise GatewayError(f"Kling gave no answer: {_reason(error)}.", retryable=True) from error
        answer, status = parse_answer(content), response.status_code
        if answer is None or not answer.ok or status >= 300:
            raise _refusal(GatewayError, status, answer, retry_after_seconds(response.headers))
        data = json.loads(content).get("data")
        if not isinstance(data, list) or not all(isinstance(record, dict) for record in data):
            raise GatewayError(f"The answer has no list of the tasks of {family}.", http_status=status)
        return data

    def _not_sent(self, error: Exception) -> NotCreated:
        return NotCreated(
            f"Kling could not be reached at {self._base}: {_reason(error)}.",
            retryable=not isinstance(error, httpx.UnsupportedProtocol),
            hint="Check KLING_API_BASE and the network.",
        )

    async def _call(self, family: str, method: str, url: str, **body: Any) -> tuple[httpx.Response, Answer | None]:
        response, content = await self._exchange(family, method, url, **body)
        return response, parse_answer(content)

    async def _exchange(self, family: str, method: str, url: str, **body: Any) -> tuple[httpx.Response, bytes]:
        """Send one request, and read its answer. Sent once more, with a new JWT, if the JWT was stale."""
        auth = self._auth.for_family(family)
        response, content = await self._once(auth, method, url, **body)
        if isinstance(auth, JwtAuth) and (answer := parse_answer(content)) and answer.code in STALE_TOKEN_CODES:
            auth.invalidate()
            return await self._once(auth, method, url, **body)
        return response, content

    async def _once(self, auth: httpx.Auth, method: str, url: str, **body: Any) -> tuple[httpx.Response, bytes]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        request = self._http.build_request(method, url, timeout=TIMEOUT, headers=headers, **body)
        with anyio.fail_after(MAX_CALL_SECONDS):
            response = await self._http.send(request, auth=auth, follow_redirects=False, stream=True)
            try:
                return response, _without_key(await _content(response), response.request)
            finally:
                await response.aclose()


def _without_key(content: bytes, request: httpx.Request) -> bytes:
    """Replace the request's key in an answer that quotes it: answers appear in logs, tasks and events."""
    key = request.headers.get("Authorization", "").removeprefix("Bearer ").encode()
    return content.replace(key, b"(key)") if len(key) >= MIN_KEY_CHARS else content


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


def _created(status: int, answer: Answer | None, retry_after: float | None) -> Report:
    code = answer.code if answer else None
    report = next((each for each in answer.reports if each.kling_id), None) if answer else None
    refused = _is_refused(code, status)
    # An answer with Kling's id proves that the task exists: gateways have various codes for success.
    if report is not None and status < 300 and not refused and code not in OUTCOME_UNKNOWN_CODES:
        return report
    raise _refusal(NotCreated if refused else CreateUnknown, status, answer, retry_after)


def _is_refused(code: int | str | None, status: int) -> bool:
    """Whether an answer proves that a create or a call was not accepted."""
    return code in REFUSED_CODES or (code not in OUTCOME_UNKNOWN_CODES and status in HTTP_REFUSED)


def _refusal(kind: type[GatewayError], status: int, answer: Answer | None, retry_after: float | None) -> GatewayError:
    code = answer.code if answer else None
    message = answer.message if answer and answer.message else "no readable answer"
    message = "".join(letter if letter.isprintable() else " " for letter in message)  # it is logged, too
    return kind(
        f"Kling answered {'' if code is None else f'{code}, '}HTTP {status}: {message.rstrip('.')}.",
        code=code,
        http_status=status,
        request_id=answer.request_id if answer else None,
        retryable=code in RETRYABLE or (not isinstance(code, int) and (status == 429 or status >= 500)),
        retry_after=retry_after,
        hint=HINTS.get(code) if isinstance(code, int) else HTTP_HINTS.get(status),
    )


HINTS = {
    1000: "Check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY.",
    1001: "Check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY.",
    1002: "Check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY.",
    1003: "Check this machine's clock.",
    1004: "Check this machine's clock.",
    1100: "Check the account in Kling's console.",
    1101: "The account is in arrears: top it up.",
    1102: "The resource pack is used up or has expired: buy another.",
    1103: "The account has no right to this model: choose another, or buy it.",
    1202: "Check the path of the job (KLING_API_BASE, family).",
    1203: "Check model_name.",
    1300: "Kling's policy forbids this prompt or image: change it.",
    1301: "Kling's content safety forbids this prompt or image: change it.",
    1304: "Put this machine's address on the allow-list in Kling's console.",
}


UNKNOWN_CALL_HINT = (
    "The call may have been carried out and paid for, so it is not sent again. Check the account before you repeat it."
)


HTTP_HINTS = {
    401: "Check that KLING_API_KEY is a key of the gateway at KLING_API_BASE.",
    403: "Check that KLING_API_KEY is a key of the gateway at KLING_API_BASE.",
    404: "Check KLING_API_BASE and the family: there is no job at this path.",
    413: "The request is too large for the gateway: send the image as a URL.",
}


def _find_report(answer: Answer, identifier: str) -> Report | None:
    """The report about this id. A batch may contain others; a gateway may answer with an id of its own."""
    for report in answer.reports:
        if identifier in (report.kling_id, report.external_task_id):
            return report
    return answer.reports[0] if len(answer.reports) == 1 else None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
