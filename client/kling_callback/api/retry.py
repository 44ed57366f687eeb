"""The client's retries and timeouts, all in one place."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import stamina

from kling_callback.display import logger
from kling_callback.errors import KlingError

T = TypeVar("T")

log = logger("kling_callback.api.retry")
logging.getLogger("stamina").addHandler(logging.NullHandler())  # stamina would write to stderr what `log` reports

_RANDOM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries and timeouts, in seconds. Waits double from `initial_wait` to `max_wait`, times a jitter of 1 to 1.5."""

    initial_wait: float = 0.5
    max_wait: float = 30
    max_attempts: int | None = None
    """Attempts of one call; None: limited by time only."""
    create_seconds: float = 300
    """For all attempts at a create that Kling certainly did not accept."""
    connect_seconds: float = 30
    """For those of them that fail because there is no connection to Kling."""
    write_seconds: float = 20
    """For all attempts at one write to the receiver, which may be restarting."""
    read_seconds: float = 5
    """For all attempts at one read from the receiver."""
    call_seconds: float = 60
    """For one attempt, however slowly its answer arrives."""
    download_seconds: float = 300
    """For all attempts at a download."""
    lookup_waits: tuple[float, ...] = (1, 4, 10)
    """The pauses before each query for a create with an unknown outcome."""
    stream_timeout: float = 45
    """Silence, without even a heartbeat, after which an event stream is reconnected."""
    unreachable_seconds: float = 60
    """For a receiver that never answered, in waits without a timeout."""
    interrupt_seconds: float = 5
    """For reporting the outcome of an interrupted create to the receiver."""

    async def retry(self, call: Callable[[], Awaitable[T]], again: Callable[[KlingError], bool], total: float) -> T:
        """Return what `call` returns; retry for `total` seconds after errors for which `again` returns True.

        A `retry_after` of the error replaces the wait; one longer than `total` ends the retries. Raises the last error.
        """

        def on(error: Exception) -> bool | float:
            if not isinstance(error, KlingError) or not again(error) or (error.retry_after or 0) > total:
                return False
            log.info("%s Trying again.", error.message)
            return True if error.retry_after is None else error.retry_after * self.jitter()

        if self.max_attempts == 1 or total <= 0:
            return await call()
        async for attempt in stamina.retry_context(
            on=on,
            attempts=self.max_attempts,
            timeout=total,
            wait_initial=self.initial_wait,
            wait_max=min(self.max_wait, total / 4),  # the last wait exceeds `total` by little
            wait_jitter=self.initial_wait,
        ):
            with attempt:
                return await call()
        raise AssertionError("the last attempt returns or raises")

    def pause(self, failures: int) -> float:
        """Seconds to wait after the n-th consecutive failure, n from 1."""
        return min(self.initial_wait * 2.0 ** min(failures - 1, 20), self.max_wait) * self.jitter()

    def jitter(self) -> float:
        """A random factor from 1 to 1.5: clients that failed together do not retry together."""
        return _RANDOM.uniform(1, 1.5)
