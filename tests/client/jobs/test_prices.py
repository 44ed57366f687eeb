"""What a create would cost by Kling's list prices."""

from typing import Any

import pytest

from kling_callback.jobs.prices import estimate

V2_1 = {"model_name": "kling-v2-1"}


@pytest.mark.parametrize(
    ("family", "body", "units", "usd"),
    [
        ("images/generations", {"model_name": "kling-v3", "n": 3}, 24, 0.084),
        ("images/generations", V2_1, 4, 0.014),
        ("images/generations", {**V2_1, "n": -5}, 4, 0.014),
        ("images/generations", {**V2_1, "image": "x"}, 8, 0.028),
        ("images/multi-image2image", V2_1, 16, 0.056),
        ("images/omni-image", {"model_name": "kling-image-o1", "n": 2}, 16, 0.056),
        ("videos/text2video", {"model_name": "kling-v3"}, 3, 0.42),
        ("videos/text2video", {"model_name": "kling-v3", "mode": "pro", "sound": "on", "duration": "10"}, 12, 1.68),
        ("videos/image2video", {"model_name": "kling-v3", "mode": "4k", "duration": "3"}, 9, 1.26),
        ("videos/image2video", {"model_name": "kling-v2-6", "mode": "pro", "sound": "on"}, 5, 0.7),
        ("videos/text2video", {"model_name": "kling-v2-5-turbo", "mode": "pro", "duration": "10"}, 5, 0.7),
        ("/text-to-video/kling-3.0-turbo", {"settings": {"resolution": "1080p", "duration": 7}}, 7, 0.98),
        ("/text-to-video/kling-3.0-turbo", {}, 4, 0.56),
        ("/image-to-video/kling-3.0", {"settings": {"audio": "native"}}, 4.5, 0.63),
        ("/omni-video/kling-o1", {"settings": {"audio": "original", "duration": 10}}, 6, 0.84),
    ],
)
def test_the_cost_by_the_price_list(family: str, body: dict[str, Any], units: float, usd: float) -> None:
    """By model, resolution, length, sound and number."""
    cost = estimate(family, body)
    assert cost
    assert cost.usd == pytest.approx(usd)
    assert (cost.units, cost.per) == (units, "")


@pytest.mark.parametrize(
    ("family", "body", "units"),
    [
        ("/motion-control/kling-3.0", {"settings": {"resolution": "1080p"}}, 0.8),
        ("videos/motion-control", {"model_name": "kling-v2-6", "mode": "pro"}, 0.5),
        ("videos/avatar/image2video", {"mode": "pro"}, 0.8),
        ("videos/advanced-lip-sync", {}, 0.1),
    ],
)
def test_a_video_as_long_as_its_input_has_a_price_per_second(family: str, body: dict[str, Any], units: float) -> None:
    """Nobody here knows how long the input is."""
    cost = estimate(family, body)
    assert cost
    assert (cost.units, cost.per) == (units, "second")
    assert str(cost).endswith("per second (estimate)")


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("images/generations", {}),
        ("videos/text2video", {"model_name": "kling-v3", "mode": ["std"]}),
        ("/text-to-video/kling-3.0-turbo", {"settings": {"resolution": ["x"]}}),
        ("images/generations", {"model_name": "kling-v9"}),
        ("images/editing/expand", V2_1),
        ("videos/text2video", {}),
        ("videos/text2video", {"model_name": "kling-v1"}),
        ("videos/text2video", {"model_name": "kling-v2-6", "mode": "4k"}),
        ("videos/text2video", {"model_name": "kling-v3", "duration": "long"}),
        ("videos/effects", {}),
        ("/text-to-video/kling-4.0", {}),
        ("/text-to-video/kling-3.0", {"settings": "x"}),
    ],
)
def test_no_price_is_invented(family: str, body: dict[str, Any]) -> None:
    """Without a known model, family, resolution or length."""
    cost = estimate(family, body)
    assert cost is None or (family, cost.units) == ("/text-to-video/kling-3.0", 3)
