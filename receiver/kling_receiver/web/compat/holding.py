"""Hold the query of an unfinished task: spaces until it ends, then the JSON."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from kling_receiver.events.bus import EventBus
from kling_receiver.settings import MAX_HOLD_SECONDS
from kling_receiver.store.errors import Unavailable
from kling_receiver.web.compat.replies import AUTH_EXPIRED, UNAVAILABLE, CompatError, problem

SPACE_SECONDS = 5.0
"""Seconds between two spaces: shorter than the time-outs of programs and proxies for a silent connection."""
WAIT = re.compile(r"(?:^|,)\s*wait\s*=\s*\"?([0-9]{1,9})\"?\s*(?=$|[,;])", re.IGNORECASE)
"""The preference `wait=N` (RFC 7240), N in seconds."""

HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

Render = Callable[[], Awaitable[dict[str, Any]]]
"""Makes the answer's JSON, of the tasks as they are when it is called."""


def hold_seconds(request: Request, default: float) -> float:
    """Seconds for which a query is to be held: those of `Prefer: wait=N`, up to a maximum, else `default`."""
    if request.method == "HEAD":
        return 0
    preference = WAIT.search(",".join(request.headers.getlist("Prefer")))
    return min(int(preference[1]), MAX_HOLD_SECONDS) if preference else default


class Holder:
    """Holds queries. A held query counts as an event stream; past their limit it is answered at once."""

    def __init__(self, bus: EventBus, *, space_seconds: float = SPACE_SECONDS) -> None:
        self._bus, self._space_seconds = bus, space_seconds

    def hold(
        self,
        render: Render,
        is_over: Callable[[], Awaitable[bool]],
        task_ids: Collection[str],
        *,
        seconds: float,
        seconds_left: Callable[[], float],
    ) -> Response | None:
        """Hold a query about these tasks until `is_over`, for at most `seconds`; None: it is to be answered at once.

        `seconds_left`: for how long the caller is still authorized.
        """
        if seconds <= 0 or not task_ids or self._bus.is_full or self._bus.closed:
            return None
        spaces = self._bus.wait_until(
            is_over, task_ids, seconds=seconds, heartbeat=self._space_seconds, seconds_left=seconds_left
        )
        frames = _held(spaces, render, seconds_left)
        return StreamingResponse(frames, media_type="application/json", headers=HEADERS)


async def _held(spaces: AsyncIterator[None], render: Render, seconds_left: Callable[[], float]) -> AsyncIterator[bytes]:
    """The spaces, then the JSON. The status 200 is sent before: an error is in the code, which programs read, too."""
    try:
        async for _ in spaces:
            yield b" "
        revoked = problem(AUTH_EXPIRED, "The token has expired or was revoked while the query was held.")
        content = await render() if seconds_left() > 0 else revoked
    except CompatError as error:
        content = problem(error.code, error.message)
    except Unavailable as error:
        content = problem(UNAVAILABLE, f"{error} Send the request again.")
    yield json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
