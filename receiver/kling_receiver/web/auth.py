"""Authorization under `/api`: a bearer token contains its role, and each role includes those of lower rank."""

from collections.abc import Awaitable, Callable, Collection, Sequence

from starlette.requests import Request
from starlette.responses import Response

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import Role, verify_api_token
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import check_query

RouteHandler = Callable[[Request], Awaitable[Response]]

RANK: dict[Role, int] = {"read": 0, "client": 1, "admin": 2}
"""A role may do what the roles of lower rank may."""


def check_role(request: Request, secrets: Sequence[str], role: Role) -> None:
    """Raise ApiError unless the request has a bearer token of this role or a higher one."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("no_token", "A bearer token is needed.", "Create one with: kling-receiver token")
    try:
        token_role = verify_api_token(secrets, token.strip())
    except TokenError as error:
        raise _unauthenticated("bad_token", str(error), "Create a new one with: kling-receiver token") from None
    if RANK[token_role] < RANK[role]:
        message = f"A {token_role} token may not do this."
        raise ApiError(403, "forbidden", message, f"Create a token with: kling-receiver token --role {role}")


def require_role(
    secrets: Sequence[str], role: Role, endpoint: RouteHandler, *, query: Collection[str] | None = ()
) -> RouteHandler:
    """Wrap an endpoint, so that it is called only with a bearer token of this role or a higher one.

    `query`: the query parameters that it has; others are refused. None: the endpoint checks them itself, or ignores
    them.
    """

    async def guarded(request: Request) -> Response:
        check_role(request, secrets, role)
        if query is not None:
            check_query(request, query)
        return await endpoint(request)

    return guarded


def _unauthenticated(code: str, message: str, hint: str) -> ApiError:
    return ApiError(401, code, message, hint, WWW_Authenticate="Bearer")
