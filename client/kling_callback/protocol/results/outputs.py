"""The outputs of a task: the files of its result, and what Kling made that is no file.

Pure functions on parsed JSON. No document raises.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from kling_callback.protocol import values
from kling_callback.protocol.results.fields import (
    Kind,
    awaited_fields,
    file_fields,
    kind_of_file,
    kind_of_single,
    object_of,
    series,
)
from kling_callback.protocol.urls import is_web_address
from kling_callback.protocol.values import MAX_ID_CHARS, sanitize

MAX_NAME_CHARS = 100
"""Characters of a field's name in a result."""
MAX_OUTPUTS = 100
MAX_RECORDS = 200
"""Entries that are read of a list, or of an object of lists; a forged body may have any number."""
MAX_OBJECTS_CHARS = 20_000
"""Characters of the JSON of all outputs of a task that are no files."""


@dataclass(frozen=True, slots=True)
class Output:
    """One file that Kling made. `url`: "" until Kling names its address. `duration`: seconds."""

    kind: Kind
    url: str
    id: str | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of one record. `objects`: what is no file, with Kling's names.

    `files`: none, unless one has an address. `awaits_file`: the address of a file comes later.
    """

    files: tuple[Output, ...]
    objects: tuple[dict[str, Any], ...]
    awaits_file: bool


@dataclass(frozen=True, slots=True)
class _Item:
    """One record of a result. `addresses`: the texts in its fields that may be addresses, by field.

    `files`: the fields that name files.
    """

    kind: Kind
    fields: dict[str, Any]
    addresses: dict[str, str]
    files: set[str]


def read_result(record: dict[str, Any]) -> Result:
    """The outputs that a record of a task has, in either standard."""
    items = []
    for kind, fields in _items(record):
        addresses = _addresses(fields)
        files = {name for group in file_fields(kind, addresses) for name in group}
        items.append(_Item(kind, fields, addresses, files))
    named: dict[Kind, set[str]] = {item.kind: set() for item in items}
    for item in items:
        named[item.kind].update(filter(None, map(series, item.files)))
    has_file = any(item.files for item in items)
    awaited = [
        dict.fromkeys(awaited_fields(item.kind, item.fields, item.files, named[item.kind] if has_file else None), "")
        for item in items
    ]
    expected = [replace(item, addresses=item.addresses | awaited[index]) for index, item in enumerate(items)]
    outputs = tuple(islice(_files(expected), MAX_OUTPUTS)) if has_file else ()
    return Result(outputs, tuple(islice(_objects(items), MAX_OUTPUTS)), any(awaited))


def _files(items: Sequence[_Item]) -> Iterator[Output]:
    """The files of records: first the results, then their watermarked copies, then files in other fields."""
    marked, others = [], []
    for item in items:
        kind, addresses = item.kind, item.addresses
        id_, duration = values.identifier(item.fields.get("id")), values.seconds(item.fields.get("duration"))
        results, marks, more = file_fields(kind, addresses)
        for name in results:
            own = values.seconds(item.fields.get(name.replace("url", "duration")))  # of `url_mp3`, `mp3_url`
            yield Output(kind_of_file(kind, name, addresses[name]), addresses[name], id_, _first(own, duration))
        marked += [Output("watermark", addresses[name], id_, duration) for name in marks]
        others += [Output(kind_of_file(kind, name, addresses[name]), addresses[name], id_) for name in more]
    yield from marked
    yield from others


def _first(value: float | None, other: float | None) -> float | None:
    return other if value is None else value


def _objects(items: Sequence[_Item]) -> Iterator[dict[str, Any]]:
    """What Kling made that is no file: elements, voices, sessions, and any other record without a file."""
    chars = 0.0
    for item in items:
        if found := object_of(item.kind, item.fields, item.files):
            chars += values.json_chars(found)
            if chars > MAX_OBJECTS_CHARS:
                return
            yield found


def _addresses(item: dict[str, Any]) -> dict[str, str]:
    """The texts in the fields of a record that may be addresses."""
    named = {name: values.address(value) for name, value in islice(item.items(), MAX_RECORDS)}
    return {name: address for name, address in named.items() if address}


def _items(record: dict[str, Any]) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """The records of a result with their kinds: those of the lists in `task_result`, then those in `outputs`."""
    results = record.get("task_result")
    if isinstance(results, dict):
        yield from _legacy_items(results)
    for items in (results, record.get("outputs")) if isinstance(results, list) else (record.get("outputs"),):
        for item in _ordered(items):
            yield sanitize(item.get("type"), MAX_ID_CHARS) or "file", item


def _legacy_items(results: dict[str, Any]) -> Iterator[tuple[Kind, dict[str, Any]]]:
    """The records of a `task_result`: in its lists, single ones, and one of all its other values."""
    others = {}
    for name, value in islice(results.items(), MAX_RECORDS):
        if isinstance(value, dict | list):
            kind = sanitize(name, MAX_ID_CHARS).removeprefix("series_").removesuffix("s")
            kind = kind_of_single(kind, value) if isinstance(value, dict) else kind
            yield from ((kind, item) for item in _ordered(value))
        elif len(name) <= MAX_NAME_CHARS:
            others[name] = value
    if others:
        yield "result", others


def _ordered(items: Any) -> list[dict[str, Any]]:
    """The records of a list, by their index; an address in place of a record is that of its file, "" one to come."""
    first = items[:MAX_RECORDS] if isinstance(items, list) else [items] if items != "" else []
    records = [{"url": item} if item == "" or is_web_address(item, blanks=True) else item for item in first]
    named = [_with_short_names(record) for record in records if isinstance(record, dict)]
    return sorted(named, key=lambda item: values.integer(item.get("index")) or 0)


def _with_short_names(record: dict[str, Any]) -> dict[str, Any]:
    """The fields whose names may be Kling's: a longer one would take seconds to be searched for the words of one."""
    return {name: value for name, value in record.items() if len(name) <= MAX_NAME_CHARS}
