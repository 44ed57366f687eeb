"""Forward events to an application under development: the same POST as the receiver's hooks send."""

import time
from collections.abc import Callable

import anyio
import httpx

from kling_callback.api.receiver import unreadable_answer
from kling_callback.api.retry import RetryPolicy
from kling_callback.listen.listener import HandlerResult, Reporter
from kling_callback.protocol.events import Event
from kling_callback.protocol.webhooks import hook_body, signed_headers, webhook_id

TIMEOUT_SECONDS = 15
"""Seconds for the application to answer: the default of the receiver's hooks."""

RETRY = RetryPolicy(max_wait=3)
"""Retries of a connection: short waits, so that a restarted application gets its event at once."""


class ForwardHandler:
    """POSTs each event as the receiver's hooks do. Any answer, or none in time, ends it.

    `report`: receives a message when the application cannot be reached. `clock`: returns unix seconds.
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: str,
        secret: str,
        *,
        report: Reporter,
        retry: RetryPolicy = RETRY,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._http, self._url, self._secret = http, url, secret
        self._report, self._retry, self._clock = report, retry, clock

    async def __call__(self, event: Event) -> HandlerResult:
        """POST one event: retried without end while there is no connection, but not when the answer is late."""
        failures = 0
        while True:
            try:
                status = await self._post(event)
                break
            except httpx.ReadTimeout:
                return HandlerResult("no answer", f"{self._url} did not answer within {TIMEOUT_SECONDS} seconds")
            except httpx.HTTPError as error:
                failures += 1
                if failures == 1:
                    reason = str(error).rstrip(".") or type(error).__name__
                    self._report(f"No answer from {self._url}: {reason}. Event {event.id} is retried.")
                await anyio.sleep(self._retry.pause(failures))
        return HandlerResult(str(status), "" if 200 <= status < 300 else f"{self._url} answered {status}")

    async def _post(self, event: Event) -> int:
        body, name = hook_body(event.document), _webhook_id(event)
        headers = signed_headers([self._secret], name, int(self._clock()), body)
        async with self._http.stream(
            "POST", self._url, content=body, headers=headers, timeout=TIMEOUT_SECONDS, follow_redirects=False
        ) as response:
            return response.status_code


def _webhook_id(event: Event) -> str:
    """The id of the POST. Raises ReceiverError if the event has no valid time."""
    try:
        return webhook_id(event.position)
    except ValueError:
        raise unreadable_answer() from None
