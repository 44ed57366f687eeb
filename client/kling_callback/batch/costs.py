"""Sums of costs: of estimates by Kling's list prices, and of what Kling itself says that tasks cost."""

from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

from kling_callback.display import counted
from kling_callback.jobs.prices import Estimate

MIN_EXPONENT, MAX_EXPONENT = -12, 12
"""Powers of ten between which an amount is plausible: written out, 1e-999999 has a million digits."""
MAX_UNITS = 20
"""Units and currencies of one sum; Kling has five. What another one says is left out."""


class EstimateSum:
    """The sum of estimates. `units`: by kind; `usd`: US dollars; `unknown`: jobs whose cost cannot be estimated.

    Units of image packs and of video packs have different prices: each kind has its own sum.
    """

    def __init__(self, estimates: Iterable[tuple[str, Estimate | None]] = ()) -> None:
        """`estimates`: by family."""
        self.units: dict[str, float] = {}
        self.usd, self.unknown = 0.0, 0
        for family, estimate in estimates:
            self.add(family, estimate)

    def add(self, family: str, estimate: Estimate | None) -> None:
        """Add one estimate; without a price, or with that of a second alone, the job is counted as `unknown`."""
        if estimate is None or estimate.per:
            self.unknown += 1
        else:
            kind = unit_kind(family)
            self.units[kind] = self.units.get(kind, 0) + estimate.units
            self.usd += estimate.usd

    def document(self) -> dict[str, Any]:
        """The sum as JSON."""
        units = {kind: round(number, 4) for kind, number in self.units.items()}
        return {"units": units, "usd": round(self.usd, 4), "unknown": self.unknown}

    def __str__(self) -> str:
        known = ", ".join(
            [*_amounts({kind: f"{round(number, 4):g}" for kind, number in self.units.items()}), f"{self.usd:.2f} USD"]
        )
        missing = f", without {counted(self.unknown, 'job')} of unknown cost" if self.unknown else ""
        return f"{known} (estimate){missing}"


class ChargeSum:
    """The sum of what Kling says that tasks cost. `amounts`: by unit or currency; `tasks`: those with a cost."""

    def __init__(self) -> None:
        self.amounts = dict[str, Decimal]()
        self.tasks = 0

    def add(self, family: str, cost: Any, *, tasks: int = 1) -> None:
        """Add the `cost` of a task, in any of Kling's forms; None, and what cannot be read, adds nothing.

        `tasks`: how many tasks cost the same.
        """
        charges = list(_charges(family, cost))
        self.tasks += tasks * bool(charges)
        for what, amount in charges:
            if what not in self.amounts and len(self.amounts) >= MAX_UNITS:
                continue
            self.amounts[what] = self.amounts.get(what, Decimal()) + tasks * amount

    def __str__(self) -> str:
        return ", ".join(_amounts({what: f"{amount.normalize():f}" for what, amount in self.amounts.items()}))


def unit_kind(family: str) -> str:
    """The kind of the units that a family costs."""
    return "image units" if family.startswith("images/") else "video units"


def _amounts(numbers: Mapping[str, str]) -> Iterator[str]:
    """Each number with its unit or currency: units first, each run in the same order."""
    for what, number in sorted(numbers.items(), key=lambda each: (not each[0].endswith(" units"), each[0])):
        yield f"{number} {what.replace(' units', ' unit') if number == '1' else what}"


def _charges(family: str, cost: Any) -> Iterator[tuple[str, Decimal]]:
    """What a cost consists of. Of several forms, which mean the same, the first is taken."""
    if isinstance(cost, dict):
        names = [name for name in ("final_unit_deduction", "billing") if name in cost]
        if names:
            yield from _charges(family, cost[names[0]])
            return
        balance = cost.get("final_balance_deduction", cost)
        if isinstance(balance, dict) and (amount := _decimal(balance.get("quota"))) is not None:
            yield "of the balance", amount
    elif isinstance(cost, list):
        for bill in cost:
            amount = _decimal(bill.get("amount")) if isinstance(bill, dict) else None
            if amount is None:
                continue
            if bill.get("charge_type") == "unit":
                package = bill.get("package_type")
                yield (f"{package} units" if package in ("image", "video") else unit_kind(family)), amount
            else:
                yield str(bill.get("currency") or "of the balance")[:20], amount
    elif (amount := _decimal(cost)) is not None:
        yield unit_kind(family), amount


def _decimal(value: Any) -> Decimal | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        amount = Decimal(str(value)[:30])
    except InvalidOperation:
        return None
    is_plausible = amount.is_finite() and (amount == 0 or MIN_EXPONENT <= amount.adjusted() < MAX_EXPONENT)
    return amount if is_plausible else None
