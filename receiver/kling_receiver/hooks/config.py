"""The configuration of a hook: address, filter, retry schedule and limits, validated before it is stored."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

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
"""Seconds between attempts, each drawn from the upper half of its step; after the last, a dead letter."""
DEFAULT_TIMEOUT = {"web": 15.0, "command": 60.0, "other": 15.0}
"""Seconds for one attempt, by kind of address."""
DEFAULT_CONCURRENCY = {"web": 8, "command": 2, "other": 8}
"""Attempts at once, by kind of address: a command is a process of its own."""

ALL_STATUSES = frozenset(STATUSES)
STATUSES_AT: Mapping[str, frozenset[str]] = {
    **{f"task.{status}": frozenset({status}) for status in STATUSES},
    "result.stored": frozenset({"succeed"}),
    "result.failed": frozenset({"succeed"}),
    "task.done": FINAL,
}
EVENT_STATUSES = {type_: STATUSES_AT.get(type_, ALL_STATUSES) for type_ in TYPES}
"""Every type of event, and the statuses that a task may have when it happens."""

HookFormat = Literal["event", "kling"]
"""The body of a delivery: the receiver's event, or the record that Kling itself posts."""
KLING_EVENTS = ("task.submitted", "task.processing", "task.done")
"""The events that a hook in Kling's format receives: one for each change of the status that Kling's caller sees.

Between `task.succeed` or `task.failed` and `task.done` the files are being stored.
"""

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
TASK_HOOK_PREFIX = "task:"
"""Prefix of the name of a hook of a single task."""


def _whole(value: Any) -> Any:
    """Accept 1.0 for 1: JSON has only one kind of number."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _name(value: str) -> str:
    if not re.fullmatch(NAME, value):
        raise ValueError("must be small letters, digits, - and _, 63 at most.")
    return value


def _new_name(value: str) -> str:
    """Check a new hook's name; an empty one is replaced by a generated name."""
    return value and _name(value)


def is_hook_name(value: str) -> bool:
    """Whether a hook can have this name, also one of a single task."""
    of_task = value.startswith(TASK_HOOK_PREFIX) and is_id(value.removeprefix(TASK_HOOK_PREFIX))
    return of_task or bool(re.fullmatch(NAME, value))


def _any_name(value: str) -> str:
    return value if is_hook_name(value) else _name(value)


WHOLE = BeforeValidator(_whole)
"""Lets an integer also be written as 1.0. Stands after the limits in an annotation."""
HookName = Annotated[str, AfterValidator(_any_name), Field(json_schema_extra={"pattern": NAME})]
"""The name of any hook, also that of a single task."""
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


def known_events(values: Sequence[str]) -> list[str]:
    """Distinct types of events, sorted. Raises ValueError naming every unknown one."""
    if unknown := sorted(set(values) - EVENT_STATUSES.keys()):
        raise ValueError(f"no event is called {', '.join(unknown)}. Set some of: {', '.join(EVENT_STATUSES)}.")
    return sorted(set(values))


class HookFilter(BaseModel):
    """Which events a hook receives. An empty list matches everything; all four lists must match."""

    events: EventTypes = Field(default_factory=list)
    families: Families = Field(default_factory=list)
    statuses: Statuses = Field(default_factory=list)
    tags: Tags = Field(default_factory=list)

    @field_validator("events")
    @classmethod
    def _events(cls, values: list[str]) -> list[str]:
        return known_events(values)

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
                f"{' or '.join(self.statuses)}. Remove one of the two."
            )
        return self


class HookConfig(HookFilter):
    """A hook as an operator or a client configures it. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)

    name: Annotated[str, AfterValidator(_new_name)] = Field(
        "", description="if it is missing, one is chosen", json_schema_extra={"pattern": NAME}
    )
    address: str = Field(
        min_length=1, max_length=2000, description="https://...", examples=["https://hooks.example/in"]
    )
    format: HookFormat = Field(
        "event", description="`kling`: the body that Kling itself posts, on each change of the status; without `events`"
    )
    secret: Secret = ""
    retry_schedule: RetrySchedule = Field(default_factory=lambda: list(DEFAULT_SCHEDULE))
    concurrency: Concurrency | None = None
    rate_limit: RateLimit | None = None
    timeout: Timeout | None = None

    @field_validator("address")
    @classmethod
    def _address(cls, value: str, info: ValidationInfo) -> str:
        value = value.strip()
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
            raise ValueError("a secret is for web addresses only. Remove it.")
        return self

    @model_validator(mode="after")
    def _in_kling_s_format(self) -> "HookConfig":
        if self.format != "kling":
            return self
        if not self.is_signed:
            raise ValueError("the format kling is for web addresses only; other addresses receive events. Remove it.")
        if self.events:
            raise ValueError("a hook with the format kling receives each change of the status. Remove its events.")
        if self.statuses == ["created"]:
            raise ValueError("the filter matches nothing: Kling reports no task as created. Remove the status.")
        return self

    @classmethod
    def document_of(cls, row: HookRow) -> dict[str, Any]:
        """The configuration of a hook, without its name and secret."""
        names = ("address", "format", "retry_schedule", "concurrency", "rate_limit", "timeout")
        columns = cast(Row, row)
        return {**row["filter"], **{name: columns[name] for name in names}}

    @property
    def is_signed(self) -> bool:
        """Whether its deliveries are signed: those to web addresses are."""
        return scheme_of(self.address) in WEB_SCHEMES

    def columns(self) -> Row:
        """The columns that the configuration determines."""
        kind = "web" if self.is_signed else "command" if scheme_of(self.address) == "command" else "other"
        return {
            "address": self.address,
            "format": self.format,
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
        """The row of a new hook. A signed hook without a secret gets a generated one. `now`: unix ms."""
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
"""The name of the hook of KLING_HOOK_URL."""


class InvalidHook(Exception):
    """The configuration of a hook is invalid; `problems` lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


def parse_hook(document: Any, allowed: Allowlist) -> HookConfig:
    """Validate a hook's configuration. Raises InvalidHook naming every problem."""
    try:
        config = HookConfig.model_validate(document, context=allowed)
    except ValidationError as error:
        raise InvalidHook(describe_errors(error)) from None
    if config.name == DEFAULT_HOOK:
        raise InvalidHook([f"name: {DEFAULT_HOOK} is the hook of KLING_HOOK_URL. Set another name."])
    return config
