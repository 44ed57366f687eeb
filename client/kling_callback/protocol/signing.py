"""Sign and verify callback addresses, API tokens, sessions and result links with `KLING_SIGNING_SECRETS`.

Pure functions of the secrets and the clock. Secrets are ordered newest first: the newest signs, all verify.
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
from kling_callback.protocol.webhooks import MAX_SECRETS

Role = Literal["admin", "client", "read"]
Clock = Callable[[], float]

LEEWAY_SECONDS = 60
"""Seconds by which the clocks of two machines may differ."""

MAX_TOKEN_SECONDS = 3650 * 86_400
"""Seconds for which a bearer token may be valid."""

MIN_SECRET_CHARS = 32
"""Characters of a signing secret."""

MAKE_SECRET_HINT = 'Make one with: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'


class _ClockedSigner(TimestampSigner):
    """A TimestampSigner whose clock is an argument."""

    clock: Clock = staticmethod(time.time)

    def get_timestamp(self) -> int:
        return int(self.clock())

    def derive_key(self, secret_key: str | bytes | None = None) -> bytes:
        """Derive the key once per secret: a receiver verifies thousands of tokens a second."""
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
    # itsdangerous expects its keys oldest first.
    return _ClockedSigner(
        list(reversed(secrets)),
        salt=f"kling-callback/{purpose}",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )


def _parse_secrets(secrets: Sequence[str] | str) -> list[str]:
    separate = secrets.split(",") if isinstance(secrets, str) else secrets
    stripped = [secret.strip() for secret in separate if secret.strip()]
    if not stripped or min(map(len, stripped)) < MIN_SECRET_CHARS:
        rule = f"A signing secret of at least {MIN_SECRET_CHARS} characters is needed."
        raise SettingsError([f"{rule} {MAKE_SECRET_HINT}"])
    return stripped


def _pack(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value, separators=(",", ":")).encode()).rstrip(b"=").decode()


def _unpack(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


@dataclass(frozen=True, slots=True)
class CallbackToken:
    """The verified content of a callback address. `task_id`: our id; `signed_at`: unix seconds."""

    task_id: str
    family: str
    signed_at: int


class CallbackSigner:
    """Signs and verifies callback addresses. The token contains our task id and the family.

    Such an address works without a registration: programs that send the create themselves need only this class.
    """

    def __init__(self, secrets: Sequence[str] | str, *, clock: Clock = time.time) -> None:
        """`secrets`: newest first, as a sequence or separated by commas. `clock`: returns unix seconds.

        Raises SettingsError without a secret, or for one of fewer than 32 characters.
        """
        self._signer = _signer(_parse_secrets(secrets), "callback")
        self._signer.clock = clock
        self._clock = clock

    def token(self, task_id: str, family: str) -> str:
        """Sign a token for one task, of characters that a path allows. `task_id`: our id.

        Raises ParameterError for an invalid id, or without a family.
        """
        if not is_id(task_id) or not family:
            raise ParameterError([f"{task_id!r} of {family!r}: not a task's id and family. {ID_RULE}"])
        return self._signer.sign(_pack([task_id, family])).decode()

    def url(self, receiver_url: str, task_id: str, family: str) -> str:
        """The `callback_url` to send to Kling: `receiver_url`, then `/callbacks/` and the token.

        Raises ParameterError for an invalid id, and for a `receiver_url` that is not `https://` nor loopback.
        """
        try:
            base = normalize_public_url(receiver_url)
        except ValueError as error:
            raise ParameterError([f"receiver_url {error}"]) from None
        return f"{base}/callbacks/{self.token(task_id, family)}"

    def verify(self, token: str, max_age: float) -> CallbackToken:
        """Verify a token and return its content.

        A token from the future has age 0: it was signed by a machine whose clock was ahead, or ours is behind.
        Raises TokenExpired if it was signed more than `max_age` seconds ago (plus LEEWAY_SECONDS); TokenError for any
        other invalid token.
        """
        try:
            payload, signed = self._signer.unsign(token, return_timestamp=True)
            task_id, family = _unpack(payload.decode())
        except (BadData, ValueError, TypeError) as error:
            raise TokenError("The callback token is not valid.") from error
        if self._clock() - signed.timestamp() > max_age + LEEWAY_SECONDS:
            raise TokenExpired("The callback token has expired.")
        return CallbackToken(str(task_id), str(family), int(signed.timestamp()))


@dataclass(frozen=True, slots=True)
class ApiToken:
    """The verified content of a bearer token. `expires`: unix seconds.

    `name`, `id`: of a named token, which the receiver knows by its id and can revoke. Without an id, `name` is only
    what the signer calls itself. `session`: the id of the dashboard's session, for which a receiver makes one of these
    itself; no bearer token has it.
    """

    role: Role
    expires: int
    name: str = ""
    id: str = ""
    session: str = ""


def api_token(
    secrets: Sequence[str],
    role: Role,
    lifetime: float,
    *,
    now: float | None = None,
    name: str = "",
    token_id: str = "",
) -> str:
    """Make a bearer token for the receiver's `/api`, valid for `lifetime` seconds from `now` (unix seconds).

    `name`, `token_id`: as in ApiToken. A receiver accepts a token with an id only once it was added there.
    """
    expires = int((time.time() if now is None else now) + lifetime)
    content = [role, expires, name, token_id] if name else [role, expires]
    return Signer.sign(_signer(secrets, "api"), _pack(content)).decode()


def verify_api_token(secrets: Sequence[str], token: str, *, now: float | None = None) -> ApiToken:
    """Verify a bearer token and return its content. `now`: unix seconds. Raises TokenExpired or TokenError.

    Whether a named token is known and not revoked is the receiver's to check.
    """
    try:
        role, expires, *named = _unpack(Signer.unsign(_signer(secrets, "api"), token).decode())
        name, token_id = named or ("", "")
        seconds_past = (time.time() if now is None else now) - int(expires)
    except (BadData, ValueError, TypeError, OverflowError) as error:
        raise TokenError("The bearer token is not valid.") from error
    if seconds_past > LEEWAY_SECONDS:
        raise TokenExpired("The bearer token has expired.")
    if role not in get_args(Role):
        raise TokenError("The bearer token names an unknown role.")
    return ApiToken(role, int(expires), str(name), str(token_id))


@dataclass(frozen=True, slots=True)
class Grant:
    """What a login link or a session's cookie grants, until `expires` (unix seconds). `id`: random, and no secret."""

    role: Role
    expires: int
    id: str


def sign_grant(secrets: Sequence[str], purpose: Literal["login", "session"], grant: Grant) -> str:
    """Sign a grant, of characters that a query and a cookie allow. One purpose is not accepted for the other."""
    return Signer.sign(_signer(secrets, purpose), _pack([grant.role, grant.expires, grant.id])).decode()


def verify_grant(
    secrets: Sequence[str], purpose: Literal["login", "session"], text: str, *, now: float | None = None
) -> Grant:
    """Verify a grant and return its content. `now`: unix seconds. Raises TokenExpired or TokenError.

    Whether a login link was used, or a session signed out, is the receiver's to check.
    """
    name = "login link" if purpose == "login" else "session"
    try:
        role, expires, grant_id = _unpack(Signer.unsign(_signer(secrets, purpose), text).decode())
        seconds_past = (time.time() if now is None else now) - int(expires)
    except (BadData, ValueError, TypeError, OverflowError) as error:
        raise TokenError(f"The {name} is not valid.") from error
    if role not in get_args(Role):
        raise TokenError(f"The {name} names an unknown role.")
    if seconds_past > 0:
        raise TokenExpired(f"The {name} has expired.")
    return Grant(role, int(expires), str(grant_id))


def task_hook_secrets(secrets: Sequence[str]) -> list[str]:
    """The secrets (`whsec_...`) of the hooks of single tasks, one derived from each signing secret, newest first.

    Clients name these hooks, so no secret of an operator's hook signs for them. All of these secrets (MAX_SECRETS at
    most) sign each delivery: during a rotation a recipient may verify with any.
    """
    signer = _signer(secrets, "task-hook")
    keys = [signer.derive_key(secret) for secret in secrets[:MAX_SECRETS]]
    return [f"whsec_{base64.b64encode(key).decode()}" for key in keys]


def sign_link(secrets: Sequence[str], receiver_url: str, task_id: str, index: int, expires: int) -> str:
    """Make the address of a result file that works without a token until `expires` (unix seconds)."""
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
    """Check a result link. Raises TokenError if its parts were not signed by us, TokenExpired after `expires`."""
    signed = f"{task_id}/{index}/{expires}".encode("utf-8", "replace")
    if not _signer(secrets, "link").verify_signature(signed, signature.encode("utf-8", "replace")):
        raise TokenError("The link is not one that this receiver signed.")
    if (time.time() if now is None else now) > float(expires):
        raise TokenExpired("The link has expired.")


def key_fingerprint(key: str) -> str:
    """16 hex digits that identify a Kling key without revealing it."""
    return hashlib.sha256(b"kling-callback/key/" + key.encode()).hexdigest()[:16]
