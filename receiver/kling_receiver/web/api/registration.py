"""Read the body of `PUT /api/tasks/{id}`, and check it against the receiver's account and hook settings."""

from pydantic import ValidationError

from kling_callback.protocol.values import is_too_complex
from kling_callback.settings import split
from kling_receiver.net.guard import Allowlist
from kling_receiver.settings import ReceiverSettings
from kling_receiver.tasks.registration import Registration
from kling_receiver.validation import describe_errors
from kling_receiver.web.errors import ApiError


def read_registration(body: bytes, hook_hosts: Allowlist) -> Registration:
    """Parse the registration in a request's body. Raises ApiError naming every problem.

    `hook_hosts`: the private hosts that its hook may reach.
    """
    if is_too_complex(body):
        raise ApiError(422, "bad_registration", "The registration has too many parts.", "Remove data from `request`.")
    try:
        return Registration.model_validate_json(body, by_alias=True, by_name=False, context=hook_hosts)
    except ValidationError as error:
        message = " ".join(describe_errors(error))
        raise ApiError(422, "bad_registration", message, "Fix the request and send it again.") from None


def check_account(registration: Registration, settings: ReceiverSettings) -> None:
    """Refuse a client with another base or key: a receiver queries one Kling account. Raises ApiError."""
    if registration.base and registration.base.rstrip("/").removesuffix("/v1") != settings.api_base:
        raise _conflict(f"This receiver serves {settings.api_base}, not {registration.base}.")
    theirs, ours = set(split(registration.key_fingerprint)), set(settings.key_fingerprints)
    if theirs and ours and theirs.isdisjoint(ours):
        raise _conflict("This receiver serves another Kling key.")


def _conflict(message: str) -> ApiError:
    hint = (
        "Use the same KLING_API_BASE and key for client and receiver, or run another receiver. While a key is "
        "replaced, set KLING_API_KEY=new,old for the receiver."
    )
    return ApiError(409, "conflict", message, hint)
