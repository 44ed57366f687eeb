"""The receiver's `/api`: one method for each route that this client uses. The bearer token is sent only from here."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

import anyio
import httpx

from kling_callback.api.create import CreateOutcome
from kling_callback.api.http import retry_after_seconds
from kling_callback.api.kling import NOT_SENT_ERRORS
from kling_callback.api.retry import RetryPolicy
from kling_callback.api.task_json import has_id, is_task
from kling_callback.display import escape, logger
from kling_callback.errors import Outcome, ReceiverError
from kling_callback.protocol.urls import normalize_url, split_url

log = logger("kling_callback.api.receiver")

PAGE_SIZE = 100
"""Tasks of one page of a list."""

MAX_ANSWER_BYTES = 32_000_000
"""Bytes of an answer: a page of tasks, each with its request. A longer answer is not the receiver's."""

TIMEOUT = httpx.Timeout(30, connect=10)
TRANSPORT_ERRORS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, TimeoutError)
BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})

HINTS = {
    "unknown_task": "Check the id: `kling list` lists the tasks. One that is at Kling only (`kling list --at-kling`) "
    "is taken over by: kling-receiver tasks adopt FAMILY ID",
    "bad_token": "Give this client the KLING_SIGNING_SECRETS that the receiver has, or a KLING_RECEIVER_TOKEN "
    "from its `kling-receiver token`. If they are right, check the clocks of both machines.",
}
"""By the receiver's error code, in place of its own hint, which addresses other callers."""
UNREACHABLE_HINT = "Check KLING_RECEIVER_URL, and that `kling-receiver serve` runs."
WRONG_SERVER_HINT = (
    "The answer is not the receiver's; perhaps a proxy forwards only /callbacks/. "
    "Check KLING_RECEIVER_URL, or set KLING_RECEIVER_INTERNAL_URL to the address at which this machine reaches it."
)


@dataclass(frozen=True, slots=True)
class Registration:
    """A task as it is registered before its create, and again with the outcome of the create.

    `request_sha256`: the digest of the whole body: the receiver refuses another one under the same id.
    `create_token`: unique to one create call; the receiver lets only one of them send the create.
    """

    family: str
    model: str
    request: dict[str, Any]
    request_sha256: str
    base: str
    key_fingerprint: str
    tags: tuple[str, ...]
    hook: str
    hook_events: tuple[str, ...]
    hook_format: str
    create_token: str

    def fields(self) -> dict[str, Any]:
        """The JSON fields of the request body."""
        fields = asdict(self)
        fields["attempt"] = fields.pop("create_token")
        return fields


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered task: its JSON, its signed callback address, and whether this call may send the create."""

    task: dict[str, Any]
    callback_url: str
    may_create: bool


@dataclass(frozen=True, slots=True)
class Submission:
    """A create that the receiver sends. `task_id`: by which a repeat finds the task, so that it is safe.

    `priority`: the receiver sends the highest first; None: its default.
    """

    task_id: str
    family: str
    body: dict[str, Any]
    tags: tuple[str, ...] = ()
    hook: str = ""
    hook_events: tuple[str, ...] = ()
    hook_format: str = "event"
    priority: int | None = None

    def fields(self) -> dict[str, Any]:
        """The JSON fields of the request body."""
        optional = {"tags": self.tags, "hook": self.hook, "hook_events": self.hook_events}
        if self.hook_format != "event":
            optional["hook_format"] = self.hook_format
        fields = {
            "family": self.family,
            "body": self.body,
            "external_task_id": self.task_id,
            **{name: value for name, value in optional.items() if value},
        }
        return fields if self.priority is None else {**fields, "priority": self.priority}


class ReceiverApi:
    """The receiver at one address. `token`: makes the bearer token for each request. Every method raises ReceiverError.

    `reached`: whether the receiver has answered a request with success.
    """

    def __init__(self, http: httpx.AsyncClient, base: str, token: Callable[[], str], retry: RetryPolicy) -> None:
        self.base, self.retry = base, retry
        self.reached = False
        self._http, self._token = http, token

    async def register(self, task_id: str, registration: Registration) -> Registered:
        """Register a task before its create. Idempotent: the `create_token` identifies this call."""
        answer = await self._call_with_retry("PUT", task_path(task_id), registration.fields())
        task, url, may_create = (answer.get(name) for name in ("task", "callback_url", "create"))
        if not is_task(task, task_id) or not isinstance(url, str) or not isinstance(may_create, bool):
            raise unreadable_answer()
        return Registered(task, url, may_create)

    async def report(
        self, task_id: str, registration: Registration, outcome: CreateOutcome, *, retry: bool = True
    ) -> dict[str, Any]:
        """Report the outcome of a create, and return the task's JSON. `retry`: False for one attempt only."""
        call = self._call_with_retry if retry else self.call
        answer = await call("PUT", task_path(task_id), {**registration.fields(), **outcome.fields()})
        task = answer.get("task")
        if not is_task(task, task_id):
            raise unreadable_answer()
        return task

    async def submit(self, submission: Submission) -> dict[str, Any]:
        """Submit a create, which the receiver sends. Returns the task's JSON. Idempotent.

        The error's `outcome`: `not_created` if the receiver refused; `unknown` if an answer was lost: the same call
        again, with the same id, is safe.
        """
        outcome: Outcome = "not_created"

        async def send() -> dict[str, Any]:
            nonlocal outcome
            try:
                seconds = self.retry.create_seconds  # it may upload images
                task = await self.call("POST", "/api/tasks", submission.fields(), seconds=seconds)
                if not is_task(task, submission.task_id):
                    raise unreadable_answer()
            except ReceiverError as error:
                outcome = "unknown" if _may_be_taken(error) else outcome
                raise
            return task

        try:
            return await self.retry.retry(send, lambda error: error.retryable, self.retry.write_seconds)
        except ReceiverError as error:
            error.outcome = outcome
            if outcome == "unknown":
                error.hint = (
                    f"It is not known whether the receiver has task {submission.task_id}: submit it again with this "
                    f"external_task_id, or wait for it with: kling wait {submission.task_id}. {error.hint or ''}"
                ).strip()
            raise
        except BaseException:
            log.warning(
                "Interrupted. If the receiver took task %s, wait for it with: kling wait %s",
                submission.task_id,
                submission.task_id,
            )
            raise

    async def cancel(self, task_id: str) -> dict[str, Any]:
        """Remove a queued task from the queue, and return its JSON. `task_id`: any of its ids."""
        task = await self._call_with_retry("DELETE", f"{task_path(task_id)}?only=queued")
        if not is_task(task) or not has_id(task, task_id):
            raise unreadable_answer()
        return task

    async def task(self, task_id: str) -> dict[str, Any]:
        """The JSON of a task. `task_id`: any of its ids."""
        task = await self._call_with_retry("GET", task_path(task_id))
        if not is_task(task) or not has_id(task, task_id):
            raise unreadable_answer()
        return task

    async def page_url(self, task_id: str) -> str:
        """The address of a task's page for people, which the receiver names in a header. `task_id`: any of its ids."""

        async def read() -> str:
            _, response = await self._exchange("GET", task_path(task_id))
            return response.links.get("alternate", {}).get("url", "")

        address = await self.retry.retry(read, lambda error: error.retryable, self.retry.read_seconds)
        try:
            return normalize_url(address)
        except ValueError:
            raise ReceiverError(
                "The receiver names no page of the task.",
                code="no_page",
                hint="Update the receiver, or show the task here with: kling show ID",
            ) from None

    async def newest(self, limit: int, **filters: str | None) -> list[dict[str, Any]]:
        """The JSON of the newest tasks of one page, at most `limit`: one request, and fewer tasks if they are rare."""
        page, _ = await self._page(limit=limit, **filters)
        return page

    async def tasks(self, limit: int = PAGE_SIZE, **filters: str | None) -> list[dict[str, Any]]:
        """The JSON of at most `limit` tasks, newest first. Filters that are None are ignored."""
        tasks: list[dict[str, Any]] = []
        cursor: str | None = None
        while len(tasks) < limit:
            before = cursor
            page, cursor = await self._page(limit=min(limit - len(tasks), PAGE_SIZE), cursor=cursor, **filters)
            tasks += page
            if not cursor or (not page and cursor == before):
                break
        return tasks[:limit]

    async def _page(self, **filters: str | int | None) -> tuple[list[dict[str, Any]], str | None]:
        """One page, and the cursor of the next one."""
        query = httpx.QueryParams({name: value for name, value in filters.items() if value is not None})
        answer = await self._call_with_retry("GET", f"/api/tasks?{query}")
        tasks, cursor = answer.get("tasks"), answer.get("next")
        if not isinstance(tasks, list) or not all(is_task(task) for task in tasks):
            raise unreadable_answer()
        return tasks, cursor if isinstance(cursor, str) and cursor else None

    async def call(self, method: str, path: str, body: Any = None, *, seconds: float | None = None) -> dict[str, Any]:
        """Send one request, without retries, and return its answer, a JSON object. `seconds`: at most, if not usual."""
        answer, _ = await self._exchange(method, path, body, seconds=seconds)
        return answer

    async def _exchange(
        self, method: str, path: str, body: Any = None, *, seconds: float | None = None
    ) -> tuple[dict[str, Any], httpx.Response]:
        """As `call`; also returns the response, for its headers."""
        try:
            with anyio.fail_after(seconds or self.retry.call_seconds):
                async with self.open(method, path, json=body) as response:
                    return _object(await _content(response)), response
        except TimeoutError as error:
            raise self._unreachable(error) from None

    async def file(self, task_id: str, index: int) -> AsyncGenerator[bytes, None]:
        """Yield the bytes of a result file. The bearer token, unlike the file's link, appears in no log."""
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
        **body: Any,
    ) -> AsyncIterator[httpx.Response]:
        """Send one request. The response has a status below 300, and an unread body."""
        authorization = {"Authorization": f"Bearer {self._token()}"}
        if body.get("json") is None:
            body = {}
        try:
            async with self._http.stream(
                method,
                self.base + path,
                headers={**authorization, **(headers or {})},
                timeout=timeout,
                follow_redirects=False,
                **body,
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
        """`call`, retried while the receiver is unreachable or busy. All routes used here are idempotent."""
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


def _may_be_taken(error: ReceiverError) -> bool:
    """Whether the request that ended with this error may have been carried out: it has no refusal as its answer."""
    if error.http_status:
        return error.http_status >= 500 or error.http_status == 408
    return not isinstance(error.__cause__, NOT_SENT_ERRORS)


def unreadable_answer() -> ReceiverError:
    """The error for an answer that cannot be a receiver's."""
    return ReceiverError(
        "The receiver's answer cannot be read.",
        code="unreadable",
        hint="Check that KLING_RECEIVER_URL is the address of a receiver.",
    )


async def _refused(response: httpx.Response) -> ReceiverError:
    """The error for an answer in the receiver's error shape, or in any other of a proxy in between."""
    try:
        error = _object(await _content(response)).get("error")
    except ReceiverError:
        error = None
    problem = error if isinstance(error, dict) else {}
    status, code = response.status_code, _text(problem.get("code"))
    redirect = f" It redirects to {split_url(response.headers.get('Location', '')).netloc}." if status < 400 else ""
    return ReceiverError(
        f"The receiver refused: {_text(problem.get('message')) or f'HTTP {status}.'}{redirect}",
        code=code or None,
        http_status=status,
        retryable=status in BUSY,
        retry_after=retry_after_seconds(response.headers),
        hint=HINTS.get(code)
        or _text(problem.get("hint"))
        or (UNREACHABLE_HINT if status in BUSY else WRONG_SERVER_HINT),
    )


def _text(value: Any) -> str:
    return escape(value[:1000]) if isinstance(value, str) else ""


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
