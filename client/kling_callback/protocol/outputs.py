"""What one record of a result holds: the addresses of its files, and what Kling made that is no file.

Pure functions over Kling's JSON, which may hold anything.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from kling_callback.protocol.media_types import MEDIA_KINDS, kind_of_suffix
from kling_callback.protocol.urls import is_web_address

FILE_KINDS = (*MEDIA_KINDS, "watermark")
"""Kinds of records that are files."""
KINDS = (*FILE_KINDS, "file", "result")
"""These, or details of a result; a record of another kind (`element`) is an output of its own."""

MAIN_FIELDS = ("url", "url_mp3", "mp3_url", "url_wav", "wav_url")
"""The fields of a result's own file, in the order in which the files are listed."""
NUMBERED_FIELD = re.compile(r"url_?([0-9]{1,3})")
WATERMARK_FIELD = re.compile(r"(?:.*_)?watermark(?:ed)?(?:_.*)?")
COPY_FIELD = re.compile(r"(?:.*_)?(?:cover|preview|poster|thumb|thumbnail|snapshot)(?:_.*)?")
"""Fields with a picture of the result."""
GIVEN_FIELD = re.compile(r"(?:callback|webhook|share|page|web|input|source|origin|original|ref|reference)(?:_.*)?")
"""Fields with addresses that are no results: what the caller gave, and pages."""
URL_FIELD = re.compile(r"(?:.*_)?(?:url|uri|href|link)(?:_.*)?")
OBJECT_ID = re.compile(r"(?!(?:task|request|group|image|video|audio|file|parent|origin|external|model|trace)_).+_id")
"""Fields with an id that a later job takes: `session_id`, `element_id`, `voice_id`."""

MAX_OBJECT_CHARS = 4000
"""Characters of the JSON of one output that is no file."""
MAX_FIELDS = 200
"""Fields of one record that are read."""
MAX_DEPTH = 10


def file_fields(kind: str, addresses: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """The fields of a record of this kind that name files: its results, their watermarked copies, other files.

    `addresses`: the texts in its fields. What else there is counts as the result of a record without one: another
    file, then a watermarked copy, and at last a cover. An address is listed once.
    """
    main, others, marked, last = (dict[str, str]() for _ in range(4))
    for name in sorted(addresses, key=_order):
        address = addresses[name]
        if name in MAIN_FIELDS or NUMBERED_FIELD.fullmatch(name):
            main.setdefault(address, name)
        elif not is_web_address(address):
            continue
        elif WATERMARK_FIELD.fullmatch(name):
            marked.setdefault(address, name)
        elif GIVEN_FIELD.fullmatch(name):
            if kind in KINDS and kind_of_suffix(_path(address)):
                last.setdefault(address, name)
        elif URL_FIELD.fullmatch(name) or kind_of_suffix(_path(address)):
            (last if COPY_FIELD.fullmatch(name) else others).setdefault(address, name)
    results = main or others or marked or last
    marks, more = ([name for url, name in group.items() if url not in results] for group in (marked, others))
    return list(results.values()), marks, more


def _order(name: str) -> tuple[int, int]:
    """Fields of the result's own file first, numbered ones by their number; `sorted` keeps the order of the others."""
    if name in MAIN_FIELDS:
        return 0, MAIN_FIELDS.index(name)
    number = NUMBERED_FIELD.fullmatch(name)
    return (1, int(number[1])) if number else (2, 0)


def _path(address: str) -> str:
    try:
        return urlsplit(address).path
    except ValueError:
        return ""


def kind_of_file(kind: str, name: str, address: str) -> str:
    """The kind of the file in the field `name` of a record of this kind: by its suffix unless the record tells."""
    told = kind in MEDIA_KINDS and (name in MAIN_FIELDS or bool(NUMBERED_FIELD.fullmatch(name)))
    if told or WATERMARK_FIELD.fullmatch(name):
        return kind
    return kind_of_suffix(_path(address)) or ("file" if kind in KINDS else kind)


def kind_of_single(kind: str, item: Mapping[str, Any]) -> str:
    """The kind of a record that is in no list: without an id it holds details of the result."""
    named = any((name == "id" or OBJECT_ID.fullmatch(name)) and value for name, value in item.items())
    return kind if kind in KINDS or named else "result"


def object_of(kind: str, item: Mapping[str, Any], files: set[str]) -> dict[str, Any] | None:
    """What a record holds beside its files, with Kling's names; None if that is nothing of use.

    `files`: the fields that name files. A record of files is of use if it has an id that a later job takes.
    """
    rest = {name: value for name, value in item.items() if name not in files}
    useful = [name for name, value in rest.items() if value not in ("", None, [], {})]
    if kind in KINDS:
        useful = [name for name in useful if OBJECT_ID.fullmatch(name)]
    if not set(useful) - {"index", "type", "status", "duration"}:
        return None
    if json_chars(rest) <= MAX_OBJECT_CHARS:
        return rest
    kept: dict[str, Any] = {}
    for name in list(rest)[:MAX_FIELDS]:
        if json_chars(kept | {name: rest[name]}) <= MAX_OBJECT_CHARS:
            kept[name] = rest[name]
    return kept or None


def awaits_file(kind: str, item: Mapping[str, Any], files: set[str]) -> bool:
    """Whether a record is that of a file whose address comes later. `files`: the fields that name files."""
    if files or kind not in KINDS:
        return False
    return kind in FILE_KINDS or any(name in MAIN_FIELDS or NUMBERED_FIELD.fullmatch(name) for name in item)


def json_chars(value: Any) -> float:
    """Characters of the JSON of a value; infinity if a database's JSON cannot hold it: a NUL, NaN, great depth."""
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        text.encode()
        fits = "\\u0000" not in text and _depth(value) <= MAX_DEPTH
    except (ValueError, RecursionError):  # also UnicodeEncodeError: a lone surrogate
        return math.inf
    return len(text) if fits else math.inf


def _depth(value: Any) -> int:
    """The depth of nested lists and objects. Raises RecursionError."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)
