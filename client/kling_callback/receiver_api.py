"""The receiver's `/api` as this client uses it: a method a route. Its bearer token leaves us only here."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeGuard
from urllib.parse import quote, urlsplit

import anyio
import httpx

from kling_callback.errors import Outcome, ReceiverError
from kling_callback.http import retry_after_seconds
from kling_callback.retry import RetryPolicy

PAGE_SIZE = 100
"""Tasks that one request asks for."""

MAX_ANSWER_BYTES = 32_000_000
"""Bytes: a page of tasks, each with its request; a longer answer is not the receiver's."""

MAX_REASON_CHARS = 2000
"""Characters of Kling's message that the receiver is told."""

TIMEOUT = httpx.Timeout(30, connect=10)
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError)
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

HINTS = {
    "unknown_task": "Look at what there is with: kling list",
    "bad_token": "Give this client the KLING_SIGNING_SECRETS that the receiver has, or a KLING_RECEIVER_TOKEN "
    "from its `kling-receiver token`. If they are right, compare the clocks.",
}
"""By the receiver's code, where its own hint speaks to others than our caller."""
UNREACHABLE_HINT = "Check KLING_RECEIVER_URL, and that `kling-receiver serve` runs."
WRONG_SERVER_HINT = (
    "Something else than the receiver answers there, a proxy perhaps that passes on /callbacks/ only. "
    "Check KLING_RECEIVER_URL, or set KLING_RECEIVER_INTERNAL_URL to where this machine reaches the receiver."
)


@dataclass(frozen=True, slots=True)
class Registration:
    """What the receiver is told of a task before its create, and again with its outcome."""

    family: str
    model: str
    request: dict[str, Any]
    base: str
    key_fingerprint: str
    tags: tuple[str, ...]
    hook: str
    create_token: str


@dataclass(frozen=True, slots=True)
class Registered:
    """The receiver's answer: the task as it knows it, and whether this attempt may send the create."""

    task: dict[str, Any]
    callback_url: str
    create: bool


@dataclass(frozen=True, slots=True)
class CreateOutcome:
    """What became of a create."""

    outcome: Outcome
    kling_id: str | None = None
    reason: str = ""

    def fields(self) -> dict[str, str]:
        """As the receiver wants it told."""
        named = {"outcome": self.outcome, "task_id": self.kling_id, "reason": self.reason[:MAX_REASON_CHARS]}
        return {name: value for name, value in named.items() if value}


class ReceiverApi:
    """The receiver at one address. `token` makes the bearer token anew for each request."""

    def __init__(self, http: httpx.AsyncClient, base: str, token: Callable[[], str], retry: RetryPolicy) -> None:
        self.base, self.retry = base, retry
        self.reached = False
        self._http, self._token = http, token

    async def register(self, task_id: str, registration: Registration) -> Registered:
        """Make the task known before its create. Safe to repeat: the attempt's nonce tells whose it is."""
        answer = await self._call_with_retry("PUT", task_path(task_id), asdict(registration))
        task, url, create = (answer.get(name) for name in ("task", "callback_url", "create"))
        if not is_task(task, task_id) or not isinstance(url, str) or not isinstance(create, bool):
            raise unreadable_answer()
        return Registered(task, url, create)

    async def report(
        self, task_id: str, registration: Registration, ending: CreateOutcome, *, persist: bool = True
    ) -> dict[str, Any]:
        """Say what became of the create; the answer is the task. `persist`: try more than once."""
        call = self._call_with_retry if persist else self.call
        answer = await call("PUT", task_path(task_id), {**asdict(registration), **ending.fields()})
        task = answer.get("task")
        if not is_task(task, task_id):
            raise unreadable_answer()
        return task

    async def task(self, task_id: str) -> dict[str, Any]:
        """One task's JSON."""
        task = await self._call_with_retry("GET", task_path(task_id))
        if not is_task(task, task_id):
            raise unreadable_answer()
        return task

    async def tasks(self, limit: int = PAGE_SIZE, **filters: str | None) -> list[dict[str, Any]]:
        """At most `limit` tasks, newest first, a page at a time."""
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(found) < limit:
            page, cursor = await self._page(limit=min(limit - len(found), PAGE_SIZE), cursor=cursor, **filters)
            found += page
            if not cursor or not page:
                break
        return found[:limit]

    async def _page(self, **filters: str | int | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page, and the cursor of the next."""
        given = {name: value for name, value in filters.items() if value is not None}
        answer = await self._call_with_retry("GET", f"/api/tasks?{httpx.QueryParams(given)}")
        tasks, cursor = answer.get("tasks"), answer.get("next")
        if not isinstance(tasks, list) or not all(is_task(task) for task in tasks):
            raise unreadable_answer()
        return tasks, cursor if isinstance(cursor, str) and cursor else None

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request, its answer a JSON object. Raises ReceiverError."""
        try:
            with anyio.fail_after(self.retry.call_seconds):
                async with self.open(method, path, json=body) as response:
                    return _object(await _content(response))
        except TimeoutError as error:
            raise self._unreachable(error) from None

    async def file(self, task_id: str, index: int) -> AsyncGenerator[bytes, None]:
        """The bytes of a result file. By our token: unlike its link it has no end, and no log shows it."""
        path, headers = f"{task_path(task_id)}/results/{index}", {"Accept-Encoding": "identity"}
        async with self.open("GET", path, headers=headers) as response:
            async for chunk in response.aiter_bytes():
                yield chunk

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        timeout: httpx.Timeout = TIMEOUT,
        **sent: Any,
    ) -> AsyncIterator[httpx.Response]:
        """A response of the 200s whose body is still to be read. Raises ReceiverError for all else."""
        proof = {"Authorization": f"Bearer {self._token()}"}
        if sent.get("json") is None:
            sent = {}
        try:
            async with self._http.stream(
                method,
                self.base + path,
                headers={**proof, **(headers or {})},
                timeout=timeout,
                follow_redirects=False,
                **sent,
            ) as response:
                if response.status_code >= 300:
                    raise await _refused(response)
                self.reached = True
                yield response
        except TRANSPORT_ERRORS as error:
            raise self._unreachable(error) from error
        except RuntimeError as error:
            if not self._http.is_closed:
                raise
            raise ReceiverError(
                "This Kling is closed.", code="closed", hint="Use it inside its `with` block."
            ) from error

    async def _call_with_retry(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """`call`, again while the receiver is away or busy; every route we call may be repeated."""
        total = self.retry.read_seconds if method == "GET" else self.retry.write_seconds
        return await self.retry.retry(lambda: self.call(method, path, body), lambda error: error.retryable, total)

    def _unreachable(self, error: Exception) -> ReceiverError:
        reason = str(error).rstrip(".") or type(error).__name__
        return ReceiverError(
            f"The receiver cannot be reached at {self.base}: {reason}.",
            code="unreachable",
            retryable=not isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol),
            hint=UNREACHABLE_HINT,
        )


def task_path(task_id: str) -> str:
    """The route of one task."""
    return f"/api/tasks/{quote(task_id, safe='')}"


def is_task(value: Any, task_id: str | None = None) -> TypeGuard[dict[str, Any]]:
    """Whether this is the JSON of a task, and of that one."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("id"), str)
        and task_id in (None, value["id"])
        and isinstance(value.get("status"), str)
        and isinstance(value.get("results", []), list)
    )


def unreadable_answer() -> ReceiverError:
    """The error for an answer that is no answer of a receiver."""
    return ReceiverError(
        "The receiver's answer cannot be read.",
        code="unreadable",
        hint="Is this a receiver? Check KLING_RECEIVER_URL.",
    )


async def _refused(response: httpx.Response) -> ReceiverError:
    """The receiver's error shape as an error; a proxy in between may answer in any other."""
    try:
        error = _object(await _content(response)).get("error")
    except ReceiverError:
        error = None
    said = error if isinstance(error, dict) else {}
    status, code = response.status_code, _text(said.get("code"))
    where = f" It redirects to {urlsplit(response.headers.get('Location', '')).netloc}." if status < 400 else ""
    return ReceiverError(
        f"The receiver refused: {_text(said.get('message')) or f'HTTP {status}.'}{where}",
        code=code or None,
        http_status=status,
        retryable=status in BUSY,
        retry_after=retry_after_seconds(response.headers),
        hint=HINTS.get(code) or _text(said.get("hint")) or (UNREACHABLE_HINT if status in BUSY else WRONG_SERVER_HINT),
    )


def _text(value: Any) -> str:
    return value[:1000] if isinstance(value, str) else ""


def _object(content: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        raise unreadable_answer() from None
    if not isinstance(answer, dict):
        raise unreadable_answer()
    return answer


async def _content(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise unreadable_answer()
    return bytes(content)
