"""How deep lists and objects are nested. What walks a value of others calls itself for each level, and has a limit."""

from collections.abc import Iterable, Mapping
from typing import Any

MAX_ANSWER_DEPTH = 300
"""Levels of an answer. No real one has as many, and half of Python's stack is left."""


def is_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested in more than so many levels; one that contains itself is."""
    layer = [value]
    for _ in range(levels):
        layer = [inner for each in layer for inner in _inner(each)]
        if not layer:
            return False
    return any(isinstance(each, Mapping | list | tuple) for each in layer)


def _inner(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple) else ()
