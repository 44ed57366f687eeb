"""Any body from Kling or a gateway, either standard, bare or wrapped, becomes one `Report`.

Pure: bytes in, values out. It never raises for what a body holds: what cannot be read is None.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from itertools import islice
from typing import Any, Literal

Status = Literal["submitted", "processing", "succeed", "failed"]
Kind = str
"""`image`, `video` or `audio`; `watermark` for a marked copy; what Kling says for anything newer."""

WORDS: dict[str, Status] = {
    "submitted": "submitted",
    "processing": "processing",
    "succeed": "succeed",
    "succeeded": "succeed",
    "failed": "failed",
    # the outer words of gateways that wrap Kling's record in one of their own
    "not_start": "submitted",
    "queued": "submitted",
    "in_progress": "processing",
    "success": "succeed",
    "failure": "failed",
}

LONGEST_TEXT = 4000
LONGEST_ID = 256
LONGEST_URL = 8000
IDENTIFIER = re.compile(rf"(?!\.{{1,2}}$)[^\s/\\,?#%\0\ud800-\udfff]{{1,{LONGEST_ID}}}")
"""What may stand as one part of a path, or in a list of ids: a query for `..` would ask for something else."""
MOST_OUTPUTS = 100
MOST_LOOKED_AT = 200
"""Entries of a list, or of an object of lists: a record is Kling's word, its length may be anybody's."""
MOST_PARTS = 10_000
"""Brackets, braces and commas of a long body that is read: a record has some hundreds, and each costs time."""
SHORT = 16_384
"""Bytes up to which nobody counts them: Kling's own bodies have 1 to 5 KB."""
LONGEST_COST = 4000
DEEPEST_COST = 10
DEEPEST_WRAP = 4

UNKNOWN_TASK = frozenset({1200, 1201})
"""Codes that a query answers for a task that Kling does not know (section 3)."""


@dataclass(frozen=True, slots=True)
class Output:
    """One file that Kling made: `duration` in seconds."""

    kind: Kind
    url: str
    id: str | None = None
    duration: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What one body says of one task. Times are unix milliseconds; `cost` is as Kling spells it."""

    status: Status | None
    task_id: str | None = None
    external_id: str | None = None
    message: str = ""
    created_at: int | None = None
    updated_at: int | None = None
    outputs: tuple[Output, ...] = ()
    cost: Any = None

    @property
    def final(self) -> bool:
        """Whether the status is one that no other follows."""
        return self.status in ("succeed", "failed")


@dataclass(frozen=True, slots=True)
class Answer:
    """The envelope of an answer: `code` 0 is success, None an answer without an envelope."""

    code: int | str | None
    message: str
    request_id: str | None
    reports: tuple[Report, ...]

    @property
    def ok(self) -> bool:
        """Whether the envelope says success (relays say it as a word)."""
        return self.code in (None, 0) or str(self.code).lower() in ("0", "success", "succeed")


def read_callback(body: bytes) -> Report | None:
    """The report that a callback's body holds, or None when no record in it has a known status."""
    report = _innermost(_parse(body))
    return report if report is not None and report.status else None


def read_answer(body: bytes) -> Answer | None:
    """The envelope and reports of an answer to a create or a query, or None when it is not a JSON object."""
    document = _parse(body)
    if not isinstance(document, dict):
        return None
    data = document.get("data")
    records = data if isinstance(data, list) else [document]
    reports = tuple(report for record in records[:MOST_OUTPUTS] if (report := _innermost(record)))
    return Answer(
        code=_code(document.get("code")),
        message=clean(document.get("message")) or clean(document.get("msg")) or _error_message(document),
        request_id=_identifier(document.get("request_id")),
        reports=reports,
    )


def clean(value: Any, longest: int = LONGEST_TEXT) -> str:
    """Text fit for any database: no NUL, no lone surrogate, at most `longest` characters; "" for no text."""
    if not isinstance(value, str):
        return ""
    return value[:longest].replace("\0", "").encode("utf-8", "replace").decode()


def has_many_parts(body: bytes) -> bool:
    """Whether a JSON document has more parts than any of Kling's, so that reading it would hold all else up."""
    return len(body) > SHORT and sum(map(body.count, (b"[", b"{", b","))) > MOST_PARTS


def _parse(body: bytes) -> Any:
    if has_many_parts(body):
        return None
    try:
        return json.loads(body)
    except (ValueError, RecursionError):  # also UnicodeDecodeError, and integers beyond reason
        return None


def _code(value: Any) -> int | str | None:
    """Kling's codes are numbers; relays may write them as text, or have words of their own."""
    text = clean(value, LONGEST_ID)
    return int(text) if text.isascii() and text.isdecimal() else text or _integer(value)


def _error_message(document: dict[str, Any]) -> str:
    """The message of an answer in the shape that relays use: {"error": {"message": ...}}."""
    error = document.get("error")
    return clean(error.get("message")) if isinstance(error, dict) else clean(error)


def _layers(document: Any) -> Iterator[dict[str, Any]]:
    """The document and what it wraps in `data`, from the outside in."""
    for _ in range(DEEPEST_WRAP):
        if isinstance(document, list):
            document = next((item for item in document if isinstance(item, dict)), None)
        if not isinstance(document, dict):
            return
        yield document
        document = document.get("data")


def _innermost(document: Any) -> Report | None:
    """The innermost record with a known status; without one, the innermost that has an id.

    What it does not say of itself (a relay's inner record may lack its id), the records around it do.
    """
    reports = [_report(record) for record in _layers(document)]
    for place in reversed(range(len(reports))):
        if reports[place].status:
            return reduce(_fill, reversed(reports[:place]), reports[place])
    return next((report for report in reversed(reports) if report.task_id), None)


def _fill(inner: Report, outer: Report) -> Report:
    return replace(
        inner,
        task_id=inner.task_id or outer.task_id,
        external_id=inner.external_id or outer.external_id,
        created_at=inner.created_at or outer.created_at,
        updated_at=inner.updated_at or outer.updated_at,
        cost=_first(inner.cost, outer.cost),
    )


def _report(record: dict[str, Any]) -> Report:
    legacy = "task_id" in record or "task_status" in record
    word = record.get("task_status") if "task_status" in record else record.get("status")
    info = record.get("task_info")
    external = info.get("external_task_id") if isinstance(info, dict) else None
    return Report(
        status=WORDS.get(word.strip().lower()) if isinstance(word, str) and len(word) < 100 else None,
        task_id=_identifier(record.get("task_id") if legacy else record.get("id")),
        external_id=_identifier(external or record.get("external_id")),
        message=_message(record),
        created_at=_integer(record.get("created_at", record.get("create_time"))),
        updated_at=_integer(record.get("updated_at", record.get("update_time"))),
        outputs=tuple(islice(_outputs(record), MOST_OUTPUTS)),
        cost=_first(_cost(record.get("final_unit_deduction")), _cost(record.get("billing"))),
    )


def _first(value: Any, other: Any) -> Any:
    return other if value is None else value


def _cost(value: Any) -> Any:
    """The cost as it came, if a database's JSON can hold it: no NUL, no NaN, not endless."""
    if value is None or isinstance(value, str):
        return clean(value, LONGEST_ID) or None
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        fits = len(text) <= LONGEST_COST and "\\u0000" not in text and _depth(value) <= DEEPEST_COST
        text.encode()
    except (ValueError, RecursionError):  # also UnicodeEncodeError: a lone surrogate
        return None
    return value if fits and value not in ([], {}) else None


def _depth(value: Any) -> int:
    """How deep lists and objects lie in each other. Raises RecursionError."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0)


def _message(record: dict[str, Any]) -> str:
    for name in ("task_status_msg", "fail_reason", "message"):
        if text := clean(record.get(name)):
            return text
    return ""


def _outputs(record: dict[str, Any]) -> Iterator[Output]:
    """The files of a record: first those that were asked for, then their watermarked copies."""
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
    for name, items in islice(results.items(), MOST_LOOKED_AT) if isinstance(results, dict) else ():
        kind = clean(name, LONGEST_ID).removeprefix("series_").removesuffix("s")
        yield from ((kind, item) for item in _ordered(items))
    for item in _ordered(outputs):
        yield clean(item.get("type"), LONGEST_ID) or "file", item


def _ordered(items: Any) -> list[dict[str, Any]]:
    first = items[:MOST_LOOKED_AT] if isinstance(items, list) else []
    records = [item for item in first if isinstance(item, dict)]
    return sorted(records, key=lambda item: _integer(item.get("index")) or 0)


def _address(value: Any) -> str:
    return clean(value, LONGEST_URL) if isinstance(value, str) and len(value) <= LONGEST_URL else ""


def _identifier(value: Any) -> str | None:
    """An id as text. One cut short would be another's: too long is none."""
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
