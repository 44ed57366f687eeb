"""Parse the bodies of Kling or a gateway, of either standard, bare or wrapped, into `Report`s.

Pure functions. No body raises: a value that cannot be parsed becomes None.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any

from kling_callback.protocol import relays
from kling_callback.protocol.outputs import (
    awaits_file,
    file_fields,
    json_chars,
    kind_of_file,
    kind_of_single,
    object_of,
)
from kling_callback.protocol.statuses import Status, parse_status
from kling_callback.protocol.urls import is_web_address

Kind = str
"""`image`, `video` or `audio`; `watermark` for a watermarked copy; Kling's own name for anything newer."""

MAX_TEXT_CHARS = 4000
MAX_ID_CHARS = 256
MAX_URL_CHARS = 8000
IDENTIFIER = re.compile(rf"(?!\.{{1,2}}$)[^\s/\\,?#%\0\ud800-\udfff]{{1,{MAX_ID_CHARS}}}")
"""An id that can be one part of a path, or of a list of ids: a query for `..` would query another address."""
MAX_NAME_CHARS = 100
"""Characters of a field's name in a result."""
MAX_OUTPUTS = 100
MAX_RECORDS = 200
"""Entries that are read of a list, or of an object of lists; a forged body may have any number."""
MAX_PARTS = 10_000
"""Brackets, braces and commas of a long body: a record has some hundreds, and each costs time to parse."""
MAX_UNCHECKED_BYTES = 16_384
"""Bytes of a body up to which MAX_PARTS is not checked: Kling's own bodies have 1 to 5 KB."""
MAX_COST_CHARS = 4000
MAX_OBJECTS_CHARS = 20_000
"""Characters of the JSON of all outputs of a task that are no files."""
MAX_WRAP_DEPTH = 4

EARLIEST_MS, LATEST_MS = 946_684_800_000, 7_258_118_400_000
"""Unix ms of the years 2000 and 2200: between them are the plausible times."""

SERVER_FAULTS = range(500, 600)
"""Statuses, and codes of relays, that prove nothing about a create."""

SUCCESS_CODES = frozenset({"0", "200", "ok", "success", "succeed"})

UNKNOWN_TASK: frozenset[int | str] = frozenset({1200, 1201, "task_not_exist", "task_not_found"})
"""The codes of Kling and of relays for a query about an unknown task."""


@dataclass(frozen=True, slots=True)
class Output:
    """One file that Kling made. `duration`: seconds."""

    kind: Kind
    url: str
    id: str | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """The content of one body about one task. Times are unix milliseconds; `cost` is Kling's JSON, unchanged.

    `outputs`: the files; `objects`: what Kling made that is no file (elements, voices, a session), with Kling's names.
    `awaits_file`: there is a record of a file without its address, which comes later.
    """

    status: Status | None
    kling_id: str | None = None
    external_task_id: str | None = None
    message: str = ""
    created_at: int | None = None
    updated_at: int | None = None
    outputs: tuple[Output, ...] = ()
    cost: Any = None
    objects: tuple[dict[str, Any], ...] = ()
    request_id: str | None = None
    awaits_file: bool = False

    @property
    def final(self) -> bool:
        """Whether the status is final: `succeed` or `failed`."""
        return self.status in ("succeed", "failed")

    @property
    def has_results(self) -> bool:
        """Whether it names a file, or another output without awaiting a file."""
        return bool(self.outputs or (self.objects and not self.awaits_file))


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a create or a query. `code`: 0 is success, None an answer without an envelope.

    `is_openai`: it is that of an OpenAI endpoint, as relays have them beside Kling's API.
    """

    code: int | str | None
    message: str
    request_id: str | None
    reports: tuple[Report, ...]
    is_openai: bool = False

    @property
    def ok(self) -> bool:
        """Whether the envelope reports success; gateways may do so in text, or with HTTP's code."""
        return self.code is None or is_success(self.code)


def is_success(code: int | str) -> bool:
    """Whether the code of an envelope is that of a success."""
    return str(code).lower() in SUCCESS_CODES


def parse_callback(body: bytes) -> Report | None:
    """Parse a callback's body. None if no record in it has a known status."""
    report = _innermost(_parse(body))
    return report if report is not None and report.status else None


def parse_answer(body: bytes, http_status: int = 200) -> Answer | None:
    """Parse the envelope and the reports of an answer to a create or a query. None if it is not a JSON object.

    Relays have a status in their errors, too: such a record is a task's if it has an id, under a status of success.
    """
    document = _parse(body)
    if not isinstance(document, dict):
        return None
    data = document.get("data")
    records = data[:MAX_OUTPUTS] if isinstance(data, list) else [document]
    reports = tuple(report for record in records if (report := _innermost(record)))
    if isinstance(data, list) and not any(report.status for report in reports):
        outer = _innermost(document)
        reports = (outer,) if outer and outer.status else reports  # the list has its files
    has_status = any(report.status for report in reports)
    is_openai = not has_status and relays.is_openai(document)
    if is_openai or (document.get("error") and not has_status):
        reports = ()  # the id is not a task's
    own_code = _code(document.get("code"))
    # Under a success, text that quotes an error is no error: the task exists, or the call was paid.
    named = has_status and any(report.kling_id for report in reports)
    if http_status < 300 and (named or (own_code is not None and is_success(own_code))):
        code, message, request_id = document.get("code"), "", None
    else:
        strict = http_status >= 500 or own_code in SERVER_FAULTS
        code, message, request_id = relays.error_of(document, strict=strict)
    request_id = _identifier(request_id or document.get("request_id"))
    reports = tuple(replace(report, request_id=report.request_id or request_id) for report in reports)
    return Answer(
        code=_code(code),
        message=sanitize(message) or sanitize(document.get("message")),
        request_id=request_id,
        reports=reports,
        is_openai=is_openai,
    )


def sanitize(value: Any, max_chars: int = MAX_TEXT_CHARS) -> str:
    """Make text storable in any database: no NUL, no lone surrogate, at most `max_chars` characters; "" for no text."""
    if not isinstance(value, str):
        return ""
    return value[:max_chars].replace("\0", "").encode("utf-8", "replace").decode()


def is_too_complex(body: bytes) -> bool:
    """Whether a JSON document has more parts than any of Kling's: parsing it would block the event loop."""
    return len(body) > MAX_UNCHECKED_BYTES and sum(map(body.count, (b"[", b"{", b","))) > MAX_PARTS


def _parse(body: bytes) -> Any:
    if is_too_complex(body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # also UnicodeDecodeError, and integers of too many digits
        return None


def _code(value: Any) -> int | str | None:
    """A code as int where possible: Kling's are numbers; gateways may send them as text, or texts of their own."""
    text = sanitize(value, MAX_ID_CHARS)
    return int(text) if text.isascii() and text.isdecimal() else text or _integer(value)


def _layers(document: Any) -> Iterator[dict[str, Any]]:
    """The document and the records nested in it, outermost first."""
    for _ in range(MAX_WRAP_DEPTH):
        if isinstance(document, list):
            document = next((item for item in document if isinstance(item, dict)), None)
        if not isinstance(document, dict):
            return
        yield document
        document = relays.inner_record(document)


def _innermost(document: Any) -> Report | None:
    """The innermost record with a known status; without one, the innermost with an id.

    Values that it lacks are taken from the records around it: a gateway's inner record may lack its id.
    """
    layers = list(_layers(document))
    reports = [_report(record) for record in layers]
    for depth in reversed(range(len(reports))):
        if reports[depth].status:
            report = reduce(_fill, reversed(reports[:depth]), reports[depth])
            nearest = layers[depth::-1] + layers[depth + 1 :]
            if not report.kling_id and (named := [inner for inner in reports[depth + 1 :] if inner.kling_id]):
                report = replace(report, kling_id=named[0].kling_id)
            return _complete(report, nearest)
    return next((report for report in reversed(reports) if report.kling_id), None)


def _complete(report: Report, layers: list[dict[str, Any]]) -> Report:
    """Add what a relay reports in its own way or in another record: files of a success, the reason of a failure."""
    if report.status == "succeed" and not report.has_results:
        return replace(report, outputs=_relay_outputs(layers, report))
    if report.status == "failed" and not report.message:
        reasons = (relays.reason(layer, relays.REASONS) for layer in layers)
        return replace(report, message=sanitize(next(filter(None, reasons), "")))
    return report


def _relay_outputs(layers: list[dict[str, Any]], report: Report) -> tuple[Output, ...]:
    """The files that a relay names in the first of the records that has any, or serves at its own host."""
    for layer in layers:
        named = tuple(
            Output(kind, address, _identifier(identifier), _seconds(seconds))
            for kind, url, identifier, seconds in relays.files(layer)[:MAX_OUTPUTS]
            if (address := _address(url))
        )
        if outputs := tuple(islice(_outputs(layer), MAX_OUTPUTS)) or named:
            return outputs
    if report.kling_id and relays.is_relays(layers[0]):
        return (Output(relays.ANY_KIND, relays.content_path(report.kling_id)),)
    return ()


def _fill(inner: Report, outer: Report) -> Report:
    return replace(
        inner,
        kling_id=inner.kling_id or outer.kling_id,
        external_task_id=inner.external_task_id or outer.external_task_id,
        created_at=inner.created_at or outer.created_at,
        updated_at=inner.updated_at or outer.updated_at,
        cost=_coalesce(inner.cost, outer.cost),
        request_id=inner.request_id or outer.request_id,
    )


def _report(record: dict[str, Any]) -> Report:
    legacy = "task_id" in record or "task_status" in record
    status = record.get("task_status") if "task_status" in record else record.get("status", record.get("state"))
    identifier = record.get("task_id") if legacy else record.get("id", record.get("taskId"))
    info = record.get("task_info")
    external = info.get("external_task_id") if isinstance(info, dict) else None
    return Report(
        status=parse_status(status),
        kling_id=_identifier(identifier),
        external_task_id=_identifier(external or record.get("external_id")),
        message=sanitize(relays.reason(record)),
        created_at=_plausible(relays.first_time(record, relays.CREATED_AT)),
        updated_at=_plausible(relays.first_time(record, relays.UPDATED_AT)),
        outputs=tuple(islice(_outputs(record), MAX_OUTPUTS)),
        cost=_costs(record),
        objects=tuple(islice(_objects(record), MAX_OUTPUTS)),
        request_id=_identifier(record.get("request_id")),
        awaits_file=any(awaits_file(kind, item, _files(kind, item)) for kind, item in _items(record)),
    )


def _coalesce(value: Any, other: Any) -> Any:
    return other if value is None else value


def _costs(record: dict[str, Any]) -> Any:
    """The cost in the form that Kling names it in; of several forms an object with Kling's names."""
    names = ("final_unit_deduction", "billing", "final_balance_deduction")
    costs = {name: cost for name in names if (cost := _cost(record.get(name))) is not None}
    return costs if len(costs) > 1 else next(iter(costs.values()), None)


def _cost(value: Any) -> Any:
    """The cost unchanged, if a database's JSON can hold it: no NUL, no NaN, limited length and depth; else None."""
    if value is None or isinstance(value, str):
        return sanitize(value, MAX_ID_CHARS) or None
    return value if value not in ([], {}) and json_chars(value) <= MAX_COST_CHARS else None


def _outputs(record: dict[str, Any]) -> Iterator[Output]:
    """The files of a record: first the results, then their watermarked copies, then files in other fields."""
    marked, others = [], []
    for kind, item in _items(record):
        identifier, duration = _identifier(item.get("id")), _seconds(item.get("duration"))
        addresses = _addresses(item)
        results, marks, more = file_fields(kind, addresses)
        for name in results:
            yield Output(kind_of_file(kind, name, addresses[name]), addresses[name], identifier, duration)
        marked += [Output("watermark", addresses[name], identifier, duration) for name in marks]
        others += [Output(kind_of_file(kind, name, addresses[name]), addresses[name], identifier) for name in more]
    yield from marked
    yield from others


def _objects(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """What Kling made that is no file: elements, voices, sessions, and any other record without a file."""
    chars = 0.0
    for kind, item in _items(record):
        if found := object_of(kind, item, _files(kind, item)):
            chars += json_chars(found)
            if chars > MAX_OBJECTS_CHARS:
                return
            yield found


def _files(kind: Kind, item: dict[str, Any]) -> set[str]:
    """The fields of a record that name files."""
    return {name for group in file_fields(kind, _addresses(item)) for name in group}


def _addresses(item: dict[str, Any]) -> dict[str, str]:
    """The texts in the fields of a record that may be addresses."""
    named = {name: _address(value) for name, value in islice(item.items(), MAX_RECORDS)}
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
    """The records of a list, by their index; an address in place of a record is that of its file."""
    first = items[:MAX_RECORDS] if isinstance(items, list) else [items]
    records = [{"url": item} if is_web_address(item, blanks=True) else item for item in first]
    named = [_with_short_names(record) for record in records if isinstance(record, dict)]
    return sorted(named, key=lambda item: _integer(item.get("index")) or 0)


def _with_short_names(record: dict[str, Any]) -> dict[str, Any]:
    """The fields whose names may be Kling's: a longer one would take seconds to be searched for the words of one."""
    return {name: value for name, value in record.items() if len(name) <= MAX_NAME_CHARS}


def _address(value: Any) -> str:
    """An address as it is written, without blanks around it; "" for none."""
    return sanitize(value, MAX_URL_CHARS).strip() if isinstance(value, str) and len(value) <= MAX_URL_CHARS else ""


def _identifier(value: Any) -> str | None:
    """An id as text; None if it is too long: a truncated id would name another task."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        value = str(value)
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else None


def _integer(value: Any) -> int | None:
    """A whole number that fits a database's 64 bits, or None."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return value if fits else None


def _plausible(time: int | None) -> int | None:
    """A time of this and the next centuries, in unix milliseconds; else None."""
    return time if time is not None and EARLIEST_MS <= time < LATEST_MS else None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < 1e6 else None
