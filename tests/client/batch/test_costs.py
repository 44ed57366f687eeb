"""Sums of costs: of estimates, and in each form in which Kling names a cost."""

from typing import Any

import pytest

from kling_callback.batch.costs import MAX_UNITS, ChargeSum, EstimateSum
from kling_callback.jobs.prices import Estimate

IMAGES, VIDEOS = "images/generations", "videos/text2video"

NO_COST: list[Any] = [None, "free", "NaN", "1e99", True, [], [1, {"amount": "x"}], {"quota": []}, {}]


@pytest.mark.parametrize(
    ("family", "cost", "text"),
    [
        (VIDEOS, "3.5", "3.5 video units"),
        (IMAGES, 8, "8 image units"),
        (IMAGES, "1.00", "1 image unit"),
        (IMAGES, [{"charge_type": "unit", "package_type": "video", "amount": "2"}], "2 video units"),
        (
            "/text-to-video/kling-3.0",
            [{"charge_type": "unit", "amount": "2"}, {"amount": 1}],
            "2 video units, 1 of the balance",
        ),
        (VIDEOS, [{"charge_type": "cash", "amount": "0.50", "currency": "USD"}], "0.5 USD"),
        (VIDEOS, {"quota": "1.25", "list_price": "2"}, "1.25 of the balance"),
        (
            VIDEOS,
            {"final_balance_deduction": {"quota": 1}, "billing": [{"charge_type": "unit", "amount": 2}]},
            "2 video units",
        ),
        (VIDEOS, {"final_unit_deduction": "3", "billing": [{"charge_type": "unit", "amount": 3}]}, "3 video units"),
        *((VIDEOS, cost, "") for cost in NO_COST),
    ],
)
def test_each_form_of_a_cost(family: str, cost: Any, text: str) -> None:
    """Forms that mean the same are counted once; what cannot be read is no cost."""
    charges = ChargeSum()
    charges.add(family, cost)
    assert (str(charges), charges.tasks) == (text, int(bool(text)))


def test_charges_are_summed_exactly_by_unit() -> None:
    """Decimals, not floats; images and videos have packs of their own."""
    charges = ChargeSum()
    for family, cost in [(VIDEOS, "0.1"), (VIDEOS, "0.2"), (IMAGES, "100"), (IMAGES, None)]:
        charges.add(family, cost)
    assert str(charges) == "100 image units, 0.3 video units"
    assert charges.tasks == 3


@pytest.mark.parametrize("amount", ["1e-999999", "-1e-999999", "1e-13", "1e-99999999"])
def test_an_amount_that_is_too_small_is_no_cost(amount: str) -> None:
    """Written out, it would have a million digits; zero is a cost, however it is written."""
    charges = ChargeSum()
    charges.add(VIDEOS, amount)
    charges.add(VIDEOS, "0e-999999")
    charges.add(VIDEOS, "0.000000000001")
    assert str(charges) == "0.000000000001 video units"


def test_a_sum_has_few_units() -> None:
    """A charge may name any currency."""
    charges = ChargeSum()
    for number in range(MAX_UNITS + 5):
        charges.add(VIDEOS, [{"amount": 1, "currency": f"{number:02}"}] * 2)
    assert charges.amounts == {f"{number:02}": 2 for number in range(MAX_UNITS)}


def test_estimates_are_summed_by_unit() -> None:
    """Jobs without a known price, or with that of a second alone, are counted and not summed."""
    estimates = [
        (VIDEOS, Estimate(0.3, 0.042)),
        (VIDEOS, Estimate(0.6, 0.084)),
        (IMAGES, Estimate(8, 0.028)),
        (VIDEOS, Estimate(0.1, 0.014, "second")),
        (VIDEOS, None),
    ]
    total = EstimateSum(estimates)
    assert str(total) == "8 image units, 0.9 video units, 0.15 USD (estimate), without 2 jobs of unknown cost"
    assert total.document() == {"units": {"video units": 0.9, "image units": 8}, "usd": 0.154, "unknown": 2}
    assert str(EstimateSum()) == "0.00 USD (estimate)"
