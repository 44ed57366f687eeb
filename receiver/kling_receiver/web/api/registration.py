"""What a client may say of a task in `PUT /api/tasks/{id}`, checked before anything is written."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from kling_callback.protocol.families import DESCRIPTION, is_family
from kling_callback.protocol.redact import redacted
from kling_callback.protocol.reports import IDENTIFIER, MAX_ID_CHARS, is_too_complex, sanitize
from kling_callback.protocol.webhooks import MAKE_WEBHOOK_SECRET_HINT
from kling_receiver.settings import ReceiverSettings
from kling_receiver.sinks.http import check_web_address
from kling_receiver.tasks.registration import Registration
from kling_receiver.validation import describe_errors
from kling_receiver.web.errors import ApiError

Short = Annotated[str, Field(max_length=256)]


class RegistrationBody(BaseModel):
    """The document of a registration, before the create or after it."""

    model_config = ConfigDict(extra="ignore", hide_input_in_errors=True)

    family: str
    model: Short = ""
    request: Any = None
    base: str = Field("", max_length=2000)
    key_fingerprint: Short = ""
    tags: list[Annotated[str, Field(min_length=1, max_length=100)]] = Field(default_factory=list, max_length=20)
    hook: str = Field("", max_length=2000)
    attempt: Short = ""
    outcome: Literal["created", "not_created", "unknown"] | None = None
    task_id: str | None = None
    reason: str = Field("", max_length=4000)

    @field_validator("family")
    @classmethod
    def _family(cls, value: str) -> str:
        if not is_family(value):
            raise ValueError(f"must be {DESCRIPTION}.")
        return value

    @field_validator("task_id")
    @classmethod
    def _task_id(cls, value: str | None) -> str | None:
        if value and not IDENTIFIER.fullmatch(value):
            raise ValueError(f"must be 1 to {MAX_ID_CHARS} characters that may stand in a path, not . or ..")
        return value

    @field_validator("request")
    @classmethod
    def _request(cls, value: Any) -> Any:
        return redacted(value)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.outcome == "created" and not self.task_id:
            raise ValueError("`task_id` is needed with the outcome `created`.")
        if self.outcome is None and not self.attempt:
            raise ValueError("`attempt` is needed before a create: any text that no other create call has.")
        return self


def read_registration(body: bytes) -> RegistrationBody:
    """The registration in a request's body. Raises ApiError naming every problem."""
    if is_too_complex(body):
        raise ApiError(422, "bad_registration", "It has too many parts.", "Leave data out of `request`.")
    try:
        return RegistrationBody.model_validate_json(body)
    except ValidationError as error:
        said = " ".join(describe_errors(error))
        raise ApiError(422, "bad_registration", said, "Mend the request and send it again.") from None


def check_account(given: RegistrationBody, settings: ReceiverSettings) -> None:
    """Refuse a client of another base or key: one receiver asks one Kling account. Raises ApiError."""
    if given.base and given.base.rstrip("/").removesuffix("/v1") != settings.api_base:
        raise _conflict(f"This receiver serves {settings.api_base}, not {given.base}.")
    if given.key_fingerprint and settings.key_fingerprints and given.key_fingerprint not in settings.key_fingerprints:
        raise _conflict("This receiver serves another Kling key.")


def _conflict(message: str) -> ApiError:
    hint = "Use the same KLING_API_BASE and key for client and receiver, or run another receiver."
    return ApiError(409, "conflict", message, hint)


def check_hook(given: RegistrationBody, settings: ReceiverSettings) -> None:
    """Refuse a hook that could not be reached, or not be signed. Raises ApiError."""
    if not given.hook:
        return
    if not settings.hook_secret:
        hint = f"Set KLING_HOOK_SECRET and restart the receiver, or remove the hook. {MAKE_WEBHOOK_SECRET_HINT}"
        raise ApiError(422, "bad_hook", "This receiver has no secret to sign with.", hint)
    try:
        check_web_address(given.hook, settings.hook_hosts)
    except ValueError as error:
        raise ApiError(422, "bad_hook", f"hook: {error}", "Give a public https address.") from None


def to_registration(task_id: str, given: RegistrationBody) -> Registration:
    """The same as it is written."""
    return Registration(
        task_id=task_id,
        family=given.family,
        create_token=sanitize(given.attempt),
        model=sanitize(given.model),
        request=given.request,
        hook=given.hook,
        tags=tuple(sanitize(tag) for tag in given.tags if sanitize(tag)),
        outcome=given.outcome,
        kling_id=given.task_id or None,
        reason=sanitize(given.reason),
    )
