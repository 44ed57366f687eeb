"""Wait for a receiver that is starting, so that `serve &` and `doctor` may follow each other."""

from collections.abc import Callable
from urllib.parse import urlsplit

import anyio
import httpx

from kling_callback.api.http import create_client
from kling_callback.environment import EnvironmentProblem
from kling_callback.protocol.urls import is_loopback

START_SECONDS = 10.0
"""Seconds for which a receiver may start: it usually takes two."""
PAUSE_SECONDS = 0.2
"""Between two requests."""
REQUEST_SECONDS = 5.0
UNREACHED = frozenset({502, 504})
"""HTTP statuses by which a proxy or a tunnel says that it does not reach the receiver."""


async def wait_for_start(url: str, on_wait: Callable[[str], object]) -> None:
    """Wait until the receiver at `url` answers, for at most START_SECONDS, and only where it may be starting.

    That is where a loopback address refuses the connection, or a proxy does not reach the receiver. `on_wait`: called
    once, with the reason, if that is so. Whatever else is wrong is for the checks to find.
    """
    async with create_client() as http:
        with anyio.move_on_after(START_SECONDS):
            is_first = True
            while reason := await _why_starting(http, url):
                if is_first:
                    on_wait(reason)
                is_first = False
                await anyio.sleep(PAUSE_SECONDS)


async def _why_starting(http: httpx.AsyncClient, url: str) -> str:
    """What a receiver that is starting causes; "" if nothing does so."""
    parts = urlsplit(url)
    try:
        response = await http.get(f"{url}/healthz", timeout=REQUEST_SECONDS)
    except (httpx.HTTPError, EnvironmentProblem) as error:
        refuses = is_loopback(parts.hostname or "") and _is_refusal(error)
        return f"{parts.netloc} refuses the connection" if refuses else ""
    return f"{parts.netloc} answers {response.status_code}" if response.status_code in UNREACHED else ""


def _is_refusal(error: BaseException | None) -> bool:
    """Whether an error has a refused connection as its cause; with several addresses, each refused."""
    while error:
        if isinstance(error, ConnectionRefusedError):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(map(_is_refusal, error.exceptions))
        error = error.__cause__ or error.__context__
    return False
