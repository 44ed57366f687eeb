"""The rule for families that client and receiver share."""

import pytest

from kling_callback.protocol.families import is_family, is_job, is_new_standard


@pytest.mark.parametrize(
    "family",
    ["images/generations", "videos/text2video", "/text-to-video/kling-3.0-turbo", "videos/avatar/image2video"],
)
def test_families_are_paths(family: str) -> None:
    """Of either standard."""
    assert is_family(family)
    assert is_job(family)
    assert is_new_standard(family) == family.startswith("/")


@pytest.mark.parametrize(
    "family",
    [
        "",
        "/",
        "//x",
        "a//b",
        "a/",
        "../a",
        "a/../b",
        "a/./b",
        "a/b c",
        "a/b?c",
        "a/b#c",
        "a/%2e",
        "http://x",
        "a/b\n",
        "a/\u00e9",
        "a/" + "x" * 199,
    ],
)
def test_an_invalid_family(family: str) -> None:
    """A text that would lead a query to another address than a task's."""
    assert not is_family(family)
    assert not is_job(family)


@pytest.mark.parametrize("family", ["x", "/x"])
def test_no_job_of_kling_s_has_one_part_only(family: str) -> None:
    """No create is sent there; a callback address that was signed for it is still valid."""
    assert is_family(family)
    assert not is_job(family)
