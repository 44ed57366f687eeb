"""What may name a family: the rule that client and receiver share."""

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
def test_what_is_no_family(family: str) -> None:
    """Nothing that would lead a question elsewhere than to a create path."""
    assert not is_family(family)
    assert not is_job(family)


@pytest.mark.parametrize("family", ["x", "/x"])
def test_no_job_of_kling_s_has_one_part_only(family: str) -> None:
    """None is sent there; a callback address that somebody signed for it still holds."""
    assert is_family(family)
    assert not is_job(family)
