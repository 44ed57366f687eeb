"""Authentication at Kling or a gateway: a bearer key, or a JWT signed with access key and secret key."""

import time
import warnings
from collections.abc import Generator
from dataclasses import dataclass

import httpx
import jwt
from jwt.warnings import InsecureKeyLengthWarning

from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.signing import Clock

LIFETIME_SECONDS = 1800
"""Seconds for which a JWT is valid."""

RENEW_BEFORE_SECONDS = 300
"""Seconds before its expiry at which a JWT is renewed: a clock may be off, an upload may be slow."""

STALE_TOKEN_CODES = frozenset({1003, 1004})
"""Kling's codes for a JWT that is not yet valid, or expired. The request was not taken: it is sent once more."""


class BearerAuth(httpx.Auth):
    """`Authorization: Bearer <key>`."""

    def __init__(self, key: str, name: str = "") -> None:
        """`name`: which of several keys it is, for messages; "" for the only one."""
        self._key, self.name = key, name

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["Authorization"] = f"Bearer {self._key}"
        yield request


class JwtAuth(httpx.Auth):
    """`Authorization: Bearer <JWT>`; the JWT is reused until shortly before its expiry."""

    def __init__(self, access_key: str, secret_key: str, name: str = "", *, clock: Clock = time.time) -> None:
        """`name`: which of several pairs it is, for messages; "" for the only one."""
        self.name = name
        self._access_key, self._secret_key, self._clock = access_key, secret_key, clock
        self._token, self._signed_at, self._renew_at = "", 0.0, 0.0

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        # A JWT from the future is not valid yet: the clock was ahead when it was signed.
        if not self._signed_at <= self._clock() < self._renew_at:
            self._sign()
        request.headers["Authorization"] = f"Bearer {self._token}"
        yield request

    def invalidate(self) -> None:
        """Sign a new JWT for the next request: Kling refused this one with a STALE_TOKEN_CODES."""
        self._renew_at = 0.0

    def _sign(self) -> None:
        now = int(self._clock())
        claims = {"iss": self._access_key, "exp": now + LIFETIME_SECONDS, "nbf": now - 5}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # Kling chooses the key's length
            self._token = jwt.encode(claims, self._secret_key, algorithm="HS256")
        self._signed_at, self._renew_at = now, now + LIFETIME_SECONDS - RENEW_BEFORE_SECONDS


@dataclass(frozen=True, slots=True)
class AuthPair:
    """The authentication for legacy calls, and for those of the new standard, which accept no JWT."""

    legacy: httpx.Auth
    new: httpx.Auth

    def for_family(self, family: str) -> httpx.Auth:
        """The authentication for calls about this family."""
        return self.new if is_new_standard(family) else self.legacy
