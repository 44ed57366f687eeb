"""In which parameters two requests under one task id differ, as far as they are stored."""

from collections.abc import Iterator
from typing import Any

from kling_callback.protocol.redact import LEFT_OUT
from kling_receiver.store.rows import TaskRow

MAX_NAMES = 10
"""Names of parameters in the message about a different request."""

ABSENT: tuple[Any, ...] = (None, "", [], {})
"""Values that mean the same as no value."""


def describe_other_parameters(task: TaskRow, request: Any) -> str:
    """The message for a create under the id of this task, with another request."""
    names = sorted(differences(task["request"], request))
    which = f"they differ in {', '.join(names[:MAX_NAMES])}" if names else "they differ in a value that is not stored"
    return f"Task {task['id']} is registered with other parameters: {which}."


def differences(ours: Any, theirs: Any, prefix: str = "") -> Iterator[str]:
    """The names of the parameters in which two stored requests differ, with a dot before those of inner objects.

    None and empty values are absent, as in the digest.
    """
    if not isinstance(ours, dict) or not isinstance(theirs, dict) or LEFT_OUT in (ours, theirs):
        return
    for name in ours.keys() | theirs.keys():
        one, other = ours.get(name), theirs.get(name)
        if isinstance(one, dict) and isinstance(other, dict):
            yield from differences(one, other, f"{prefix}{name}.")
        elif one != other and (one not in ABSENT or other not in ABSENT):
            yield f"{prefix}{name}"
