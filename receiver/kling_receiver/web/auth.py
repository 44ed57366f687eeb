"""Authorization under `/api`: a bearer token contains its role, and each role includes those of lower rank.

Without a bearer token, the cookie of a session of the dashboard counts; changes then must come from its own pages.

Each change that needs the role admin has an entry in the audit log.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import LEEWAY_SECONDS, ApiToken, Role, verify_api_token
from kling_callback.protocol.values import sanitize
from kling_receiver.access import audit
from kling_receiver.access.tokens import TokenCache
from kling_receiver.hooks.config import is_hook_name
from kling_receiver.store.errors import Unavailable
from kling_receiver.store.writer import Writer
from kling_receiver.web.dashboard.signin.session import SAFE_METHODS, Session, Sessions
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import check_query

log = logging.getLogger("kling_receiver.audit")

RouteHandler = Callable[[Request], Awaitable[Response]]

INVALID_NAME = "(not a name)"
MAX_ID_CHARS = 70
"""Characters of an id in the audit log: a bearer token that was pasted for one loses its signature."""

RANK: dict[Role, int] = {"read": 0, "client": 1, "admin": 2}
"""A role may do what the roles of lower rank may."""


def includes(role: Role, needed: Role) -> bool:
    """Whether a role may do what `needed` may."""
    return RANK[role] >= RANK[needed]


class Guard:
    """Checks the bearer token or session of each request, and records administrative actions. `clock`: unix seconds."""

    def __init__(
        self,
        secrets: Sequence[str],
        tokens: TokenCache,
        sessions: Sessions,
        writer: Writer,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._secrets, self.tokens, self.sessions = secrets, tokens, sessions
        self._writer, self._clock = writer, clock

    async def check(self, request: Request, role: Role) -> ApiToken:
        """The request's bearer token, else its session's.

        Raises ApiError unless it has this role or a higher one, and is not revoked.
        """
        if "Authorization" not in request.headers and (session := await self.sessions.find(request)):
            return self._accept_session(request, session, role)
        scheme, _, text = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not text:
            raise _unauthenticated("no_token", "A bearer token is needed.", "Create one with: kling-receiver token")
        return await self.accept(request, text.strip(), role)

    async def accept(self, request: Request, text: str, role: Role) -> ApiToken:
        """The content of a bearer token. Raises ApiError unless it has this role or a higher one, and is not revoked.

        The token is checked again when the request's body has arrived.
        """
        token = self.verify(text)
        if token.id and not await self.tokens.is_active(token):
            raise _revoked()
        if not includes(token.role, role):
            message = f"A {token.role} token may not do this."
            raise ApiError(403, "forbidden", message, f"Create a token with: kling-receiver token --role {role}")
        request.state.recheck = self._recheck(token)
        return token

    def _accept_session(self, request: Request, session: Session, role: Role) -> ApiToken:
        """As `accept`. A browser adds the cookie to requests of other sites too: those may change nothing."""
        if request.method not in SAFE_METHODS:
            self.sessions.check_origin(request)
        if not includes(session.grant.role, role):
            message = f"A session of the role {session.grant.role} may not do this."
            raise ApiError(403, "forbidden", message, f"Sign in by: kling-receiver login-link --role {role}")

        def recheck() -> None:
            if not session.seconds_left():
                raise _unauthenticated("bad_session", "The session has ended.", "Sign in again.")

        request.state.recheck = recheck
        return session.token

    def verify(self, text: str) -> ApiToken:
        """The content of a token that these secrets signed, revoked or not. Raises ApiError for any other."""
        try:
            return verify_api_token(self._secrets, text, now=self._clock())
        except TokenError as error:
            raise _unauthenticated("bad_token", str(error), "Create a new one with: kling-receiver token") from error

    def require(self, role: Role, endpoint: RouteHandler, *, query: Collection[str] | None = ()) -> RouteHandler:
        """Wrap an endpoint, so that it is called only with a bearer token of this role or a higher one.

        `query`: the query parameters that it has; others are refused. None: the endpoint checks them itself, or
        ignores them.
        """

        async def guarded(request: Request) -> Response:
            token = await self.check(request, role)
            if query is not None:
                check_query(request, query)
            return _of_session(token, await endpoint(request))

        return guarded

    def audited(self, action: str, endpoint: RouteHandler, *, query: Collection[str] = ()) -> RouteHandler:
        """Wrap an endpoint that changes something for role admin: each call has an entry in the audit log.

        `action`: the name of the command. `query`: the query parameters that the endpoint has; others are refused. The
        entry is committed before the endpoint is called, so that no action lacks one, and its result afterwards.
        """

        async def guarded(request: Request) -> Response:
            token = await self.check(request, "admin")
            check_query(request, query)
            target = "/".join(_shown(name, value) for name, value in request.path_params.items())
            actor, request.state.audit = audit.actor_of(token), {"target": target, "detail": ""}
            entry_id = await self._writer.run(lambda tx: audit.record(tx, actor, action, target, result=None))
            result = "internal"
            try:
                request.state.recheck()  # it may have been revoked during that commit
                response = await endpoint(request)
                result = audit.DONE
            except ApiError as error:
                result = error.code
                raise
            except Unavailable:
                result = "unavailable"
                raise
            finally:
                await self._finish(entry_id, result, actor, action, request.state.audit)
            return _of_session(token, response)

        return guarded

    async def _finish(self, entry_id: int, result: str, actor: str, action: str, about: dict[str, str]) -> None:
        log.info("%s: %s %s: %s", actor, action, audit.one_line(about["target"]), result)
        try:
            await self._writer.run(lambda tx: audit.finish(tx, entry_id, result, **about))
        except Unavailable:  # the entry stays without a result
            log.error("the result of audit entry %d could not be stored: %s", entry_id, result)

    def seconds_left(self, token: ApiToken) -> Callable[[], float]:
        """A function of the seconds for which this token will be accepted; 0 once it has expired or was revoked.

        A session's are those until its end.
        A token that is accepted although it has expired, since clocks differ, is so until LEEWAY_SECONDS have passed.
        """
        if token.session:
            logins = self.sessions.logins
            return lambda: 0.0 if logins.is_spent(token.session) else max(token.expires - self._clock(), 0.0)
        expires = token.expires if token.expires > self._clock() else token.expires + LEEWAY_SECONDS

        def left() -> float:
            return 0.0 if token.id and self.tokens.was_revoked(token) else max(expires - self._clock(), 0.0)

        return left

    def _recheck(self, token: ApiToken) -> Callable[[], None]:
        """For the moment at which a request's body has arrived: its token may have been revoked meanwhile."""

        def recheck() -> None:
            if token.id and self.tokens.was_revoked(token):
                raise _revoked()

        return recheck


def route(path: str, **by_method: RouteHandler) -> Route:
    """One route with a handler for each method: its 405 then names all of them."""

    async def endpoint(request: Request) -> Response:
        return await by_method["GET" if request.method == "HEAD" else request.method](request)

    return Route(path, endpoint, methods=list(by_method))


def describe(request: Request, *, target: str = "", detail: str = "") -> None:
    """Say in the audit log what a request is about, where its path does not. No secret may be in either text."""
    given = {"target": target[:MAX_ID_CHARS], "detail": detail}
    request.state.audit |= {name: value for name, value in given.items() if value}


def shown_name(value: str) -> str:
    """A name as the audit log shows it. What cannot be one may be a secret that was pasted for it."""
    return sanitize(value)[:MAX_ID_CHARS] if is_hook_name(value) else INVALID_NAME


def _of_session(token: ApiToken, response: Response) -> Response:
    """The response to a session's request, which neither a browser nor a proxy keeps: a cookie forbids that to none."""
    if token.session:
        response.headers.setdefault("Cache-Control", "no-store")
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
    return response


def _shown(parameter: str, value: str) -> str:
    """A part of a path as the audit log shows it."""
    return shown_name(value) if parameter == "name" else sanitize(value)[:MAX_ID_CHARS]


def _revoked() -> ApiError:
    return _unauthenticated(
        "bad_token", "The bearer token was revoked.", "Create a new one with: kling-receiver token --name NAME"
    )


def _unauthenticated(code: str, message: str, hint: str) -> ApiError:
    return ApiError(401, code, message, hint, WWW_Authenticate="Bearer")
