"""One attempt to deliver one event to one hook: its message made, its turn waited for, its outcome told."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kling_callback.protocol.webhooks import encoded, hook_event, message_id
from kling_receiver.events.payloads import Views
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import WEB
from kling_receiver.hooks.deliveries import Attempt
from kling_receiver.hooks.limiter import Pace, Turn
from kling_receiver.jobs.backoff import Backoff
from kling_receiver.metrics import Metrics
from kling_receiver.net.client import Outbound
from kling_receiver.results.storage import Folder
from kling_receiver.sinks import ANSWER_BYTES, Message, NotTaken, Sink, Taken, scheme_of
from kling_receiver.sinks.command import CommandSink
from kling_receiver.sinks.http import HttpSink
from kling_receiver.sinks.registry import open_sink
from kling_receiver.store.reader import Full
from kling_receiver.store.sql import Row

log = logging.getLogger("kling_receiver.hooks")


@dataclass(slots=True)
class _Open:
    """What is kept of a hook from one attempt to the next: made anew for another address."""

    row: Row
    sink: Sink
    pace: Pace


class Sender:
    """Makes attempts. `clock`: unix seconds."""

    def __init__(
        self,
        outbound: Outbound,
        for_tasks: Outbound,
        folder: Folder,
        views: Views,
        metrics: Metrics,
        *,
        source: str,
        secret: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`for_tasks`, `secret`: for the hooks of single tasks, which clients name. `source`: the receiver's
        public address.
        """
        self._outbound, self._for_tasks = outbound, for_tasks
        self._folder, self._views = folder, views
        self._source, self._secret, self._clock = source, secret, clock
        self._open: dict[str, _Open] = {}
        self._delivered, self._failed = (metrics.deliveries.labels(each) for each in ("delivered", "failed"))

    async def close(self) -> None:
        """End the connections to brokers."""
        for name in list(self._open):
            await self.forget(name)

    async def forget(self, name: str) -> None:
        """Let go of what is kept of a hook."""
        if each := self._open.pop(name, None):
            await _let_go(each)

    def revive(self, name: str) -> None:
        """Try a hook again that was dead, or asked for a rest."""
        if each := self._open.get(name):
            each.pace.revive()

    async def turn(self, hook: Row) -> Turn:
        """Wait for the right to one attempt at this hook. Raises TimeoutError."""
        return await (await self._opened(hook)).pace.turn()

    async def attempt(self, turn: Turn, hook: Row, event: Row, full: Full, *, count: int = 1) -> Attempt:
        """Make the `count`-th attempt at a delivery, and give back the turn."""
        try:
            opened = await self._opened(hook)
            at, began = int(self._clock() * 1000), time.monotonic()
            outcome = await self._send(opened, self._message(hook, event, full))
            if isinstance(outcome, Taken):
                turn.pace.note(True)
            else:
                turn.pace.note(False, gone=outcome.gone, retry_after=outcome.retry_after)
        finally:
            turn.leave()
        ms = int((time.monotonic() - began) * 1000)
        return self._told(hook, event, at, ms, count, outcome)

    async def _send(self, opened: _Open, message: Message) -> Taken | NotTaken:
        timeout = opened.row["timeout"]
        try:
            async with asyncio.timeout(timeout):
                return await opened.sink.send(message)
        except TimeoutError:
            return NotTaken(f"it did not answer within {timeout:g} s")
        except NotTaken as outcome:
            return outcome
        except Exception as error:  # a sink of somebody else's
            log.exception("hook %s failed in an unforeseen way", opened.row["name"])
            return NotTaken(f"its sink failed: {type(error).__name__}")

    def _told(self, hook: Row, event: Row, at: int, ms: int, count: int, outcome: Taken | NotTaken) -> Attempt:
        known: dict[str, Any] = {"hook": hook, "event": event["id"], "task": event["task"], "count": count}
        known |= {"at": at, "ms": ms, "status": outcome.status, "answer": outcome.answer[:ANSWER_BYTES]}
        if isinstance(outcome, Taken):
            self._delivered.inc()
            return Attempt(**known, taken=True)
        self._failed.inc()
        level = logging.DEBUG if hook["task"] else logging.WARNING  # a client's hooks fill no log
        log.log(level, "hook %s: event %d was not taken: %s", hook["name"], event["id"], outcome)
        due = at if outcome.gone else None  # of one that is paused, nothing is due
        if not (outcome.gone or outcome.final):
            due = Backoff(tuple(hook["schedule"])).after(count, at + ms, at_least=outcome.retry_after)
        return Attempt(**known, taken=False, error=str(outcome), due_at=due, gone=outcome.gone)

    def _message(self, hook: Row, event: Row, full: Full) -> Message:
        shown = hook_event(self._views.event(event, full))
        stored = [result["name"] for result in full.results if result["status"] == "stored"]
        return Message(
            id=message_id(event["id"], event["at"], hook["name"].partition(":")[0]),
            event=shown,
            body=encoded(shown),
            source=self._source,
            files=tuple(self._folder.path(name) for name in stored),
        )

    async def _opened(self, hook: Row) -> _Open:
        name = hook["name"]
        known = self._open.get(name)
        if known and known.row["address"] == hook["address"]:
            if known.row is not hook:
                known.row = hook
                known.pace.change(hook["concurrency"], hook["rate"])
            return known
        opened = _Open(hook, _Unusable(), Pace(hook["concurrency"], hook["rate"]))
        opened.sink = self._sink(opened)
        self._open[name] = opened  # before anything is waited for: there is one pace
        if known:
            await _let_go(known)
        return opened

    def _sink(self, opened: _Open) -> Sink:
        address = opened.row["address"]
        scheme = scheme_of(address)
        if scheme in WEB:
            return HttpSink(
                address,
                lambda: self._secrets(opened),
                self._for_tasks if opened.row["task"] else self._outbound,
                timeout=lambda: opened.row["timeout"],
                clock=self._clock,
            )
        if scheme == "command":
            return CommandSink(address)
        try:
            return open_sink(address)
        except ValueError as error:
            log.error("hook %s cannot be used: %s", opened.row["name"], error)
            return _Unusable(str(error))

    def _secrets(self, opened: _Open) -> list[str]:
        if opened.row["task"]:
            if not self._secret:
                raise NotTaken("the receiver has no KLING_HOOK_SECRET to sign with")
            return [self._secret]
        return hook_records.good_secrets(opened.row, int(self._clock() * 1000))


LETTING_GO = 10.0
"""Seconds for a sink to close."""


async def _let_go(opened: _Open) -> None:
    try:
        async with asyncio.timeout(LETTING_GO):
            await opened.sink.close()
    except Exception:  # of a sink of somebody else's
        log.exception("hook %s: its sink failed when it was closed", opened.row["name"])


class _Unusable:
    """A hook whose package is no longer installed, say."""

    def __init__(self, why: str = "") -> None:
        self._why = why

    async def send(self, message: Message) -> Taken:
        raise NotTaken(self._why)

    async def close(self) -> None:
        """Nothing is open."""
