"""AsyncKling, the asynchronous client: create tasks, wait for them, download their files."""

from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

import httpx
from anyio import to_thread

from kling_callback import calls
from kling_callback.api.http import create_client
from kling_callback.api.kling import KlingApi, auth_from
from kling_callback.api.receiver import PAGE_SIZE, ReceiverApi, Submission
from kling_callback.api.retry import RetryPolicy
from kling_callback.creation import CreateCall, TaskHook, check_call, check_key, check_sender
from kling_callback.errors import ParameterError, ProblemCollector
from kling_callback.events import follow, last_event
from kling_callback.jobs.body import without_callback
from kling_callback.jobs.job import Job
from kling_callback.jobs.methods import JobMethods, returning
from kling_callback.jobs.untyped import prepare, prepare_job
from kling_callback.loops.binding import LoopBinding
from kling_callback.protocol.events import Event, LogPosition
from kling_callback.protocol.families import family_problems
from kling_callback.protocol.ids import check_any_id
from kling_callback.protocol.signing import api_token
from kling_callback.settings import ClientSettings
from kling_callback.tasks import AsyncTask, with_files

TOKEN_LIFETIME_SECONDS = 300
"""Seconds for which a bearer token made here is valid: it is used for one request. A stream is renewed so often."""


@returning(AsyncTask)
class AsyncKling(JobMethods[Coroutine[Any, Any, AsyncTask]]):
    """An asynchronous client of Kling and its receiver. Open it with `async with`, or call `aclose`.

    May be used in several event loops (`asyncio.run` again, other threads), and after a fork.
    """

    def __init__(
        self,
        *,
        api_base: str | None = None,
        allow_http_api: bool | None = None,
        api_key: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        signing_secrets: Sequence[str] | str | None = None,
        receiver_token: str | None = None,
        receiver_url: str | None = None,
        receiver_internal_url: str | None = None,
        settings: ClientSettings | None = None,
        retry: RetryPolicy | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """Arguments that are None are read from the environment or `.env`, as `KLING_` and the name in capitals.

        `settings`: all settings at once, from `ClientSettings.load`; the others are then ignored.
        `retry`: retries and timeouts. `http`: your own HTTP client, for one event loop, which `aclose` closes.
        Raises SettingsError with all problems. Without any setting of a receiver, only `call` and `tasks_at_kling`
        work; the other methods raise SettingsError.
        """
        self._settings = settings or ClientSettings.load_for_program(
            api_base=api_base,
            allow_http_api=allow_http_api,
            api_key=api_key,
            access_key=access_key,
            secret_key=secret_key,
            signing_secrets=signing_secrets,
            receiver_token=receiver_token,
            receiver_url=receiver_url,
            receiver_internal_url=receiver_internal_url,
        )
        self._http = http or create_client()
        self._binding = LoopBinding() if http else None
        self._receiver = ReceiverApi(self._http, self._settings.receiver_base, self._token, retry or RetryPolicy())
        self._kling_api = KlingApi(self._settings.api_base, auth_from(self._settings), self._http)

    async def run(
        self,
        job: Job,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
    ) -> AsyncTask:
        """Create one of the typed jobs of `kling_callback.jobs.catalog`; `values`: its parameters, checked first.

        Other arguments and errors as in `create`.
        """
        problems, family, body = ProblemCollector(), job.endpoints[0].family, dict(values)
        with problems:
            family, body = await to_thread.run_sync(prepare_job, job, await with_files(values))
        return await self._create(
            problems,
            family,
            body,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=external_task_id,
            priority=priority,
        )

    async def create(
        self,
        family: str,
        body: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
    ) -> AsyncTask:
        """Create a task of any job, and return it once Kling has it, or the receiver if that sends the create.

        `family`: a path under `/v1` (`videos/effects`), or a path of the new standard with a leading slash.
        `body`: Kling's parameters, JSON. Where Kling accepts an image, it may be a Path, a file name, a data URL or an
        image of an earlier result; where it accepts a video's URL, a video of an earlier result.
        `tags`: labels; at most 20, of at most 100 characters.
        `hook`: URL to which the receiver POSTs this task's events, signed with the secret that its command
        `kling-receiver hooks task-secret` prints; a task has one. `hook_events`: types of events, if not all.
        `callback_url`: instead of a hook, an address for what Kling itself would post, on each change of the status:
        its record, with the receiver's links to the files, signed as a hook. In the body it means the same.
        `external_task_id`: becomes the task's id; a second call with the same one continues that task.
        `priority`: an integer; the receiver sends the highest first. Only for a client without a Kling key: its creates
        are sent by the receiver, and the task is returned before Kling has it (`queue_position`).

        Raises ParameterError, SettingsError or ReceiverError before anything is sent, NotCreated when Kling certainly
        did not accept the create. If the outcome is unknown, the task is returned with `outcome` `unknown`: `wait`
        finds out, and the create is never sent again. CreateUnknown is raised only if the answer was not Kling's.
        """
        problems, sent = ProblemCollector(), dict[str, Any]()
        with problems:
            if not isinstance(family, str):
                raise ParameterError(family_problems(family))
            sent = await to_thread.run_sync(prepare, family, await with_files(body))
        return await self._create(
            problems,
            str(family),
            sent,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=external_task_id,
            priority=priority,
        )

    def _run(
        self,
        job: Job,
        values: Mapping[str, Any],
        tags: Sequence[str],
        hook: str | None,
        hook_events: Sequence[str],
        callback_url: str | None,
        external_task_id: str | None,
        priority: int | None,
    ) -> Coroutine[Any, Any, AsyncTask]:
        return self.run(
            job,
            values,
            tags=tags,
            hook=hook,
            hook_events=hook_events,
            callback_url=callback_url,
            external_task_id=external_task_id,
            priority=priority,
        )

    async def _create(
        self,
        problems: ProblemCollector,
        family: str,
        body: dict[str, Any],
        *,
        tags: Sequence[str],
        hook: str | None,
        hook_events: Sequence[str],
        callback_url: str | None,
        external_task_id: str | None,
        priority: int | None,
    ) -> AsyncTask:
        """Report all problems, also those that were found before; then create the task."""
        task_id, distinct_tags, task_hook = "", tuple[str, ...](), TaskHook()
        with problems:
            task_id, distinct_tags, task_hook = check_call(
                family,
                body,
                tags=tags,
                hook=hook,
                hook_events=hook_events,
                callback_url=callback_url,
                external_task_id=external_task_id,
            )
        with problems:
            check_sender(self._settings, family, priority)
        with problems:
            self._settings.check_receiver()
        problems.raise_all()
        if not self.sends_creates:
            submission = Submission(
                task_id,
                family,
                without_callback(family, body),
                distinct_tags,
                hook=task_hook.address,
                hook_events=task_hook.events,
                hook_format=task_hook.format,
                priority=priority,
            )
            return AsyncTask(self._receiver, await self._receiver.submit(submission))
        creation = CreateCall(
            self._kling_api,
            self._receiver,
            self._settings,
            task_id=task_id,
            family=family,
            body=without_callback(family, body),
            tags=distinct_tags,
            hook=task_hook,
        )
        return await creation.run()

    async def task(self, task_id: str) -> AsyncTask:
        """Read a task from the receiver. Raises ReceiverError, ParameterError for an invalid id.

        `task_id`: our id, Kling's, or the `external_task_id` that another program sent.
        """
        return AsyncTask(self._receiver, await self._receiver.task(_valid_id(task_id)))

    async def tasks(
        self,
        *,
        status: str | None = None,
        family: str | None = None,
        model: str | None = None,
        tag: str | None = None,
        task_id: str | None = None,
        limit: int = PAGE_SIZE,
    ) -> list[AsyncTask]:
        """List at most `limit` tasks, newest first. The filters are optional. Raises ReceiverError.

        `task_id`: Kling's id.
        """
        filters = {"status": status, "family": family, "model": model, "tag": tag, "task_id": task_id}
        tasks = await self._receiver.tasks(limit, **filters)
        return [AsyncTask(self._receiver, task) for task in tasks]

    async def cancel(self, task_id: str) -> AsyncTask:
        """Remove a task from the receiver's queue: it is never sent to Kling, costs nothing, and ends as `failed`.

        `task_id`: any id of the task. Raises ReceiverError; with the `http_status` 409 if the task was sent, for Kling
        has no cancel.
        """
        return AsyncTask(self._receiver, await self._receiver.cancel(_valid_id(task_id)))

    async def call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Call an endpoint of Kling's that answers at once, and return its answer's JSON, unchanged.

        GET without a `body`, else POST. `path`: under `/v1` (`videos/identify-face`, `general/presets-voices`), or of
        the account (`account/costs?start_time=...&end_time=...`). Needs a Kling key, and no receiver.

        A call is paid for: it is sent again only if Kling certainly did not accept it. Raises ParameterError before
        anything is sent, NotCreated when Kling did not accept the call, CreateUnknown when it may have.
        """
        self._check_loop()
        problems, target, content = ProblemCollector(), path, None
        with problems:
            target, content = await to_thread.run_sync(calls.prepare_call, path, await with_files(body))
        with problems:
            check_key(self._settings)
        problems.raise_all()
        return await calls.call(self._kling_api, self._receiver.retry, target, content)

    async def tasks_at_kling(self, family: str, *, limit: int = PAGE_SIZE) -> list[dict[str, Any]]:
        """List at most `limit` tasks of a legacy family as Kling itself has them: Kling's records, newest first.

        Raises ParameterError for another family, GatewayError if Kling gives no list.
        """
        self._check_loop()
        problems = ProblemCollector()
        with problems:
            calls.check_listed(family)
        with problems:
            check_key(self._settings)
        problems.raise_all()
        return await calls.tasks_at_kling(self._kling_api, self._receiver.retry, family, limit)

    def attach(self, task_id: str) -> AsyncTask:
        """A handle to a task by any of its ids, without a request: `wait` raises ReceiverError if there is none."""
        return AsyncTask(self._receiver, {"id": _valid_id(task_id), "status": "created"})

    async def events(
        self, *, after: str | None = None, on_reconnect: Callable[[], object] | None = None
    ) -> AsyncGenerator[Event, None]:
        """Yield the past events of all tasks, then live ones, without end. Reconnects when the connection breaks.

        `after`: the `cursor` of an event; only later ones are yielded. `on_reconnect`: called when the connection is
        open again: a task that ended and was removed meanwhile has no events any more. Raises ParameterError for any
        other text as `after`, and ReceiverError. Its `code` is `other_log` once the receiver's database was restored or
        replaced: the cursor is of no use then. Begin again without it, and expect events that you had before.
        """
        async with aclosing(follow(self._receiver, after=_position(after), on_reconnect=on_reconnect)) as events:
            async for event in events:
                yield event

    async def last_event(self) -> str:
        """The cursor of the newest event, or of the beginning when there is none. Raises ReceiverError."""
        return str(await last_event(self._receiver))

    @property
    def receiver_reached(self) -> bool:
        """Whether the receiver has answered a request. Until then, this client has sent no create to Kling."""
        return self._receiver.reached

    @property
    def sends_creates(self) -> bool:
        """Whether this client sends its creates to Kling; without a Kling key the receiver does."""
        return bool(self._settings.key_fingerprint)

    async def aclose(self) -> None:
        """Close all connections that belong to this event loop."""
        if not self._binding or self._binding.is_here():
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _check_loop(self) -> None:
        if self._binding:
            self._binding.check()

    def _token(self) -> str:
        self._check_loop()
        settings = self._settings
        settings.check_receiver()
        return settings.receiver_token or api_token(settings.signing_secrets, "client", TOKEN_LIFETIME_SECONDS)


def _valid_id(task_id: str) -> str:
    try:
        return check_any_id(task_id)
    except ValueError as error:
        raise ParameterError([str(error)]) from None


def _position(cursor: str | None) -> LogPosition | None:
    try:
        return None if cursor is None else LogPosition.parse(cursor)
    except (ValueError, TypeError):
        raise ParameterError([f"after: {cursor!r} is not the `cursor` of an event."]) from None
