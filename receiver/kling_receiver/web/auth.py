"""Who may do what under `/api`: a bearer token says its role, and a higher role may do what a lower one may."""

from collections.abc import Awaitable, Callable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from kling_callback.errors import TokenError
from kling_callback.protocol.signing import Role, verify_api_token
from kling_receiver.web.errors import ApiError

Endpoint = Callable[[Request], Awaitable[Response]]

RANK: dict[Role, int] = {"read": 0, "client": 1, "admin": 2}


def check_role(request: Request, secrets: Sequence[str], role: Role) -> None:
    """Raise ApiError unless the request bears a token of at least this role."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise _unauthenticated("no_token", "A bearer token is needed.", "Make one with: kling-receiver token")
    try:
        held = verify_api_token(secrets, token.strip())
    except TokenError as error:
        raise _unauthenticated("bad_token", str(error), "Make a new one with: kling-receiver token") from None
    if RANK[held] < RANK[role]:
        message = f"A {held} token may not do this."
        raise ApiError(403, "forbidden", message, f"Make one that may with: kling-receiver token --role {role}")


def require_role(secrets: Sequence[str], role: Role, endpoint: Endpoint) -> Endpoint:
    """The endpoint, for those who bear a token of at least this role."""

    async def guarded(request: Request) -> Response:
        check_role(request, secrets, role)
        return await endpoint(request)

    return guarded


def _unauthenticated(code: str, message: str, hint: str) -> ApiError:
    return ApiError(401, code, message, hint, WWW_Authenticate="Bearer")
