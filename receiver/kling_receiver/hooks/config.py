"""What a hook is: an address, what it wants to hear of, and how it is treated. Checked before it is kept."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from kling_callback.protocol.events import TYPES
from kling_callback.protocol.families import DESCRIPTION, is_family
from kling_callback.protocol.ids import is_id
from kling_callback.protocol.webhooks import new_secret
from kling_callback.settings import HookSecret
from kling_receiver.net.guard import Allowlist
from kling_receiver.sinks import scheme_of
from kling_receiver.sinks.command import parse_command, to_address
from kling_receiver.sinks.http import check_web_address
from kling_receiver.sinks.registry import open_sink
from kling_receiver.states import FINAL, STATUSES, Status
from kling_receiver.store.rows import HookRow, Row
from kling_receiver.validation import describe_errors

WEB_SCHEMES = ("https", "http")
DEFAULT_SCHEDULE = (5.0, 30.0, 120.0, 900.0, 3600.0, 10_800.0, 28_800.0, 86_400.0)
"""Seconds between attempts, each drawn from the upper half of its step; after the last the event is dead."""
DEFAULT_TIMEOUT = {"web": 15.0, "command": 60.0, "other": 15.0}
DEFAULT_CONCURRENCY = {"web": 8, "command": 2, "other": 8}

ALL_STATUSES = frozenset(STATUSES)
STATUSES_AT: Mapping[str, frozenset[str]] = {
    **{f"task.{status}": frozenset({status}) for status in STATUSES},
    "result.stored": frozenset({"succeed"}),
    "result.failed": frozenset({"succeed"}),
    "task.done": FINAL,
}
EVENT_STATUSES = {type_: STATUSES_AT.get(type_, ALL_STATUSES) for type_ in TYPES}
"""Every type of event, and the statuses that a task may have when it happens."""

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
TASK_HOOK_PREFIX = "task:"
"""What the name of a hook of one task alone begins with."""


def _whole(value: Any) -> Any:
    """JSON does not tell 1 from 1.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError("must be small letters, digits, - and _, 63 at most.")
    return value


def _new_name(value: str) -> str:
    """Nothing has a name made for it."""
    return value and _name(value)


def _any_name(value: str) -> str:
    return value if is_id(value.removeprefix(TASK_HOOK_PREFIX)) and value.startswith(TASK_HOOK_PREFIX) else _name(value)


WHOLE = BeforeValidator(_whole)
"""Lets an integer also be written as 1.0. Stands after the limits in an annotation."""
HookName = Annotated[str, AfterValidator(_any_name), Field(json_schema_extra={"pattern": NAME})]
"""The name of a hook, that of one task alone too."""
Label = Annotated[str, Field(min_length=1, max_length=100)]
Step = Annotated[float, Field(gt=0, le=30 * 86_400, allow_inf_nan=False)]
EventType = Annotated[str, Field(json_schema_extra={"enum": list(EVENT_STATUSES)})]
Family = Annotated[str, Field(json_schema_extra={"examples": ["videos/effects"]})]
EventTypes = Annotated[
    list[EventType], Field(max_length=len(EVENT_STATUSES), description="empty means any, as in the other filters")
]
Families = Annotated[list[Family], Field(max_length=100)]
Statuses = Annotated[list[Status], Field(max_length=len(STATUSES))]
Tags = Annotated[list[Label], Field(max_length=100, description="tasks with any of these tags")]
RetrySchedule = Annotated[list[Step], Field(max_length=30, description="seconds between attempts")]
Concurrency = Annotated[int, Field(ge=1, le=256, description="attempts at once"), WHOLE]
RateLimit = Annotated[float, Field(ge=0.01, le=100_000, allow_inf_nan=False, description="attempts a second")]
Timeout = Annotated[float, Field(gt=0, le=300, allow_inf_nan=False, description="seconds for one attempt")]
Secret = Annotated[
    HookSecret,
    Field(
        repr=False,
        description="a secret of Standard Webhooks; if it is missing, one is generated",
        json_schema_extra={"maxLength": 200, "examples": ["whsec_..."]},
    ),
]


class HookFilter(BaseModel):
    """What a hook wants to hear of; what is empty wants all."""

    events: EventTypes = Field(default_factory=list)
    families: Families = Field(default_factory=list)
    statuses: Statuses = Field(default_factory=list)
    tags: Tags = Field(default_factory=list)

    @field_validator("events")
    @classmethod
    def _events(cls, values: list[str]) -> list[str]:
        if unknown := sorted(set(values) - EVENT_STATUSES.keys()):
            raise ValueError(f"no event is called {', '.join(unknown)}. There are: {', '.join(EVENT_STATUSES)}.")
        return sorted(set(values))

    @field_validator("families")
    @classmethod
    def _families(cls, values: list[str]) -> list[str]:
        if wrong := [value for value in values if not is_family(value)]:
            raise ValueError(f"{', '.join(wrong)}: a family must be {DESCRIPTION}.")
        return sorted(set(values))

    @model_validator(mode="after")
    def _possible(self) -> "HookFilter":
        possible = frozenset().union(*(EVENT_STATUSES[event] for event in self.events)) if self.events else ALL_STATUSES
        if self.statuses and not possible & set(self.statuses):
            raise ValueError(
                f"the filter matches nothing: at {' or '.join(self.events)} a task is never "
                f"{' or '.join(self.statuses)}. Leave out one of both."
            )
        return self


class HookConfig(HookFilter):
    """A hook as somebody wants it."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_new_name)] = Field(
        "", description="if it is missing, one is chosen", json_schema_extra={"pattern": NAME}
    )
    address: str = Field(
        min_length=1, max_length=2000, description="https://...", examples=["https://hooks.example/in"]
    )
    secret: Secret = ""
    retry_schedule: RetrySchedule = Field(default_factory=lambda: list(DEFAULT_SCHEDULE))
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None
    timeout: Timeout | None = None

    @field_validator("address")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        scheme = scheme_of(value)
        if scheme == "command":
            return to_address(parse_command(value))
        if scheme not in WEB_SCHEMES:
            open_sink(value)
        elif info.context:
            check_web_address(value, info.context)
        return value

    @model_validator(mode="after")
    def _signed(self) -> "HookConfig":
        if self.secret and not self.is_signed:
            raise ValueError("a secret signs what goes to a web address; leave it out.")
        return self

    @property
    def is_signed(self) -> bool:
        """Whether what is sent there is signed."""
        return scheme_of(self.address) in WEB_SCHEMES

    def columns(self) -> Row:
        """The columns that say where events go, which, and how."""
        kind = "web" if self.is_signed else "command" if scheme_of(self.address) == "command" else "other"
        return {
            "address": self.address,
            "filter": {
                "events": self.events,
                "families": self.families,
                "statuses": self.statuses,
                "tags": self.tags,
            },
            "retry_schedule": self.retry_schedule,
            "concurrency": self.concurrency or DEFAULT_CONCURRENCY[kind],
            "rate_limit": self.rate_limit,
            "timeout": self.timeout or DEFAULT_TIMEOUT[kind],
        }

    def row(self, name: str, source: str, *, cursor: int, now: int) -> HookRow:
        """The row of it, with a new secret where one is needed and none is given."""
        row = {
            **self.columns(),
            "name": name,
            "source": source,
            "task_id": None,
            "concurrency_key": name,
            "secrets": [(self.secret or new_secret(), None)] if self.is_signed else [],
            "cursor": cursor,
            "failing_since": None,
            "paused_at": None,
            "paused_because": "",
            "created_at": now,
        }
        return cast(HookRow, row)


DEFAULT_HOOK = "default"
"""The name of the hook that KLING_HOOK_URL is."""


class InvalidHook(Exception):
    """A hook that cannot be; `problems` names all that is wrong with it."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


def parse_hook(given: Any, allowed: Allowlist) -> HookConfig:
    """A hook as it is described by a document. Raises BadHook, naming every problem."""
    try:
        hook = HookConfig.model_validate(given, context=allowed)
    except ValidationError as error:
        raise InvalidHook(describe_errors(error)) from None
    if hook.name == DEFAULT_HOOK:
        raise InvalidHook(["name: this one is KLING_HOOK_URL's. Choose another."])
    return hook
