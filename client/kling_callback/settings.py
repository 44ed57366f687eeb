"""The settings that both sides read from the environment (or a `.env` file), and how their problems are told.

The environment is read here and nowhere else; the receiver's settings extend `KlingSettings`.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from kling_callback.errors import SettingsError
from kling_callback.protocol.signing import MAKE_SECRET_HINT, MIN_SECRET_CHARS, key_fingerprint
from kling_callback.protocol.urls import normalize_public_url, normalize_url
from kling_callback.protocol.webhooks import MAKE_WEBHOOK_SECRET_HINT, secret_key

MIN_SIMILARITY = 0.85
"""How like a setting a name must be to be taken for it misspelt; no two settings are so like each other."""

Listed = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""


def _can_sign(value: str) -> str:
    if value:
        try:
            secret_key(value)
        except ValueError as error:
            raise ValueError(f"{error} {MAKE_WEBHOOK_SECRET_HINT}") from None
    return value


HookSecret = Annotated[str, AfterValidator(_can_sign)]
"""A secret by Standard Webhooks, or none."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a setting must be, where pydantic would speak of its own types. Stands in the field's annotation."""

    text: str


class KlingSettings(BaseSettings):
    """What client and receiver have in common. Each field is the variable `KLING_` and its name."""

    model_config = SettingsConfigDict(
        env_prefix="KLING_",
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    api_base: str = Field(
        "https://api-singapore.klingai.com", description="where Kling or the gateway is, before `/v1/...`"
    )
    api_key: str = Field("", repr=False, description="Kling's or the gateway's bearer key")
    access_key: str = Field(
        "", repr=False, description="instead of the key, with the next one; not for paths with a leading slash"
    )
    secret_key: str = Field("", repr=False, description="signs a JWT per call")
    signing_secrets: Listed = Field(
        (),
        repr=False,
        description="comma-separated, newest first: the newest signs, all verify; at least 32 characters each",
    )
    receiver_url: str = Field("", description="the receiver's public address, as Kling reaches it")

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    @field_validator("signing_secrets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

    @field_validator("signing_secrets")
    @classmethod
    def _long_enough(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        short = [str(place) for place, secret in enumerate(secrets, 1) if len(secret) < MIN_SECRET_CHARS]
        if short:
            raise ValueError(
                f"secret {' and '.join(short)} has fewer than {MIN_SECRET_CHARS} characters. {MAKE_SECRET_HINT}"
            )
        return secrets

    @field_validator("api_base")
    @classmethod
    def _base(cls, value: str) -> str:
        return normalize_url(value).removesuffix("/v1")

    @field_validator("receiver_url")
    @classmethod
    def _public(cls, value: str) -> str:
        return normalize_public_url(value) if value else value

    @field_validator("api_key", "access_key")
    @classmethod
    def _key(cls, value: str) -> str:
        return header_safe(value)

    @field_validator("secret_key")
    @classmethod
    def _both_keys(cls, value: str, info: ValidationInfo) -> str:
        # A field that is itself wrong is not in `data`; its own problem is told.
        if bool(value) != bool(info.data.get("access_key", value)):
            raise ValueError("KLING_ACCESS_KEY and KLING_SECRET_KEY work together only. Set both, or neither.")
        return value

    @property
    def key_fingerprint(self) -> str:
        """The fingerprint of the Kling key, or "" when there is none."""
        return next(iter(self.key_fingerprints), "")

    @property
    def key_fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of all keys of the account: of an access key, of an API key."""
        return tuple(key_fingerprint(key) for key in (self.access_key, self.api_key) if key)

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment; what is `given` (and not None) goes first. SettingsError lists all problems."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise SettingsError([cls._describe(each) for each in error.errors()]) from None
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise SettingsError([f".env: cannot be read: {reason}. Mend it, or remove it."]) from None

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """What looks like the name of a setting, and is none: nobody reads it."""
        known = [f"kling_{name}" for name in cls.model_fields]
        given = cls.environment().keys() - set(known)
        nearest = {name: get_close_matches(name, known, 1, MIN_SIMILARITY) for name in sorted(given)}
        return [
            f"{name.upper()} is no setting: nobody reads it. Is {near[0].upper()} meant?"
            for name, near in nearest.items()
            if near
        ]

    @classmethod
    def environment(cls) -> dict[str, str | None]:
        """All variables, of the environment before those of `.env`; their names in small letters."""
        return {**DotEnvSettingsSource(cls).env_vars, **EnvSettingsSource(cls).env_vars}

    @classmethod
    def _describe(cls, error: Any) -> str:
        name = str(error["loc"][0])
        remedies = [each.text for each in cls.model_fields[name].metadata if isinstance(each, Expected)]
        ours = error["type"] == "value_error"
        reason = error["msg"].removeprefix("Value error, ") if ours or not remedies else remedies[0]
        return reason if reason.startswith("KLING_") else f"KLING_{name.upper()}: {reason}"


class InternalSettings(KlingSettings):
    """Where a program of ours reaches the receiver, which Kling may reach otherwise."""

    receiver_internal_url: str = Field("", description="where the client itself reaches the receiver, if elsewhere")

    @field_validator("receiver_internal_url")
    @classmethod
    def _internal(cls, value: str) -> str:
        return normalize_url(value) if value else value

    @property
    def receiver_base(self) -> str:
        """Where this program reaches the receiver."""
        return self.receiver_internal_url or self.receiver_url


class ReceiverAccessSettings(InternalSettings):
    """What it takes to talk to the receiver: enough to wait, show and list."""

    receiver_token: str = Field(
        "",
        repr=False,
        description="instead of the secrets: the receiver signs the callback address for this client",
    )

    @field_validator("receiver_url")
    @classmethod
    def _needed(cls, value: str) -> str:
        if not value:
            raise ValueError(
                "KLING_RECEIVER_URL is missing. Set it to the receiver's address, as its `serve` prints it."
            )
        return value

    @field_validator("receiver_token")
    @classmethod
    def _trusted(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("signing_secrets") == ():
            raise ValueError(
                "KLING_RECEIVER_TOKEN is missing (or KLING_SIGNING_SECRETS). Set a token from "
                "`kling-receiver token --role client`, or the secrets that the receiver has."
            )
        return header_safe(value)


class ListenSettings(ReceiverAccessSettings):
    """What it takes to hand on events as a hook would get them."""

    hook_secret: HookSecret = Field("", repr=False, description="signs what is handed on")


class ClientSettings(ReceiverAccessSettings):
    """What it takes to create: the receiver, and a key for Kling."""

    @field_validator("secret_key")
    @classmethod
    def _some_key(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("api_key") == "" and info.data.get("access_key") == "":
            raise ValueError(
                "KLING_API_KEY is missing (or KLING_ACCESS_KEY and KLING_SECRET_KEY). "
                "Set a key from the console of Kling or of the gateway."
            )
        return value


def split(value: Any) -> Any:
    """The parts of a comma-separated string; anything else as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def header_safe(value: str) -> str:
    """A key or token that an HTTP header can carry; else ValueError."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("holds blanks or letters that no key has. Copy it again.")
    return value
