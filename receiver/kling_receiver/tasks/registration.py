"""Registration of a task by its client, before its create and after it. Fills missing fields, never resets one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from sqlalchemy import func, select

from kling_callback.protocol import families
from kling_callback.protocol.redact import redacted
from kling_callback.protocol.values import IDENTIFIER, MAX_ID_CHARS, sanitize
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import EventTypes, HookFormat, Label, known_events
from kling_receiver.jobs import enqueue
from kling_receiver.jobs.kinds import ask_key
from kling_receiver.sinks.http import check_web_address
from kling_receiver.states import FINAL, transition
from kling_receiver.store.removed import describe_removed, removed_tasks
from kling_receiver.store.rows import TaskRow
from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import EVENT, SENT_HERE
from kling_receiver.store.transaction import Transaction
from kling_receiver.tasks import slots, transitions
from kling_receiver.tasks.parameters import describe_other_parameters, differences
from kling_receiver.tasks.transitions import Refusal

MAX_TAGS = 100
"""Tags of one task, from all its registrations."""

MAX_CREATES = 100
"""Creates of one task that were not accepted. Each adds events, and a client in a loop would fill the disk."""

INSERT_TAG = Statement("""
    INSERT INTO tag (tag, task_id, created_at) SELECT :tag, :task_id, :created_at
    WHERE (SELECT count(*) FROM tag WHERE task_id = :task_id) < :max_tags ON CONFLICT DO NOTHING
""")


MAX_REPORTED_TAGS = 20
"""Tags in one registration."""

ShortText = Annotated[str, Field(max_length=256), AfterValidator(sanitize)]
FAMILY_SCHEMA: dict[str, Any] = {
    "maxLength": families.MAX_CHARS,
    "pattern": f"^{families.PATTERN.pattern}$",
    "examples": ["videos/text2video"],
}
KLING_ID_RULE = f"must be 1 to {MAX_ID_CHARS} characters that may stand in a path, not . or .."
KLING_ID_SCHEMA: dict[str, Any] = {
    "pattern": rf"^[^\s\x1c-\x1f\x85/\\,?#%\x00]{{1,{MAX_ID_CHARS}}}$",
    "not": {"enum": [".", ".."]},
}
"""IDENTIFIER as JSON Schema: many validators know no lookahead, and differ in what `\\s` matches."""
ONE_OF_THREE: dict[str, Any] = {
    "anyOf": [
        {"required": ["attempt"], "properties": {"outcome": {"const": None}, "attempt": {"minLength": 1}}},
        {
            "required": ["outcome", "task_id"],
            "properties": {"outcome": {"const": "created"}, "task_id": {"type": "string", "minLength": 1}},
        },
        {"required": ["outcome"], "properties": {"outcome": {"enum": ["not_created", "unknown"]}}},
    ]
}
"""What a registration needs before a create, after one that succeeded, and after any other."""


class Registration(BaseModel):
    """What a client reports about a task: before its create, or after it, with the outcome.

    The context of a validation is the Allowlist of the private hosts that clients may name as hooks.
    """

    model_config = ConfigDict(
        frozen=True, validate_by_name=True, hide_input_in_errors=True, json_schema_extra=ONE_OF_THREE
    )

    family: Annotated[str, Field(json_schema_extra=FAMILY_SCHEMA)]
    model: ShortText = ""
    request: Any = Field(None, description="the create's parameters; image bytes and secrets are not stored")
    request_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = Field(
        None, description="a digest of all parameters of the create, image bytes included: others are refused"
    )
    base: str = Field("", max_length=2000, description="the client's KLING_API_BASE: another account is refused")
    key_fingerprint: str = Field(
        "", max_length=256, description="of the client's Kling key; of several keys of one account, comma-separated"
    )
    tags: tuple[Label, ...] = Field((), max_length=MAX_REPORTED_TAGS)
    create_token: ShortText = Field("", alias="attempt", description="before a create: the name of this one attempt")
    outcome: Literal["created", "not_created", "unknown"] | None = Field(None, description="after the create")
    kling_id: Annotated[str, Field(json_schema_extra=KLING_ID_SCHEMA)] | None = Field(
        None, alias="task_id", description="Kling's id, with the outcome `created`"
    )
    request_id: ShortText = Field("", description="Kling's id of its answer to the create")
    finished: bool = Field(
        False,
        description="with the outcome `created`: a query found the task finished, so that its callback may be past; "
        "Kling is queried at once",
    )
    reason: Annotated[str, AfterValidator(sanitize)] = Field("", max_length=4000)
    hook: str = Field(
        "", max_length=2000, description="a web address to which the events of this task are sent; a task has one"
    )
    hook_events: EventTypes = Field(
        default_factory=list, description="with `hook`: only events of these types; empty means any"
    )
    hook_format: HookFormat = Field(
        "event", description="with `hook`: `kling` for the body that Kling itself posts; without `hook_events`"
    )

    @field_validator("family")
    @classmethod
    def _family(cls, value: str) -> str:
        if not families.is_family(value):
            raise ValueError(f"must be {families.DESCRIPTION}.")
        return value

    @field_validator("kling_id")
    @classmethod
    def _kling_id(cls, value: str | None) -> str | None:
        if value and not IDENTIFIER.fullmatch(value):
            raise ValueError(KLING_ID_RULE)
        return value or None

    @field_validator("request")
    @classmethod
    def _request(cls, value: Any) -> Any:
        return redacted(value)

    @field_validator("create_token")
    @classmethod
    def _create_token(cls, value: str) -> str:
        if value.startswith(SENT_HERE):
            raise ValueError(f"must not begin with {SENT_HERE}: the receiver's own attempts do.")
        return value

    @field_validator("tags")
    @classmethod
    def _tags(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(filter(None, map(sanitize, values)))

    @field_validator("hook")
    @classmethod
    def _hook(cls, value: str, info: ValidationInfo) -> str:
        value = value.strip()
        if value and info.context is not None:
            check_web_address(value, info.context)
        return value

    @field_validator("hook_events")
    @classmethod
    def _hook_events(cls, values: list[str], info: ValidationInfo) -> list[str]:
        events = known_events(values)
        if events and info.data.get("hook") == "":  # an invalid hook is not in `data`; its own problem is reported
            raise ValueError("they are of the task's hook. Set `hook`, or remove them.")
        return events

    @field_validator("hook_format")
    @classmethod
    def _hook_format(cls, value: HookFormat, info: ValidationInfo) -> HookFormat:
        if value == "event":
            return value
        if info.data.get("hook") == "":
            raise ValueError("it is of the task's hook. Set `hook`, or remove it.")
        if info.data.get("hook_events"):
            raise ValueError("a hook with the format kling receives each change of the status. Remove `hook_events`.")
        return value

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.outcome == "created" and not self.kling_id:
            raise ValueError("`task_id` is needed with the outcome `created`.")
        if self.outcome is None and not self.create_token:
            raise ValueError("`attempt` is needed before a create: any text that no other create call has.")
        return self


@dataclass(frozen=True, slots=True)
class RegistrationResult:
    """`may_create`: whether this attempt may send the create. `conflict`: why the registration was refused, or None."""

    created: bool = False
    may_create: bool = False
    conflict: str | None = None


def register(tx: Transaction, task_id: str, registration: Registration) -> RegistrationResult:
    """Register a task before its create, or record the outcome after it. Fills missing fields, never resets one."""
    hook_conflict = _hook_conflict(tx, task_id, registration)
    if hook_conflict and registration.outcome is None:
        return RegistrationResult(conflict=hook_conflict)
    task = tx.task(task_id)
    if task is None:
        if removed := removed_tasks(tx.connection, [task_id]):
            return RegistrationResult(conflict=f"{describe_removed(removed[task_id])} Its id is not used again.")
        task = _add(tx, task_id, registration)
        created = True
    else:
        created = False
        if conflict := conflict_with(task, registration):
            return RegistrationResult(conflict=conflict)
        _fill_gaps(tx, task, registration)
    if registration.hook:
        hook_records.add_for_task(tx, task_id, *_hook(registration))
    if registration.outcome:  # recorded in any case: it may be the only report of a task that is paid for
        record_outcome(tx, task, registration)
        return RegistrationResult(created, conflict=hook_conflict and f"The outcome is recorded. {hook_conflict}")
    if may_reopen(task):
        if _too_many_creates(tx, task):
            return RegistrationResult(conflict=f"Task {task_id} was refused {MAX_CREATES} times. Use a new id.")
        _reopen(tx, task, registration)
    return RegistrationResult(created, may_create=_may_create(task, registration.create_token))


def conflict_with(task: TaskRow, registration: Registration) -> str | None:
    """Why a registration is not one of this task: it has another family, or other parameters."""
    if task["family"] != registration.family:
        return f"Task {task['id']} is of the family {task['family']}, not {registration.family}."
    if not may_reopen(task) and _has_other_parameters(task, registration):
        return describe_other_parameters(task, registration.request)
    return None


def _hook_conflict(tx: Transaction, task_id: str, registration: Registration) -> str | None:
    """Why a task's hook cannot be added: the task has another. Its address, which may hold a token, is not shown."""
    if registration.hook and hook_records.has_other_hook(tx, task_id, *_hook(registration)):
        return f"Task {task_id} has a hook already, with another address, events or format: a task has one."
    return None


def _hook(registration: Registration) -> tuple[str, list[str], HookFormat]:
    return registration.hook, registration.hook_events, registration.hook_format


def _has_other_parameters(task: TaskRow, registration: Registration) -> bool:
    """Whether a create with other parameters is announced. The outcome of a create is recorded in any case.

    A client without a digest is never refused. A task without one was registered before there were digests, or by such
    a client: what is stored of its parameters is compared.
    """
    ours, theirs = task["request_sha256"], registration.request_sha256
    if registration.outcome is not None or theirs is None:
        return False
    return ours != theirs if ours else bool(differences(task["request"], registration.request))


def may_reopen(task: TaskRow) -> bool:
    """Whether the create was certainly not accepted: nothing was paid, and another attempt may follow."""
    return task["outcome"] == "not_created" and task["origin"] == "local" and not task["callback_count"]


def _may_create(task: TaskRow, create_token: str) -> bool:
    """Whether the attempt with this nonce may send the create: nothing shows that Kling knows the task."""
    not_sent = task["outcome"] == "pending" and task["status"] == "created" and not task["callback_count"]
    return not_sent and bool(create_token) and bool(task["create_token"] == create_token)


def _add(tx: Transaction, task_id: str, registration: Registration) -> TaskRow:
    tx.add_tasks(
        [
            {
                "id": task_id,
                "family": registration.family,
                "model": registration.model,
                "request": registration.request,
                "request_sha256": registration.request_sha256,
                "outcome": "pending",
                "create_token": registration.create_token,
            }
        ]
    )
    task = tx.tasks[task_id]
    tx.add_event(task_id, "task.created", {"by": "client"})
    _tag(tx, task, registration.tags)
    _open(tx, task)
    return task


def _open(tx: Transaction, task: TaskRow) -> None:
    """Start the deadline and hold the slots, unless the receiver sends the create: then they begin with that."""
    if not slots.is_sent_here(task):
        transitions.enqueue_deadline(tx, task)
        slots.hold(tx, task)


def _too_many_creates(tx: Transaction, task: TaskRow) -> bool:
    """Whether MAX_CREATES is reached."""
    count = select(func.count()).where(EVENT.c.task_id == task["id"], EVENT.c.type == "task.created")
    return bool(tx.connection.execute(count).scalar_one() >= MAX_CREATES)


def _reopen(tx: Transaction, task: TaskRow, registration: Registration) -> None:
    """Reopen a task whose create was not accepted, for another attempt; its local failure is withdrawn.

    From now on the parameters of this attempt count.
    """
    if registration.request or registration.request_sha256:
        tx.update_task(
            task,
            model=registration.model or task["model"],
            request=registration.request or task["request"],
            request_sha256=registration.request_sha256,
        )
    tx.update_task(
        task,
        outcome="pending",
        create_token=registration.create_token,
        status="created",
        status_msg="",
        origin=None,
        done=False,
    )
    tx.add_event(task["id"], "task.created", {"by": "client"})
    _open(tx, task)


def _fill_gaps(tx: Transaction, task: TaskRow, registration: Registration) -> None:
    if registration.model and not task["model"]:
        tx.update_task(task, model=registration.model)
    if registration.request_sha256 and not task["request_sha256"] and not task["request"]:
        tx.update_task(task, request_sha256=registration.request_sha256)  # never that of a request stored before
    if registration.request and not task["request"]:
        tx.update_task(task, request=registration.request)
    _tag(tx, task, registration.tags)


def _tag(tx: Transaction, task: TaskRow, tags: Sequence[str]) -> None:
    if tags:
        tx.flush_new_tasks()
        row = {"task_id": task["id"], "created_at": task["created_at"], "max_tags": MAX_TAGS}
        rows = [{"tag": tag, **row} for tag in sorted(set(tags))]
        INSERT_TAG.executemany(tx.connection, rows)


def record_outcome(
    tx: Transaction, task: TaskRow, registration: Registration, *, refusal: Refusal | None = None
) -> None:
    """Record the outcome of a create. Only the attempt that may send it can say that no task came of it.

    `refusal`: Kling's answer to a create that it refused.
    """
    is_own = registration.create_token == task["create_token"]
    replaced = not is_own and (registration.create_token != "" or slots.is_sent_here(task))
    if registration.request_id and not replaced and task["origin"] != "kling":
        tx.update_task(task, request_id=registration.request_id)
    if registration.outcome == "created":
        _record_created(tx, task, registration)
    elif replaced:
        return  # a later attempt has replaced this one
    elif registration.outcome == "not_created" and task["status"] == "created" and not task["callback_count"]:
        tx.update_task(task, outcome="not_created")
        transitions.fail_locally(tx, task, registration.reason or "Kling did not accept the create.", refusal)
    elif task["outcome"] == "pending":  # also if a callback shows that Kling knows the task
        tx.update_task(task, outcome="unknown")
        if task["status"] == "created":
            tx.update_task(task, status_msg=registration.reason)
        tx.run_now(ask_key(task["id"]))


def _record_created(tx: Transaction, task: TaskRow, registration: Registration) -> None:
    """Record an accepted create. The first report of this attempt replaces an id that a query found."""
    first = task["outcome"] != "created"
    own_report = first and registration.create_token == task["create_token"]
    tx.update_task(task, outcome="created")
    if first or not task["kling_id"]:
        set_kling_id(tx, task, registration.kling_id if own_report else task["kling_id"] or registration.kling_id)
    if registration.finished and task["status"] not in FINAL:
        enqueue.ask(tx, task["id"])


def set_kling_id(tx: Transaction, task: TaskRow, kling_id: str | None) -> None:
    """Set Kling's id of a task, and run a query that waits for it."""
    tx.update_task(task, kling_id=kling_id)
    if task["origin"] == "callback":
        enqueue.ask(tx, task["id"])  # by the new id, which Kling knows
    elif transition(task["status"], task["origin"], "submitted", "kling") == "applied":
        transitions.set_status(tx, task, "submitted", "", "kling")
    tx.run_now(ask_key(task["id"]))
