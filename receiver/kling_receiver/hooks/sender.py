"""One attempt to deliver one event to one hook: its message made, its turn waited for, its outcome told."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kling_callback.protocol.webhooks import encode, redact_event, webhook_id
from kling_receiver.events.payloads import Payloads
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import WEB_SCHEMES
from kling_receiver.hooks.deliveries import DeliveryAttempt
from kling_receiver.hooks.limiter import HookLimiter, Slot
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import GuardedClient
from kling_receiver.results.storage import LocalStorage
from kling_receiver.sinks import MAX_RESPONSE_BYTES, Delivered, Message, NotDelivered, Sink, scheme_of
from kling_receiver.sinks.command import CommandSink
from kling_receiver.sinks.http import HttpSink
from kling_receiver.sinks.registry import open_sink
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, HookRow

log = logging.getLogger("kling_receiver.hooks")


@dataclass(slots=True)
class _OpenHook:
    """What is kept of a hook from one attempt to the next: made anew for another address."""

    row: HookRow
    sink: Sink
    limiter: HookLimiter


class Sender:
    """Makes attempts. `clock`: unix seconds."""

    def __init__(
        self,
        client: GuardedClient,
        task_client: GuardedClient,
        storage: LocalStorage,
        payloads: Payloads,
        metrics: Metrics,
        *,
        source: str,
        secret: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`for_tasks`, `secret`: for the hooks of single tasks, which clients name. `source`: the receiver's
        public address.
        """
        self._client, self._task_client = client, task_client
        self._storage, self._payloads = storage, payloads
        self._source, self._secret, self._clock = source, secret, clock
        self._open_hooks: dict[str, _OpenHook] = {}
        self._delivered, self._failed = (metrics.deliveries.labels(each) for each in ("delivered", "failed"))

    async def close(self) -> None:
        """End the connections to brokers."""
        for name in list(self._open_hooks):
            await self.close_hook(name)

    async def close_hook(self, name: str) -> None:
        """Let go of what is kept of a hook."""
        if each := self._open_hooks.pop(name, None):
            await _close(each)

    def reset(self, name: str) -> None:
        """Try a hook again that was dead, or asked for a rest."""
        if each := self._open_hooks.get(name):
            each.limiter.reset()

    async def acquire_slot(self, hook: HookRow) -> Slot:
        """Wait for the right to one attempt at this hook. Raises TimeoutError."""
        return await (await self._open_hook(hook)).limiter.acquire()

    async def attempt(
        self, slot: Slot, hook: HookRow, event: EventRow, detail: TaskDetail, *, count: int = 1
    ) -> DeliveryAttempt:
        """Make the `count`-th attempt at a delivery, and give back the turn."""
        try:
            opened = await self._open_hook(hook)
            at, began = int(self._clock() * 1000), time.monotonic()
            outcome = await self._send(opened, self._message(hook, event, detail))
            if isinstance(outcome, Delivered):
                slot.limiter.record(True)
            else:
                slot.limiter.record(False, gone=outcome.gone, retry_after=outcome.retry_after)
        finally:
            slot.release()
        ms = int((time.monotonic() - began) * 1000)
        return self._to_attempt(hook, event, at, ms, count, outcome)

    async def _send(self, opened: _OpenHook, message: Message) -> Delivered | NotDelivered:
        timeout = opened.row["timeout"]
        try:
            async with asyncio.timeout(timeout):
                return await opened.sink.send(message)
        except TimeoutError:
            return NotDelivered(f"it did not answer within {timeout:g} s")
        except NotDelivered as outcome:
            return outcome
        except Exception as error:  # a sink of somebody else's
            log.exception("hook %s failed in an unforeseen way", opened.row["name"])
            return NotDelivered(f"its sink failed: {type(error).__name__}")

    def _to_attempt(
        self, hook: HookRow, event: EventRow, at: int, ms: int, count: int, outcome: Delivered | NotDelivered
    ) -> DeliveryAttempt:
        known: dict[str, Any] = {"hook": hook, "event": event["id"], "task": event["task_id"], "count": count}
        known |= {"at": at, "ms": ms, "status": outcome.status, "answer": outcome.response[:MAX_RESPONSE_BYTES]}
        if isinstance(outcome, Delivered):
            self._delivered.inc()
            return DeliveryAttempt(**known, delivered=True)
        self._failed.inc()
        level = logging.DEBUG if hook["task_id"] else logging.WARNING  # a client's hooks fill no log
        log.log(level, "hook %s: event %d was not taken: %s", hook["name"], event["id"], outcome)
        due = at if outcome.gone else None  # of one that is paused, nothing is due
        if not (outcome.gone or outcome.final):
            due = Backoff(tuple(hook["retry_schedule"])).next_at(count, at + ms, at_least=outcome.retry_after)
        return DeliveryAttempt(**known, delivered=False, error=str(outcome), retry_at=due, gone=outcome.gone)

    def _message(self, hook: HookRow, event: EventRow, detail: TaskDetail) -> Message:
        shown = redact_event(self._payloads.event(event, detail))
        stored = [result["path"] for result in detail.results if result["path"] and result["status"] == "stored"]
        return Message(
            id=webhook_id(event["id"], event["created_at"], hook["name"].partition(":")[0]),
            event=shown,
            body=encode(shown),
            source=self._source,
            files=tuple(self._storage.path(name) for name in stored),
        )

    async def _open_hook(self, hook: HookRow) -> _OpenHook:
        name = hook["name"]
        known = self._open_hooks.get(name)
        if known and known.row["address"] == hook["address"]:
            if known.row is not hook:
                known.row = hook
                known.limiter.set_limits(hook["concurrency"], hook["rate_limit"])
            return known
        opened = _OpenHook(hook, _BrokenSink(), HookLimiter(hook["concurrency"], hook["rate_limit"]))
        opened.sink = self._sink(opened)
        self._open_hooks[name] = opened  # before anything is waited for: there is one pace
        if known:
            await _close(known)
        return opened

    def _sink(self, opened: _OpenHook) -> Sink:
        address = opened.row["address"]
        scheme = scheme_of(address)
        if scheme in WEB_SCHEMES:
            return HttpSink(
                address,
                lambda: self._secrets(opened),
                self._task_client if opened.row["task_id"] else self._client,
                timeout=lambda: opened.row["timeout"],
                clock=self._clock,
            )
        if scheme == "command":
            return CommandSink(address)
        try:
            return open_sink(address)
        except ValueError as error:
            log.error("hook %s cannot be used: %s", opened.row["name"], error)
            return _BrokenSink(str(error))

    def _secrets(self, opened: _OpenHook) -> list[str]:
        if opened.row["task_id"]:
            if not self._secret:
                raise NotDelivered("the receiver has no KLING_HOOK_SECRET to sign with")
            return [self._secret]
        return hook_records.active_secrets(opened.row, int(self._clock() * 1000))


CLOSE_TIMEOUT_SECONDS = 10.0
"""Seconds for a sink to close."""


async def _close(opened: _OpenHook) -> None:
    try:
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await opened.sink.close()
    except Exception:  # of a sink of somebody else's
        log.exception("hook %s: its sink failed when it was closed", opened.row["name"])


class _BrokenSink:
    """A hook whose package is no longer installed, say."""

    def __init__(self, why: str = "") -> None:
        self._why = why

    async def send(self, message: Message) -> Delivered:
        raise NotDelivered(self._why)

    async def close(self) -> None:
        """Nothing is open."""
