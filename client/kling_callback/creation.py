"""One create: register it, send it, report its outcome. A task is never paid for twice:

register ─▶ send ─┬─ taken ──────────────▶ report created
                  ├─ not accepted ───────▶ retry for a while (only after 1302, 1303, no connection),
                  │                        then report not_created
                  └─ unknown ────────────▶ query it by our id a few times, never send it again,
                                           report created or unknown
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

import anyio

from kling_callback.api.create import CreateOutcome, created, find_created, is_lost, judge, may_resend, not_created
from kling_callback.api.kling import KlingApi
from kling_callback.api.receiver import ReceiverApi, Registered, Registration
from kling_callback.api.retry import RetryPolicy
from kling_callback.base import is_created
from kling_callback.display import logger
from kling_callback.errors import (
    CreateUnknown,
    GatewayError,
    KlingError,
    NotCreated,
    ParameterError,
    ProblemCollector,
    ReceiverError,
    SettingsError,
)
from kling_callback.jobs.body import chosen_callback, chosen_id, model_of, with_callback
from kling_callback.protocol.events import TYPES
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.redact import digest, redacted
from kling_callback.protocol.reports import Report
from kling_callback.protocol.urls import normalize_url
from kling_callback.protocol.values import MAX_PRIORITY
from kling_callback.settings import ClientSettings
from kling_callback.tasks import AsyncTask

log = logger("kling_callback.creation")


MAX_TAG_CHARS, MAX_TAGS = 100, 20
"""Characters of a tag, and tags of a task: the receiver's limits."""

KEY_MISSING = (
    "KLING_API_KEY is missing (or KLING_ACCESS_KEY and KLING_SECRET_KEY). Set it: this call goes to Kling itself, and "
    "the receiver sends creates only."
)

HOOK_AND_CALLBACK = (
    "callback_url: becomes the task's hook, in Kling's format, which receives each change of the status. "
    "Remove it, or hook and hook_events."
)

MAX_FINGERPRINT_CHARS = 256
"""Characters of the fingerprints of all keys: the receiver's limit."""


@dataclass(frozen=True, slots=True)
class TaskHook:
    """The hook of a task; no `address`: it has none. `events`: types of events, if not all.

    `format`: of the bodies: the receiver's event, or the record that Kling itself posts.
    """

    address: str = ""
    events: tuple[str, ...] = ()
    format: Literal["event", "kling"] = "event"


def check_call(
    family: str,
    body: Any,
    *,
    tags: Sequence[str],
    hook: str | None,
    hook_events: Sequence[str],
    callback_url: str | None,
    external_task_id: str | None,
) -> tuple[str, tuple[str, ...], TaskHook]:
    """Check what belongs to a create beside its parameters.

    Returns the task's id, chosen or new, the distinct tags, and the task's hook. Raises ParameterError with all
    problems.
    """
    problems, task_id, address = ProblemCollector(), None, ""
    distinct_tags, distinct_events = tuple[str, ...](), tuple[str, ...]()
    with problems:
        task_id = chosen_id(family, body, external_task_id)
    with problems:
        distinct_tags = _valid_tags(tags)
    with problems:
        _check_address("hook", hook)
    with problems:
        address = chosen_callback(family, body, callback_url)
        _check_address("callback_url", address)
    with problems:
        distinct_events = _valid_events(hook_events, hook or address)
        if address and (hook or distinct_events):
            raise ParameterError([HOOK_AND_CALLBACK])
    problems.raise_all()
    task_hook = TaskHook(address, format="kling") if address else TaskHook(hook or "", distinct_events)
    return task_id or new_id(), distinct_tags, task_hook


def check_key(settings: ClientSettings) -> None:
    """Check that the settings have a key for calls that the receiver does not make. Raises SettingsError."""
    if not settings.key_fingerprint:
        raise SettingsError([KEY_MISSING])


def check_sender(settings: ClientSettings, family: str, priority: Any) -> None:
    """Check what depends on the sender of a create: this client if it has a key, else the receiver.

    Raises ParameterError with all problems.
    """
    problems = priority_problems(priority)
    if priority is not None and settings.key_fingerprint:
        problems.append(
            "priority: works only if the receiver sends the create. Remove it, or unset KLING_API_KEY (or "
            "KLING_ACCESS_KEY and KLING_SECRET_KEY), so that the receiver does."
        )
    if settings.key_fingerprint and is_new_standard(family) and not settings.api_key:
        problems.append(f"family: {family} does not accept access key and secret key. Set KLING_API_KEY.")
    if problems:
        raise ParameterError(problems)


def priority_problems(priority: Any) -> list[str]:
    """Why a value is not a priority; [] for one, and for None."""
    if priority is None or (type(priority) is int and abs(priority) <= MAX_PRIORITY):  # True is an int as well
        return []
    return [f"priority: must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}."]


def _valid_tags(tags: Any) -> tuple[str, ...]:
    """The distinct tags; a string is one tag. Raises ParameterError."""
    given = (tags,) if isinstance(tags, str) else tags
    if not isinstance(given, Iterable):
        raise ParameterError(["tags: must be a list of texts."])
    distinct = tuple(dict.fromkeys(map(str, given)))
    problems = []
    if not all(0 < len(tag) <= MAX_TAG_CHARS and tag.isprintable() for tag in distinct):
        problems.append(f"tags: each must be text, not empty, on one line, at most {MAX_TAG_CHARS} characters.")
    if len(distinct) > MAX_TAGS:
        problems.append(f"tags: there are {len(distinct)}, at most {MAX_TAGS}.")
    if problems:
        raise ParameterError(problems)
    return distinct


def _valid_events(events: Any, hook: Any) -> tuple[str, ...]:
    """The distinct types of events of the task's hook; a string is one type. Raises ParameterError."""
    given = (events,) if isinstance(events, str) else () if events is None else events
    if not isinstance(given, Iterable):
        raise ParameterError(["hook_events: must be a list of types of events."])
    distinct = tuple(sorted(set(map(str, given))))
    problems = []
    if distinct and not hook:
        problems.append("hook_events: they are of the task's hook. Set hook, or remove them.")
    for event in distinct:
        if event not in TYPES:
            closest = get_close_matches(event[:MAX_TAG_CHARS], TYPES, 1)
            suggestion = f"Did you mean {closest[0]}?" if closest else f"Set some of: {', '.join(TYPES)}."
            problems.append(f"hook_events: {event[:MAX_TAG_CHARS]!r} is not a type of events. {suggestion}")
    if problems:
        raise ParameterError(problems)
    return distinct


def _check_address(name: str, address: Any) -> None:
    try:
        if address:
            normalize_url(str(address).partition("?")[0])
    except ValueError as error:
        raise ParameterError([f"{name}: {error}"]) from None


class CreateCall:
    """One create call. `outcome`: at each moment what is known of it, for the report after an interruption."""

    def __init__(
        self,
        kling_api: KlingApi,
        receiver: ReceiverApi,
        settings: ClientSettings,
        *,
        task_id: str,
        family: str,
        body: dict[str, Any],
        tags: tuple[str, ...] = (),
        hook: TaskHook = TaskHook(),
    ) -> None:
        self._kling_api, self._receiver, self._retry = kling_api, receiver, receiver.retry
        self._task_id, self._family, self._body = task_id, family, body
        self._registration = Registration(
            family=family,
            model=model_of(family, body),
            request=redacted(body),
            request_sha256=digest(body),
            base=settings.api_base,
            key_fingerprint=",".join(settings.key_fingerprints)[:MAX_FINGERPRINT_CHARS],
            tags=tags,
            hook=hook.address,
            hook_events=hook.events,
            hook_format=hook.format,
            create_token=secrets.token_urlsafe(16),
        )
        self.outcome = CreateOutcome("not_created", reason="It was interrupted before it was sent.")
        self._unreported: str | None = None

    async def run(self) -> AsyncTask:
        """Return the task, new or registered before. Raises NotCreated, or ReceiverError before anything was sent."""
        registered = await self._register()
        task = await self._create(registered) if registered.may_create else await self._continue(registered.task)
        return AsyncTask(self._receiver, task, unreported=self._unreported)

    async def _register(self) -> Registered:
        try:
            return await self._receiver.register(self._task_id, self._registration)
        except ReceiverError as error:
            error.outcome = "not_created"
            raise

    async def _create(self, registered: Registered) -> dict[str, Any]:
        try:
            refusal = await self._send(registered.callback_url)
            task = await self._report(registered.task)
        except BaseException:
            await self._report_interrupted()
            raise
        if refusal:
            raise refusal
        return task

    async def _continue(self, task: dict[str, Any]) -> dict[str, Any]:
        """Return a task that was registered before. Sends no create; queries Kling once if the outcome is unknown."""
        if is_created(task) or task.get("done") or task["status"] != "created":
            return task
        if report := await find_created(self._kling_api, self._family, self._task_id):
            self.outcome = created(report)
            return await self._report(task)
        return task

    async def _send(self, callback_url: str) -> GatewayError | None:
        """Send the create until its outcome is final or unknown. Returns the error if no task can come of it."""
        body = with_callback(self._family, self._body, self._task_id, callback_url)
        try:
            report = await self._retry.retry(
                lambda: self._try(body), resend_rule(self._retry), self._retry.create_seconds
            )
            self.outcome = created(report)
        except GatewayError as error:
            self.outcome = await judge(self._kling_api, self._family, self._task_id, error)
            if self.outcome.outcome == "not_created" or is_lost(error):
                return error
            if isinstance(error, CreateUnknown):
                log.warning(
                    "It is not known yet whether Kling took task %s. It is not sent again. %s", self._task_id, error
                )
                await self._search_created()
        return None

    async def _try(self, body: dict[str, Any]) -> Report:
        self.outcome = CreateOutcome("unknown", reason="It was interrupted while it was sent.")
        try:
            return await self._kling_api.create(self._family, body)
        except NotCreated as error:
            self.outcome = not_created(error)
            raise

    async def _search_created(self) -> None:
        for pause in self._retry.lookup_waits:
            await anyio.sleep(pause * self._retry.jitter())
            if report := await find_created(self._kling_api, self._family, self._task_id):
                self.outcome = created(report)
                return

    async def _report(self, task: dict[str, Any]) -> dict[str, Any]:
        """Report the outcome to the receiver. If that fails, a callback or the deadline still finds the task."""
        try:
            return await self._receiver.report(self._task_id, self._registration, self.outcome)
        except ReceiverError as error:
            outcome, kling_id, reason = self.outcome.outcome, self.outcome.kling_id, self.outcome.reason
            self._unreported = (
                f"The outcome of the create of task {self._task_id} could not be reported to the receiver: {outcome}"
                f"{f', {kling_id} at Kling' if kling_id else ''}. {error}{f' {reason}' if reason else ''}"
            )
            log.warning("%s", self._unreported)
            unknown = {"status_msg": reason} if outcome == "unknown" else {}
            return {**task, "task_id": task.get("task_id") or kling_id, **unknown}

    async def _report_interrupted(self) -> None:
        """Report what is known of the outcome, briefly, after an interruption."""
        log.warning("Interrupted. If Kling took task %s, wait for it with: kling wait %s", self._task_id, self._task_id)
        # RuntimeError: the HTTP client was closed meanwhile. The caller gets the interruption, not these errors.
        with (
            anyio.move_on_after(self._retry.interrupt_seconds, shield=True),
            suppress(KlingError, RuntimeError),
        ):
            await self._receiver.report(self._task_id, self._registration, self.outcome, retry=False)


def resend_rule(retry: RetryPolicy) -> Callable[[KlingError], bool]:
    """Whether to send a create or a call again, from now on. Without a connection, retries end sooner."""
    started_at = anyio.current_time()

    def again(error: KlingError) -> bool:
        waited = anyio.current_time() - started_at
        return may_resend(error) and (error.code is not None or waited < retry.connect_seconds)

    return again
