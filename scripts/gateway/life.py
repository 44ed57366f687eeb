"""The life of a task, and a callback at each change of its status; a refused one is never sent again."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any

import httpx

from gateway.ledger import Callback, Ledger
from gateway.tasks import Task, dressed, now, record


@dataclass(frozen=True)
class Letter:
    status: str
    body: bytes
    headers: dict[str, str]


class Life:
    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        # Receivers under test have certificates of their own, and nothing secret is sent.
        self.client = httpx.AsyncClient(verify=False, trust_env=False, timeout=10)
        self.lives: set[asyncio.Task[None]] = set()

    async def start(self, task: Task, *, begun: bool) -> None:
        life = asyncio.create_task(self.finish(task) if begun else self.run(task))
        self.lives.add(life)
        life.add_done_callback(self.lives.discard)

    async def run(self, task: Task) -> None:
        await self.begin(task)
        await self.finish(task)

    async def begin(self, task: Task) -> None:
        await self.tell(task, "submitted")

    async def finish(self, task: Task) -> None:
        if not task.has("false-succeed"):
            await self.pass_time(task, 1 / 3)
        self.ledger.turn(task, "processing")
        await self.tell(task, "processing")
        await self.pass_time(task, 2 / 3)
        self.ledger.turn(task, task.ending)
        await self.tell(task, task.status)

    async def pass_time(self, task: Task, share: float) -> None:
        await asyncio.sleep(self.ledger.seconds[task.family.kind] * share * (10 if task.has("slow") else 1))
        if self.ledger.held:
            task.held = True
            await task.turns.acquire()
            task.held = False

    def let_go(self, task: Task) -> None:
        if task.held:
            task.held = False
            task.turns.release()

    async def tell(self, task: Task, status: str) -> None:
        final = task.finished_at is not None
        if not task.callback_url or task.has("no-callback") or (task.has("final-only") and not final):
            return
        task.outbox += self.letters(task, status)
        if task.has("reorder") and not final:
            return
        letters, task.outbox = task.outbox, []
        for letter in reversed(letters) if task.has("reorder") else letters:
            await self.post(task, letter)

    def letters(self, task: Task, status: str) -> list[Letter]:
        letters = [self.letter(task, status)]
        if task.has("false-succeed") and status == "processing":
            letters.insert(0, self.letter(task, "succeed"))
        if task.has("contradict") and status == "succeed":
            letters.append(self.letter(task, "failed"))
        return [letter for letter in letters for _ in range(1 + task.has("repeat"))]

    def letter(self, task: Task, status: str) -> Letter:
        new = task.family.new != task.has("other-spelling")
        bare = task.has("no-results")
        fields = dressed(
            task, record(task, status, new=new, relayed=task.has("relay-id"), bare=bare), "callback"
        )
        body = self.written(task, fields)
        headers = {"content-type": "application/json", "user-agent": "sandbox-gateway"}
        if self.ledger.webhook_secret:
            headers |= signed(self.ledger.webhook_secret, self.ledger.number(), body)
        return Letter(status, body, headers)

    def written(self, task: Task, fields: dict[str, Any]) -> bytes:
        final = task.finished_at is not None
        if final and task.has("oversized"):
            fields["padding"] = "x" * 2_000_000
        body = json.dumps(fields).encode()
        return body[: len(body) // 2] if final and task.has("unreadable") else body

    async def post(self, task: Task, letter: Letter) -> None:
        url, at = task.callback_url or "", now()
        try:
            answer = await self.client.post(url, content=letter.body, headers=letter.headers)
            answered: int | str = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            answered = type(error).__name__
        task.posted.append({"status": letter.status, "at": at, "answered": answered})
        sent = Callback(task.id, letter.status, url, letter.headers, letter.body, at, answered)
        self.ledger.note(self.ledger.callbacks, sent)


def signed(secret: str, number: str, body: bytes, at: int | None = None) -> dict[str, str]:
    """Sign as the Standard Webhooks do."""
    stamp = str(at or int(time.time()))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.digest(key, f"{number}.{stamp}.".encode() + body, hashlib.sha256)
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": number, "webhook-timestamp": stamp, "webhook-signature": signature}
