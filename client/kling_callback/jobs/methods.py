"""The methods of the typed jobs, written once for the blocking and the asynchronous client.

Their parameters are those of the table in `kling_callback.jobs.catalog`; tests compare the two.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from kling_callback.base import BaseFile
from kling_callback.jobs import catalog
from kling_callback.jobs.job import Job

Created = TypeVar("Created")
"""What a method returns: a Task, or a coroutine of an AsyncTask."""
Client = TypeVar("Client", bound=type[Any])

Image: TypeAlias = str | Path | BaseFile
"""A Path or file name, a URL, a data URL, base64, or an image of an earlier result: JPEG or PNG."""
Video: TypeAlias = str | BaseFile
"""A URL, or a video of an earlier result."""
Items: TypeAlias = str | int | Sequence[str | int | Mapping[str, Any]]
"""An id, or a list of ids, or of objects with Kling's fields."""

ImageRatio: TypeAlias = Literal["16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9", "auto"]
VideoRatio: TypeAlias = Literal["16:9", "9:16", "1:1"]
ImageResolution: TypeAlias = Literal["1k", "2k", "4k"]
VideoResolution: TypeAlias = Literal["720p", "1080p", "4k"]
Mode: TypeAlias = Literal["std", "pro", "4k"]
OnOff: TypeAlias = Literal["on", "off"]


class JobMethods(Generic[Created]):
    """A method for each typed job. What is not Kling's (`tags`, `hook`, ...) and the errors are as in `create`.

    None and empty arguments are not sent. Any other parameter of Kling may be given by its name (`more`): one that
    resembles no known name is sent unchanged.
    """

    def text_to_image(
        self,
        /,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        model_name: str | None = None,
        n: int | None = None,
        aspect_ratio: ImageRatio | None = None,
        resolution: ImageResolution | None = None,
        output_format: Literal["png", "jpg"] | None = None,
        element_list: Items | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create images from a text.

        `prompt`, `negative_prompt`: at most 2,500 characters.
        `model_name`: `kling-v3`, `kling-v2-1`; at relays also `kling-v1-5`, `kling-v2`.
        `n`: 1 to 9 images, default 1.
        `aspect_ratio`: width to height, default 16:9.
        `resolution`: default 1k.
        `output_format`: some relays only.
        `element_list`: elements that the prompt names; kling-v3.
        `watermark_info`: True also makes copies with a watermark, default False.
        """
        values = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model_name": model_name,
            "n": n,
            "aspect_ratio": aspect_ratio,
            "resolution": resolution,
            "output_format": output_format,
            "element_list": element_list,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.TEXT_TO_IMAGE, {**values, **more}, tags, hook, hook_events, callback_url, external_task_id, priority
        )

    def image_to_image(
        self,
        /,
        prompt: str,
        image: Image,
        *,
        model_name: str | None = None,
        n: int | None = None,
        aspect_ratio: ImageRatio | None = None,
        resolution: ImageResolution | None = None,
        output_format: Literal["png", "jpg"] | None = None,
        image_reference: Literal["subject", "face"] | None = None,
        image_fidelity: float | None = None,
        human_fidelity: float | None = None,
        element_list: Items | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create images from a text and an image.

        `prompt`: at most 2,500 characters.
        `image`: JPEG or PNG, at most 10 MB, sides of at least 300 pixels, at most 1:2.5 or 2.5:1: a Path or file name,
        a URL, a data URL, base64, or an image of an earlier result.
        `model_name`: `kling-v3`, `kling-v2-1`; at relays also `kling-v1-5`, `kling-v2`.
        `n`: 1 to 9 images, default 1.
        `aspect_ratio`: width to height, default 16:9.
        `resolution`: default 1k.
        `output_format`: some relays only.
        `image_reference`: what to take from the image; kling-v2-1, kling-v1-5.
        `image_fidelity`: 0 to 1, default 0.5; kling-v2-1, kling-v1-5.
        `human_fidelity`: of the face, 0 to 1, default 0.45; kling-v2-1, kling-v1-5.
        `element_list`: elements that the prompt names; kling-v3.
        `watermark_info`: True also makes copies with a watermark, default False.
        """
        values = {
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
            "element_list": element_list,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.IMAGE_TO_IMAGE,
            {**values, **more},
            tags,
            hook,
            hook_events,
            callback_url,
            external_task_id,
            priority,
        )

    def text_to_video(
        self,
        /,
        prompt: str | None = None,
        *,
        negative_prompt: str | None = None,
        model_name: str | None = None,
        cfg_scale: float | None = None,
        mode: Mode | None = None,
        resolution: VideoResolution | None = None,
        aspect_ratio: VideoRatio | None = None,
        duration: str | int | None = None,
        camera_control: Mapping[str, Any] | None = None,
        sound: OnOff | None = None,
        audio: Literal["native", "off"] | None = None,
        voice_list: Items | None = None,
        element_list: Items | None = None,
        multi_shot: bool | None = None,
        shot_type: Literal["customize", "intelligence"] | None = None,
        multi_prompt: Sequence[Mapping[str, Any]] | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create a video from a text. The model selects the standard, and with it the parameters.

        `prompt`: at most 2,500 characters (3,072 for kling-3.0); not needed with `multi_prompt`.
        `model_name`: legacy: `kling-v3`, `kling-v2-6`, `kling-v2-5-turbo`; new: `kling-3.0-turbo`, `kling-3.0`,
        `kling-2.6`, `kling-2.5-turbo`.
        `duration`: seconds: 5 (default) or 10; 3 to 15 for kling-v3, kling-3.0 and kling-3.0-turbo.
        `aspect_ratio`: width to height, default 16:9.
        `watermark_info`: True also makes a copy with a watermark, default False.
        Legacy models only:
        `negative_prompt`: at most 2,500 characters.
        `cfg_scale`: how closely to follow the text, 0 to 1, default 0.5.
        `mode`: std (720p, default), pro (1080p), 4k (kling-v3).
        `camera_control`: `{"type": ..., "config": {...}}`.
        `sound`: default off; kling-v2-6, kling-v3.
        `voice_list`: at most 2 voices; kling-v2-6. `element_list`: at most 3 elements; kling-v3.
        `shot_type`, `multi_prompt`: with `multi_shot`, at most 6 shots; kling-v3.
        New models only:
        `resolution`: default 720p; 4k: kling-3.0.
        `audio`: default off; kling-3.0, kling-2.6 (with 1080p).
        Both: `multi_shot`: several shots; kling-v3 (default False), kling-3.0 (default True).
        """
        values = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "model_name": model_name,
            "cfg_scale": cfg_scale,
            "mode": mode,
            "resolution": resolution,
            "aspect_ratio": aspect_ratio,
            "duration": duration,
            "camera_control": camera_control,
            "sound": sound,
            "audio": audio,
            "voice_list": voice_list,
            "element_list": element_list,
            "multi_shot": multi_shot,
            "shot_type": shot_type,
            "multi_prompt": multi_prompt,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.TEXT_TO_VIDEO, {**values, **more}, tags, hook, hook_events, callback_url, external_task_id, priority
        )

    def image_to_video(
        self,
        /,
        prompt: str | None = None,
        image: Image | None = None,
        *,
        image_tail: Image | None = None,
        first_frame: Image | None = None,
        last_frame: Image | None = None,
        negative_prompt: str | None = None,
        model_name: str | None = None,
        cfg_scale: float | None = None,
        mode: Mode | None = None,
        resolution: VideoResolution | None = None,
        duration: str | int | None = None,
        static_mask: Image | None = None,
        dynamic_masks: Sequence[Mapping[str, Any]] | None = None,
        camera_control: Mapping[str, Any] | None = None,
        sound: OnOff | None = None,
        audio: Literal["native", "off"] | None = None,
        voice_list: Items | None = None,
        element_list: Items | None = None,
        multi_shot: bool | None = None,
        shot_type: Literal["customize", "intelligence"] | None = None,
        multi_prompt: Sequence[Mapping[str, Any]] | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create a video from an image. The model selects the standard, and with it the parameters.

        `prompt`: at most 2,500 characters (3,072 for kling-3.0).
        `image`: the first frame, as in `image_to_image`; at most 50 MB for new models.
        `model_name`: legacy: `kling-v3`, `kling-v2-6`, `kling-v2-5-turbo`; new: `kling-3.0-turbo`, `kling-3.0`,
        `kling-2.6`, `kling-2.5-turbo`.
        `duration`: seconds: 5 (default) or 10; 3 to 15 for kling-v3, kling-3.0 and kling-3.0-turbo.
        `element_list`: at most 3 elements; kling-v3, kling-3.0.
        `voice_list`: at most 2 voices; kling-v2-6, kling-2.6 (with `audio` native).
        `watermark_info`: True also makes a copy with a watermark, default False.
        Legacy models only:
        `image_tail`: the last frame, with or without `image`. It, masks, and `camera_control` exclude each other.
        `static_mask`: an image of what does not move. `dynamic_masks`: at most 6 objects with `mask` (an image) and
        `trajectories` (2 to 77 points `{"x", "y"}` in pixels); kling-v1 to kling-v1-6.
        `camera_control`: `{"type": ..., "config": {...}}`.
        `negative_prompt`: at most 2,500 characters. `cfg_scale`: 0 to 1, default 0.5.
        `mode`: std (720p, default), pro (1080p), 4k (kling-v3).
        `sound`: default off; kling-v2-6, kling-v3.
        `shot_type`, `multi_prompt`: with `multi_shot`, at most 6 shots; kling-v3.
        New models only:
        `first_frame`: another name of `image`.
        `last_frame`: an image; kling-3.0, kling-2.6 and kling-2.5-turbo (both with 1080p).
        `resolution`: default 720p; 4k: kling-3.0.
        `audio`: default off; kling-3.0, kling-2.6 (with 1080p).
        Both: `multi_shot`: several shots; kling-v3 (default False), kling-3.0 (default True).
        """
        values = {
            "prompt": prompt,
            "image": image,
            "image_tail": image_tail,
            "first_frame": first_frame,
            "last_frame": last_frame,
            "negative_prompt": negative_prompt,
            "model_name": model_name,
            "cfg_scale": cfg_scale,
            "mode": mode,
            "resolution": resolution,
            "duration": duration,
            "static_mask": static_mask,
            "dynamic_masks": dynamic_masks,
            "camera_control": camera_control,
            "sound": sound,
            "audio": audio,
            "voice_list": voice_list,
            "element_list": element_list,
            "multi_shot": multi_shot,
            "shot_type": shot_type,
            "multi_prompt": multi_prompt,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.IMAGE_TO_VIDEO,
            {**values, **more},
            tags,
            hook,
            hook_events,
            callback_url,
            external_task_id,
            priority,
        )

    def omni_video(
        self,
        /,
        prompt: str | None = None,
        *,
        model_name: str | None = None,
        first_frame: Image | None = None,
        last_frame: Image | None = None,
        refer_image: Image | Sequence[Image | Mapping[str, Any]] | None = None,
        feature_video: Video | None = None,
        base_video: Video | None = None,
        image_list: Sequence[Image | Mapping[str, Any]] | None = None,
        video_list: Sequence[Video | Mapping[str, Any]] | None = None,
        element_list: Items | None = None,
        mode: Mode | None = None,
        resolution: VideoResolution | None = None,
        aspect_ratio: VideoRatio | None = None,
        duration: str | int | None = None,
        sound: OnOff | None = None,
        audio: Literal["native", "original", "off"] | None = None,
        multi_shot: bool | None = None,
        shot_type: Literal["customize", "intelligence"] | None = None,
        multi_prompt: Sequence[Mapping[str, Any]] | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create or edit a video from texts, images, elements and a video.

        `prompt`: at most 2,500 characters (3,072 for kling-3.0-omni).
        `model_name`: legacy: `kling-v3-omni`, `kling-video-o1`; new: `kling-3.0-omni`, `kling-o1`.
        `element_list`: at most 7 elements.
        `aspect_ratio`: needed by new models without `first_frame` or a video.
        `duration`: seconds, 3 to 15 (kling-o1: 3 to 10), default 5.
        `watermark_info`: True also makes a copy with a watermark, default False.
        New models only:
        `first_frame`, `last_frame`: images; a last one needs a first one.
        `refer_image`: at most 7 images, or objects with `url` (an image) and `id`, by which the prompt names it: @id.
        `feature_video`: a video whose features to take over; `base_video`: a video to edit. One of the two, mp4 or
        mov, at most 200 MB, 3 to 15.5 seconds.
        `resolution`: default 720p; 4k: kling-3.0-omni.
        `audio`: default off; native: kling-3.0-omni.
        Legacy models only:
        `image_list`: images, or objects with `image_url` (an image) and `type`.
        `video_list`: one video, or an object with `video_url`, `refer_type`, `keep_original_sound`.
        `mode`: std (default), pro, 4k. `sound`: default off.
        `shot_type`, `multi_prompt`: with `multi_shot`, at most 6 shots.
        Both: `multi_shot`: several shots; kling-v3-omni (default False), kling-3.0-omni (default True).
        """
        values = {
            "prompt": prompt,
            "model_name": model_name,
            "first_frame": first_frame,
            "last_frame": last_frame,
            "refer_image": refer_image,
            "feature_video": feature_video,
            "base_video": base_video,
            "image_list": image_list,
            "video_list": video_list,
            "element_list": element_list,
            "mode": mode,
            "resolution": resolution,
            "aspect_ratio": aspect_ratio,
            "duration": duration,
            "sound": sound,
            "audio": audio,
            "multi_shot": multi_shot,
            "shot_type": shot_type,
            "multi_prompt": multi_prompt,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.OMNI_VIDEO, {**values, **more}, tags, hook, hook_events, callback_url, external_task_id, priority
        )

    def motion_control(
        self,
        /,
        image: Image,
        video: Video,
        *,
        character_orientation: Literal["image", "video"],
        prompt: str | None = None,
        model_name: str | None = None,
        mode: Literal["std", "pro"] | None = None,
        resolution: Literal["720p", "1080p"] | None = None,
        keep_original_sound: Literal["yes", "no"] | None = None,
        audio: Literal["original", "off"] | None = None,
        element_list: Items | None = None,
        watermark_info: bool | Mapping[str, Any] | None = None,
        tags: Sequence[str] = (),
        hook: str | None = None,
        hook_events: Sequence[str] = (),
        callback_url: str | None = None,
        external_task_id: str | None = None,
        priority: int | None = None,
        **more: Any,
    ) -> Created:
        """Create a video in which the person or creature of an image moves as in a video.

        `image`: as in `image_to_image`; at most 50 MB for new models.
        `video`: mp4 or mov, at least 3 seconds: a URL, or a video of an earlier result.
        `character_orientation`: image (a video of at most 10 seconds) or video (at most 30 seconds).
        `prompt`: at most 2,500 characters.
        `model_name`: legacy: `kling-v3`, `kling-v2-6`; new: `kling-3.0`, `kling-2.6`.
        `element_list`: one element, with `character_orientation` video; kling-v3, kling-3.0.
        `watermark_info`: True also makes a copy with a watermark, default False.
        Legacy models only: `mode`: std (720p, default) or pro (1080p). `keep_original_sound`: default yes.
        New models only: `resolution`: default 720p. `audio`: default original.
        """
        values = {
            "image": image,
            "video": video,
            "character_orientation": character_orientation,
            "prompt": prompt,
            "model_name": model_name,
            "mode": mode,
            "resolution": resolution,
            "keep_original_sound": keep_original_sound,
            "audio": audio,
            "element_list": element_list,
            "watermark_info": watermark_info,
        }
        return self._run(
            catalog.MOTION_CONTROL,
            {**values, **more},
            tags,
            hook,
            hook_events,
            callback_url,
            external_task_id,
            priority,
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
    ) -> Created:
        """Create the job in the way of this client."""
        raise NotImplementedError


def returning(result: type[Any]) -> Callable[[Client], Client]:
    """A class decorator: each job method says that it returns `result`. `help()` would show the type variable."""

    def decorate(client: Client) -> Client:
        for job in catalog.JOBS:
            method = getattr(JobMethods, job.name)
            own = types.FunctionType(method.__code__, method.__globals__, job.name, method.__defaults__)
            own.__kwdefaults__, own.__doc__, own.__module__ = method.__kwdefaults__, method.__doc__, client.__module__
            own.__annotations__ = {**method.__annotations__, "return": result}
            own.__qualname__ = f"{client.__qualname__}.{job.name}"
            setattr(client, job.name, own)
        return client

    return decorate
