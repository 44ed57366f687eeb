"""Attempts to deliver one event to one hook: build the message, wait for a slot, send, classify the outcome."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from kling_callback.protocol.webhooks import encode, redact_event, webhook_id
from kling_receiver.events.kling_record import as_of
from kling_receiver.events.log import position
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

CLOSE_TIMEOUT_SECONDS = 10.0
"""Seconds that a sink may take to close."""


@dataclass(slots=True)
class _OpenHook:
    """A hook's sink and limiter, kept between attempts; a changed address replaces both."""

    row: HookRow
    sink: Sink
    limiter: HookLimiter


class Sender:
    """Makes delivery attempts, and keeps one sink and one limiter per hook. `clock`: unix seconds."""

    def __init__(
        self,
        client: GuardedClient,
        task_client: GuardedClient,
        storage: LocalStorage,
        payloads: Payloads,
        metrics: Metrics,
        *,
        source: str,
        task_secrets: Sequence[str],
        clock: Callable[[], float] = time.time,
        close_timeout: float = CLOSE_TIMEOUT_SECONDS,
    ) -> None:
        """`task_client`, `task_secrets`: for the hooks of single tasks, which clients name.

        `source`: the receiver's public address. `close_timeout`: seconds.
        """
        self._client, self._task_client = client, task_client
        self._storage, self._payloads = storage, payloads
        self._source, self._task_secrets, self._clock = source, list(task_secrets), clock
        self._close_timeout = close_timeout
        self._open_hooks: dict[str, _OpenHook] = {}
        self._delivered, self._failed = (metrics.deliveries.labels(each) for each in ("delivered", "failed"))

    async def close(self) -> None:
        """Close every sink."""
        for name in list(self._open_hooks):
            await self.close_hook(name)

    async def close_hook(self, name: str) -> None:
        """Close a hook's sink and drop its limiter; the next attempt opens both again."""
        if opened := self._open_hooks.pop(name, None):
            await self._close(opened)

    def reset(self, name: str) -> None:
        """Close a hook's circuit, and forget its `Retry-After`."""
        if opened := self._open_hooks.get(name):
            opened.limiter.reset()

    def circuit_is_open(self, name: str) -> bool:
        """Whether the last attempts at a hook all failed, so that it is only probed."""
        opened = self._open_hooks.get(name)
        return opened is not None and opened.limiter.is_open

    async def acquire_slot(self, hook: HookRow) -> Slot:
        """Wait for the right to one attempt at this hook. Raises TimeoutError after SLOT_TIMEOUT_SECONDS."""
        return await (await self._open_hook(hook)).limiter.acquire()

    async def attempt(
        self,
        slot: Slot,
        hook: HookRow,
        event: EventRow,
        detail: TaskDetail,
        *,
        count: int = 1,
        late: bool = False,
        is_test: bool = False,
    ) -> DeliveryAttempt:
        """Make the `count`-th attempt at a delivery, and release the slot. `late`: out of the log's order.

        `is_test`: its outcome is for its caller alone, and changes neither the circuit nor any count.
        """
        try:
            opened = await self._open_hook(hook)
            attempted_at, started = int(self._clock() * 1000), time.monotonic()
            outcome = await self._send(opened, self._message(hook, event, detail, late))
            if is_test:
                pass
            elif isinstance(outcome, Delivered):
                slot.limiter.record(True)
            else:
                slot.limiter.record(False, gone=outcome.gone, retry_after=outcome.retry_after)
        finally:
            slot.release()
        duration_ms = int((time.monotonic() - started) * 1000)
        if not is_test:
            self._count(hook, event, outcome)
        return self._to_attempt(hook, event, attempted_at, duration_ms, count, outcome)

    async def _send(self, opened: _OpenHook, message: Message) -> Delivered | NotDelivered:
        timeout = opened.row["timeout"]
        try:
            async with asyncio.timeout(timeout):
                return await opened.sink.send(message)
        except TimeoutError:
            return NotDelivered(f"the hook did not answer within {timeout:g} s")
        except NotDelivered as outcome:
            return outcome
        except Exception as error:  # a plugin's bug
            log.exception("hook %s: the sink raised an unexpected error", opened.row["name"])
            return NotDelivered(f"the sink raised {type(error).__name__}")

    def _count(self, hook: HookRow, event: EventRow, outcome: Delivered | NotDelivered) -> None:
        """Count an outcome, and log a failure."""
        if isinstance(outcome, Delivered):
            self._delivered.inc()
            return
        self._failed.inc()
        level = logging.DEBUG if hook["task_id"] else logging.WARNING  # clients' hooks must not fill the log
        log.log(level, "hook %s: event %d was not delivered: %s", hook["name"], event["id"], outcome)

    def _to_attempt(
        self,
        hook: HookRow,
        event: EventRow,
        attempted_at: int,
        duration_ms: int,
        count: int,
        outcome: Delivered | NotDelivered,
    ) -> DeliveryAttempt:
        attempt = DeliveryAttempt(
            hook=hook,
            event_id=event["id"],
            task_id=event["task_id"],
            attempted_at=attempted_at,
            duration_ms=duration_ms,
            count=count,
            delivered=isinstance(outcome, Delivered),
            response_status=outcome.status,
            response_body=outcome.response[:MAX_RESPONSE_BYTES],
        )
        if isinstance(outcome, Delivered):
            return attempt
        retry_in_ms = 0 if outcome.gone else None  # the hook is being paused: its jobs are suspended
        if not (outcome.gone or outcome.final):
            backoff = Backoff(tuple(hook["retry_schedule"]))
            retry_in_ms = backoff.next_at(count, 0, at_least=outcome.retry_after)
        return replace(attempt, error=str(outcome), retry_in_ms=retry_in_ms, gone=outcome.gone)

    def _message(self, hook: HookRow, event: EventRow, detail: TaskDetail, late: bool) -> Message:
        if hook["format"] == "kling":
            document = self._payloads.kling(detail if late else as_of(event, detail))
        else:
            document = redact_event(self._payloads.event(event, detail))
        stored = [result["path"] for result in detail.results if result["path"] and result["status"] == "stored"]
        return Message(
            id=webhook_id(position(event), hook["name"].partition(":")[0]),
            event=document,
            body=encode(document),
            source=self._source,
            files=tuple(self._storage.path(path) for path in stored),
        )

    async def _open_hook(self, hook: HookRow) -> _OpenHook:
        name = hook["name"]
        current = self._open_hooks.get(name)
        if current and current.row["address"] == hook["address"]:
            if current.row is not hook:
                current.row = hook
                current.limiter.set_limits(hook["concurrency"], hook["rate_limit"])
            return current
        opened = _OpenHook(hook, _BrokenSink(), HookLimiter(hook["concurrency"], hook["rate_limit"]))
        opened.sink = self._sink(opened)
        self._open_hooks[name] = opened  # before the await below: concurrent attempts must share one limiter
        if current:
            await self._close(current)
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
            log.error("hook %s has no usable sink: %s", opened.row["name"], error)
            return _BrokenSink(str(error))

    def _secrets(self, opened: _OpenHook) -> list[str]:
        if opened.row["task_id"]:
            return self._task_secrets
        return hook_records.active_secrets(opened.row, int(self._clock() * 1000))

    async def _close(self, opened: _OpenHook) -> None:
        try:
            async with asyncio.timeout(self._close_timeout):
                await opened.sink.close()
        except Exception:  # a plugin's bug, or a sink that hangs
            log.exception("hook %s: the sink failed to close", opened.row["name"])


class _BrokenSink:
    """Fails every attempt with the reason why the hook's sink cannot be opened: its package was removed, say."""

    def __init__(self, reason: str = "") -> None:
        self._reason = reason

    async def send(self, message: Message) -> Delivered:
        raise NotDelivered(self._reason)

    async def close(self) -> None:
        """Nothing is open."""
