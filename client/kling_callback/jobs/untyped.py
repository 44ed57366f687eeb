"""The body of `create`, for any family: files become what Kling accepts, and what is certainly wrong is refused."""

import base64
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kling_callback.errors import ParameterError, ProblemCollector
from kling_callback.jobs.body import check_depth, json_problems
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.images import DATA_URL, MAX_BYTES, MAX_BYTES_NEW, MAX_NAME_CHARS, encode_image
from kling_callback.jobs.inputs import InputFile
from kling_callback.jobs.job import Job
from kling_callback.jobs.parameters import embedded
from kling_callback.jobs.spelling import misspelt
from kling_callback.protocol.families import family_problems, is_new_standard
from kling_callback.protocol.redact import is_empty

IMAGE_NAME = re.compile(r"(.*_)?(image|mask|frame)s?(_\d+|_tail|_list|_urls?|_\d+_url)?")
"""Names of image parameters, in any family: `image`, `images`, `subject_image`, `static_mask`, `image_tail`, ..."""
MEDIA_NAME = re.compile(rf"{IMAGE_NAME.pattern}|(.*_)?(url|video|audio|sound|voice)s?(_file|_url|_list)?")
"""Names of parameters whose value may be a URL or base64 of an image, a video or a sound."""
LOCAL_PATH = re.compile(r"file:|~?/(?!9j/|/)|\.{1,2}[/\\]|[A-Za-z]:[\\/](?!/)", re.IGNORECASE)
"""How a path begins, as base64 of a JPEG (`/9j/`) or of a sound (`//`) does not."""
URL = re.compile(r"https?://", re.IGNORECASE)
IMAGE_TYPES = ("first_frame", "last_frame", "refer_image", "image")
"""Types of entries of `contents` whose `url` is an image."""
REFUSED_URL = "https://refused.invalid/"
"""Stands for an image that was refused: it is given, so that no other check calls it missing."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
AUDIO_SUFFIXES = (".mp3", ".wav", ".m4a", ".aac")
VIDEO_SUFFIXES = (".mp4", ".mov")


def prepare(family: str, body: Any, *, local_files: bool = True) -> dict[str, Any]:
    """The body to send, with files encoded. Blocks to read them. Raises ParameterError with all problems.

    `local_files`: False for a body of someone else, whose names of files are refused: no file is read.
    """
    problems = family_problems(family)
    if isinstance(body, Mapping):
        problems += _misspelt(family, body)
    try:
        sent = encode_files(family, body, local_files=local_files)
    except ParameterError as error:
        problems += error.problems
    if problems:
        raise ParameterError(problems)
    return sent


def prepare_job(job: Job, values: Mapping[str, Any], *, local_files: bool = True) -> tuple[str, dict[str, Any]]:
    """The family and the body of a typed job; parameters that its table does not have are as in other bodies.

    `local_files`: as in `prepare`. Blocks to read files. Raises ParameterError with all problems.
    """
    problems, family, body = ProblemCollector(), job.endpoints[0].family, dict[str, Any]()
    if not local_files:
        values, refused = _embedded(job, values)
        with problems:
            if refused:
                raise ParameterError(refused)
    with problems:
        family, body = job.create(values)
    in_table = {each.name for each in job.parameters}.union(*(endpoint.refused or () for endpoint in job.endpoints))
    with problems:
        others = {name: value for name, value in values.items() if name not in in_table}
        encode_files(family, others, local_files=local_files)
    problems.raise_all()
    return family, prepare(family, body, local_files=local_files)


def _embedded(job: Job, values: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values in which no text names a file, and the problems of those that do. Raises ParameterError."""
    check_depth(values)
    endpoint, _ = job.endpoint_of(str(values.get("model_name") or ""))
    found, problems = dict(values), list[str]()
    for parameter in endpoint.parameters:
        if is_empty(values.get(parameter.name)):
            continue
        try:
            found[parameter.name] = embedded(parameter.kind, values[parameter.name])
        except ValueError as error:
            problems.append(f"{parameter.name}: {error}")
            found[parameter.name] = REFUSED_URL
    return found, problems


def encode_files(path: str, body: Any, *, local_files: bool = True) -> dict[str, Any]:
    """The body with its files as Kling accepts them. Blocks to read them. Raises ParameterError with all problems."""
    check_depth(body)
    encoder = _Encoder(MAX_BYTES_NEW if is_new_standard(path) else MAX_BYTES, local_files=local_files)
    sent = encoder.encode(body, "")
    if problems := [*encoder.problems, *json_problems(sent)]:
        raise ParameterError(problems)
    return dict(sent)


class _Encoder:
    """Replaces files in a body. `problems`: of the values that cannot be sent."""

    def __init__(self, max_bytes: int, *, local_files: bool) -> None:
        self._max_bytes, self._local_files = max_bytes, local_files
        self.problems: list[str] = []

    def encode(self, value: Any, name: str) -> Any:
        """The value with its files encoded. `name`: the field's, in messages with the names around it."""
        if isinstance(value, Mapping):
            is_image = value.get("type") in IMAGE_TYPES
            return {
                field: self.encode(each, f"{name}.{'image' if is_image and field == 'url' else field}".lstrip("."))
                for field, each in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.encode(each, name) for each in value]
        try:
            return self._encode(value, name.rpartition(".")[2])
        except ValueError as error:
            self.problems.append(f"{name}: {error}")
            return None

    def _encode(self, value: Any, field: str) -> Any:
        if not self._local_files:
            return self._encode_text(value, field)
        if isinstance(value, InputFile):
            return encode_image(value, self._max_bytes) if value.kind == "image" else value.address(value.kind)
        if isinstance(value, Path):
            return self._encode_file(value)
        if isinstance(value, str) and IMAGE_NAME.fullmatch(field) and _is_local(value):
            return encode_image(Path(value) if value.lower().endswith(IMAGE_SUFFIXES) else value, self._max_bytes)
        return value

    def _encode_text(self, value: Any, field: str) -> Any:
        """The value of a field of someone else's body: no file is opened, nor looked for."""
        if isinstance(value, str) and IMAGE_NAME.fullmatch(field) and DATA_URL.match(value):
            return encode_image(value, self._max_bytes)
        if isinstance(value, str) and _is_path(value, field):
            raise ValueError("is the name of a file, which only its own machine can read. Send base64 or a URL.")
        return value

    def _encode_file(self, path: Path) -> str:
        suffix = path.suffix.lower()
        if suffix in VIDEO_SUFFIXES:
            raise ValueError("is a video file; Kling accepts videos by URL only.")
        if suffix in AUDIO_SUFFIXES:
            try:
                return base64.b64encode(path.read_bytes()).decode()
            except OSError as error:
                raise ValueError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
        return encode_image(path, self._max_bytes)


def _is_local(text: str) -> bool:
    """Whether a text in an image's place is a data URL, or the name of an image file. Base64 has no point."""
    is_name = text.lower().endswith(IMAGE_SUFFIXES) and "://" not in text and len(text) < MAX_NAME_CHARS
    return bool(DATA_URL.match(text)) or is_name


def _is_path(text: str, field: str) -> bool:
    """Whether a text in the place of a file names one of a machine: by its suffix, or by how it begins."""
    if not MEDIA_NAME.fullmatch(field) or len(text) >= MAX_NAME_CHARS:
        return False
    has_suffix = text.lower().endswith((*IMAGE_SUFFIXES, *AUDIO_SUFFIXES, *VIDEO_SUFFIXES))
    return LOCAL_PATH.match(text) is not None or (has_suffix and not URL.match(text))


def _misspelt(family: str, body: Mapping[str, Any]) -> list[str]:
    """The misspelt parameters of a family that the table of typed jobs has."""
    endpoints = [each for job in JOBS for each in job.endpoints if each.family == family]
    known = {each.sent_as or each.name for endpoint in endpoints for each in endpoint.parameters}
    settings = body.get("settings") if is_new_standard(family) else None
    names = [*body, *(settings if isinstance(settings, Mapping) else ())]
    return list(misspelt(filter(lambda name: isinstance(name, str), names), known)) if known else []
