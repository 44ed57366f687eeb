"""Who is calling: an API key, or, for legacy calls only, a JWT signed with the secret of an access key."""

import jwt
from starlette.requests import Request

from kling_sandbox.ledger import Ledger
from kling_sandbox.misbehaviour import Has
from kling_sandbox.replies import Refused

REFUSALS: list[tuple[type[Exception], int, str]] = [
    (jwt.ExpiredSignatureError, 1004, "Authorization expired"),
    (jwt.ImmatureSignatureError, 1003, "Authorization is not yet valid"),
    (jwt.InvalidSignatureError, 1000, "Signature is invalid"),
    (jwt.InvalidTokenError, 1002, "Authorization is invalid"),
]


def admit(request: Request, ledger: Ledger, has: Has, *, new: bool) -> None:
    account = caller(request.headers.get("authorization", ""), ledger, new)
    if has("expired-token-once") and ledger.first("expired-token-once", account):
        raise Refused(1004, "Authorization expired")


def caller(header: str, ledger: Ledger, new: bool) -> str:
    if not header:
        raise Refused(1001, "Authorization is empty")
    scheme, _, token = header.partition(" ")
    if scheme.lower() == "bearer" and token in ledger.keys:
        return token
    if scheme.lower() != "bearer" or token.count(".") != 2 or new or not ledger.access_key:
        raise Refused(1002, "Authorization is invalid: send Bearer and an API key")
    verify(token, ledger.access_key, ledger.secret_key)
    return ledger.access_key


def verify(token: str, access_key: str, secret_key: str) -> None:
    try:
        jwt.decode(token, secret_key, ["HS256"], issuer=access_key, options={"require": ["exp", "iss"]})
    except jwt.InvalidTokenError as error:
        code, message = next((code, message) for kind, code, message in REFUSALS if isinstance(error, kind))
        raise Refused(code, message) from None
