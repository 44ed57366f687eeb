"""The short form of `scripts/crash surroundings`: real processes with other engines, encodings, poolers and rights."""

import pytest

from tests.support.receiver import ABSENT
from tools.crash.surroundings import SURROUNDINGS, Surrounding, check
from tools.harness import hung

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

SLOW = (
    "PostgreSQL, LATIN1",
    "PostgreSQL 16",
    "PostgreSQL, a CHECK that callbacks fail",
    "PostgreSQL, an unlogged table",
)
"""Variants of others."""
SHORT = [each for each in SURROUNDINGS if not each.downloads and each.name not in SLOW]


@pytest.mark.parametrize("surrounding", SHORT, ids=lambda each: each.name)
def test_a_receiver_works_or_says_why_not(surrounding: Surrounding) -> None:
    """It works, is refused at its start, or is not ready: it never only seems to work."""
    if "hangs" in surrounding.name and not hung.available():
        pytest.skip(f"{ABSENT}a file system that hangs")
    assert check(surrounding) == []
