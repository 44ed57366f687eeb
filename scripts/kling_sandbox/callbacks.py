"""Callbacks: what a change of status says, to whom, and in which order; a refused one is never sent again."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from kling_sandbox.ledger import Callback, Ledger
from kling_sandbox.tasks import Task, dressed, now, record


@dataclass(frozen=True)
class Letter:
    status: str
    body: bytes
    headers: dict[str, str]


class Callbacks:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        # Receivers under test may have certificates of their own, and nothing secret is sent. Idle
        # connections go before uvicorn's five seconds are over, so that none closes under a callback.
        limits = httpx.Limits(keepalive_expiry=2)
        self.client = httpx.AsyncClient(verify=False, trust_env=False, timeout=10, limits=limits)
        self.doors = asyncio.Semaphore(32)  # httpx slows down badly when hundreds of calls queue inside it

    async def tell(self, task: Task, status: str) -> None:
        early = task.finished_at is None
        if not task.callback_url or task.has("no-callback") or (early and task.has("final-only")):
            return
        task.outbox += self.letters(task, status)
        if early and task.has("reorder"):
            return
        letters, task.outbox = task.outbox, []
        for letter in reversed(letters) if task.has("reorder") else letters:
            await self.post(task, task.callback_url, letter)

    def letters(self, task: Task, status: str) -> list[Letter]:
        said = [status]
        if task.has("false-succeed") and status == "processing":
            said.insert(0, "succeed")
        if task.has("contradict") and status == "succeed":
            said.append("failed")
        letters = [self.letter(task, status) for status in said]
        return [letter for letter in letters for _ in range(1 + task.has("repeat"))]

    def letter(self, task: Task, status: str) -> Letter:
        new = task.family.new != task.has("other-spelling")
        relayed, bare = task.has("relay-id"), task.has("no-results")
        fields = record(task, status, new=new, relayed=relayed, bare=bare)
        body = written(task, dressed(task, fields, "callback"))
        headers = {"content-type": "application/json", "user-agent": "sandbox-gateway"}
        if self.ledger.webhook_secret:
            headers |= signed(self.ledger.webhook_secret, str(time.time_ns()), body)
        return Letter(status, body, headers)

    async def post(self, task: Task, url: str, letter: Letter) -> None:
        async with self.doors:
            at = now()
            answered = await self.answer(url, letter)
        task.posted.append({"status": letter.status, "at": at, "answered": answered})
        sent = Callback(task.id, letter.status, url, letter.headers, letter.body, at, answered)
        self.ledger.note(self.ledger.callbacks, sent)

    async def answer(self, url: str, letter: Letter) -> int | str:
        try:
            return (await self.client.post(url, content=letter.body, headers=letter.headers)).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return type(error).__name__


def written(task: Task, fields: dict[str, Any]) -> bytes:
    final = task.finished_at is not None
    if final and task.has("oversized"):
        fields["padding"] = "x" * 2_000_000
    body = json.dumps(fields).encode()
    return body[: len(body) // 2] if final and task.has("unreadable") else body


def signed(secret: str, number: str, body: bytes, at: int | None = None) -> dict[str, str]:
    """Sign as the Standard Webhooks do."""
    stamp = str(at or int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{number}.{stamp}.".encode() + body, hashlib.sha256)
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": number, "webhook-timestamp": stamp, "webhook-signature": signature}
