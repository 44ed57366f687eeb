"""Everything signed with `KLING_SIGNING_SECRETS`: callback addresses, API tokens, result links.

Pure functions of the secrets and the clock. Secrets stand newest first: the newest signs, all verify.
"""

import base64
import functools
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args
from urllib.parse import quote

from itsdangerous import BadData, Signer, TimestampSigner
from itsdangerous.encoding import want_bytes

from kling_callback.errors import ParameterError, SettingsError, TokenError, TokenExpired
from kling_callback.protocol.ids import DESCRIPTION as ID_RULE
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.urls import normalize_public_url

Role = Literal["admin", "client", "read"]
Clock = Callable[[], float]

LEEWAY_SECONDS = 60
"""Seconds by which a clock may be ahead or behind."""

MIN_SECRET_CHARS = 32
"""Characters a signing secret has at least."""

MAKE_SECRET_HINT = 'Make one with: python -c "import secrets; print(secrets.token_urlsafe(32))"'


class _ClockedSigner(TimestampSigner):
    """A TimestampSigner whose clock is an argument."""

    clock: Clock = staticmethod(time.time)

    def get_timestamp(self) -> int:
        return int(self.clock())

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        """The same key every time: derived once, since a receiver verifies thousands of tokens a second."""
        secret = self.secret_keys[-1] if secret_key is None else want_bytes(secret_key)
        if secret not in self._derived:
            self._derived[secret] = super().derive_key(secret)
        return self._derived[secret]

    @functools.cached_property
    def _derived(self) -> dict[bytes, bytes]:
        return {}


def _signer(secrets: Sequence[str], purpose: str) -> _ClockedSigner:
    if not secrets:
        raise ValueError("at least one signing secret is needed")
    # itsdangerous wants its keys oldest first.
    return _ClockedSigner(
        list(reversed(secrets)),
        salt=f"kling-callback/{purpose}",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )


def _checked(secrets: Sequence[str] | str) -> list[str]:
    listed = secrets.split(",") if isinstance(secrets, str) else secrets
    good = [secret.strip() for secret in listed if secret.strip()]
    if not good or min(map(len, good)) < MIN_SECRET_CHARS:
        rule = f"A signing secret of at least {MIN_SECRET_CHARS} characters is needed."
        raise SettingsError([f"{rule} {MAKE_SECRET_HINT}"])
    return good


def _pack(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def _unpack(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


@dataclass(frozen=True, slots=True)
class CallbackToken:
    """What a callback address proves: which task, of which family, signed when (unix seconds)."""

    task_id: str
    family: str
    signed_at: int


class CallbackSigner:
    """Signs and reads callback addresses; the token carries the task's id and family.

    Nothing needs to be registered for such an address to work, so it also serves those who make the
    create call themselves.
    """

    def __init__(self, secrets: Sequence[str] | str, *, clock: Clock = time.time) -> None:
        """`secrets`: newest first; a string is one secret, or several separated by commas.

        Raises SettingsError for none, or for one that is too short to protect anything.
        """
        self._signer = _signer(_checked(secrets), "callback")
        self._signer.clock = clock
        self._clock = clock

    def token(self, task_id: str, family: str) -> str:
        """A token for one task, of the letters that a path may hold.

        Raises ParameterError for an id that no task has.
        """
        if not is_id(task_id) or not family:
            raise ParameterError([f"{task_id!r} of {family!r}: no task has such an id. {ID_RULE}"])
        return self._signer.sign(_pack([task_id, family])).decode()

    def url(self, receiver_url: str, task_id: str, family: str) -> str:
        """The `callback_url` to send to Kling: the receiver's address, then `/callbacks/` and the token.

        Raises ParameterError for a receiver that Kling could not reach so: relative, or plain http.
        """
        try:
            base = normalize_public_url(receiver_url)
        except ValueError as error:
            raise ParameterError([f"receiver_url {error}"]) from None
        return f"{base}/callbacks/{self.token(task_id, family)}"

    def verify(self, token: str, max_age: float) -> CallbackToken:
        """What `token` says. Raises TokenExpired past `max_age` seconds (and LEEWAY), else TokenError."""
        try:
            payload, signed = self._signer.unsign(token, return_timestamp=True)
            task_id, family = _unpack(payload.decode())
        except (BadData, ValueError, TypeError) as error:
            raise TokenError("The callback token does not hold.") from error
        age = self._clock() - signed.timestamp()
        if not -LEEWAY_SECONDS <= age <= max_age + LEEWAY_SECONDS:
            raise TokenExpired("The callback token has expired.")
        return CallbackToken(str(task_id), str(family), int(signed.timestamp()))


def api_token(secrets: Sequence[str], role: Role, lifetime: float, *, now: float | None = None) -> str:
    """A bearer token for the receiver's `/api`, good for `lifetime` seconds from `now` (unix seconds)."""
    expires = int((time.time() if now is None else now) + lifetime)
    return Signer.sign(_signer(secrets, "api"), _pack([role, expires])).decode()


def verify_api_token(secrets: Sequence[str], token: str, *, now: float | None = None) -> Role:
    """The role inside a bearer token. Raises TokenExpired, else TokenError."""
    try:
        role, expires = _unpack(Signer.unsign(_signer(secrets, "api"), token).decode())
        late = (time.time() if now is None else now) - float(expires)
    except (BadData, ValueError, TypeError) as error:
        raise TokenError("The bearer token does not hold.") from error
    if late > LEEWAY_SECONDS:
        raise TokenExpired("The bearer token has expired.")
    if role not in get_args(Role):
        raise TokenError("The bearer token names an unknown role.")
    return role  # type: ignore[no-any-return]  # checked against Role on the line above


def sign_link(secrets: Sequence[str], receiver_url: str, task_id: str, index: int, expires: int) -> str:
    """The address of a result file that opens without a token until `expires` (unix seconds)."""
    signature = _signer(secrets, "link").get_signature(f"{task_id}/{index}/{expires}").decode()
    path = f"/api/tasks/{quote(task_id)}/results/{index}"
    return f"{receiver_url.rstrip('/')}{path}?expires={expires}&signature={signature}"


def verify_link(
    secrets: Sequence[str],
    task_id: str,
    index: int,
    expires: str,
    signature: str,
    *,
    now: float | None = None,
) -> None:
    """Raise TokenError unless the link's parts were signed by us, TokenExpired when its time is over."""
    signed = f"{task_id}/{index}/{expires}".encode("utf-8", "replace")
    if not _signer(secrets, "link").verify_signature(signed, signature.encode("utf-8", "replace")):
        raise TokenError("The link is not one that this receiver signed.")
    if (time.time() if now is None else now) > float(expires):
        raise TokenExpired("The link has expired.")


def key_fingerprint(key: str) -> str:
    """16 letters that tell two Kling keys apart and say nothing about either."""
    return hashlib.sha256(b"kling-callback/key/" + key.encode()).hexdigest()[:16]
