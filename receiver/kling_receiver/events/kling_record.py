"""A task as Kling's own record, legacy or of the new standard: for hooks in Kling's format and the compatible API.

The record is made from what is stored of the task, with our link in place of Kling's address for each stored file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from kling_callback.protocol.families import is_new_standard, usual_kind
from kling_callback.protocol.media_types import MEDIA_KINDS
from kling_callback.protocol.statuses import Status
from kling_callback.protocol.urls import is_web_address, split_url
from kling_receiver.states import FINAL
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, ResultRow, TaskRow

SUCCEEDED = "succeeded"
"""The new standard's word for `succeed`."""

OMNI_IMAGE, MULTI_SHOT, EXTEND = "images/omni-image", "general/ai-multi-shot", "videos/video-extend"
VIEWS = 3
"""Images in one record of MULTI_SHOT."""

COST_FIELDS = ("final_unit_deduction", "final_balance_deduction", "billing")


def kling_status(row: TaskRow) -> Status:
    """The status of a task as a caller of Kling sees it: a final one once every file is stored or failed."""
    status = row["status"]
    if status == "created":
        return "submitted"
    return "processing" if status in FINAL and not row["done"] else status


def kling_id(row: TaskRow) -> str:
    """Kling's id of a task; ours until Kling's is known, and for good once a program was answered ours."""
    return row["id"] if row["keeps_our_id"] else row["kling_id"] or row["id"]


def caller_id(row: TaskRow) -> str:
    """The `external_task_id` of a task, or "" if it has none: our id, unless another program created the task."""
    return row["external_task_id"] or ("" if row["id"] == row["kling_id"] else row["id"])


def kling_record(detail: TaskDetail, *, href: Callable[[ResultRow], str], new: bool | None = None) -> dict[str, Any]:
    """Kling's own record of a task: the body of a callback, `data` of an answer.

    `new`: whether in the new standard, as in a batch query also for legacy tasks; None: in that of its family.
    `href`: makes our link to a stored file. A file that could not be stored keeps Kling's address. Our clock says when
    the task was updated, so that no later record has an earlier time.
    """
    row, status = detail.row, kling_status(detail.row)
    is_new = is_new_standard(row["family"]) if new is None else new
    is_final = status in FINAL
    created_at = row["kling_created_at"] or row["created_at"]
    updated_at = max(created_at, row["kling_updated_at"] or 0, row["updated_at"])
    message = _message(detail) if is_final or row["status"] == status else ""
    items = _Items(detail, href, is_new=is_new).all() if status == "succeed" else []
    cost = _cost(row["cost"]) if is_final else {}
    external_id = caller_id(row)
    if not is_new:
        return {
            "task_id": kling_id(row),
            "task_status": status,
            "task_status_msg": message,
            "task_info": _task_info(row, external_id, is_final=is_final),
            "task_result": _task_result(row, items),
            "created_at": created_at,
            "updated_at": updated_at,
            **cost,
        }
    return {
        "id": kling_id(row),
        "status": SUCCEEDED if status == "succeed" else status,
        "message": message,
        "create_time": created_at,
        "update_time": updated_at,
        **({"external_id": external_id} if external_id else {}),
        **({"outputs": [item.output() for item in items]} if items else {}),
        **cost,
    }


def as_of(event: EventRow, detail: TaskDetail) -> TaskDetail:
    """A task as it was at `task.submitted` or `task.processing`, which Kling reports each; else as it is now."""
    status = EARLIER.get(event["type"])
    if status is None:
        return detail
    earlier = {"status": status, "status_msg": "", "done": False, "kling_updated_at": None}
    return replace(detail, row=cast(TaskRow, {**detail.row, **earlier, "updated_at": event["created_at"]}))


EARLIER: Mapping[str, Status] = {"task.submitted": "submitted", "task.processing": "processing"}


def _message(detail: TaskDetail) -> str:
    """The reason of a failure; of a success without its files, why they are missing."""
    lost = [result["error"] for result in detail.results if result["status"] == "failed" and not _source(result)]
    return detail.row["status_msg"] or next(filter(None, lost), "")


def _task_info(row: TaskRow, external_id: str, *, is_final: bool) -> dict[str, Any]:
    info: dict[str, Any] = {"external_task_id": external_id} if external_id else {}
    parent = row["request"].get("video_id") if isinstance(row["request"], dict) else None
    return info | ({"parent_video": {"id": parent}} if row["family"] == EXTEND and is_final and parent else {})


def _cost(cost: Any) -> dict[str, Any]:
    """The cost in Kling's own field: the database has its value alone, or an object of several fields."""
    if cost is None:
        return {}
    if isinstance(cost, Mapping):
        return dict(cost) if set(cost) <= set(COST_FIELDS) else {"final_balance_deduction": cost}
    return {"billing": cost} if isinstance(cost, list) else {"final_unit_deduction": str(cost)}


def _source(result: ResultRow) -> str:
    """Kling's address of a file, if anyone can use it: a relay's path needs the relay's key."""
    return result["source_url"] if is_web_address(result["source_url"], blanks=True) else ""


@dataclass(slots=True)
class _Item:
    """One record of a result. `kind`: in the singular, "" for a detail of the result that is in no list."""

    kind: str
    id: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def output(self) -> dict[str, Any]:
        """The record as the new standard has it."""
        named = {"id": self.id} if self.id else {}
        return {**({"type": self.kind} if self.kind else {}), **named, **self.fields}


class _Items:
    """Puts the files and the other outputs of a task together again: several files may be of one record."""

    def __init__(self, detail: TaskDetail, href: Callable[[ResultRow], str], *, is_new: bool) -> None:
        self._row, self._results, self._href, self._is_new = detail.row, detail.results, href, is_new
        self._items: list[_Item] = []

    def all(self) -> list[_Item]:
        """The records, in the order of their files; what is no file comes last."""
        marked = [result for result in self._results if result["kind"] == "watermark"]
        for result in self._results:
            if result["kind"] != "watermark":
                self._add_file(result)
        for result in marked:
            self._add_watermarked(result)
        for found in self._row["outputs"] or []:
            self._add_object(found)
        return [item for item in self._items if item.fields]

    def _address(self, result: ResultRow) -> str:
        return self._href(result) if result["status"] == "stored" else _source(result)

    def _add_file(self, result: ResultRow) -> None:
        kind, address, last = self._kind(result), self._address(result), self._items[-1] if self._items else None
        name = self._field(kind, result, last)
        if last is None or name == "url" or name in last.fields or (last.kind, last.id) != (kind, result["kling_id"]):
            last = _Item(kind, result["kling_id"])
            self._items.append(last)
        if address:
            last.fields[name] = address
            if result["duration"] is not None:
                last.fields[name.replace("url", "duration")] = str(result["duration"])

    def _kind(self, result: ResultRow) -> str:
        if result["kind"] != "file":
            return result["kind"]
        of_content = (result["content_type"] or "").partition("/")[0]
        return of_content if of_content in MEDIA_KINDS else usual_kind(self._row["family"])

    def _field(self, kind: str, result: ResultRow, last: _Item | None) -> str:
        """The name of the field that has a file's address."""
        if self._row["family"] == MULTI_SHOT and kind == "image":
            count = len(last.fields) if last else 0
            return f"url_{count % VIEWS + 1}"
        if kind == "audio" and (form := _audio_format(result)):
            return f"{form}_url" if self._is_new else f"url_{form}"
        return "url"

    def _add_watermarked(self, result: ResultRow) -> None:
        free = [item for item in self._items if "watermark_url" not in item.fields and item.id == result["kling_id"]]
        item = free[0] if free else _Item(usual_kind(self._row["family"]), result["kling_id"])
        if not free:
            self._items.append(item)
        if address := self._address(result):
            item.fields["watermark_url"] = address

    def _add_object(self, found: dict[str, Any]) -> None:
        """Add what Kling made that is no file: to the record of its file, or as a record of its own."""
        named = {name: value for name, value in found.items() if name not in ("id", "type")}
        is_voice = "voice_id" in found
        own_id = None if is_voice else found.get("id")
        kind = _kind_of_object(found, self._row["family"])
        same = [item for item in self._items if item.id == own_id and (own_id or (is_voice and item.kind == "audio"))]
        if not same:
            self._items.append(_Item(kind, own_id, named))
            return
        item = same[0]
        if kind not in MEDIA_KINDS:
            item.kind = kind
        if is_voice and "url" in _renamed(item.fields):
            item.fields = {"trial_url": _renamed(item.fields)["url"]}
        elif kind == "voice":
            item.fields = _renamed(item.fields)
        item.fields = {**named, **item.fields} if kind not in MEDIA_KINDS else {**item.fields, **named}


def _renamed(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of an audio file that is a voice's sample: its address has one name, whatever its format."""
    return {"url" if name.endswith("url") or name.startswith("url_") else name: fields[name] for name in fields}


def _kind_of_object(found: Mapping[str, Any], family: str) -> str:
    """The kind of a record that is no file; "" for details of the whole result."""
    if isinstance(found.get("type"), str):
        return str(found["type"])
    for kind in ("element", "voice"):
        if f"{kind}_id" in found:
            return kind
    return usual_kind(family) if "id" in found else ""


def _audio_format(result: ResultRow) -> str:
    """`mp3` or `wav`; "" for any other format."""
    content_type = (result["content_type"] or "").partition(";")[0].strip().lower()
    suffix = split_url(result["source_url"]).path.rpartition(".")[2].lower()
    stored = {"audio/mpeg": "mp3", "audio/wav": "wav", "audio/x-wav": "wav"}.get(content_type, "")
    return stored or (suffix if suffix in ("mp3", "wav") else "")


def _task_result(row: TaskRow, items: Sequence[_Item]) -> dict[str, Any]:
    """The records as the legacy standard has them: in lists by kind, images with their index."""
    result: dict[str, Any] = {}
    request = row["request"] if isinstance(row["request"], dict) else {}
    is_series = row["family"] == OMNI_IMAGE and request.get("result_type") == "series"
    for item in items:
        if not item.kind:
            result.update(item.fields)
            continue
        name = "series_images" if is_series and item.kind == "image" else f"{item.kind}s"
        found = result.setdefault(name, [])
        first: dict[str, Any] = {"index": len(found)} if item.kind == "image" else {}
        if item.id:
            first["id"] = item.id
        found.append({**first, **item.fields})
    return result
