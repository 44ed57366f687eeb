"""The rule for families that client and receiver share."""

import pytest

from kling_callback.protocol.families import (
    ASYNCHRONOUS,
    SYNCHRONOUS,
    creates_tasks,
    family_problems,
    is_family,
    is_job,
    is_new_standard,
    is_synchronous,
)


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


@pytest.mark.parametrize("family", [*ASYNCHRONOUS, "/text-to-video/kling-3.0-turbo", "/new-things/kling-9"])
def test_an_asynchronous_family_creates_tasks(family: str) -> None:
    """Each in the tables, and each path of the new standard's shape."""
    assert creates_tasks(family)
    assert family_problems(family) == []


@pytest.mark.parametrize("path", [*sorted(SYNCHRONOUS), "account/anything-new"])
@pytest.mark.parametrize("prefix", ["", "/", "v1/", "/v1/"])
def test_a_synchronous_endpoint_creates_none(path: str, prefix: str) -> None:
    """However its path is written; the message names the command that calls it."""
    if path.startswith("account/") and "v1" in prefix:
        return
    assert is_synchronous(prefix + path)
    assert not creates_tasks(prefix + path)
    (problem,) = family_problems(prefix + path)
    assert "kling call" in problem


@pytest.mark.parametrize("family", ["videos/not-known-yet", "images/generations-2", "/things/new"])
def test_an_unknown_family_passes(family: str) -> None:
    """Kling adds some each month."""
    assert family_problems(family) == []
    assert not is_synchronous(family)
    assert not creates_tasks(family)


@pytest.mark.parametrize(
    ("family", "meant"),
    [
        ("videos/effect", "videos/effects"),
        ("videos/image-to-video", "videos/image2video"),
        ("Videos/Text2Video", "videos/text2video"),
        ("text-to-video/kling-3.0-turbo", "/text-to-video/kling-3.0-turbo"),
        ("general/custom-voice", "general/custom-voices"),
    ],
)
def test_a_misspelt_family_is_refused(family: str, meant: str) -> None:
    """With the one that was meant."""
    (problem,) = family_problems(family)
    assert problem.endswith(f"Did you mean {meant}?")


@pytest.mark.parametrize("family", ["videos/brand-new", "videos/effects/v2", "/text-to-video/kling-9", "music/songs"])
def test_unknown_families_pass(family: str) -> None:
    """Kling has more of them each year."""
    assert family_problems(family) == []
