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
from urllib.parse import quote

from kling_callback.protocol import relays
from kling_callback.protocol.statuses import Status, parse_status

Kind = str
"""`image`, `video` or `audio`; `watermark` for a watermarked copy; Kling's own name for anything newer."""

MAX_TEXT_CHARS = 4000
MAX_ID_CHARS = 256
MAX_URL_CHARS = 8000
IDENTIFIER = re.compile(rf"(?!\.{{1,2}}$)[^\s/\\,?#%\0\ud800-\udfff]{{1,{MAX_ID_CHARS}}}")
"""An id that can be one part of a path, or of a list of ids: a query for `..` would query another address."""
MAX_OUTPUTS = 100
MAX_RECORDS = 200
"""Entries that are read of a list, or of an object of lists; a forged body may have any number."""
MAX_PARTS = 10_000
"""Brackets, braces and commas of a long body: a record has some hundreds, and each costs time to parse."""
MAX_UNCHECKED_BYTES = 16_384
"""Bytes of a body up to which MAX_PARTS is not checked: Kling's own bodies have 1 to 5 KB."""
MAX_COST_CHARS = 4000
MAX_COST_DEPTH = 10
MAX_WRAP_DEPTH = 4

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
    """The content of one body about one task. Times are unix milliseconds; `cost` is Kling's JSON, unchanged."""

    status: Status | None
    kling_id: str | None = None
    external_task_id: str | None = None
    message: str = ""
    created_at: int | None = None
    updated_at: int | None = None
    outputs: tuple[Output, ...] = ()
    cost: Any = None

    @property
    def final(self) -> bool:
        """Whether the status is final: `succeed` or `failed`."""
        return self.status in ("succeed", "failed")


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
        """Whether the envelope reports success; gateways may do so in text."""
        return self.code in (None, 0) or str(self.code).lower() in ("0", "success", "succeed")


def parse_callback(body: bytes) -> Report | None:
    """Parse a callback's body. None if no record in it has a known status."""
    report = _innermost(_parse(body))
    return report if report is not None and report.status else None


def parse_answer(body: bytes) -> Answer | None:
    """Parse the envelope and the reports of an answer to a create or a query. None if it is not a JSON object."""
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
    code, message, request_id = (document.get("code"), "", None) if has_status else relays.error_of(document)
    return Answer(
        code=_code(code),
        message=sanitize(message) or sanitize(document.get("message")),
        request_id=_identifier(request_id or document.get("request_id")),
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
    if report.status == "succeed" and not report.outputs:
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
        return (Output(relays.ANY_KIND, relays.content_path(quote(report.kling_id, safe=""))),)
    return ()


def _fill(inner: Report, outer: Report) -> Report:
    return replace(
        inner,
        kling_id=inner.kling_id or outer.kling_id,
        external_task_id=inner.external_task_id or outer.external_task_id,
        created_at=inner.created_at or outer.created_at,
        updated_at=inner.updated_at or outer.updated_at,
        cost=_coalesce(inner.cost, outer.cost),
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
        created_at=_integer(relays.first_time(record, relays.CREATED_AT)),
        updated_at=_integer(relays.first_time(record, relays.UPDATED_AT)),
        outputs=tuple(islice(_outputs(record), MAX_OUTPUTS)),
        cost=_coalesce(_cost(record.get("final_unit_deduction")), _cost(record.get("billing"))),
    )


def _coalesce(value: Any, other: Any) -> Any:
    return other if value is None else value


def _cost(value: Any) -> Any:
    """The cost unchanged, if a database's JSON can hold it: no NUL, no NaN, limited length and depth; else None."""
    if value is None or isinstance(value, str):
        return sanitize(value, MAX_ID_CHARS) or None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        fits = len(text) <= MAX_COST_CHARS and "\\u0000" not in text and _depth(value) <= MAX_COST_DEPTH
        text.encode()
    except (ValueError, RecursionError):  # also UnicodeEncodeError: a lone surrogate
        return None
    return value if fits and value not in ([], {}) else None


def _depth(value: Any) -> int:
    """The depth of nested lists and objects. Raises RecursionError."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _outputs(record: dict[str, Any]) -> Iterator[Output]:
    """The files of a record: first the results, then their watermarked copies."""
    marked = []
    for kind, item in _items(record):
        identifier, duration = _identifier(item.get("id")), _seconds(item.get("duration"))
        for name in ("url", "url_mp3", "mp3_url", "url_wav", "wav_url"):
            if url := _address(item.get(name)):
                yield Output(kind, url, identifier, duration)
        if (url := _address(item.get("watermark_url"))) and url != item.get("url"):
            marked.append(Output("watermark", url, identifier, duration))
    yield from marked


def _items(record: dict[str, Any]) -> Iterator[tuple[Kind, dict[str, Any]]]:
    results, outputs = record.get("task_result"), record.get("outputs")
    for name, items in islice(results.items(), MAX_RECORDS) if isinstance(results, dict) else ():
        kind = sanitize(name, MAX_ID_CHARS).removeprefix("series_").removesuffix("s")
        yield from ((kind, item) for item in _ordered(items))
    for item in _ordered(outputs):
        yield sanitize(item.get("type"), MAX_ID_CHARS) or "file", item


def _ordered(items: Any) -> list[dict[str, Any]]:
    first = items[:MAX_RECORDS] if isinstance(items, list) else []
    records = [item for item in first if isinstance(item, dict)]
    return sorted(records, key=lambda item: _integer(item.get("index")) or 0)


def _address(value: Any) -> str:
    return sanitize(value, MAX_URL_CHARS) if isinstance(value, str) and len(value) <= MAX_URL_CHARS else ""


def _identifier(value: Any) -> str | None:
    """An id as text; None if it is too long: a truncated id would name another task."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        value = str(value)
    return value if isinstance(value, str) and IDENTIFIER.fullmatch(value) else None


def _integer(value: Any) -> int | None:
    """A whole number that fits a database's 64 bits, or None."""
    fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53
    return value if fits else None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return seconds if 0 <= seconds < 1e6 else None
