"""The receiver's settings: one table, checked against each other before anything starts."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from kling_callback.environment import http_proxy_address
from kling_callback.protocol.signing import MAKE_SECRET_HINT
from kling_callback.protocol.urls import normalize_url, private_parts, split_url
from kling_callback.protocol.webhooks import MAKE_WEBHOOK_SECRET_HINT, secret_key
from kling_callback.settings import CommaSeparated, CommonSettings, Expected, HookSecret, Switch, is_required, split
from kling_receiver.hooks.config import HookConfig, InvalidHook
from kling_receiver.hooks.config_file import load_hooks, read_tables
from kling_receiver.net.guard import Allowlist, Refused, check_url, is_private
from kling_receiver.policy import DEFAULT_HOOK_PAUSE_SECONDS, SlotLimits
from kling_receiver.results.storage import folder_of

DAY = 86_400
"""Seconds."""
MAX_AGE = 3650 * DAY
"""Seconds for which a callback address may be valid."""
MAX_SECONDS = 365 * DAY
MAX_BYTES = 1 << 40
MAX_SLOTS = 100_000
MAX_HOLD_SECONDS = 3600
MIN_PASSWORD_CHARS = 12
MAX_PASSWORD_CHARS = 1_000
RESULT_HOSTS, HOOK_HOSTS = "KLING_PRIVATE_RESULT_HOSTS", "KLING_PRIVATE_HOOK_HOSTS"
CLIENT_HOOK_HOSTS = "KLING_PRIVATE_CLIENT_HOOK_HOSTS"
PRIVATE_HOSTS = ("private_result_hosts", "private_hook_hosts", "private_client_hook_hosts")
"""The settings that name private hosts, each for one purpose."""

TO_ADMINISTER = ("signing_secrets", "receiver_url", "receiver_internal_url")
"""The settings required to sign callback addresses of this receiver, and to call its API as an admin."""

TO_SERVE = ("signing_secrets", "receiver_url", "api_key", "api_base")
"""The settings required to serve; Kling's webhook secrets are an alternative to a key."""


class ReceiverSettings(CommonSettings):
    """The settings of `kling-receiver`. `load(require=TO_SERVE)` and `TO_ADMINISTER` require some of them."""

    callback_max_age: Annotated[
        int, Expected(f"must be whole seconds from 1 to {MAX_AGE} (3650 days), such as {30 * DAY} (30 days).")
    ] = Field(
        30 * DAY,
        gt=0,
        le=MAX_AGE,
        description="seconds for which a callback address is valid (default: 30 days)",
    )
    webhook_secrets: CommaSeparated = Field(
        (), repr=False, description="Kling's own webhook secrets (`whsec_...`), comma-separated; none: ignored"
    )
    webhook_signature: Annotated[
        Literal["when-present", "required"], Expected("must be `when-present` or `required`.")
    ] = Field("when-present", description="`required` refuses callbacks that Kling did not sign")
    data_dir: Path = Field(Path("data"), description="folder for the defaults of the next two")
    database_url: str = Field(
        "",
        repr=False,
        description="`sqlite:///...` or `postgresql://...` (default: `kling.db` in the data folder)",
    )
    storage_url: str = Field(
        "", description="storage for result files: `file:///...` (default: `results` in the data folder)"
    )
    overdue_seconds: Annotated[
        float | None,
        Expected(f"must be seconds, more than 0 and at most {MAX_SECONDS} (365 days), such as 1200."),
    ] = Field(
        None,
        gt=0,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="seconds after the create at which Kling is queried about an unfinished task "
        "(default: 180 for images, else 1200)",
    )
    concurrency: str = Field(
        "",
        description="slots of the account, which creates sent by the receiver wait for: `5`, or with limits of models "
        "`kling-v3=3,5`; none: they do not wait (docs/submitting.md)",
    )
    compat_api: Annotated[Switch, Expected("must be `on` or `off`.")] = Field(
        "off", description="`on`: serve Kling's own API, for programs that change only their base (docs/gateway.md)"
    )
    compat_hold_seconds: Annotated[float, Expected(f"must be seconds from 0 to {MAX_HOLD_SECONDS}, such as 60.")] = (
        Field(
            0,
            ge=0,
            le=MAX_HOLD_SECONDS,
            allow_inf_nan=False,
            description="seconds for which that API holds the query of an unfinished task",
        )
    )
    links_url: str = Field(
        "",
        description="base of the links to result files, if people and programs reach the receiver at another address "
        "(default: `KLING_RECEIVER_URL`)",
    )
    dashboard_password: str = Field(
        "",
        repr=False,
        description="password of the pages at `/`; without it, `kling-receiver login-link` gives access "
        "(docs/dashboard.md)",
    )
    hook_url: str = Field("", repr=False, description="address to which every event is POSTed")
    hook_secret: HookSecret = Field(
        "",
        repr=False,
        description="signs the POSTs to that address, by Standard Webhooks (`whsec_...`)",
    )
    hook_pause_seconds: Annotated[
        float,
        Expected(
            f"must be seconds, more than 0 and at most {MAX_SECONDS} (365 days), such as {DEFAULT_HOOK_PAUSE_SECONDS}."
        ),
    ] = Field(
        DEFAULT_HOOK_PAUSE_SECONDS,
        gt=0,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="seconds of failures after which a hook is paused; its events are kept",
    )
    egress_proxy: str = Field(
        "",
        repr=False,
        description="HTTP proxy for result downloads and hooks, except private hosts and those in `NO_PROXY` "
        "(docs/operating.md)",
    )
    private_result_hosts: CommaSeparated = Field(
        (), description="hosts, networks, `host:port` that result downloads may reach although they are private"
    )
    private_hook_hosts: CommaSeparated = Field((), description="the same for the operator's hooks")
    private_client_hook_hosts: CommaSeparated = Field(
        (), description="the same for the hooks of single tasks, which clients name"
    )
    hooks_file: str = Field("", description="a TOML file that defines all hooks (docs/delivering.md)")
    result_max_bytes: Annotated[
        int, Expected(f"must be whole bytes from 1 to {MAX_BYTES} (1 TiB), such as {2 << 30} (2 GiB).")
    ] = Field(2 << 30, gt=0, le=MAX_BYTES, description="maximum bytes of one result file (default: 2 GiB)")

    @field_validator("webhook_secrets", *PRIVATE_HOSTS, mode="before")
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        return split(value)

    @field_validator("webhook_secrets")
    @classmethod
    def _check_webhook_secrets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            secret_key(value)
        return values

    @field_validator(*PRIVATE_HOSTS)
    @classmethod
    def _check_hosts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        Allowlist.parse(values)
        return values

    @field_validator("egress_proxy")
    @classmethod
    def _check_egress_proxy(cls, value: str) -> str:
        return http_proxy_address("KLING_EGRESS_PROXY", value) if value else value

    @field_validator("database_url")
    @classmethod
    def _check_database(cls, value: str) -> str:
        from sqlalchemy.engine import make_url  # here: not every command opens a database
        from sqlalchemy.exc import ArgumentError  # invalid ports and numbers are ValueErrors, which quote the password

        if not value:
            return value
        value = re.sub(r"^(?:(postgres)(?:ql)?|sqlite)(?=[:+])", _scheme, value, flags=re.IGNORECASE)
        try:
            url = make_url(value)
        except (ArgumentError, ValueError):
            raise ValueError("must look like sqlite:///path or postgresql://user:password@host/name.") from None
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(f"is for sqlite and postgresql only, not {url.get_backend_name()}.")
        if url.drivername not in ("sqlite", "sqlite+pysqlite", "postgresql", "postgresql+psycopg"):
            raise ValueError(f"names a driver that is not used here. Remove +{url.drivername.partition('+')[2]}.")
        if url.get_backend_name() == "sqlite":
            _check_file(value, url.database, url.host)
        return value

    @field_validator("data_dir")
    @classmethod
    def _resolve_folder(cls, value: Path) -> Path:
        """The absolute path; `~` is the home folder, as in a shell, which does not read `.env`."""
        try:
            str(value).encode()  # the database's address cannot hold any other name
            return _absolute(value.expanduser())
        except UnicodeEncodeError:
            raise ValueError("is not UTF-8. Rename the folder, or set it to another one.") from None
        except RuntimeError:
            raise ValueError("begins with ~, but there is no home folder. Set it to an absolute path.") from None

    @field_validator("concurrency")
    @classmethod
    def _check_concurrency(cls, value: str) -> str:
        _parse_slots(value)
        return value

    @field_validator("storage_url")
    @classmethod
    def _check_storage(cls, value: str) -> str:
        if value:
            folder_of(value)
        return value

    @field_validator("dashboard_password")
    @classmethod
    def _check_dashboard_password(cls, value: str) -> str:
        if value and not MIN_PASSWORD_CHARS <= len(value) <= MAX_PASSWORD_CHARS:
            raise ValueError(
                f"must have at least {MIN_PASSWORD_CHARS} characters. Set a longer one, or remove it: "
                "kling-receiver login-link gives access without a password."
            )
        return value

    @field_validator("hook_url")
    @classmethod
    def _check_hook_url(cls, value: str) -> str:
        if value:
            normalize_url(value.partition("?")[0])
        return value

    @field_validator("webhook_signature")
    @classmethod
    def _check_signature_mode(cls, value: str, info: ValidationInfo) -> str:
        # An invalid field is not in `data`; its own problem is reported.
        if value == "required" and info.data.get("webhook_secrets") == ():
            raise ValueError("`required` needs KLING_WEBHOOK_SECRETS. Set them, or remove this setting.")
        return value

    @field_validator("hook_secret")
    @classmethod
    def _check_hook_secret(cls, value: str, info: ValidationInfo) -> str:
        if not value and info.data.get("hook_url"):
            raise ValueError(f"KLING_HOOK_SECRET is needed with KLING_HOOK_URL. {MAKE_WEBHOOK_SECRET_HINT}")
        return value

    @field_validator("private_hook_hosts")
    @classmethod
    def _check_hook_is_reachable(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if url := info.data.get("hook_url"):
            try:
                check_url(url, Allowlist.parse(values, HOOK_HOSTS, info.data.get("egress_proxy", "")))
            except Refused as error:
                raise ValueError(f"KLING_HOOK_URL: {error}.") from None
        return values

    @field_validator("hooks_file")
    @classmethod
    def _check_hooks_file(cls, value: str, info: ValidationInfo) -> str:
        if value:
            try:
                if "private_hook_hosts" not in info.data:  # which hooks may be reached is not known
                    read_tables(Path(value))
                    return value
                proxy = info.data.get("egress_proxy", "")
                allowed = Allowlist.parse(info.data["private_hook_hosts"], HOOK_HOSTS, proxy)
                load_hooks(Path(value), allowed, cls.environment())
            except InvalidHook as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("signing_secrets")
    @classmethod
    def _require_secrets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        if is_required("signing_secrets") and not values:
            raise ValueError(
                "is missing; it signs callback addresses and tokens. Client and receiver need the same secrets. "
                f"Run `kling-receiver init`, which writes .env with a new one. {MAKE_SECRET_HINT}"
            )
        return values

    @field_validator("receiver_url")
    @classmethod
    def _require_url(cls, value: str) -> str:
        if is_required("receiver_url") and not value:
            raise ValueError("is missing. Set it to the address at which Kling reaches this receiver.")
        return value

    @field_validator("links_url")
    @classmethod
    def _check_links_url(cls, value: str) -> str:
        return normalize_url(value) if value else value

    @field_validator("webhook_secrets")
    @classmethod
    def _require_key(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        keys = (info.data.get("api_key"), info.data.get("access_key"))
        if is_required("api_key") and not values and keys == ("", ""):
            raise ValueError(
                "KLING_API_KEY: is needed to query Kling about tasks. Set it, or KLING_ACCESS_KEY and "
                "KLING_SECRET_KEY (or KLING_WEBHOOK_SECRETS, if Kling signs its callbacks)."
            )
        return values

    @classmethod
    def _addresses(cls) -> dict[str, tuple[str, ...]]:
        addresses = {**super()._addresses(), "KLING_HOOK_URL": ("KLING_HOOK_SECRET",)}
        addresses["KLING_HOOKS_FILE"] = ("KLING_SIGNING_SECRETS",)  # its commands run as the receiver does
        # The driver sends PGPASSWORD wherever the database's address leads, unless that has a password of its own.
        if not split_url(cls.environment().get("kling_database_url") or "").password:
            addresses["KLING_DATABASE_URL"] = ("PGPASSWORD",)
        return addresses

    @property
    def hooks(self) -> list[HookConfig]:
        """The hooks of `hooks_file`; empty without a file."""
        if not self.hooks_file:
            return []
        return load_hooks(Path(self.hooks_file), self.hook_hosts, self.environment())

    @property
    def links_base(self) -> str:
        """The address with which links to result files begin."""
        return self.links_url or self.receiver_url

    @property
    def slot_limits(self) -> SlotLimits:
        """The limits of `concurrency`."""
        return _parse_slots(self.concurrency)

    @property
    def unreachable_reason(self) -> str:
        """Why Kling, on the Internet, cannot reach `receiver_url`; "" if it may be able to."""
        receiver_host, kling_host = urlsplit(self.receiver_url).hostname or "", urlsplit(self.api_base).hostname or ""
        if is_private(receiver_host) and not is_private(kling_host):
            return (
                f"{kling_host} cannot call back {self.receiver_url}: that address is private to this machine or "
                "network. Set KLING_RECEIVER_URL to a public address, such as a tunnel's."
            )
        return ""

    @property
    def result_hosts(self) -> Allowlist:
        """The private hosts that result downloads may reach."""
        return Allowlist.parse(self.private_result_hosts, RESULT_HOSTS, self.egress_proxy)

    @property
    def hook_hosts(self) -> Allowlist:
        """The private hosts that the operator's hooks may reach."""
        return Allowlist.parse(self.private_hook_hosts, HOOK_HOSTS, self.egress_proxy)

    @property
    def client_hook_hosts(self) -> Allowlist:
        """The private hosts that the hooks of single tasks may reach, which clients name."""
        return Allowlist.parse(self.private_client_hook_hosts, CLIENT_HOOK_HOSTS, self.egress_proxy)

    @property
    def database(self) -> str:
        """The database's address, or its default in the data folder."""
        from sqlalchemy.engine import URL

        default = URL.create("sqlite", database=str(self.data_dir / "kling.db"))  # it encodes %, ? and #
        return self.database_url or str(default)

    @property
    def database_file(self) -> Path | None:
        """The database's file; None for a database server."""
        from sqlalchemy.engine import make_url

        url = make_url(self.database)
        return Path(str(url.database)) if url.get_backend_name() == "sqlite" else None

    @property
    def results(self) -> Path:
        """The folder of the result files, or its default in the data folder."""
        return folder_of(self.storage_url) if self.storage_url else self.data_dir / "results"

    @property
    def database_setting(self) -> str:
        """The name of the setting that leads to the database, for messages."""
        return "KLING_DATABASE_URL" if self.database_url else "KLING_DATA_DIR"

    @property
    def storage_setting(self) -> str:
        """The same for the results folder."""
        return "KLING_STORAGE_URL" if self.storage_url else "KLING_DATA_DIR"

    @property
    def secrets(self) -> set[str]:
        """The secrets, and the parts of addresses that may be secret: no line of the log shows them."""
        lists = (self.signing_secrets, self.webhook_secrets, self.api_keys, (self.hook_secret, self.dashboard_password))
        keys = {secret for values in lists for secret in values if secret}
        keys |= {secret_key for _, secret_key in self.access_keys}
        addresses = (self.database_url, self.hook_url, self.egress_proxy)
        return keys.union(*map(private_parts, addresses))

    @property
    def shown_addresses(self) -> dict[str, str]:
        """What may be shown of the settings that are addresses with secrets, if set: the host; a database's file."""
        from sqlalchemy.engine import make_url

        shown = {}
        for name, address in (("hook_url", self.hook_url), ("egress_proxy", self.egress_proxy)):
            if parts := urlsplit(address) if address else None:
                shown[name] = f"{parts.scheme}://{parts.hostname}/***"
        if self.database_url:
            url = make_url(self.database_url)
            host = (url.host or "").rpartition("@")[2]  # what is before belongs to a password with an `@`
            is_file = url.get_backend_name() == "sqlite"
            shown["database_url"] = self.database_url if is_file else f"{url.drivername}://{host or '***'}/***"
        return shown

    @property
    def has_key(self) -> bool:
        """Whether Kling can be queried."""
        return bool(self.key_fingerprint)


def _parse_slots(text: str) -> SlotLimits:
    """The limits in `5`, `kling-v3=3` or `kling-v3=3,5`. Raises ValueError."""
    total: int | None = None
    by_model: dict[str, int] = {}
    for part in split(text):
        model, _, number = part.rpartition("=")
        model, number = model.strip(), number.strip()
        is_slots = number.isascii() and number.isdecimal() and len(number) < 10 and 1 <= int(number) <= MAX_SLOTS
        if not is_slots or "=" in model or (not model and ("=" in part or total is not None)) or model in by_model:
            raise ValueError(
                f"must be a number of slots from 1 to {MAX_SLOTS}, such as 5, or with limits of models, each once: "
                "kling-v3=3,5."
            )
        if model:
            by_model[model] = int(number)
        else:
            total = int(number)
    return SlotLimits(total, by_model)


def _scheme(match: re.Match[str]) -> str:
    """The scheme of a database's address as it is written here: in small letters, and `postgresql` in full."""
    return "postgresql" if match[1] else "sqlite"


def _check_file(value: str, file: str | None, host: str | None) -> None:
    """Check the address of an SQLite database. Raises ValueError."""
    if host is not None:
        path = f"{host}/{file or ''}".rstrip("/")
        raise ValueError(
            f"has two slashes, where SQLite needs three: sqlite:///{path} (or four: sqlite:////folder/file)."
        )
    if not file or file == ":memory:":
        raise ValueError("must name a file: a database in memory is lost when the receiver stops.")
    if file.endswith("/") or "\0" in file or "\ufffd" in file:  # U+FFFD stands for what is not UTF-8
        raise ValueError("must name a file, such as sqlite:////var/lib/kling/kling.db.")
    if file.startswith("~/"):
        raise ValueError(f"has a ~, which only a shell replaces. Write sqlite:///{os.path.expanduser(file)}.")  # noqa: PTH111  # raises nothing
    _absolute(Path(file))
    if "?" in value:
        raise ValueError("must be sqlite:/// and the file's path, without options. A `?` in the path is %3F.")


def _absolute(path: Path) -> Path:
    try:
        return path.absolute()
    except OSError:
        raise ValueError(
            "is relative to the working folder, which no longer exists. Change to another folder, or set it to an "
            "absolute path."
        ) from None
