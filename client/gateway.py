"""Kling's own HTTP interface: one create, one query, and what each answer proves. It never retries.

`family` names the job: a path under `/v1` (`videos/text2video`), or with a leading slash a path of the
new standard (`/text-to-video/kling-3.0-turbo`).
"""

from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote

import httpx

from client.auth import KeyAuth, TokenAuth
from client.codec import UNKNOWN_TASK, Answer, Report, read_answer
from client.errors import CreateUnknown, GatewayError, NotCreated
from client.settings import KlingSettings

NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.UnsupportedProtocol)
"""Failures that happen before a request leaves: it was surely not taken."""

TOO_FAST, TOO_MANY = 1302, 1303
RETRYABLE = frozenset({TOO_FAST, TOO_MANY, 5000, 5001, 5002})
MAY_HAVE_TAKEN_IT = frozenset({5000, 5001, 5002})
SURELY_REFUSED = range(1000, 1400)
HTTP_REFUSED = frozenset(range(300, 500)) - {408, 409, 499}
"""Without one of Kling's codes: a redirect or a refusal took nothing, a time-out or a 5xx may have."""

LONGEST_ANSWER = 8_000_000
"""Bytes of an answer that are read; a longer one is not from Kling."""

TIMEOUT = httpx.Timeout(60, connect=15)
"""Seconds: a create may carry a 10 MB image, its answer comes within a few seconds."""


def gateway_auth(settings: KlingSettings) -> httpx.Auth:
    """How the settings say that Kling is to be called; access key and secret key go first."""
    if settings.access_key:
        return TokenAuth(settings.access_key, settings.secret_key)
    return KeyAuth(settings.api_key)


class Gateway:
    """Kling at one address, with one key. Redirects are not followed: the key goes to that address only."""

    def __init__(self, base: str, auth: httpx.Auth, http: httpx.AsyncClient) -> None:
        self._base, self._auth, self._http = base.rstrip("/"), auth, http

    def address(self, family: str) -> str:
        """Where a job of this family is created."""
        return f"{self._base}{family}" if family.startswith("/") else f"{self._base}/v1/{family}"

    async def create(self, family: str, body: dict[str, Any]) -> Report:
        """POST one create. The report has Kling's `task_id`.

        Raises NotCreated when Kling surely did not take it, CreateUnknown when it may have.
        """
        try:
            status, answer = await self._call("POST", self.address(family), json=body)
        except NOT_SENT as error:
            raise NotCreated(
                f"Kling could not be reached at {self._base}: {_reason(error)}.",
                retryable=not isinstance(error, httpx.UnsupportedProtocol),
                hint="Check KLING_API_BASE and the network.",
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise CreateUnknown(f"The create got no answer: {_reason(error)}.") from error
        return _created(status.status_code, answer, _retry_after(status))

    async def query(
        self, family: str, *, task_id: str | None = None, external_id: str | None = None
    ) -> Report | None:
        """Ask Kling for one task, by its own id or by ours; None when it says that it knows no such task.

        Raises GatewayError when it gave no usable answer. New-standard tasks are asked by the batch query,
        and by their path where a relay has no such query.
        """
        identifier = task_id or external_id or ""
        url = f"{self.address(family)}/{quote(identifier, safe='')}"
        if not family.startswith("/"):
            return await self._ask(url, identifier)
        name = "task_ids" if task_id else "external_task_ids"
        found = await self._ask(f"{self._base}/tasks?{name}={quote(identifier, safe='')}", identifier)
        return found or await self._ask(url, identifier)

    async def _ask(self, url: str, identifier: str) -> Report | None:
        try:
            response, answer = await self._call("GET", url)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise GatewayError(f"Kling gave no answer: {_reason(error)}.", retryable=True) from error
        if answer is not None and (answer.code in UNKNOWN_TASK or response.status_code == 404):
            return None
        if answer is None or not answer.ok or response.status_code >= 300:
            raise _refusal(GatewayError, response.status_code, answer, _retry_after(response))
        return _named(answer, identifier)

    async def _call(self, method: str, url: str, **body: Any) -> tuple[httpx.Response, Answer | None]:
        request = self._http.build_request(method, url, timeout=TIMEOUT, **body)
        response = await self._http.send(request, auth=self._auth, follow_redirects=False, stream=True)
        try:
            content = bytearray()
            async for chunk in response.aiter_bytes():
                content += chunk
                if len(content) > LONGEST_ANSWER:
                    raise httpx.DecodingError("the answer is longer than any of Kling's", request=request)
        finally:
            await response.aclose()
        return response, read_answer(bytes(content))


def _created(status: int, answer: Answer | None, retry_after: float | None) -> Report:
    report = next((each for each in answer.reports if each.task_id), None) if answer else None
    if answer is not None and answer.ok and status < 300 and report is not None:
        return report
    code = answer.code if answer else None
    refused = code in SURELY_REFUSED or (code not in MAY_HAVE_TAKEN_IT and status in HTTP_REFUSED)
    raise _refusal(NotCreated if refused else CreateUnknown, status, answer, retry_after)


def _refusal(
    kind: type[GatewayError], status: int, answer: Answer | None, retry_after: float | None
) -> GatewayError:
    code = answer.code if answer else None
    said = answer.message if answer and answer.message else "no readable answer"
    return kind(
        f"Kling answered {code if code is not None else 'HTTP'} ({status}): {said}",
        code=code,
        http_status=status,
        request_id=answer.request_id if answer else None,
        retryable=code in RETRYABLE or (not isinstance(code, int) and (status == 429 or status >= 500)),
        retry_after=retry_after,
        hint=HINTS.get(code) if isinstance(code, int) else None,
    )


HINTS = {
    1000: "Check KLING_API_KEY.",
    1001: "Check KLING_API_KEY.",
    1002: "Check KLING_API_KEY, or KLING_ACCESS_KEY and KLING_SECRET_KEY.",
    1003: "Check this machine's clock.",
    1004: "Check this machine's clock.",
    1100: "Look at the account in Kling's console.",
    1101: "The account is in arrears: top it up.",
    1102: "The resource pack is used up or has expired: buy another.",
    1103: "The account has no right to this model: choose another, or buy it.",
    1202: "Check the path of the job (KLING_API_BASE, family).",
    1203: "Check model_name.",
    1300: "Kling's policy forbids this prompt or image: change it.",
    1301: "Kling's content safety forbids this prompt or image: change it.",
    1304: "Put this machine's address on the allow-list in Kling's console.",
}


def _named(answer: Answer, identifier: str) -> Report | None:
    """The report asked for: a batch may hold others, a relay may answer with yet another id."""
    for report in answer.reports:
        if identifier in (report.task_id, report.external_id):
            return report
    return answer.reports[0] if len(answer.reports) == 1 else None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds to wait, from a `Retry-After` of either form."""
    value = response.headers.get("Retry-After", "")
    if value.isdigit():
        return float(value[:9])
    try:
        at, date = parsedate_to_datetime(value), parsedate_to_datetime(response.headers.get("Date", value))
        return max((at - date).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _reason(error: Exception) -> str:
    return str(error).rstrip(".") or type(error).__name__
