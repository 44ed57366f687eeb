"""Whether a hook's filter matches an event."""

from kling_receiver.hooks.config import ANY
from kling_receiver.store.reader import Full
from kling_receiver.store.sql import Row


def may_want(hook: Row, event: Row) -> bool:
    """Whether a hook wants to hear of events of this type at all."""
    types = hook["filter"]["events"]
    return not types or event["type"] in types


def wants(hook: Row, event: Row, full: Full) -> bool:
    """Whether a hook wants to hear of an event; one of a status happened at that status."""
    wanted = hook["filter"]
    return (
        may_want(hook, event)
        and (not wanted["families"] or full.row["family"] in wanted["families"])
        and (not wanted["tags"] or not set(wanted["tags"]).isdisjoint(full.tags))
        and (not wanted["statuses"] or _status(event, full) in wanted["statuses"])
    )


def _status(event: Row, full: Full) -> str:
    own = event["type"].removeprefix("task.")
    said = event["data"].get("status") if event["type"] == "task.done" else own
    return said if said in ANY else str(full.row["status"])
