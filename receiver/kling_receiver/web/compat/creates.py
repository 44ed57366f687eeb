"""Creates: submitted through the receiver, and answered as Kling would answer them."""

from starlette.requests import Request
from starlette.responses import Response

from kling_receiver.parts import Store
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.body import BodyLimiter, Reservation, read_body
from kling_receiver.web.compat.queries import Queries
from kling_receiver.web.compat.replies import BAD_PARAMETER, UNAVAILABLE, CompatError

MAX_BYTES = 16 * 1024 * 1024


class Creates:
    def __init__(self, settings: ReceiverSettings, store: Store, queries: Queries, bodies: BodyLimiter) -> None:
        self._bodies = bodies

    async def read(self, request: Request) -> bytes:
        """The body of a request. Raises CompatError for one that is too long."""
        with Reservation(self._bodies) as reservation:
            body = await read_body(request, reservation)
        if body.problem or body.size > len(body.content):
            raise CompatError(BAD_PARAMETER, "The body is too long.")
        return body.content

    async def create(self, request: Request, family: str) -> Response:
        raise CompatError(UNAVAILABLE, "not yet")
