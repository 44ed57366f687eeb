"""Who is calling: an API key, or a JWT signed with the access key's secret; never a mixture of accounts."""

from collections.abc import Collection

import jwt

from gateway.replies import Refused

REFUSALS: list[tuple[type[Exception], int, str]] = [
    (jwt.ExpiredSignatureError, 1004, "Authorization expired"),
    (jwt.ImmatureSignatureError, 1003, "Authorization is not yet valid"),
    (jwt.InvalidSignatureError, 1000, "Signature is invalid"),
    (jwt.InvalidTokenError, 1002, "Authorization is invalid"),
]


def caller(header: str, *, keys: Collection[str], access_key: str, secret_key: str, new: bool) -> str:
    """Name the key or the access key behind an Authorization header."""
    if not header:
        raise Refused(1001, "Authorization is empty")
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(1002, "Authorization is invalid: send Bearer <key>")
    if token in keys:
        return token
    if new or not access_key or token.count(".") != 2:
        raise Refused(1002, "Authorization is invalid: no such API key")
    try:
        jwt.decode(token, secret_key, ["HS256"], issuer=access_key, options={"require": ["exp", "iss"]})
    except jwt.InvalidTokenError as error:
        code, message = next((c, m) for kind, c, m in REFUSALS if isinstance(error, kind))
        raise Refused(code, message) from None
    return access_key
