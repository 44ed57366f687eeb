"""The shapes in which relays answer instead of Kling: files under other names, reasons, errors inside messages.

Pure functions on parsed JSON. No document raises; the caller limits and cleans the texts.
"""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from kling_callback.protocol.media_types import MEDIA_KINDS, kind_of_suffix
from kling_callback.protocol.urls import is_web_address, may_be_loopback

File = tuple[str, str, Any, Any]
"""A file that a record names: kind, address, and as the relay wrote them its id and its seconds.

The address is "" if it is still to come: that of an entry without one, in a list in which another has one.
"""

WRAPPERS = ("output", "result", "task", "response")
RECORD = frozenset({"task_id", "taskId", "task_status", "status", "state"})
"""Fields around a task's record, and fields of which a record has one."""

ANY_KIND = "file"
"""The kind of a file of which nothing says what it is."""

ADDRESSES = {
    "url": "",
    "resulturl": "",
    "videourl": "video",
    "audiourl": "audio",
    "imageurl": "image",
    "fileurl": "",
    "outputurl": "",
    "contenturl": "",
    "mediaurl": "",
    "downloadurl": "",
    "resource": "",
    "urllist": "",
}
"""Fields with an address, a list of them (`urls`), or objects that have one as `url`, in order of preference.

With the kind that the name tells. Names are compared without `_` and `-`, and in small letters. Only the first one with
an address counts: relays repeat an address under several names, or return the caller's own image beside the result.
"""
CONTAINERS = {
    **dict.fromkeys(("videos", "video"), "video"),
    **dict.fromkeys(("images", "image"), "image"),
    **dict.fromkeys(("audios", "audio"), "audio"),
    **dict.fromkeys(
        ("taskresult", "result", "results", "resultjson", "response", "outputs", "output", "works", "content"), ""
    ),
    **dict.fromkeys(("files", "file", "metadata", "data"), ""),
}
"""Fields whose object, list, or bare address has the files, in order of preference; an object or list also as text."""

CREATED_AT = ("created_at", "create_time", "submit_time", "createTime")
UPDATED_AT = ("updated_at", "update_time", "completed_at", "finish_time", "updateTime", "completeTime")

FIRST_MILLISECONDS = 10**11
"""A smaller time is in seconds: as seconds this one is in the year 5138, as milliseconds in 1973."""

CONTENT_PATH = re.compile(r"/v1/videos/(?!\.{1,2}/)[A-Za-z0-9_.:@=-]{1,256}/content")
"""Where relays serve a video themselves, to those who have the key. No server finds another path encoded in it."""

MAX_DEPTH = 4
MAX_ITEMS = 100

REASONS = ("task_status_msg", "fail_reason", "failure_reason", "error", "error_message", "error_msg", "err_msg")
"""Fields that only a failure has."""
MESSAGES = ("message", "msg", "error", "error_message", "error_msg", "err_msg", "detail", "reason", "description")
"""Fields with the words of an answer that is no record."""

MAX_EMBEDDED_CHARS = 20_000
"""Characters of a message in which an error as JSON is looked for."""
AFTER_ERROR = re.compile(r"[.)\]\"']*\s*(?:\(request id: [^()]*\))?[.\s]*", re.IGNORECASE)
"""What relays write behind an error that they pass on: the end of a sentence, their own request id."""
WRONG_PATH = re.compile(r"invalid url \(|unknown request url", re.IGNORECASE)
"""How OpenAI endpoints answer at a path that they do not have."""


def inner_record(record: dict[str, Any]) -> Any:
    """The record, or list of records, that another one carries: in `data`, where it may be JSON text, or elsewhere."""
    data = record.get("data")
    if data is not None:
        return embedded(data) if isinstance(data, str) else data
    candidates = (record.get(name) for name in WRAPPERS)
    return next((each for each in candidates if isinstance(each, dict) and not RECORD.isdisjoint(each)), None)


def files(record: dict[str, Any]) -> list[File]:
    """The files of a relay's record, from the first of its fields that names any."""
    return [
        (kind, url, None if source is record else source.get("id"), _duration(source, record))
        for kind, url, source in _files(record)
    ]


def _files(record: dict[str, Any], depth: int = 0, kind: str = "") -> list[tuple[str, str, dict[str, Any]]]:
    """Kind, address, and the object that names the file."""
    fields = {_plain(name): value for name, value in list(record.items())[:MAX_ITEMS]}
    for name, of_name in ADDRESSES.items():
        if of_name in MEDIA_KINDS and record.get("object") in MEDIA_KINDS and of_name != record["object"]:
            continue  # the caller's own image, or a preview
        for value in (fields.get(name), fields.get(f"{name}s")):
            found = [(_kind(kind or of_name, url, record), url, record) for url in _addresses(value)]
            if _has_address(found):
                return found
    for name, of_name in CONTAINERS.items() if depth < MAX_DEPTH else ():
        items = _parsed(fields.get(name))
        if name == "data" and isinstance(items, dict):
            continue  # a record of its own
        found = []
        for item in items[:MAX_ITEMS] if isinstance(items, list) else [items]:
            if isinstance(item, dict):
                inner = _files({**_described(record), **item}, depth + 1, kind or of_name)
            else:
                inner = [(_kind(kind or of_name, url, record), url, record) for url in _addresses(item, bare=True)]
            found += inner or ([(_kind(kind or of_name, "", record), "", record)] if _awaits_address(item) else [])
        if _has_address(found):
            return found
    # The first versions of a common relay have a success's address here.
    return [(_kind(kind, url, record), url, record) for url in _addresses(record.get("fail_reason"), bare=True)]


def _has_address(found: list[tuple[str, str, dict[str, Any]]]) -> bool:
    return any(url for _, url, _ in found)


def _awaits_address(item: Any) -> bool:
    """Whether an entry of a list is for an address that is still to come."""
    if isinstance(item, dict):
        return any(value == "" and _plain(name) in ADDRESSES for name, value in list(item.items())[:MAX_ITEMS])
    return bool(item == "")


def content_path(task_id: str) -> str:
    """The path at a relay's own host of a video that has no other address."""
    return f"/v1/videos/{quote(task_id, safe=':@=')}/content"


def is_relays(record: dict[str, Any]) -> bool:
    """Whether a record with a status is of a relay's own making.

    Kling's records have `task_status`, `task_result` or `outputs`, or Kling's words for success.
    """
    status = str(record.get("status") or record.get("state") or "").lower()
    is_kling = not {"task_status", "task_result", "outputs"}.isdisjoint(record) or status in ("succeed", "succeeded")
    return record.get("object") == "video" or (bool(status) and not is_kling)


def _duration(item: dict[str, Any], record: dict[str, Any]) -> Any:
    """The length of a file, by the object that names it, else by its record or the record's `metadata`."""
    metadata = record.get("metadata")
    for source in (item, record, metadata if isinstance(metadata, dict) else {}):
        for name in ("duration", "seconds"):
            if source.get(name) is not None:
                return source[name]
    return None


def first_time(record: dict[str, Any], names: tuple[str, ...]) -> int | None:
    """The first of these fields that is a time, in unix milliseconds."""
    return next((time for name in names if (value := record.get(name)) and (time := _milliseconds(value))), None)


def _milliseconds(value: Any) -> int | None:
    """Unix milliseconds of a time in seconds or milliseconds, a number or a text; None for no time."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
        return int(number * 1000 if number < FIRST_MILLISECONDS else number) if number > 0 else None
    except (ValueError, OverflowError):  # also of infinity
        return None


def whole_address(base: str, url: str) -> str:
    """The address of a file, given by the relay at `base`: a path is one at its own host.

    Relays that do not know their own address name files under `http://localhost:3000`, or `http` for `https`.
    """
    origin = base_origin(base)
    if url.startswith("/"):
        return f"{origin}{url}"
    try:
        own, parts = urlsplit(origin), urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return url
    lost = may_be_loopback(host) and not may_be_loopback(own.hostname or "")
    plain = parts.scheme == "http" and own.scheme == "https" and parts.netloc.lower() == own.netloc
    return f"{origin}{parts.path}" if CONTENT_PATH.fullmatch(parts.path) and (lost or plain) else url


def base_origin(base: str) -> str:
    """Scheme, host and port of an address, without a path."""
    parts = urlsplit(base)
    return f"{parts.scheme}://{parts.netloc}"


def reason(record: dict[str, Any], names: tuple[str, ...] = (*REASONS, "message")) -> str:
    """Why a record's task failed, or its message; "" for none. An error as JSON inside is read."""
    for name in names:
        if (value := record.get(name)) and (text := _words(value)) and not is_web_address(text):
            return text
    return ""


def error_of(document: dict[str, Any], *, strict: bool = False, depth: int = 0) -> tuple[Any, str, Any]:
    """The code, words and request id of an answer: of the innermost error, where a relay passes on Kling's as text.

    Between other words only an object with a number as code and a message is an error; another may be the request,
    quoted. `strict`: nothing may follow it, as in a failure that proves nothing of itself.
    """
    error = document.get("error")
    code = document.get("code")
    if code in (None, "") and isinstance(error, dict):
        code = error.get("code") or error.get("type")
    request_id, words = document.get("request_id"), ""
    for name in MESSAGES:
        value = document.get(name)
        inner, before, after = _split(value) if depth < MAX_DEPTH else (None, "", "")
        if inner is not None:
            inner_code, inner_words, inner_id = error_of(inner, strict=strict, depth=depth + 1)
            is_named = isinstance(inner_code, int) and (not strict or bool(AFTER_ERROR.fullmatch(after)))
            if inner_words and (is_named or not (before or after)):
                return code if inner_code in (None, "") else inner_code, inner_words, inner_id or request_id
        words = words or _words(value)
    return code, words, request_id


def is_openai(document: dict[str, Any]) -> bool:
    """Whether an answer is that of an OpenAI endpoint: its images, its lists and chats, its error for a wrong path."""
    if WRONG_PATH.search(error_of(document)[1]):
        return True
    if isinstance(document.get("created"), int) and isinstance(document.get("data") or document.get("choices"), list):
        return True
    return document.get("object") == "list" and isinstance(document.get("data"), list)


def embedded(value: Any) -> dict[str, Any] | None:
    """The JSON object that a message is or contains: `status_code=429, {"code":1303,...}`."""
    return _split(value)[0]


def _split(value: Any) -> tuple[dict[str, Any] | None, str, str]:
    """The JSON object that a message is or contains, and the words before and after it."""
    if isinstance(value, dict):
        return value, "", ""
    if not isinstance(value, str) or (start := value.find("{", 0, MAX_EMBEDDED_CHARS)) < 0:
        return None, "", ""
    try:
        found, end = json.JSONDecoder().raw_decode(value[:MAX_EMBEDDED_CHARS], start)
    except (ValueError, RecursionError):
        return None, "", ""
    return found, value[:start].strip(), value[end:].strip()


def _words(value: Any, depth: int = 0) -> str:
    """The text of a message, or of the error that it is or contains."""
    text = ""
    if depth < MAX_DEPTH:
        if isinstance(value, list):
            text = "; ".join(filter(None, (_words(item, depth + 1) for item in value[:5])))
        inner, before, after = _split(value)
        if inner is not None and (isinstance(inner.get("code"), int) or not (before or after)):
            text = next(filter(None, (_words(inner.get(name), depth + 1) for name in MESSAGES)), "")
    return text or (value.strip() if isinstance(value, str) else "")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def _addresses(value: Any, *, bare: bool = False) -> Iterator[str]:
    """The addresses that a field has. `bare`: the field may have other texts; a path is no address then."""
    for each in value[:MAX_ITEMS] if isinstance(value, list) else [value]:
        item = each.get("url") if isinstance(each, dict) else each
        if isinstance(item, str) and (is_web_address(item) or (not bare and re.match(r"/[^/\\\s]", item))):
            yield item
        elif isinstance(value, list) and item == "":
            yield ""


def _parsed(value: Any) -> Any:
    """A value that is JSON as text, parsed; any other unchanged."""
    if not isinstance(value, str) or len(value) > MAX_EMBEDDED_CHARS or not value.lstrip().startswith(("{", "[")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _described(record: dict[str, Any]) -> dict[str, Any]:
    """What a record says of the files in it."""
    return {name: record[name] for name in ("object", "format", "duration", "seconds") if name in record}


def _kind(known: str, url: str, record: dict[str, Any]) -> str:
    """The kind of a file, by its field's name, the record's format, its address, or the record's own kind."""
    if known:
        return known
    named = (str(record[name]).lower() for name in ("format", "mime_type", "content_type") if name in record)
    format_ = next(named, "")
    path = url.partition("?")[0].partition("#")[0]
    for hint in (format_.partition("/")[0], kind_of_suffix(format_), kind_of_suffix(path)):
        if hint in MEDIA_KINDS:
            return hint
    own = {str(record.get(name)).lower() for name in ("object", "type")}
    return next((kind for kind in MEDIA_KINDS if kind in own), ANY_KIND)
