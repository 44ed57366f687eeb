"""The state machine: every transition, and its diagram."""

import itertools
import re
from typing import get_args

import pytest

from kling_receiver import states
from kling_receiver.states import FINAL, RANK, STATUSES, Origin, Status, transition


@pytest.mark.parametrize(("status", "to"), list(itertools.product(STATUSES, STATUSES[1:])))
@pytest.mark.parametrize("by", ["kling", "callback", "local"])
def test_an_open_task_moves_forward_only(status: str, to: str, by: Origin) -> None:
    """A later status is applied, the same one changes nothing, an earlier one is late."""
    if status in FINAL:
        return
    expected = "applied" if RANK[to] > RANK[status] else "same" if to == status else "late"
    assert transition(status, None, to, by) == expected


@pytest.mark.parametrize("status", sorted(FINAL))
@pytest.mark.parametrize("by", ["kling", "callback", "local"])
def test_klings_first_final_status_stands(status: str, by: Origin) -> None:
    """The other final status is contradictory, any earlier one is late."""
    other = next(iter(FINAL - {status}))
    assert transition(status, "kling", status, by) == "same"
    assert transition(status, "kling", other, by) == "contradictory"
    assert transition(status, "kling", "processing", by) == "late"


@pytest.mark.parametrize("origin", ["local", "callback"])
@pytest.mark.parametrize("to", STATUSES[1:])
def test_a_final_status_of_another_origin_is_replaced_by_klings(origin: str, to: str) -> None:
    """Any status that Kling reports is applied."""
    assert transition("failed", origin, to, "kling") == "applied"
    assert transition("failed", origin, to, "callback") != "applied"


def test_the_diagram_shows_the_statuses() -> None:
    """The diagram in the module and the types name the same statuses, in the same order."""
    drawn = re.findall(r"\b(created|submitted|processing|succeed|failed)\b", states.__doc__ or "")
    assert list(dict.fromkeys(drawn)) == list(STATUSES) == list(get_args(Status))
