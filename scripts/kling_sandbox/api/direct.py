"""Endpoints whose answer is the result: no task, no callback, no external id."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kling_sandbox.api.auth import authenticate
from kling_sandbox.api.bodies import marks, parse
from kling_sandbox.api.families import Family
from kling_sandbox.api.faults import error_response, lose, openai_error, refuse
from kling_sandbox.api.parameters import (
    ANY_LIST,
    ID,
    IMAGE,
    URL,
    Rule,
    integer,
    number,
    one_of,
    problems,
    text,
    without_empty,
)
from kling_sandbox.api.queries import page_of
from kling_sandbox.api.replies import ApiError, broken_json, envelope
from kling_sandbox.misbehaviour import Has
from kling_sandbox.records.relays import openai_images
from kling_sandbox.state import Call, State
from kling_sandbox.tasks import Task, now
from kling_sandbox.web.http import Request, Response, json_response

SECOND_MS = 1000
MASK = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAGbaHmgAAAABJRU5ErkJggg=="
"""An image of one white pixel."""
PRESETS = 40
"""Voices, and elements, of Kling's own library."""

Answer = Callable[[Task, dict[str, Any]], dict[str, Any]]
"""The data of an answer, by a task that exists only for its files, and the body."""


@dataclass(frozen=True)
class Endpoint:
    """An endpoint that a body is posted to. `needs`: its parameters, of a tuple exactly one. `files`: what it makes."""

    answer: Answer
    needs: tuple[str | tuple[str, ...], ...]
    rules: Mapping[str, Rule]
    files: tuple[str, ...] = ()


class Direct:
    """The routes of these endpoints. Each request is in the sandbox's `calls`."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def post(self, request: Request, path: str) -> Response:
        """Answer a call that has a body."""
        values = parse(request.body)
        self._state.record(self._state.calls, Call("POST", path, values, now()))
        has = self._state.switches(marks(request.body))
        try:
            return self._answer(request, path, without_empty(values), has)
        except ApiError as error:
            return error_response(error, has)

    def _answer(self, request: Request, path: str, body: dict[str, Any], has: Has) -> Response:
        authenticate(request, self._state, has, new=False)
        endpoint = POSTS[path]
        _check(endpoint, body)
        if refusal := refuse(self._state, has, path):
            return refusal
        data = endpoint.answer(self._made(request, path, body, has, endpoint.files), body)
        return lose(has) or json_response(envelope(data))

    async def get(self, request: Request, path: str) -> Response:
        """Answer one page of Kling's own voices or elements."""
        self._state.record(self._state.calls, Call("GET", path, request.query, now()))
        has = self._state.switches()
        authenticate(request, self._state, has, new=False)
        if has("query-5xx") or (has("query-5xx-once") and self._state.is_first("query-5xx-once", path)):
            raise ApiError(5001, "Service unavailable")
        if has("query-garbage"):
            return broken_json()
        page, size = page_of(request, 1000)
        numbers = range(PRESETS)[(page - 1) * size : page * size]
        task = self._made(request, path, {}, has, ("trial.mp3",))
        return json_response(envelope([_preset(GETS[path](task, number), number) for number in numbers]))

    async def openai_images(self, request: Request) -> Response:
        """Answer as OpenAI's endpoint for images, which relays have beside Kling's routes."""
        body = parse(request.body)
        self._state.record(self._state.calls, Call("POST", request.path, body, now()))
        has = self._state.switches(marks(request.body))
        try:
            authenticate(request, self._state, has, new=False)
        except ApiError as error:
            return openai_error(401, "invalid_api_key", error.message)
        task = self._made(request, "openai", body, has, ("0.png",))
        return json_response(openai_images(task.file_url("0.png"), now()))

    def _made(self, request: Request, path: str, body: dict[str, Any], has: Has, files: tuple[str, ...]) -> Task:
        """A task that nobody can query: it has the files of an answer."""
        task = self._state.make(path, Family(path, "files"), body, has, request.origin, names=files)
        task.status, task.finished_at = "succeed", now()
        self._state.shown[task.id] = task
        return task


def _check(endpoint: Endpoint, body: dict[str, Any]) -> None:
    for need in endpoint.needs:
        names = need if isinstance(need, tuple) else (need,)
        if len(body.keys() & set(names)) != 1:
            raise ApiError(1201, f"{'exactly one of ' * (len(names) > 1)}{' and '.join(names)} is required")
    if found := problems(endpoint.rules, body):
        raise ApiError(1201, "; ".join(found))


def _cost(units: str) -> dict[str, Any]:
    return {"final_unit_deduction": units}


def _speech(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    audio = {"id": task.result_id, "url": task.file_url("0.mp3"), "duration": "2.0"}
    return {
        "task_id": task.id,
        "task_status": "succeed",
        "task_status_msg": "",
        "task_result": {"audios": [audio]},
        **_cost("0.05"),
        "created_at": task.created_at,
        "updated_at": task.updated_at,
    }


def _faces(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    face = {"face_id": "0", "face_image": task.file_url("0.png"), "start_time": 0, "end_time": 5 * SECOND_MS}
    return {"session_id": task.result_id, **_cost("0.05"), "face_data": [face]}


SEGMENTS = ("object_seg", "head_seg", "face_seg", "cloth_seg")


def _segments(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    urls = map(task.file_url, task.files)
    images = [{"type": kind, "is_contain": True, "url": url} for kind, url in zip(SEGMENTS, urls, strict=True)]
    return {"task_result": {"images": images}, **_cost("0.1")}


def _session(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    return {"status": 0, "session_id": body.get("session_id", task.result_id), **_cost("0")}


def _started(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    size = {"width": 720, "height": 1280, "fps": 30.0, "original_duration": 5 * SECOND_MS, "total_frame": 150}
    return _session(task, body) | size | {"normalized_video": task.file_url("0.mp4")}


def _selected(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    size = [1280, 720]
    masks = {"rle_mask": {"size": size, "counts": "PPYo0"}, "png_mask": {"size": size, "base64": MASK}}
    res = {"frame_index": body["frame_index"], "rle_mask_list": [{"object_id": 0, **masks}]}
    return _session(task, body) | {"res": res}


def _preview(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    video, cover, tracking = map(task.file_url, task.files)
    return _session(task, body) | {"res": {"video": video, "video_cover": cover, "tracking_output": tracking}}


def _deleted(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    return {"task_id": task.id, "task_status": "succeed"}


VIDEO = (("video_id", "video_url"),)
FILM = {"video_id": ID, "video_url": URL}
SESSION = {"session_id": ID}
POINTS = {"session_id": ID, "frame_index": integer(0, 10**6), "points": ANY_LIST}
SPEECH = {"text": text(1000), "voice_id": ID, "voice_language": one_of("zh", "en"), "voice_speed": number(0.8, 2)}

POSTS = {
    "audio/tts": Endpoint(_speech, ("text",), SPEECH, ("0.mp3",)),
    "videos/identify-face": Endpoint(_faces, VIDEO, FILM, ("0.png",)),
    "videos/image-recognize": Endpoint(_segments, ("image",), {"image": IMAGE}, ("0.png", "1.png", "2.png", "3.png")),
    "videos/multi-elements/init-selection": Endpoint(_started, VIDEO, FILM, ("0.mp4",)),
    "videos/multi-elements/add-selection": Endpoint(_selected, tuple(POINTS), POINTS),
    "videos/multi-elements/delete-selection": Endpoint(_selected, tuple(POINTS), POINTS),
    "videos/multi-elements/clear-selection": Endpoint(_session, tuple(SESSION), SESSION),
    "videos/multi-elements/preview-selection": Endpoint(_preview, tuple(SESSION), SESSION, ("0.mp4", "1.png", "2.mp4")),
    "general/delete-elements": Endpoint(_deleted, ("element_id",), {"element_id": ID}),
    "general/delete-advanced-elements": Endpoint(_deleted, ("element_id",), {"element_id": ID}),
    "general/delete-voices": Endpoint(_deleted, ("voice_id",), {"voice_id": ID}),
}


def _preset(result: dict[str, Any], number: int) -> dict[str, Any]:
    """Kling's lists of its own library consist of tasks, too."""
    return {"task_id": str(number), "task_status": "succeed", "task_status_msg": "", "task_result": result}


def _voice(task: Task, number: int) -> dict[str, Any]:
    voice = {"voice_id": f"voice-{number}", "voice_name": f"Voice {number}", "trial_url": task.file_url("trial.mp3")}
    return {"voices": [voice | {"owned_by": "kling"}]}


def _element(task: Task, number: int) -> dict[str, Any]:
    element = {
        "element_id": number,
        "element_name": f"Element {number}",
        "element_description": "",
        "status": "succeed",
    }
    return {"elements": [element | {"owned_by": "kling"}]}


GETS = {"general/presets-voices": _voice, "general/advanced-presets-elements": _element}
