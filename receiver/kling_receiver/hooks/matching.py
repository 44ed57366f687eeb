"""Whether a hook's filter matches an event."""

from kling_receiver.hooks.config import ALL_STATUSES
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.rows import EventRow, HookRow


def wants_type(hook: HookRow, event: EventRow) -> bool:
    """Whether a hook wants to hear of events of this type at all."""
    types = hook["filter"]["events"]
    return not types or event["type"] in types


def matches(hook: HookRow, event: EventRow, detail: TaskDetail) -> bool:
    """Whether a hook wants to hear of an event; one of a status happened at that status."""
    wanted = hook["filter"]
    return (
        wants_type(hook, event)
        and (not wanted["families"] or detail.row["family"] in wanted["families"])
        and (not wanted["tags"] or not set(wanted["tags"]).isdisjoint(detail.tags))
        and (not wanted["statuses"] or _status(event, detail) in wanted["statuses"])
    )


def _status(event: EventRow, detail: TaskDetail) -> str:
    own = event["type"].removeprefix("task.")
    said = event["data"].get("status") if event["type"] == "task.done" else own
    return said if said in ALL_STATUSES else str(detail.row["status"])
