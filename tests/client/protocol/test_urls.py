"""What is recognized as a web address."""

from typing import Any

import pytest

from kling_callback.protocol.urls import is_web_address


@pytest.mark.parametrize(
    ("value", "strict", "with_blanks"),
    [
        ("https://host/a.png", True, True),
        (" HTTP://host/a.png\n", True, True),
        ("https://host/a b.png", False, True),
        ("ftp://host/a.png", False, False),
        ("see https://host/a.png", False, False),
        ("", False, False),
        (5, False, False),
        (None, False, False),
        (["https://host/a.png"], False, False),
    ],
)
def test_a_web_address_is_recognized(value: Any, strict: bool, with_blanks: bool) -> None:
    """In any case, with blanks around it; inside it only where a file's name may have some."""
    assert is_web_address(value) == strict
    assert is_web_address(value, blanks=True) == with_blanks
