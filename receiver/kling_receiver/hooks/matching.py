"""Whether a hook's filter matches an event."""

from kling_receiver.hooks.config import ALL_STATUSES
from kling_receiver.store.reader import TaskDetail
from kling_receiver.store.sql import Row


def wants_type(hook: Row, event: Row) -> bool:
    """Whether a hook wants to hear of events of this type at all."""
    types = hook["filter"]["events"]
    return not types or event["type"] in types


def matches(hook: Row, event: Row, detail: TaskDetail) -> bool:
    """Whether a hook wants to hear of an event; one of a status happened at that status."""
    wanted = hook["filter"]
    return (
        wants_type(hook, event)
        and (not wanted["families"] or detail.row["family"] in wanted["families"])
        and (not wanted["tags"] or not set(wanted["tags"]).isdisjoint(detail.tags))
        and (not wanted["statuses"] or _status(event, detail) in wanted["statuses"])
    )


def _status(event: Row, detail: TaskDetail) -> str:
    own = event["type"].removeprefix("task.")
    said = event["data"].get("status") if event["type"] == "task.done" else own
    return said if said in ALL_STATUSES else str(detail.row["status"])
