"""How long to wait for what, and how often to try again: all of this package's timing in one place."""

import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import stamina

from kling_callback.errors import KlingError

T = TypeVar("T")

log = logging.getLogger("client")
logging.getLogger("stamina").addHandler(logging.NullHandler())  # it would write to stderr what `log` says

DICE = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Times in seconds. Waits double from `first` to `longest`, with jitter."""

    initial_wait: float = 0.5
    max_wait: float = 30
    max_attempts: int | None = None
    """At most so many, however quick they are; None for no limit but time."""
    create_seconds: float = 300
    """For all tries of a create that Kling surely did not take."""
    connect_seconds: float = 30
    """For those of them that found no connection to Kling."""
    write_seconds: float = 20
    """For all tries of one call that changes something at the receiver: it may be restarting."""
    read_seconds: float = 5
    """For all tries of one that only reads there."""
    call_seconds: float = 60
    """For one try, however slowly its answer drips."""
    download_seconds: float = 300
    """For all tries of a download."""
    lookup_waits: tuple[float, ...] = (1, 4, 10)
    """The pauses before each look for a create with an unknown outcome."""
    stream_timeout: float = 45
    """After this long without even a heartbeat, a stream of events is broken."""
    unreachable_seconds: float = 60
    """A receiver that never answered is given up after this long, when nothing else bounds the wait."""
    interrupt_seconds: float = 5
    """For telling the receiver what became of a create that was interrupted."""

    async def retry(self, call: Callable[[], Awaitable[T]], again: Callable[[KlingError], bool], total: float) -> T:
        """`call`; again, for `total` seconds, after errors of which `again` says so. A Retry-After is kept."""

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
            wait_max=min(self.max_wait, total / 4),  # so that the last wait does not go far beyond the end
            wait_jitter=self.initial_wait,
        ):
            with attempt:
                return await call()
        raise AssertionError("the last attempt returns or raises")

    def pause(self, failures: int) -> float:
        """How long to wait after the n-th failure in a row."""
        return min(self.initial_wait * 2.0 ** min(failures - 1, 20), self.max_wait) * self.jitter()

    def jitter(self) -> float:
        """A factor from 1 to 1.5, so that those who failed together do not come back together."""
        return DICE.uniform(1, 1.5)
