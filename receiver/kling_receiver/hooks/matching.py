"""Whether a hook's filter matches an event."""

from kling_receiver.hooks.config import ALL_STATUSES, KLING_EVENTS
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, HookRow


def wants_type(hook: HookRow, event: EventRow) -> bool:
    """Whether a hook's filter lets events of this type pass, whatever their task."""
    types = KLING_EVENTS if hook["format"] == "kling" else hook["filter"]["events"]
    return not types or event["type"] in types


def matches(hook: HookRow, event: EventRow, detail: TaskDetail) -> bool:
    """Whether a hook's filter matches an event. A `task.*` event has its own status, other events the task's."""
    only = hook["filter"]
    return (
        wants_type(hook, event)
        and (not only["families"] or detail.row["family"] in only["families"])
        and (not only["tags"] or not set(only["tags"]).isdisjoint(detail.tags))
        and (not only["statuses"] or _status(event, detail) in only["statuses"])
    )


def _status(event: EventRow, detail: TaskDetail) -> str:
    in_type = event["type"].removeprefix("task.")
    data = event["data"] if isinstance(event["data"], dict) else {}
    status = data.get("status") if event["type"] == "task.done" else in_type
    known = isinstance(status, str) and status in ALL_STATUSES
    return str(status if known else detail.row["status"])
