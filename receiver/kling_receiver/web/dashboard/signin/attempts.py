"""Limit the attempts to guess the password: of one address, and of all."""

import time
from collections import deque
from collections.abc import Callable

from kling_receiver.web.compat.attempts import FailedAttempts

MAX_FAILURES = 10
"""Wrong passwords of one address in a minute."""
MAX_ALL_FAILURES = 200
"""Wrong passwords of all addresses in WINDOW_SECONDS: with 12 characters, guesses at this rate find nothing."""
WINDOW_SECONDS = 600.0


class PasswordAttempts:
    """Counts wrong passwords. `clock`: seconds that never go back.

    An address from which the right password came is not blocked for the failures of others: an attacker with many
    addresses must not lock out the owner.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._by_address = FailedAttempts(clock=clock, max_failures=MAX_FAILURES)
        self._all: deque[float] = deque(maxlen=MAX_ALL_FAILURES)

    def seconds_blocked(self, address: str) -> float:
        """Seconds for which this address may not try a password; 0 if it may."""
        if own := self._by_address.seconds_blocked(address, ""):
            return own
        if len(self._all) < MAX_ALL_FAILURES or self._by_address.was_accepted(address):
            return 0.0
        return max(self._all[0] + WINDOW_SECONDS - self._clock(), 0.0)

    def record_failure(self, address: str) -> None:
        """Count a wrong password."""
        self._by_address.record_failure(address)
        self._all.append(self._clock())

    def record_success(self, address: str) -> None:
        """Remember that the right password came from an address."""
        self._by_address.record_success(address)
