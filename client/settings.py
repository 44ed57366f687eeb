"""The settings that both sides read from the environment (or a `.env` file), and how their problems are told.

The environment is read here and nowhere else; the receiver's settings extend this class.
"""

import ipaddress
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from client.errors import SettingsError
from client.signing import SHORTEST_SECRET, key_fingerprint

Listed = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""


class KlingSettings(BaseSettings):
    """What client and receiver have in common. Each field is the variable `KLING_` and its name."""

    model_config = SettingsConfigDict(
        env_prefix="KLING_",
        env_file=".env",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
    )

    api_base: str = Field(
        "https://api-singapore.klingai.com", description="where Kling or the gateway is, before `/v1/...`"
    )
    api_key: str = Field("", repr=False, description="Kling's or the gateway's bearer key")
    access_key: str = Field("", repr=False, description="instead of the key, with the next one")
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
        short = [str(place) for place, secret in enumerate(secrets, 1) if len(secret) < SHORTEST_SECRET]
        if short:
            raise ValueError(
                f"secret {' and '.join(short)} has fewer than {SHORTEST_SECRET} characters. Make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        return secrets

    @field_validator("api_base")
    @classmethod
    def _base(cls, value: str) -> str:
        return web_address(value).removesuffix("/v1")

    @field_validator("receiver_url")
    @classmethod
    def _public(cls, value: str) -> str:
        return public_address(value) if value else value

    @model_validator(mode="after")
    def _both_keys(self) -> Self:
        if bool(self.access_key) != bool(self.secret_key):
            raise ValueError("KLING_ACCESS_KEY and KLING_SECRET_KEY work together only. Set both, or neither.")
        return self

    @property
    def account(self) -> str:
        """The fingerprint of the Kling key, or "" when there is none."""
        key = self.access_key or self.api_key
        return key_fingerprint(key) if key else ""

    @classmethod
    def load(cls, **given: Any) -> Self:
        """Read the environment; what is `given` (and not None) goes first. SettingsError lists all problems."""
        try:
            return cls(**{name: value for name, value in given.items() if value is not None})
        except ValidationError as error:
            raise SettingsError([_problem(each) for each in error.errors()]) from None


def _problem(error: Any) -> str:
    name = "_".join(str(part) for part in error["loc"][:1]).upper()
    reason = error["msg"].removeprefix("Value error, ")
    return f"KLING_{name}: {reason}" if name else reason


def split(value: Any) -> Any:
    """The parts of a comma-separated string; anything else as it is."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def web_address(value: str) -> str:
    """An http(s) address without query, fragment or credentials, no slash at its end; else ValueError."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc or set(value) & set(" \t\r\n\\"):
        raise ValueError("is not an address like https://host/path (no query, no user, no blanks).")
    return value.rstrip("/")


def public_address(value: str) -> str:
    """A web address that is `https://`, unless its host is loopback; else ValueError."""
    address = web_address(value)
    parts = urlsplit(address)
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise ValueError("must start with https:// (plain http:// is for loopback hosts only).")
    return address


def is_loopback(host: str) -> bool:
    """Whether `host` names this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
