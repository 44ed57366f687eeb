"""The receiver's settings: one table, checked against each other before anything starts."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from client.settings import KlingSettings, Listed, split, web_address
from receiver.outbound import Allowed, Refused, check_url
from receiver.signatures import secret_key
from receiver.storage import folder_of

DAY = 86_400


class ReceiverSettings(KlingSettings):
    """What `kling-receiver` reads from the environment, besides what the client reads too."""

    callback_max_age: int = Field(
        30 * DAY, gt=0, description="seconds for which a callback address is good (the default: 30 days)"
    )
    webhook_secrets: Listed = Field(
        (), repr=False, description="Kling's own webhook secrets (`whsec_...`), comma-separated; none: ignored"
    )
    webhook_signature: Literal["when-present", "required"] = Field(
        "when-present", description="`required` refuses callbacks that Kling did not sign"
    )
    data_dir: Path = Field(Path("data"), description="folder for the defaults of the next two")
    database_url: str = Field(
        "",
        repr=False,
        description="`sqlite:///...` or `postgresql://...` (default: `kling.db` in the data folder)",
    )
    storage_url: str = Field(
        "", description="where result files go: `file:///...` (default: `results` in the data folder)"
    )
    overdue_seconds: float | None = Field(
        None,
        gt=0,
        description="seconds after which an open task is asked about (default: 180 for images, else 1200)",
    )
    hook_url: str = Field("", description="every event is POSTed there")
    hook_secret: str = Field(
        "", repr=False, description="signs those POSTs, by Standard Webhooks (`whsec_...`)"
    )
    private_result_hosts: Listed = Field(
        (), description="hosts, networks, `host:port` that result downloads may reach although they are private"
    )
    private_hook_hosts: Listed = Field((), description="the same for hooks")
    result_max_bytes: int = Field(
        2 << 30, gt=0, description="bytes that one result file may have (default: 2 GiB)"
    )

    @field_validator("webhook_secrets", "private_result_hosts", "private_hook_hosts", mode="before")
    @classmethod
    def _split_lists(cls, value: Any) -> Any:
        return split(value)

    @field_validator("webhook_secrets")
    @classmethod
    def _good_secrets(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            secret_key(value)
        return values

    @field_validator("hook_secret")
    @classmethod
    def _good_secret(cls, value: str) -> str:
        if value:
            secret_key(value)
        return value

    @field_validator("private_result_hosts", "private_hook_hosts")
    @classmethod
    def _good_hosts(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        Allowed.parse(values)
        return values

    @field_validator("database_url")
    @classmethod
    def _good_database(cls, value: str) -> str:
        if not value:
            return value
        try:
            url = make_url(value)
        except ArgumentError:
            raise ValueError("must look like sqlite:///path or postgresql://user:password@host/name.") from None
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise ValueError(f"is for sqlite and postgresql only, not {url.get_backend_name()}.")
        if url.get_backend_name() == "sqlite" and url.database in (None, "", ":memory:"):
            raise ValueError("must name a file: what is only in memory is lost.")
        return value

    @field_validator("storage_url")
    @classmethod
    def _good_storage(cls, value: str) -> str:
        if value:
            folder_of(value)
        return value

    @field_validator("hook_url")
    @classmethod
    def _good_hook(cls, value: str) -> str:
        if value:
            web_address(value.partition("?")[0])
        return value

    @field_validator("webhook_signature")
    @classmethod
    def _with_secrets(cls, value: str, info: ValidationInfo) -> str:
        # A field that is itself wrong is not in `data`; its own problem is told.
        if value == "required" and info.data.get("webhook_secrets") == ():
            raise ValueError("`required` needs KLING_WEBHOOK_SECRETS. Set them, or leave this out.")
        return value

    @field_validator("hook_secret")
    @classmethod
    def _both_of_the_hook(cls, value: str, info: ValidationInfo) -> str:
        if bool(value) != bool(info.data.get("hook_url", value)):
            raise ValueError(
                "KLING_HOOK_URL and KLING_HOOK_SECRET work together only. Make a secret with: "
                "python -c \"import base64, os; print('whsec_' + base64.b64encode(os.urandom(32)).decode())\""
            )
        return value

    @field_validator("private_hook_hosts")
    @classmethod
    def _reachable(cls, values: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if url := info.data.get("hook_url"):
            try:
                check_url(url, Allowed.parse(values))
            except Refused as error:
                raise ValueError(f"KLING_HOOK_URL: {error}. Allow it with KLING_PRIVATE_HOOK_HOSTS.") from None
        return values

    @property
    def result_hosts(self) -> Allowed:
        """What downloads may reach although it is private."""
        return Allowed.parse(self.private_result_hosts)

    @property
    def hook_hosts(self) -> Allowed:
        """What hooks may reach although it is private."""
        return Allowed.parse(self.private_hook_hosts)

    @property
    def database(self) -> str:
        """The database's address, default filled in."""
        return self.database_url or f"sqlite:///{self.data_dir.absolute() / 'kling.db'}"

    @property
    def results(self) -> Path:
        """The folder of the result files."""
        return folder_of(self.storage_url) if self.storage_url else self.data_dir.absolute() / "results"

    @property
    def has_key(self) -> bool:
        """Whether Kling can be asked."""
        return bool(self.account)

    def missing_to_serve(self) -> list[str]:
        """What a receiver needs and these settings lack."""
        problems = []
        if not self.signing_secrets:
            problems.append(
                "KLING_SIGNING_SECRETS: is needed, it signs the callback addresses. Make one with: "
                'python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
        if not self.receiver_url:
            problems.append(
                "KLING_RECEIVER_URL: is needed. Set it to the address under which Kling reaches this receiver."
            )
        if not self.has_key and not self.webhook_secrets:
            problems.append(
                "KLING_API_KEY: is needed to ask Kling how a task ended. Set it, or KLING_ACCESS_KEY and "
                "KLING_SECRET_KEY (or KLING_WEBHOOK_SECRETS, if Kling signs its callbacks)."
            )
        return problems
