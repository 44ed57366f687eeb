"""When the address of a result ends."""

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
def test_klings_own_mark_is_read(url: str) -> None:
    """Hex seconds in the query, wherever it stands there."""
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
def test_what_is_not_believable_says_nothing(url: str) -> None:
    """No mark, another shape, or a time that is years away."""
    assert expires_at(url, NOW) is None


def test_how_far_away_it_may_be() -> None:
    """On both sides of now: an address may have ended already."""
    url = "https://x/y?ksTime=694fa816"
    for side in (-1, 1):
        assert expires_at(url, AT * 1000 + side * (MAX_LIFETIME_MS - 1)) == AT * 1000
        assert expires_at(url, AT * 1000 + side * MAX_LIFETIME_MS) is None
