"""When the URL of a result expires."""

import pytest

from kling_receiver.results.expiry import MAX_LIFETIME_MS, expires_at

AT = 0x694FA816
NOW = AT * 1000 - 30 * 86_400_000


@pytest.mark.parametrize(
    "url",
    [
        "https://v16-kling-fdl.klingai.com/bs2/x.mp4?ksTime=694fa816",
        "https://x/y?a=1&ksTime=694FA816&b=2",
        "https://x/y?ksTime=694fa816&",
    ],
)
def test_the_time_in_the_query_is_read(url: str) -> None:
    """Hexadecimal seconds, at any place in the query."""
    assert expires_at(url, NOW) == AT * 1000


@pytest.mark.parametrize(
    "url",
    [
        "",
        "https://x/y.mp4",
        "https://x/ksTime=694fa816",
        "https://x/y?xksTime=694fa816",
        "https://x/y?ksTime=",
        "https://x/y?ksTime=694fa8",
        "https://x/y?ksTime=694fa8160",
        "https://x/y?ksTime=notahexx",
        "https://x/y?ksTime=00000000",
        "https://x/y?ksTime=ffffffff",
    ],
)
def test_an_implausible_time_is_ignored(url: str) -> None:
    """No parameter, another form, or a time that is years away."""
    assert expires_at(url, NOW) is None


def test_the_time_may_be_so_far_away() -> None:
    """On both sides of now: a URL may have expired already."""
    url = "https://x/y?ksTime=694fa816"
    for side in (-1, 1):
        assert expires_at(url, AT * 1000 + side * (MAX_LIFETIME_MS - 1)) == AT * 1000
        assert expires_at(url, AT * 1000 + side * MAX_LIFETIME_MS) is None
