"""How deep lists and objects are nested."""

from typing import Any

import pytest

from kling_callback.protocol.nesting import is_deeper


@pytest.mark.parametrize(
    ("value", "depth"),
    [("x", 0), (None, 0), ([], 1), ({}, 1), ([1, {"a": 1}], 2), ({"a": [1], "b": ({"c": []},)}, 4)],
)
def test_lists_and_objects_are_levels(value: Any, depth: int) -> None:
    """Texts are not; the deepest branch counts."""
    assert [is_deeper(value, levels) for levels in range(6)] == [levels < depth for levels in range(6)]


def test_any_depth_is_told() -> None:
    """Of a value that Python itself could not walk, and of one without an end."""
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    endless: list[Any] = []
    endless.append(endless)
    assert is_deeper(deep, 300)
    assert is_deeper(endless, 300)
