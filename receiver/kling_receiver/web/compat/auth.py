"""Authentication at Kling's API: a receiver token, the account's own key, or a JWT signed with its secret key."""

import hashlib
import hmac
import math
import warnings
from collections.abc import Callable

import jwt
from jwt.warnings import InsecureKeyLengthWarning
from starlette.requests import Request

from kling_callback.errors import TokenExpired
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web.auth import Guard
from kling_receiver.web.compat.attempts import FailedAttempts
from kling_receiver.web.compat.replies import (
    AUTH_EMPTY,
    AUTH_EXPIRED,
    AUTH_FAILED,
    AUTH_INVALID,
    AUTH_TOO_EARLY,
    TOO_FAST,
    CompatError,
)
from kling_receiver.web.errors import ApiError

JWT_LEEWAY_SECONDS = 5
"""Seconds by which clocks may differ: Kling's own samples sign `nbf` that much earlier."""

JWT_ERRORS: tuple[tuple[type[Exception], int, str], ...] = (
    (jwt.ExpiredSignatureError, AUTH_EXPIRED, "The JWT has expired. Sign a new one."),
    (jwt.ImmatureSignatureError, AUTH_TOO_EARLY, "The JWT is not valid yet. Check the clock of your machine."),
    (jwt.InvalidSignatureError, AUTH_FAILED, "The JWT was not signed with the secret key of this receiver's account."),
    (jwt.InvalidTokenError, AUTH_INVALID, "The JWT is not valid: it needs HS256, the account's `iss`, and `exp`."),
)
"""Kling's code for each error, the most telling one first."""

ACCEPTED = (
    "Send `Authorization: Bearer` with the account's key, a JWT signed with it, or a receiver token (role client)."
)


class CompatGuard:
    """Checks who calls Kling's API. All of them may do what the role `client` may."""

    def __init__(self, settings: ReceiverSettings, guard: Guard, *, attempts: FailedAttempts | None = None) -> None:
        self._guard, self._attempts = guard, attempts or FailedAttempts()
        self._keys = [_digest(key) for key in settings.api_keys]
        self._pairs = settings.access_keys

    async def check(self, request: Request) -> Callable[[], float]:
        """Check a request's credential. Returns a function of the seconds for which it will be accepted.

        Raises CompatError, also for too many failed attempts from the same address.
        """
        scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
        address, credential = request.client.host if request.client else "", credential.strip()
        if not credential and not scheme:
            raise CompatError(AUTH_EMPTY, f"The header Authorization is missing. {ACCEPTED}")
        blocked = self._attempts.seconds_blocked(address, credential)
        try:
            if scheme.lower() != "bearer" or not credential:
                raise CompatError(AUTH_INVALID, f"The header Authorization names no bearer key. {ACCEPTED}")
            seconds_left = await self._verify(request, credential, may_guess=not blocked)
        except CompatError as error:
            if error.code not in (AUTH_FAILED, AUTH_INVALID):  # an expired credential is no guess
                raise
            if blocked:
                message = "Too many failed attempts from your address. Check the key, then try again in a minute."
                raise CompatError(TOO_FAST, message, Retry_After=str(math.ceil(blocked))) from None
            self._attempts.record_failure(address)
            raise
        return seconds_left

    async def _verify(self, request: Request, credential: str, *, may_guess: bool) -> Callable[[], float]:
        """Raise CompatError or ApiError, unless a credential is accepted. `may_guess`: whether it may be a bare key.

        What is signed is always verified: it is a new text each time, and behind a proxy, one program with a wrong
        key would lock out all others that sign.
        """
        given = _digest(credential)
        if may_guess and sum(hmac.compare_digest(given, key) for key in self._keys):  # a sum: every key is compared
            self._attempts.record_success(credential)
            return _always
        if credential.count(".") == 2:
            self._verify_jwt(credential)
            return _always
        try:
            token = await self._guard.accept(request, credential, "client")
        except ApiError as error:
            if isinstance(error.__cause__, TokenExpired):
                raise CompatError(AUTH_EXPIRED, f"{error.message} {error.hint}") from None
            if error.status == 401:
                raise CompatError(AUTH_INVALID, f"The key is not this account's. {ACCEPTED}") from None
            raise
        return self._guard.seconds_left(token)

    def _verify_jwt(self, credential: str) -> None:
        """Raise CompatError unless one of the account's secret keys signed a JWT, and it is valid now."""
        if not self._pairs:
            raise CompatError(AUTH_INVALID, f"This receiver has no access key to check a JWT with. {ACCEPTED}")
        errors = [error for pair in self._pairs if (error := _jwt_error(credential, *pair))]
        if len(errors) == len(self._pairs):
            kinds = [n for error in errors for n, (kind, *_) in enumerate(JWT_ERRORS) if isinstance(error, kind)]
            _, code, message = JWT_ERRORS[min(kinds)]
            raise CompatError(code, message)


def _jwt_error(credential: str, access_key: str, secret_key: str) -> jwt.InvalidTokenError | None:
    """Why this pair of keys did not sign a JWT that is valid now; None if it did."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # Kling chooses the key's length
            jwt.decode(
                credential,
                secret_key,
                ["HS256"],
                issuer=access_key,
                leeway=JWT_LEEWAY_SECONDS,
                options={"require": ["exp", "iss"], "verify_aud": False},
            )
    except jwt.InvalidTokenError as error:
        return error
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError) as error:  # of a header or claims of other types
        return jwt.InvalidTokenError(str(error))
    return None


def _digest(credential: str) -> bytes:
    return hashlib.sha256(credential.encode("utf-8", "replace")).digest()


def _always() -> float:
    return math.inf
