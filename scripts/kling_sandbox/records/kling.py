"""A task's record in the legacy and in the new standard."""

from typing import Any

from kling_sandbox.records.results import legacy_results, outputs, without_address, without_addresses
from kling_sandbox.tasks import Task


def task_record(
    task: Task, status: str = "", *, new: bool, relayed: bool = False, bare: bool = False
) -> dict[str, Any]:
    """The task's JSON at a status. `relayed` hides its ids; `bare` leaves the results out."""
    status = status or task.status
    external_id = None if relayed or task.has("drop-external-id") else task.external_id
    has_results = status == "succeed" and not bare
    fields = (_new_record if new else _legacy_record)(task, status, external_id, has_results)
    return fields | {"id" if new else "task_id": task.alias if relayed else task.id}


def _legacy_record(task: Task, status: str, external_id: str | None, has_results: bool) -> dict[str, Any]:
    info: dict[str, Any] = {"external_task_id": external_id} if external_id else {}
    if task.path == "videos/video-extend" and status == "succeed":
        info["parent_video"] = {"id": task.body.get("video_id")}
    fields = {
        "task_id": task.id,
        "task_status": status,
        "task_status_msg": task.message(status),
        "task_info": info,
        "task_result": _shown(task, legacy_results(task)) if has_results else {},
        "created_at": _time(task, task.created_at),
        "updated_at": _time(task, task.updated_at),
    }
    return fields | (_legacy_cost(task) if status == "succeed" else {})


def _new_record(task: Task, status: str, external_id: str | None, has_results: bool) -> dict[str, Any]:
    fields = {
        "id": task.id,
        "status": "succeeded" if status == "succeed" else status,
        "message": task.message(status),
        "create_time": _time(task, task.created_at),
        "update_time": _time(task, task.updated_at),
    }
    results = {"outputs": _shown(task, outputs(task)), "billing": [_bill(task)]} if has_results else {}
    return fields | results | ({"external_id": external_id} if external_id else {})


def _shown(task: Task, results: Any) -> Any:
    """The results, without the addresses that a switch hides."""
    if task.has("no-url"):
        return without_addresses(results)
    if task.has("lost-url") or (task.has("late-url") and task.queries < 2):
        return without_address(results, task.file_url(task.files[:2][-1]))
    return results


def _time(task: Task, milliseconds: int) -> int | str:
    return str(milliseconds) if task.has("times-as-text") else milliseconds


def _legacy_cost(task: Task) -> dict[str, Any]:
    if task.has("pays-by-balance"):
        return {"final_balance_deduction": {"quota": task.cost, "list_price": task.cost}}
    return {"final_unit_deduction": task.cost}


def _bill(task: Task) -> dict[str, Any]:
    if task.has("pays-by-balance"):
        money = {"amount": task.cost, "list_price": task.cost, "currency": "USD"}
        return {"charge_type": "cash", "cash_type": "balance", **money}
    package = task.family.kind.removesuffix("s")
    return {"charge_type": "unit", "package_type": package, "amount": task.cost}
