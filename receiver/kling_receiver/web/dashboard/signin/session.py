"""Sessions of the dashboard: the signed cookie, and which requests come from the dashboard's own pages."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from urllib.parse import SplitResult, urlsplit

from starlette.requests import Request
from starlette.responses import Response

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import ApiToken, Grant, Role, sign_grant, verify_grant
from kling_callback.protocol.urls import is_loopback
from kling_receiver.access.logins import Logins
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.errors import ApiError

SESSION_SECONDS = 12 * 3600
"""Seconds after which a session ends: a working day. Rotating the signing secrets ends all of them at once."""
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
LOGIN_PATH = "/dashboard/login"
PATH = re.compile(r"(?:/[A-Za-z0-9._~%-]+)*")
"""A prefix that may become the path of a cookie."""
MAX_COOKIES = 10
"""Cookies of the session's name in one request that are verified: browsers send one for each path that matches."""
FROM_ELSEWHERE = "The request does not come from a page of this receiver."
OWN_PAGE_HINT = "Open the dashboard at the receiver's own address, reload the page and try again."


@dataclass(frozen=True, slots=True)
class Session:
    """A session whose cookie was verified. `seconds_left`: for how long it will be accepted, now; 0 once it ended."""

    grant: Grant
    seconds_left: Callable[[], float]

    @property
    def token(self) -> ApiToken:
        """What a bearer token of the same role would contain."""
        return ApiToken(self.grant.role, self.grant.expires, session=self.grant.id)


class Sessions:
    """Makes and verifies the cookies. `clock`: unix seconds."""

    def __init__(self, settings: ReceiverSettings, logins: Logins, *, clock: Callable[[], float] = time.time) -> None:
        self.logins, self._secrets, self._clock = logins, settings.signing_secrets, clock
        self._origins = {origin_of(settings.receiver_url), origin_of(settings.links_base)}
        # Cookies do not know ports: two receivers of one machine need two names.
        self.cookie_name = f"kling-session-{hashlib.sha256(settings.receiver_url.encode()).hexdigest()[:8]}"

    async def find(self, request: Request) -> Session | None:
        """The request's session; None without a valid cookie. Raises Unavailable."""
        for text in _cookies(request, self.cookie_name):
            try:
                grant = verify_grant(self._secrets, "session", text, now=self._clock())
            except TokenError:  # there may be another one, of a longer or shorter path
                continue
            await self.logins.load()
            if not self.logins.is_spent(grant.id):
                return Session(grant, self._seconds_left(grant))
        return None

    def _seconds_left(self, grant: Grant) -> Callable[[], float]:
        return lambda: 0.0 if self.logins.is_spent(grant.id) else max(grant.expires - self._clock(), 0.0)

    def new_grant(self, role: Role) -> Grant:
        """A grant for a new session."""
        return Grant(role, int(self._clock()) + SESSION_SECONDS, secrets.token_urlsafe(6))

    def set_cookie(self, request: Request, response: Response, grant: Grant) -> None:
        """Begin a session in the browser that sent a request. `check_origin` and `check_transport` come first."""
        max_age = max(grant.expires - int(self._clock()), 0)
        self._set(request, response, sign_grant(self._secrets, "session", grant), max_age)

    def delete_cookie(self, request: Request, response: Response) -> None:
        """End the session in the browser that sent a request."""
        self._set(request, response, "", 0)

    def _set(self, request: Request, response: Response, value: str, max_age: int) -> None:
        origin = request.headers.get("Origin", "")
        response.set_cookie(
            self.cookie_name,
            value,
            max_age=max_age,
            path=f"{browser_prefix(request)}/",
            secure=not (origin.startswith("http://") and _is_local(origin)),
            httponly=True,
            samesite="lax",  # with `strict`, a link to a page in a chat would lead to the login page
        )

    def check_origin(self, request: Request) -> None:
        """Raise ApiError unless a request comes from a page of this receiver, as its browser says.

        A page of another site cannot set either header. `Sec-Fetch-Site` needs no knowledge of the address; browsers
        send it only to https and loopback.
        """
        site, origin = request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")
        if site is not None:
            is_own = site == "same-origin"
        else:
            host = request.headers.get("Host", "")
            is_own = origin is not None and origin in {*self._origins, f"http://{host}", f"https://{host}"}
        if not is_own:
            raise ApiError(403, "other_origin", FROM_ELSEWHERE, OWN_PAGE_HINT)


def check_transport(request: Request) -> None:
    """Raise ApiError where a browser would not keep the cookie: at plain http:// to another machine."""
    origin = request.headers.get("Origin", "")
    if origin.startswith("http://") and not _is_local(origin):
        raise ApiError(
            400,
            "not_encrypted",
            "This address is plain http:// to another machine, which would show your session on the way.",
            "Open the dashboard by https://, or through a tunnel: ssh -L 8000:127.0.0.1:8000 HOST, then "
            "http://127.0.0.1:8000/",
        )


def browser_prefix(request: Request) -> str:
    """The path below which the receiver is in the browser that sent a form of a page; "" for the root.

    A proxy may have removed that path from the request, so the page's own address counts.
    """
    return prefix_of_page(request.headers.get("Referer", "")) or prefix_of_page(request.scope.get("root_path", ""))


def prefix_of_page(url: str) -> str:
    """The path before `/dashboard/`, or that of the first page, in the address of a page."""
    path = split(url).path
    prefix = (path.rpartition("/dashboard/")[0] if "/dashboard/" in path else path).rstrip("/")
    return prefix if PATH.fullmatch(prefix) else ""


def split(url: str) -> SplitResult:
    """The parts of an address in a request's header; empty ones if it is not valid."""
    try:
        return urlsplit(url)
    except ValueError:  # such as http://[::1
        return urlsplit("")


def origin_of(url: str) -> str:
    """The origin of an address, as browsers write it: without a default port."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port and parts.port != default else "")


def _is_local(origin: str) -> bool:
    return is_loopback(split(origin).hostname or "")


def _cookies(request: Request, name: str) -> list[str]:
    """The values of a cookie: the same name may exist for several paths."""
    pairs = (part.strip().partition("=") for part in ";".join(request.headers.getlist("cookie")).split(";"))
    return list(islice((value for found, _, value in pairs if found == name), MAX_COOKIES))
