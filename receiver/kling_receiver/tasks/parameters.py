"""In which parameters two requests under one task id differ, as far as they are stored."""

from collections.abc import Iterator, Mapping
from typing import Any

from kling_callback.protocol.redact import LEFT_OUT, canonical
from kling_receiver.store.rows import TaskRow

MAX_NAMES = 10
"""Names of parameters in the message about a different request."""


def describe_other_parameters(task: TaskRow, request: Any) -> str:
    """The message for a create under the id of this task, with another request."""
    names = differences(task["request"], request)
    which = f"they differ in {', '.join(names[:MAX_NAMES])}" if names else "they differ in a value that is not stored"
    return f"Task {task['id']} is registered with other parameters: {which}."


def differences(ours: Any, theirs: Any) -> list[str]:
    """The names of the parameters in which two stored requests differ, with a dot before those of inner objects.

    They are compared in the form of which the digest is made. A request that is not stored differs in nothing.
    """
    if not isinstance(ours, Mapping) or not isinstance(theirs, Mapping) or LEFT_OUT in (ours, theirs):
        return []
    return sorted(_differences(canonical(ours), canonical(theirs), ""))


def _differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from _differences(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}"
