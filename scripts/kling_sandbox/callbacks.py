"""Send callbacks: one for each status, in the order that the switches ask for. A refused one is never sent again."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from kling_sandbox.records.kling import task_record
from kling_sandbox.records.relays import task_answer
from kling_sandbox.state import Callback, State
from kling_sandbox.tasks import Task, now

MAX_CONCURRENT = 32
"""Requests at a time: httpx slows down badly when hundreds of them queue inside it."""

KEEPALIVE_SECONDS = 2
"""Seconds. Shorter than a server's keep-alive (five in uvicorn), so that none closes a connection under a callback."""


@dataclass(frozen=True)
class Message:
    """One callback to be sent."""

    status: str
    body: bytes
    headers: dict[str, str]


class Callbacks:
    """Build and send the callbacks of tasks."""

    def __init__(self, state: State) -> None:
        self._state = state
        limits = httpx.Limits(keepalive_expiry=KEEPALIVE_SECONDS)
        # Receivers under test may have certificates of their own, and nothing secret is sent.
        self._client = httpx.AsyncClient(verify=False, trust_env=False, timeout=10, limits=limits)
        self._concurrency = asyncio.Semaphore(MAX_CONCURRENT)

    async def send(self, task: Task, status: str) -> None:
        """Send the callbacks of a status, or keep them until the end (`reorder`)."""
        unfinished = task.finished_at is None
        if not task.callback_url or task.has("no-callback") or (unfinished and task.has("final-only")):
            return
        task.unsent += self._messages(task, status)
        if unfinished and task.has("reorder"):
            return
        messages, task.unsent = task.unsent, []
        for message in reversed(messages) if task.has("reorder") else messages:
            await self._post(task, task.callback_url, message)

    def _messages(self, task: Task, status: str) -> list[Message]:
        statuses = [status]
        if task.has("false-succeed") and status == "processing":
            statuses.insert(0, "succeed")
        if task.has("contradict") and status == "succeed":
            statuses.append("failed")
        messages = [self._message(task, status) for status in statuses]
        return [message for message in messages for _ in range(1 + task.has("repeat"))]

    def _message(self, task: Task, status: str) -> Message:
        new = task.family.new != task.has("other-spelling")
        relayed, bare = task.has("relay-id"), task.has("no-results")
        fields = task_record(task, status, new=new, relayed=relayed, bare=bare)
        body = _encode(task, task_answer(task, fields, "callback"))
        headers = {"content-type": "application/json", "user-agent": "kling-sandbox"}
        if self._state.webhook_secret:
            headers |= webhook_headers(self._state.webhook_secret, str(time.time_ns()), body)
        return Message(status, body, headers)

    async def _post(self, task: Task, url: str, message: Message) -> None:
        async with self._concurrency:
            at = now()
            answered = await self._answer(url, message)
        task.posted.append({"status": message.status, "at": at, "answered": answered})
        callback = Callback(task.id, message.status, url, message.headers, message.body, at, answered)
        self._state.record(self._state.callbacks, callback)

    async def _answer(self, url: str, message: Message) -> int | str:
        """The status of the response, or the name of the error."""
        try:
            return (await self._client.post(url, content=message.body, headers=message.headers)).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _encode(task: Task, fields: dict[str, Any]) -> bytes:
    final = task.finished_at is not None
    if final and task.has("oversized"):
        fields["padding"] = "x" * 2_000_000
    body = json.dumps(fields).encode()
    return body[: len(body) // 2] if final and task.has("unreadable") else body


def webhook_headers(secret: str, message_id: str, body: bytes, at: int | None = None) -> dict[str, str]:
    """Sign a body by Standard Webhooks, at `at` (unix seconds) or now."""
    stamp = str(at or int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256)
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": signature}
