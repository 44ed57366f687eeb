"""Parse the bodies of Kling or a gateway, of either standard, bare or wrapped, into `Report`s.

Pure functions. No body raises: a value that cannot be parsed becomes None.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

from kling_callback.protocol import relays, values
from kling_callback.protocol.results.outputs import MAX_OUTPUTS, Output, read_result
from kling_callback.protocol.statuses import Status, parse_status
from kling_callback.protocol.values import sanitize

MAX_WRAP_DEPTH = 4

SERVER_FAULTS = range(500, 600)
"""Statuses, and codes of relays, that prove nothing about a create."""

SUCCESS_CODES = frozenset({"0", "200", "ok", "success", "succeed"})

UNKNOWN_TASK: frozenset[int | str] = frozenset({1200, 1201, "task_not_exist", "task_not_found"})
"""The codes of Kling and of relays for a query about an unknown task."""


@dataclass(frozen=True, slots=True)
class Report:
    """The content of one body about one task. Times are unix milliseconds; `cost` is Kling's JSON, unchanged.

    `outputs`: the files; `objects`: what Kling made that is no file (elements, voices, a session), with Kling's names.
    `awaits_file`: the address of a file comes later; beside files that have one, it is an output without `url`.
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

    @property
    def is_complete(self) -> bool:
        """Whether it has results, and awaits no file."""
        return self.has_results and not self.awaits_file


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
    report = _innermost(values.parse_json(body))
    return report if report is not None and report.status else None


def parse_answer(body: bytes, http_status: int = 200) -> Answer | None:
    """Parse the envelope and the reports of an answer to a create or a query. None if it is not a JSON object.

    Relays have a status in their errors, too: such a record is a task's if it has an id, under a status of success.
    """
    document = values.parse_json(body)
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
    own_code = values.code(document.get("code"))
    # Under a success, text that quotes an error is no error: the task exists, or the call was paid.
    named = has_status and any(report.kling_id for report in reports)
    if http_status < 300 and (named or (own_code is not None and is_success(own_code))):
        code, message, request_id = document.get("code"), "", None
    else:
        strict = http_status >= 500 or own_code in SERVER_FAULTS
        code, message, request_id = relays.error_of(document, strict=strict)
    request_id = values.identifier(request_id or document.get("request_id"))
    reports = tuple(replace(report, request_id=report.request_id or request_id) for report in reports)
    return Answer(
        code=values.code(code),
        message=sanitize(message) or sanitize(document.get("message")),
        request_id=request_id,
        reports=reports,
        is_openai=is_openai,
    )


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
    if report.status == "succeed" and not report.has_results and (outputs := _relay_outputs(layers, report)):
        return replace(report, outputs=outputs, awaits_file=not all(output.url for output in outputs))
    if report.status == "failed" and not report.message:
        reasons = (relays.reason(layer, relays.REASONS) for layer in layers)
        return replace(report, message=sanitize(next(filter(None, reasons), "")))
    return report


def _relay_outputs(layers: list[dict[str, Any]], report: Report) -> tuple[Output, ...]:
    """The files that a relay names in the first of the records that has any, or serves at its own host."""
    for layer in layers:
        if outputs := read_result(layer).files or _relay_files(layer):
            return outputs
    if report.kling_id and relays.is_relays(layers[0]):
        return (Output(relays.ANY_KIND, relays.content_path(report.kling_id)),)
    return ()


def _relay_files(layer: dict[str, Any]) -> tuple[Output, ...]:
    """The files that a relay's record names, where no field of Kling's does."""
    files = [
        Output(kind, values.address(url), values.identifier(id_), values.seconds(seconds))
        for kind, url, id_, seconds in relays.files(layer)[:MAX_OUTPUTS]
    ]
    return tuple(files) if any(output.url for output in files) else ()


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
    result = read_result(record)
    return Report(
        status=parse_status(status),
        kling_id=values.identifier(identifier),
        external_task_id=values.identifier(external or record.get("external_id")),
        message=sanitize(relays.reason(record)),
        created_at=values.plausible_time(relays.first_time(record, relays.CREATED_AT)),
        updated_at=values.plausible_time(relays.first_time(record, relays.UPDATED_AT)),
        outputs=result.files,
        cost=_costs(record),
        objects=result.objects,
        request_id=values.identifier(record.get("request_id")),
        awaits_file=result.awaits_file,
    )


def _coalesce(value: Any, other: Any) -> Any:
    return other if value is None else value


def _costs(record: dict[str, Any]) -> Any:
    """The cost in the form that Kling names it in; of several forms an object with Kling's names."""
    names = ("final_unit_deduction", "billing", "final_balance_deduction")
    costs = {name: cost for name in names if (cost := values.cost(record.get(name))) is not None}
    return costs if len(costs) > 1 else next(iter(costs.values()), None)
