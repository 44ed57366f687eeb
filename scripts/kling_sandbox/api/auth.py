"""Authentication: an API key, or, for the legacy standard only, a JWT signed with an access key's secret."""

import jwt

from kling_sandbox.api.replies import ApiError
from kling_sandbox.misbehaviour import Has
from kling_sandbox.state import State
from kling_sandbox.web.http import Request

JWT_ERRORS: list[tuple[type[Exception], int, str]] = [
    (jwt.ExpiredSignatureError, 1004, "Authorization expired"),
    (jwt.ImmatureSignatureError, 1003, "Authorization is not yet valid"),
    (jwt.InvalidSignatureError, 1000, "Signature is invalid"),
    (jwt.InvalidTokenError, 1002, "Authorization is invalid"),
]


def authenticate(request: Request, state: State, has: Has, *, new: bool) -> None:
    """Check the caller; `new`: the new standard. Raises ApiError."""
    account = _account(request.headers.get("authorization", ""), state, new)
    if has("expired-token-once") and state.is_first("expired-token-once", account):
        raise ApiError(1004, "Authorization expired")


def _account(header: str, state: State, new: bool) -> str:
    if not header:
        raise ApiError(1001, "Authorization is empty")
    scheme, _, token = header.partition(" ")
    if scheme.lower() == "bearer" and token in state.keys:
        return token
    if scheme.lower() != "bearer" or token.count(".") != 2 or new or not state.access_key:
        raise ApiError(1002, "Authorization is invalid: send Bearer and an API key")
    _verify(token, state.access_key, state.secret_key)
    return state.access_key


def _verify(token: str, access_key: str, secret_key: str) -> None:
    try:
        jwt.decode(token, secret_key, ["HS256"], issuer=access_key, options={"require": ["exp", "iss"]})
    except jwt.InvalidTokenError as error:
        code, message = next((code, message) for kind, code, message in JWT_ERRORS if isinstance(error, kind))
        raise ApiError(code, message) from None
