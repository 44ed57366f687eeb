"""The way out: each event is POSTed to the hook, signed by Standard Webhooks, until it is taken."""

import logging
import time
from collections.abc import Callable

import httpx

from client.gateway import retry_after_seconds
from client.webhooks import hook_body, message_id, sign
from receiver.metrics import Metrics
from receiver.outbound import Outbound, Refused
from receiver.outbox import Backoff, Claimed, Done, GiveUp, RetryAt, Verdict, verdict
from receiver.reading import Reader
from receiver.results import reason
from receiver.views import Views

log = logging.getLogger("receiver.hooks")

AGAIN = Backoff((5, 30, 120, 900, 3600, 10_800, 28_800, 86_400))
"""Seconds between attempts; after the last the event is dead, and kept."""
TIMEOUT = 15
"""Seconds for the hook to answer."""


class Hook:
    """One address that every event goes to."""

    def __init__(
        self,
        url: str,
        secret: str,
        *,
        outbound: Outbound,
        reader: Reader,
        views: Views,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._url, self._secret = url, secret
        self._outbound, self._reader, self._views, self._metrics = outbound, reader, views, metrics
        self._clock = clock

    async def deliver(self, job: Claimed) -> Verdict:
        """The handler of `hook`: one attempt. A redirect or any other answer than 2xx is a failure."""
        event = await self._reader.event(int(job.key.removeprefix("hook/")))
        full = await self._reader.full([event["task"]]) if event else {}
        if event is None or event["task"] not in full:
            return verdict(Done())
        try:
            shown = self._views.event(event, full[event["task"]])
            await self._post(message_id(event["id"], event["at"]), hook_body(shown))
        except (Refused, httpx.HTTPError, OSError) as error:
            self._metrics.deliveries.labels("failed").inc()
            log.warning("hook: event %d was not taken: %s", event["id"], reason(error))
            return self._again(job, error)
        self._metrics.deliveries.labels("delivered").inc()
        return verdict(Done())

    async def _post(self, name: str, body: bytes) -> None:
        timestamp = int(self._clock())
        headers = {
            "Content-Type": "application/json",
            "webhook-id": name,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": sign(self._secret, name, timestamp, body),
        }
        response = await self._outbound.send("POST", self._url, content=body, headers=headers, timeout=TIMEOUT)
        await response.aclose()  # the status says all; the body is not ours to read
        if not response.is_success:
            said = f"the hook answered {response.status_code}"
            raise httpx.HTTPStatusError(said, request=response.request, response=response)

    def _again(self, job: Claimed, error: Exception) -> Verdict:
        asked = retry_after_seconds(error.response) if isinstance(error, httpx.HTTPStatusError) else None
        due = None
        if not (isinstance(error, Refused) or _is_gone(error)):
            due = AGAIN.after(job.attempts, int(self._clock() * 1000), at_least=asked)
        return verdict(GiveUp(reason(error)) if due is None else RetryAt(due, reason(error)))


def _is_gone(error: Exception) -> bool:
    """410: nobody will be there again."""
    return isinstance(error, httpx.HTTPStatusError) and error.response.status_code == 410
