"""AsyncKling: register, create, wait, download. `client.blocking` has the same without `await`."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from anyio import to_thread

from kling_callback.creation import CreateCall
from kling_callback.errors import ParameterError, SettingsError
from kling_callback.events import follow, last_event
from kling_callback.http import create_client
from kling_callback.jobs.body import check_create, chosen_id
from kling_callback.jobs.catalog import IMAGE_TO_IMAGE, TEXT_TO_IMAGE, TEXT_TO_VIDEO, Job
from kling_callback.kling_api import KlingApi, auth_from
from kling_callback.protocol.events import Event
from kling_callback.protocol.families import is_new_standard
from kling_callback.protocol.ids import DESCRIPTION, is_id, new_id
from kling_callback.protocol.signing import api_token
from kling_callback.receiver_api import PAGE_SIZE, ReceiverApi
from kling_callback.retry import RetryPolicy
from kling_callback.settings import ClientSettings, ReceiverAccessSettings
from kling_callback.tasks import AsyncTask

TOKEN_LIFETIME_SECONDS = 300
"""Seconds for which a bearer token made here is good: it is made for one request."""

MAX_TAG_CHARS, MAX_TAGS = 100, 20
"""Characters of a tag, and tags of a task, that the receiver takes."""


class AsyncKling:
    """Kling with a receiver. Open it with `async with`, or end it with `aclose`."""

    def __init__(
        self,
        *,
        api_base: str | None = None,
        api_key: str | None = None,
        access_key: str | None = None,
        secret_key: str | None = None,
        signing_secrets: Sequence[str] | str | None = None,
        receiver_token: str | None = None,
        receiver_url: str | None = None,
        receiver_internal_url: str | None = None,
        settings: ReceiverAccessSettings | None = None,
        retry: RetryPolicy | None = None,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        """Each setting is the variable `KLING_` and its name in the environment, unless it is given here.

        `settings`: all of them, already read. `http`: a client of your own; it is closed with this.
        Raises SettingsError, which lists all problems.
        """
        self._settings = settings or ClientSettings.load(
            api_base=api_base,
            api_key=api_key,
            access_key=access_key,
            secret_key=secret_key,
            signing_secrets=signing_secrets,
            receiver_token=receiver_token,
            receiver_url=receiver_url,
            receiver_internal_url=receiver_internal_url,
        )
        base = self._settings.receiver_base
        self._http = http or create_client(base)
        self._receiver = ReceiverApi(self._http, base, self._token, retry or RetryPolicy())
        self._kling_api = KlingApi(self._settings.api_base, auth_from(self._settings), self._http)

    async def text_to_image(
        self,
        /,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        model_name: str | None = None,
        n: int | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        external_task_id: str | None = None,
        **more: Any,
    ) -> AsyncTask:
        """Make images from a text. `more`: parameters that only Kling knows. Raises as `create` does."""
        given = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model_name": model_name,
            "n": n,
            "aspect_ratio": aspect_ratio,
            "resolution": resolution,
            "output_format": output_format,
        }
        return await self.run(TEXT_TO_IMAGE, {**given, **more}, tags=tags, hook=hook, external_task_id=external_task_id)

    async def image_to_image(
        self,
        /,
        prompt: str,
        image: Path | str,
        *,
        model_name: str | None = None,
        n: int | None = None,
        aspect_ratio: str | None = None,
        resolution: str | None = None,
        output_format: str | None = None,
        image_reference: str | None = None,
        image_fidelity: float | None = None,
        human_fidelity: float | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        external_task_id: str | None = None,
        **more: Any,
    ) -> AsyncTask:
        """Make images from a text and an image: a Path, a URL, a data URL, a file's name, or base64."""
        given = {
            "prompt": prompt,
            "image": image,
            "model_name": model_name,
            "n": n,
            "aspect_ratio": aspect_ratio,
            "resolution": resolution,
            "output_format": output_format,
            "image_reference": image_reference,
            "image_fidelity": image_fidelity,
            "human_fidelity": human_fidelity,
        }
        return await self.run(
            IMAGE_TO_IMAGE, {**given, **more}, tags=tags, hook=hook, external_task_id=external_task_id
        )

    async def text_to_video(
        self,
        /,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        model_name: str | None = None,
        cfg_scale: float | None = None,
        mode: str | None = None,
        aspect_ratio: str | None = None,
        duration: str | int | None = None,
        camera_control: Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        external_task_id: str | None = None,
        **more: Any,
    ) -> AsyncTask:
        """Make a video from a text. `duration`: seconds. Raises as `create` does."""
        given = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model_name": model_name,
            "cfg_scale": cfg_scale,
            "mode": mode,
            "aspect_ratio": aspect_ratio,
            "duration": duration,
            "camera_control": camera_control,
        }
        return await self.run(TEXT_TO_VIDEO, {**given, **more}, tags=tags, hook=hook, external_task_id=external_task_id)

    async def run(
        self,
        job: Job,
        values: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        external_task_id: str | None = None,
    ) -> AsyncTask:
        """One of the typed jobs of `client.jobs`, its parameters checked first."""
        body = await to_thread.run_sync(job.body, values)
        return await self.create(job.family, body, tags=tags, hook=hook, external_task_id=external_task_id)

    async def create(
        self,
        family: str,
        body: Mapping[str, Any],
        *,
        tags: Sequence[str] = (),
        hook: str | None = None,
        external_task_id: str | None = None,
    ) -> AsyncTask:
        """Any job: `family` is a path under `/v1`, or with a leading slash one of the new standard.

        `external_task_id` becomes the task's id; the same one again continues that task. `hook`: an address
        that the receiver POSTs this task's events to, signed with its KLING_HOOK_SECRET.
        Raises ParameterError, SettingsError or ReceiverError before anything is sent, NotCreated when Kling
        surely did not take it. When nobody can know, the task comes back with `outcome` `unknown`:
        its `wait` works, and nothing is ever sent twice.
        """
        check_create(family, body)
        task_id = chosen_id(family, body, external_task_id) or new_id()
        self._check_key(family)
        creation = CreateCall(
            self._kling_api,
            self._receiver,
            self._settings,
            task_id=task_id,
            family=family,
            body=dict(body),
            tags=_tags(tags),
            hook=hook or "",
        )
        return await creation.run()

    async def task(self, task_id: str) -> AsyncTask:
        """A task that the receiver knows, by our id. Raises ReceiverError."""
        return AsyncTask(self._receiver, await self._receiver.task(_checked(task_id)))

    async def tasks(
        self,
        *,
        status: str | None = None,
        family: str | None = None,
        tag: str | None = None,
        limit: int = PAGE_SIZE,
    ) -> list[AsyncTask]:
        """At most `limit` tasks, newest first. Raises ReceiverError."""
        found = await self._receiver.tasks(limit, status=status, family=family, tag=tag)
        return [AsyncTask(self._receiver, task) for task in found]

    def attach(self, task_id: str) -> AsyncTask:
        """A task that nobody was asked about yet: `wait` finds out whether there is one."""
        return AsyncTask(self._receiver, {"id": _checked(task_id), "status": "created"})

    async def events(self, *, after: int | None = None) -> AsyncGenerator[Event, None]:
        """What happens to any task: what has been, then live, without end, however often the connection breaks.

        `after`: the id of an event; it and those before are left out. Raises ReceiverError.
        """
        async with aclosing(follow(self._receiver, after=after)) as events:
            async for event in events:
                yield event

    async def last_event(self) -> int:
        """The id of the newest event, 0 when there is none. Raises ReceiverError."""
        return await last_event(self._receiver)

    @property
    def receiver_reached(self) -> bool:
        """Whether the receiver has answered. Before, no create was sent."""
        return self._receiver.reached

    async def aclose(self) -> None:
        """Close all connections."""
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

    def _check_key(self, family: str) -> None:
        if not self._settings.key_fingerprint:
            raise SettingsError(["KLING_API_KEY is missing (or KLING_ACCESS_KEY and KLING_SECRET_KEY)."])
        if is_new_standard(family) and not self._settings.api_key:
            raise ParameterError([f"family: {family} takes no access key and secret key. Set KLING_API_KEY."])

    def _token(self) -> str:
        settings = self._settings
        return settings.receiver_token or api_token(settings.signing_secrets, "client", TOKEN_LIFETIME_SECONDS)


def _checked(task_id: str) -> str:
    if not is_id(task_id):
        raise ParameterError([f"{task_id!r} cannot be a task's id. {DESCRIPTION}"])
    return task_id


def _tags(tags: Sequence[str]) -> tuple[str, ...]:
    """One tag or several; a string is one."""
    listed = tuple(dict.fromkeys((tags,) if isinstance(tags, str) else tags))
    problems = []
    if not all(0 < len(str(tag)) <= MAX_TAG_CHARS and str(tag).isprintable() for tag in listed):
        problems.append(f"tags: each must be text, not empty, on one line, at most {MAX_TAG_CHARS} characters.")
    if len(listed) > MAX_TAGS:
        problems.append(f"tags: there are {len(listed)}, at most {MAX_TAGS}.")
    if problems:
        raise ParameterError(problems)
    return listed
