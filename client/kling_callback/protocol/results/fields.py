"""The fields of one record of a result: which of them name files, and what Kling made that is no file.

Pure functions over Kling's JSON, which may hold anything.
"""

import re
from collections.abc import Mapping
from typing import Any

from kling_callback.protocol.media_types import MEDIA_KINDS, kind_of_suffix
from kling_callback.protocol.urls import is_web_address, split_url
from kling_callback.protocol.values import json_chars

Kind = str
"""`image`, `video` or `audio`; `watermark` for a watermarked copy; Kling's own name for anything newer."""

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


def file_fields(kind: Kind, addresses: Mapping[str, str]) -> tuple[list[str], list[str], list[str]]:
    """The fields of a record of this kind that name files: its results, their watermarked copies, other files.

    `addresses`: the texts in its fields, "" for a file whose address comes later. What else there is counts as the
    result of a record without one: another file, then a watermarked copy, and at last a cover. An address is listed
    once.
    """
    main, others, marked, last = (dict[str, str]() for _ in range(4))
    for name in sorted(addresses, key=_order):
        address = addresses[name]
        if _is_main(name):
            main.setdefault(address or name, name)
        elif address and not is_web_address(address):
            continue
        elif WATERMARK_FIELD.fullmatch(name):
            marked.setdefault(address or name, name)
        elif GIVEN_FIELD.fullmatch(name):
            if kind in KINDS and kind_of_suffix(split_url(address).path):
                last.setdefault(address, name)
        elif URL_FIELD.fullmatch(name) or kind_of_suffix(split_url(address).path):
            (last if COPY_FIELD.fullmatch(name) else others).setdefault(address, name)
    results = main or others or marked or last
    marks, more = ([name for url, name in group.items() if url not in results] for group in (marked, others))
    return list(results.values()), marks, more


def _order(name: str) -> int:
    """Fields of the result's own file first, then numbered ones; `sorted` keeps the order of the others."""
    if name in MAIN_FIELDS:
        return MAIN_FIELDS.index(name)
    number = NUMBERED_FIELD.fullmatch(name)
    return len(MAIN_FIELDS) + int(number[1]) if number else 0


def kind_of_file(kind: Kind, name: str, address: str) -> Kind:
    """The kind of the file in the field `name` of a record of this kind: by its suffix unless the record tells."""
    told = kind in MEDIA_KINDS and _is_main(name)
    if told or WATERMARK_FIELD.fullmatch(name):
        return kind
    return kind_of_suffix(split_url(address).path) or ("file" if kind in KINDS else kind)


def kind_of_single(kind: Kind, item: Mapping[str, Any]) -> Kind:
    """The kind of a record that is in no list: without an id, or a field for a file, it holds details of the result."""
    named = any((name == "id" or OBJECT_ID.fullmatch(name)) and value for name, value in item.items())
    has_file = kind in KINDS and any(_is_main(name) or is_web_address(value) for name, value in item.items())
    return kind if named or has_file else "result"


def object_of(kind: Kind, item: Mapping[str, Any], files: set[str]) -> dict[str, Any] | None:
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


def awaited_fields(kind: Kind, item: Mapping[str, Any], files: set[str], named: set[str] | None) -> set[str]:
    """The fields of a record whose file has no address yet; `url` of a record that is only known to be a file's.

    `files`: the fields that name files. `named`: the series of those of all records of this kind; None if no record
    of any kind names a file.
    """
    if files:
        return {name for name, value in item.items() if _is_blank(value) and series(name) in (named or ())}
    is_file = kind in FILE_KINDS or (kind in KINDS and any(map(_is_main, item)))
    # Beside named files, blank fields of the whole result (`result`) say nothing.
    return {"url"} if is_file and (named is None or kind != "result") else set()


def series(name: str) -> str | None:
    """What the fields of one series share, which have their addresses together: `url_1`, `url_2`; `url_mp3`, `url_wav`.

    A watermarked copy is expected beside each result or none. None: nothing follows for this field from another one.
    """
    if NUMBERED_FIELD.fullmatch(name):
        return "number"
    return name.replace("wav", "mp3") if name in MAIN_FIELDS or WATERMARK_FIELD.fullmatch(name) else None


def _is_main(name: str) -> bool:
    """Whether a field is for a result's own file."""
    return name in MAIN_FIELDS or bool(NUMBERED_FIELD.fullmatch(name))


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and not value.strip()
