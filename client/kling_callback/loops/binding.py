"""The event loop to which something belongs, such as the connections of an HTTP client."""

from anyio.lowlevel import current_token

from kling_callback.errors import KlingError


class LoopBinding:
    """Bound to the event loop of the first check."""

    def __init__(self) -> None:
        self._loop: object = None

    def is_here(self) -> bool:
        """Whether this is that loop, or there was no check yet."""
        return self._loop in (None, current_token().native_token)

    def check(self) -> None:
        """Bind to this loop. Raises KlingError in another one: connections do not work there."""
        if not self.is_here():
            raise KlingError(
                "The HTTP client that was given to this Kling is used in another event loop than before.",
                code="other_loop",
                hint="Give each event loop a Kling with an HTTP client of its own, or omit `http`.",
            )
        self._loop = current_token().native_token
