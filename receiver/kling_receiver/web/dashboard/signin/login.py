"""Sign in by a login link or the password, sign out."""

import hashlib
import hmac
import math
import time
from collections.abc import Callable
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import Grant, verify_grant
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.auth import route
from kling_receiver.web.body import Body, BodyLimiter, UnauthenticatedReservation, read_body
from kling_receiver.web.dashboard.pages import HEADERS, Pages, next_of, url_from
from kling_receiver.web.dashboard.signin.attempts import PasswordAttempts
from kling_receiver.web.dashboard.signin.session import LOGIN_PATH, check_transport
from kling_receiver.web.errors import ApiError

MAX_FORM_BYTES = 16_384
MAX_FIELDS = 50
NEW_LINK = "Create a new one with: kling-receiver login-link"


class LoginRoutes:
    """The login page. `clock`: unix seconds."""

    def __init__(
        self,
        settings: ReceiverSettings,
        pages: Pages,
        bodies: BodyLimiter,
        *,
        attempts: PasswordAttempts | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets, self._password = settings.signing_secrets, settings.dashboard_password
        self._pages, self._sessions, self._bodies = pages, pages.sessions, bodies
        self._attempts, self._clock = attempts or PasswordAttempts(), clock

    def routes(self) -> list[Route]:
        """The routes of this module."""
        return [
            route(LOGIN_PATH, GET=self._show, POST=self._login),
            route("/dashboard/logout", POST=self._logout),
        ]

    async def _show(self, request: Request) -> Response:
        """The page. A link is not used up by this: programs that preview links open them too."""
        wanted = next_of(request.query_params.get("next", ""))
        link = request.query_params.get("link", "")
        if link:
            try:
                grant = self._verify(link)
            except ApiError as error:
                return self._page(request, error, wanted=wanted)
            return self._page(request, link=link, role=grant.role, wanted=wanted)
        if await self._sessions.find(request):
            return RedirectResponse(url_from(request, "") + wanted, 303, headers=HEADERS)
        return self._page(request, wanted=wanted)

    async def _login(self, request: Request) -> Response:
        wanted = link = ""
        try:
            self._sessions.check_origin(request)
            check_transport(request)
            form = await self._read_form(request)
            wanted, link = next_of(form.get("next", "")), form.get("link", "")
            grant = await (self._by_link(link) if link else self._by_password(request, form.get("password", "")))
        except ApiError as error:
            return self._page(request, error, wanted=wanted)
        response = RedirectResponse(url_from(request, "") + wanted, 303, headers=HEADERS)
        self._sessions.set_cookie(request, response, grant)
        return response

    async def _logout(self, request: Request) -> Response:
        try:
            self._sessions.check_origin(request)
        except ApiError as error:
            return self._pages.error(None, request, error)
        session = await self._sessions.find(request)
        if session:
            await self._sessions.logins.sign_out(session.grant)
        response = RedirectResponse(url_from(request, LOGIN_PATH), 303, headers=HEADERS)
        self._sessions.delete_cookie(request, response)
        return response

    def _verify(self, link: str) -> Grant:
        """The content of a login link, used or not. Raises ApiError."""
        try:
            return verify_grant(self._secrets, "login", link, now=self._clock())
        except TokenError as error:
            raise ApiError(401, "bad_link", str(error), NEW_LINK) from None

    async def _by_link(self, text: str) -> Grant:
        link = self._verify(text)
        grant = self._sessions.new_grant(link.role)
        if not await self._sessions.logins.use_link(link, grant):
            raise ApiError(401, "used_link", "The login link was used before.", NEW_LINK)
        return grant

    async def _by_password(self, request: Request, password: str) -> Grant:
        """A grant of role admin, for the right password. Raises ApiError."""
        if not self._password:
            raise ApiError(
                401, "no_password", "This receiver has no password.", "Sign in by: kling-receiver login-link"
            )
        address = request.client.host if request.client else ""
        if seconds := self._attempts.seconds_blocked(address):
            message = f"Too many wrong passwords. Try again in {math.ceil(seconds)} s."
            hint = "A login link works at any time: kling-receiver login-link"
            raise ApiError(429, "too_many_attempts", message, hint, Retry_After=str(math.ceil(seconds)))
        if not hmac.compare_digest(_digest(password), _digest(self._password)):
            self._attempts.record_failure(address)
            raise ApiError(401, "bad_password", "The password is not right.", "Check KLING_DASHBOARD_PASSWORD.")
        self._attempts.record_success(address)
        grant = self._sessions.new_grant("admin")
        await self._sessions.logins.record_password(grant)
        return grant

    async def _read_form(self, request: Request) -> dict[str, str]:
        with UnauthenticatedReservation(self._bodies) as reservation:
            body = await read_body(request, reservation, max_kept=MAX_FORM_BYTES, max_dropped=0)
        return _parse_form(body)

    def _page(
        self, request: Request, error: ApiError | None = None, *, wanted: str = "", link: str = "", role: str = ""
    ) -> Response:
        response = self._pages.render_public(
            request,
            "login.html",
            status=error.status if error else 200,
            title="Sign in",
            error=error,
            link=link,
            role=role,
            wanted=wanted,
            has_password=bool(self._password),
        )
        response.headers.update(error.headers if error else {})
        return response


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _parse_form(body: Body) -> dict[str, str]:
    """The fields of a form, the last of each name. Raises ApiError for an incomplete or oversized body."""
    if body.problem or body.size > len(body.content):
        raise ApiError(413, "too_large", "The form is too large or incomplete.", "Reload the page and try again.")
    try:
        pairs = parse_qsl(body.content.decode(), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise ApiError(422, "bad_form", "This is not a form.", "Reload the page and try again.") from None
    return dict(pairs)
