"""The results of a task, by the kind of its family: `task_result` of the legacy standard, `outputs` of the new one."""

from typing import Any

from kling_sandbox.api.parameters import is_url
from kling_sandbox.tasks import MULTI_SHOT, WATERMARK, Task

VIDEO_SECONDS, AUDIO_SECONDS = "5.0", "2.0"
OWNER = "1000001"
"""The creator's number in elements and voices; those of Kling's own library have the word `kling`."""


def legacy_results(task: Task) -> dict[str, list[dict[str, Any]]]:
    """The `task_result` of a task."""
    if task.path == MULTI_SHOT:
        urls = {f"url_{number}": task.file_url(name) for number, name in enumerate(task.files, 1)}
        return {"images": [{"index": 0, **urls}]}
    if task.family.kind == "images":
        name = "series_images" if task.is_series else "images"
        return {name: [{"index": index, **_addresses(task, file)} for index, file in enumerate(task.files)]}
    return {task.family.kind: [LEGACY[task.family.kind](task)]}


def outputs(task: Task) -> list[dict[str, Any]]:
    """The `outputs` of a task."""
    if task.family.kind == "images":
        return [{"type": "image", **_addresses(task, file), "group_id": task.result_id} for file in task.files]
    return [{"type": task.family.kind.removesuffix("s"), "id": task.result_id, **NEW[task.family.kind](task)}]


def _addresses(task: Task, name: str) -> dict[str, str]:
    """The address of an image or video, and that of its watermarked copy."""
    url = "" if task.has("watermark-only") else task.file_url(name)
    return {"url": url} | ({"watermark_url": task.file_url(watermarked(name))} if task.has_watermark else {})


def without_addresses(results: Any) -> Any:
    """The results without the fields that are addresses."""
    if isinstance(results, dict):
        return {name: without_addresses(value) for name, value in results.items() if not is_url(value)}
    return [without_addresses(each) for each in results] if isinstance(results, list) else results


def without_address(results: Any, address: str) -> Any:
    """The results with an empty text in place of an address."""
    if isinstance(results, dict):
        return {name: without_address(value, address) for name, value in results.items()}
    if isinstance(results, list):
        return [without_address(each, address) for each in results]
    return "" if results == address else results


def watermarked(name: str) -> str:
    """The name of the watermarked copy of a file."""
    return name.replace(".", WATERMARK)


def _video(task: Task) -> dict[str, Any]:
    return _addresses(task, task.files[0]) | {"duration": VIDEO_SECONDS}


def _legacy_video(task: Task) -> dict[str, Any]:
    video = {"id": task.result_id, **_video(task)}
    if task.path == "videos/multi-elements":
        video["session_id"] = task.body.get("session_id", task.alias)
    if task.path == "videos/effects":
        del video["duration"]
    return video


def _legacy_audio(task: Task) -> dict[str, Any]:
    mp3, wav = map(task.file_url, task.files)
    lengths = {"duration_mp3": AUDIO_SECONDS, "duration_wav": AUDIO_SECONDS}
    return {"id": task.result_id, "url_mp3": mp3, "url_wav": wav, **lengths}


def _audio(task: Task) -> dict[str, Any]:
    mp3, wav = map(task.file_url, task.files)
    return {"mp3_url": mp3, "wav_url": wav, "mp3_duration": AUDIO_SECONDS, "wav_duration": AUDIO_SECONDS}


def _legacy_element(task: Task) -> dict[str, Any]:
    return {
        "element_id": int(task.result_id),
        "element_name": task.body.get("element_name", "element"),
        "element_description": task.body.get("element_description", ""),
        "reference_type": task.body.get("reference_type", "image_refer"),
        "tag_list": task.body.get("tag_list", []),
        "owned_by": OWNER,
        "status": "succeed",
    }


def _element(task: Task) -> dict[str, Any]:
    frontal = task.body.get("element_image_list", {}).get("frontal_image")
    is_video = task.body.get("reference_type") == "video_refer"
    return {
        "name": task.body.get("element_name", "element"),
        "description": task.body.get("element_description", ""),
        "element_type": "video_character_elements" if is_video else "multi_image_elements",
        "references": [{"type": "image", "role": "frontal", "url": frontal}] if is_url(frontal) else [],
        "owned_by": OWNER,
        "status": "succeeded",
    }


def _legacy_voice(task: Task) -> dict[str, Any]:
    name = task.body.get("voice_name", "voice")
    return {
        "voice_id": task.result_id,
        "voice_name": name,
        "trial_url": task.file_url(task.files[0]),
        "owned_by": OWNER,
    }


def _voice(task: Task) -> dict[str, Any]:
    name = task.body.get("voice_name", "voice")
    return {"name": name, "url": task.file_url(task.files[0]), "owned_by": OWNER, "status": "succeeded"}


LEGACY = {"videos": _legacy_video, "audios": _legacy_audio, "elements": _legacy_element, "voices": _legacy_voice}
NEW = {"videos": _video, "audios": _audio, "elements": _element, "voices": _voice}
