"""The client's settings, from arguments, environment variables or a `.env` file; the receiver's share the base class.

The environment is read here and nowhere else.
"""

import errno
import functools
from collections.abc import Collection, Mapping
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, ValidationInfo, field_validator
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    EnvSettingsSource,
    NoDecode,
    SettingsConfigDict,
)

from kling_callback.config.sources import Source, Sources, expansions, exposure, unreadable_lines
from kling_callback.display import logger
from kling_callback.environment import EnvironmentProblem, certificate_problems, proxy_for
from kling_callback.errors import SettingsError
from kling_callback.protocol.signing import MAKE_SECRET_HINT, MIN_SECRET_CHARS, key_fingerprint
from kling_callback.protocol.urls import is_loopback, normalize_public_url, normalize_url
from kling_callback.protocol.webhooks import MAKE_WEBHOOK_SECRET_HINT, secret_key

log = logger("kling_callback.settings")

MIN_SIMILARITY = 0.85
"""From 0 to 1: a variable this similar to a setting is reported as misspelt."""

TO_WAIT = ("receiver_url", "receiver_token", "receiver_internal_url")
"""The settings required to wait for tasks, show and list them."""

TO_CALL = ("api_key", "api_base")
"""The settings required to call Kling without a receiver."""

TO_CREATE = ("api_key", "api_base", *TO_WAIT)
"""The settings required to create tasks; without a key, the receiver sends the creates."""

ENV_FILE = ".env"
"""In the working folder."""

CommaSeparated = Annotated[tuple[str, ...], NoDecode]
"""Several values in one variable, separated by commas."""

Switch = Annotated[Literal["off", "on"], BeforeValidator(lambda value: {True: "on", False: "off"}.get(value, value))]
"""`on` or `off`; in Python a bool as well."""

_required: ContextVar[frozenset[str]] = ContextVar("required", default=frozenset())


def is_required(name: str) -> bool:
    """Whether `load` was called with this setting in `require`. For validators."""
    return name in _required.get()


def _check_webhook_secret(value: str) -> str:
    if value:
        try:
            secret_key(value)
        except ValueError as error:
            raise ValueError(f"{error} {MAKE_WEBHOOK_SECRET_HINT}") from None
    return value


HookSecret = Annotated[str, AfterValidator(_check_webhook_secret)]
"""A Standard Webhooks secret (`whsec_...`), or ""."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a setting must be, in place of pydantic's message about types. Part of the field's annotation."""

    text: str


class CommonSettings(BaseSettings):
    """The settings of client and receiver alike. Each field is the variable `KLING_` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="KLING_",
        env_file=ENV_FILE,
        env_file_encoding="utf-8-sig",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        validate_default=True,
    )

    foreign: ClassVar[frozenset[str]] = frozenset()
    """Settings of the other program that are similar to one of this class, and not misspelt."""

    api_base: str = Field(
        "https://api-singapore.klingai.com", description="address of Kling or the gateway, before `/v1/...`"
    )
    allow_http_api: Annotated[Switch, Expected("must be `on` or `off`.")] = Field(
        "off",
        description="`on`: that address may be plain `http://` to another machine, which shows the key on the way",
    )
    api_key: str = Field(
        "",
        repr=False,
        description="Kling's or the gateway's bearer key; during a rotation comma-separated, newest first: the first "
        "is used, all belong to this account",
    )
    access_key: str = Field(
        "", repr=False, description="instead of the key, with the next one; not for paths with a leading slash"
    )
    secret_key: str = Field(
        "", repr=False, description="signs a JWT per call; during a rotation one for each access key, in their order"
    )
    signing_secrets: CommaSeparated = Field(
        (),
        repr=False,
        description="comma-separated, newest first: the newest signs, all verify; at least 32 characters each",
    )
    receiver_url: str = Field("", description="the receiver's public address, as Kling reaches it")
    receiver_internal_url: str = Field(
        "", description="address at which the commands and the client reach the receiver, if different"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _strip(cls, value: Any, info: ValidationInfo) -> Any:
        """Without the blanks around it; a value of blanks only is unset, as an empty variable is."""
        if not isinstance(value, str) or not value:
            return value
        return value.strip() or cls.model_fields[str(info.field_name)].get_default()

    @field_validator("signing_secrets", mode="before")
    @classmethod
    def _split_secrets(cls, value: Any) -> Any:
        return split(value)

    @field_validator("signing_secrets")
    @classmethod
    def _check_secrets(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        short = [str(place) for place, secret in enumerate(secrets, 1) if len(secret) < MIN_SECRET_CHARS]
        if short:
            raise ValueError(
                f"secret {' and '.join(short)} has fewer than {MIN_SECRET_CHARS} characters. {MAKE_SECRET_HINT}"
            )
        return secrets

    @field_validator("api_base")
    @classmethod
    def _normalize_base(cls, value: str) -> str:
        base = normalize_url(value).removesuffix("/v1")
        if is_required("api_base"):
            proxy_for(base)
        return base

    @field_validator("allow_http_api")
    @classmethod
    def _check_plain_http(cls, value: str, info: ValidationInfo) -> str:
        base = urlsplit(info.data.get("api_base", ""))
        if base.scheme == "http" and not is_loopback(base.hostname or "") and value == "off":
            raise ValueError(
                "KLING_API_BASE: is plain http://, which shows the key to every machine on the way. Set it to an "
                "https:// address or, for a gateway in a private network, set KLING_ALLOW_HTTP_API=on."
            )
        return value

    @field_validator("receiver_url")
    @classmethod
    def _normalize_public(cls, value: str) -> str:
        return normalize_public_url(value) if value else value

    @field_validator("receiver_internal_url")
    @classmethod
    def _normalize_internal(cls, value: str, info: ValidationInfo) -> str:
        address = normalize_url(value) if value else value
        if is_required("receiver_internal_url"):
            proxy_for(address or info.data.get("receiver_url", ""))
        return address

    @field_validator("api_key", "access_key")
    @classmethod
    def _check_key(cls, value: str) -> str:
        return ",".join(map(header_safe, _parts(value)))

    @field_validator("secret_key")
    @classmethod
    def _check_key_pair(cls, value: str, info: ValidationInfo) -> str:
        # An invalid field is not in `data`; its own problem is reported.
        keys, access_keys = _parts(value), _parts(info.data.get("access_key", value))
        if bool(keys) != bool(access_keys):
            raise ValueError("KLING_ACCESS_KEY and KLING_SECRET_KEY work only together. Set both, or neither.")
        if len(keys) != len(access_keys):
            raise ValueError(
                f"KLING_SECRET_KEY has {len(keys)} keys for {len(access_keys)} in KLING_ACCESS_KEY. Set one for each, "
                "in the same order."
            )
        return ",".join(keys)

    @property
    def api_keys(self) -> tuple[str, ...]:
        """The bearer keys of the account, newest first: the first one is sent."""
        return _parts(self.api_key)

    @property
    def access_keys(self) -> tuple[tuple[str, str], ...]:
        """The pairs of access key and secret key of the account, newest first: the first one signs."""
        return tuple(zip(_parts(self.access_key), _parts(self.secret_key), strict=True))

    @property
    def key_fingerprint(self) -> str:
        """The fingerprint of the Kling key in use, or "" without a key."""
        return next(iter(self.key_fingerprints), "")

    @property
    def key_fingerprints(self) -> tuple[str, ...]:
        """The fingerprints of all keys of the account, newest first: of the access keys, then of the API keys."""
        keys = (*(access_key for access_key, _ in self.access_keys), *self.api_keys)
        return tuple(map(key_fingerprint, dict.fromkeys(keys)))

    @property
    def receiver_base(self) -> str:
        """The address at which this program reaches the receiver."""
        return self.receiver_internal_url or self.receiver_url

    @classmethod
    def load(cls, *, require: Collection[str] = (), **values: Any) -> Self:
        """Read the settings. `values` that are not None take precedence over the environment, that over `.env`.

        `require`: names of the settings that must be set, or an alternative to them; an address that has a default
        is required to be reachable with the proxies of the environment. Raises SettingsError with all problems,
        invalid and missing settings alike.
        """
        if unknown := set(require) - cls.model_fields.keys():
            raise ValueError(f"{cls.__name__} has no setting {', '.join(sorted(unknown))}")
        token = _required.set(frozenset(require))
        problems = certificate_problems()
        arguments = {name: value for name, value in values.items() if value is not None}
        try:
            _check_env_file(Path(ENV_FILE))
            _required.set(frozenset(require) - cls._replaced(arguments))
            problems += [*expansions(Path(ENV_FILE)), *unreadable_lines(Path(ENV_FILE))]
            problems += cls.sources(arguments).problems(cls._addresses())
            settings = cls(**arguments)
        except ValidationError as error:
            problems += [cls._describe(each) for each in error.errors()]
            problems += cls.unknown_variables()  # what is missing may be misspelt
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            problems.append(f"{ENV_FILE} cannot be read: {reason}. Fix it, or remove it.")
        finally:
            _required.reset(token)
        if problems:
            raise SettingsError(list(dict.fromkeys(problems)))
        return settings

    @classmethod
    def origins(cls, variable: str) -> set[Source]:
        """Where a variable is set to its value in use: in the environment, in `.env`, or in both; empty for nowhere."""
        return cls.sources({}).of(variable)

    @classmethod
    def problems_with(cls, additions: Mapping[str, str]) -> list[str]:
        """What would be wrong with the settings if `.env` had these as well. `additions`: by name, without `KLING_`."""
        try:
            cls.load(require=(), **additions)
        except SettingsError as error:
            return list(error.problems)
        added = {f"kling_{name}": value for name, value in additions.items()}
        file = {**DotEnvSettingsSource(cls).env_vars, **added}
        sources = Sources({}, EnvSettingsSource(cls).env_vars, file, Path(ENV_FILE))
        return sources.problems(cls._addresses())

    @classmethod
    def _replaced(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        """The names of required settings that others make needless."""
        return frozenset()

    @classmethod
    def sources(cls, arguments: Mapping[str, Any]) -> Sources:
        """Where each setting comes from; of a `.env` that cannot be read, nothing does. `arguments`: of the program."""
        try:
            _check_env_file(Path(ENV_FILE))
            file = DotEnvSettingsSource(cls).env_vars
        except (OSError, UnicodeDecodeError):
            file = {}
        return Sources(arguments, EnvSettingsSource(cls).env_vars, file, Path(ENV_FILE))

    @classmethod
    def _addresses(cls) -> dict[str, tuple[str, ...]]:
        """The variables with addresses, each with those of the secrets that are sent there, or that sign for it."""
        signing = ("KLING_SIGNING_SECRETS", *(["KLING_RECEIVER_TOKEN"] if "receiver_token" in cls.model_fields else []))
        return {
            "KLING_API_BASE": ("KLING_API_KEY", "KLING_ACCESS_KEY", "KLING_SECRET_KEY"),
            "KLING_RECEIVER_URL": signing,
            "KLING_RECEIVER_INTERNAL_URL": signing,
        }

    @classmethod
    def warnings(cls) -> list[str]:
        """What may be wrong with the settings, although they are valid: misspelt names, a `.env` that others read."""
        return [*cls.unknown_variables(), *filter(None, [cls._exposure()])]

    @classmethod
    def _exposure(cls) -> str:
        """Why the secrets of `.env` are not safe there; "" if they are, or it has none."""
        secrets = {f"kling_{name}" for name, field in cls.model_fields.items() if not field.repr}
        return exposure(Path(ENV_FILE)) if secrets & DotEnvSettingsSource(cls).env_vars.keys() else ""

    @classmethod
    def unknown_variables(cls) -> list[str]:
        """Warn about `KLING_*` variables that no setting uses, each with the closest match."""
        known = [f"kling_{name}" for name in cls.model_fields]
        unknown = cls.environment().keys() - {*known, *(f"kling_{name}" for name in cls.foreign)}
        matches = {name: get_close_matches(name, known, 1, MIN_SIMILARITY) for name in sorted(unknown)}
        return [
            f"{name.upper()} is not a setting. Did you mean {closest[0].upper()}?"
            for name, closest in matches.items()
            if closest
        ]

    @classmethod
    def environment(cls) -> dict[str, str | None]:
        """All variables by name in small letters; those of the environment take precedence over `.env`."""
        return {**DotEnvSettingsSource(cls).env_vars, **EnvSettingsSource(cls).env_vars}

    @classmethod
    def _describe(cls, error: Any) -> str:
        """The message for one of pydantic's errors; it begins with the variable's name."""
        name = str(error["loc"][0])
        expected = [each.text for each in cls.model_fields[name].metadata if isinstance(each, Expected)]
        ours = error["type"] == "value_error"
        message = error["msg"].removeprefix("Value error, ") if ours or not expected else expected[0]
        names_variable = ours and isinstance(error["ctx"]["error"], EnvironmentProblem)
        return message if names_variable or message.startswith("KLING_") else f"KLING_{name.upper()}: {message}"


class ClientSettings(CommonSettings):
    """The client's settings; each is also an argument of `Kling`, except `hook_secret`, which `kling listen` uses."""

    foreign = frozenset({"webhook_secrets"})

    receiver_token: str = Field(
        "",
        repr=False,
        description="instead of the secrets: the receiver signs the callback address for this client, or sends its "
        "creates if it has no Kling key (docs/submitting.md)",
    )
    hook_secret: HookSecret = Field(
        "",
        repr=False,
        description="signs the POSTs to `KLING_HOOK_URL` and of `kling listen --forward`, by Standard Webhooks "
        "(`whsec_...`)",
    )

    @classmethod
    def load(cls, *, require: Collection[str] = TO_CREATE, **values: Any) -> Self:
        """Read the settings. `values` that are not None take precedence over the environment, that over `.env`.

        `require`: names of the settings that must be set; TO_CREATE (the default) or TO_WAIT. What gives access to the
        receiver stands in for a Kling key, as the receiver then sends the creates. Raises SettingsError with all
        problems, invalid and missing settings alike.
        """
        return super().load(require=require, **values)

    @classmethod
    def _replaced(cls, arguments: Mapping[str, Any]) -> frozenset[str]:
        if not is_required("receiver_token"):
            return frozenset()
        given = {name: (value or "").strip() for name, value in cls.environment().items()}
        given |= {f"kling_{name}": value for name, value in arguments.items()}
        return frozenset({"api_key"} if given.get("kling_receiver_token") or given.get("kling_signing_secrets") else ())

    @classmethod
    def load_for_program(cls, **values: Any) -> Self:
        """The settings to create tasks; or to call Kling only, if none of a receiver is set. Raises SettingsError.

        Logs, once, why the secrets of `.env` are not safe there.
        """
        settings = cls._load_for_program(values)
        _warn_once(cls._exposure())
        return settings

    @classmethod
    def _load_for_program(cls, values: Mapping[str, Any]) -> Self:
        try:
            return cls.load(**values)
        except SettingsError as error:
            with suppress(SettingsError):
                settings = cls.load(require=TO_CALL, **values)
                receiver = (settings.receiver_base, settings.receiver_token, settings.signing_secrets)
                if not any(receiver):
                    return settings
            raise error from None

    def without_key(self) -> Self:
        """These settings without Kling's key, so that the receiver sends the creates."""
        return self.model_copy(update={"api_key": "", "access_key": "", "secret_key": ""})

    def check_receiver(self) -> None:
        """Raise SettingsError with all problems unless the receiver's settings are complete."""
        if not self.receiver_base or not (self.receiver_token or self.signing_secrets):
            type(self).load(require=TO_WAIT, **self.model_dump())

    @field_validator("secret_key")
    @classmethod
    def _require_key(cls, value: str, info: ValidationInfo) -> str:
        keys = (info.data.get("api_key"), info.data.get("access_key"))
        if is_required("api_key") and not value and keys == ("", ""):
            without = " With the receiver's settings alone, the receiver sends the creates."
            raise ValueError(
                "KLING_API_KEY is missing (or KLING_ACCESS_KEY and KLING_SECRET_KEY). "
                "Set a key from the console of Kling or of the gateway."
                + (without if is_required("receiver_url") else "")
            )
        return value

    @field_validator("receiver_url")
    @classmethod
    def _require_url(cls, value: str) -> str:
        if is_required("receiver_url") and not value:
            raise ValueError(
                "KLING_RECEIVER_URL is missing. Set it to the receiver's address, as its `serve` prints it."
            )
        return value

    @field_validator("receiver_token")
    @classmethod
    def _require_token(cls, value: str, info: ValidationInfo) -> str:
        if is_required("receiver_token") and not value and info.data.get("signing_secrets") == ():
            raise ValueError(
                "KLING_RECEIVER_TOKEN is missing (or KLING_SIGNING_SECRETS). Set a token from "
                "`kling-receiver token --role client`, or the secrets that the receiver has."
            )
        return header_safe(value)


@functools.cache
def _warn_once(message: str) -> None:
    if message:
        log.warning("%s", message)


def _check_env_file(path: Path) -> None:
    """Raise OSError for a file that would not be read as it was written."""
    if path.is_fifo():  # reading it could wait for ever
        raise OSError(errno.EINVAL, "it is a pipe")
    if path.is_file() and b"\0" in path.read_bytes():  # decoded as UTF-8, all its names would be unknown
        raise OSError(errno.EINVAL, "it is UTF-16 text, as PowerShell writes it. Save it as UTF-8")


def split(value: Any) -> Any:
    """The parts of a comma-separated string as a tuple; any other value unchanged."""
    return _parts(value) if isinstance(value, str) else value


def _parts(value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def header_safe(value: str) -> str:
    """A key or token that an HTTP header can carry. Raises ValueError for any other."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("contains blanks or letters that no key has. Copy it again.")
    return value
