"""The checker of `scripts/crash`: a history that holds, and one planted fault after another in it."""

from collections.abc import Callable

import pytest

from tools.crash.history import Event, History, contradictions, omissions
from tools.crash.soak import Sample, growth

BODY, OTHER = b'{"task_status":"processing"}', b'{"task_status":"succeed"}'
WANTED = {"default": None, "ends": frozenset({"task.succeed"})}


def told() -> tuple[History, list[Event]]:
    """A history and the event log that it tells of."""
    history = History()
    history.grant("t", "one")
    history.grant("t", "one")  # the first answer was cut off
    history.created.append("t")
    history.acknowledge("t", BODY)
    history.acknowledge("t", BODY)  # a repeat
    history.acknowledge("t", OTHER)
    digests = [None, history.acknowledged[0][1], None, history.acknowledged[2][1], None]
    types = ["task.created", "callback.received", "task.processing", "callback.received", "task.succeed"]
    log = [Event(n, "t", *each) for n, each in enumerate(zip(types, digests, strict=True), 1)]
    for event in (log[1], log[0], *log[2:], log[4]):  # out of order, and one twice
        history.deliver("default", event)
    history.deliver("ends", log[4])
    for event in log:
        history.follow("listener", event)
    return history, log


def check(history: History, log: list[Event]) -> list[str]:
    """Both parts of the checker, as at the end of a run."""
    return contradictions(history, log) + omissions(history, log, WANTED)


def test_a_history_that_holds() -> None:
    """Repeats, a second answer to the same attempt, and deliveries out of order break no promise."""
    assert check(*told()) == []


Plant = Callable[[History, list[Event]], object]
PLANTS: dict[str, tuple[Plant, str]] = {
    "a callback is lost": (lambda history, log: log.pop(1), "1: answered 200"),
    "a callback has another body": (lambda history, log: history.acknowledge("t", b"?"), "1: answered 200"),
    "a callback is logged twice": (lambda history, log: log.append(Event(9, *_content(log[1]))), "2: in the event log"),
    "a status goes back": (lambda history, log: log.append(Event(9, "t", "task.submitted")), "3: status went back"),
    "a status is repeated": (lambda history, log: log.append(Event(9, "t", "task.succeed")), "3: status went back"),
    "two ends": (lambda history, log: log.append(Event(9, "t", "task.failed")), "3: status went back"),
    "two permissions": (lambda history, log: history.grant("t", "two"), "6: 2 attempts may create"),
    "created twice": (lambda history, log: history.created.append("t"), "6: created 2 times"),
    "no permission": (lambda history, log: history.created.append("u"), "6: created without permission"),
    "not delivered": (lambda history, log: history.delivered["default"].remove(log[0]), "5: not delivered to default"),
    "not delivered to one": (lambda history, log: history.delivered["ends"].clear(), "5: not delivered to ends"),
    "not wanted": (lambda history, log: history.deliver("ends", log[0]), "5: delivered to ends, which does not want"),
    "an event of nothing": (
        lambda history, log: history.deliver("ends", Event(8, "t", "task.succeed")),
        "not in the log",
    ),
    "an id used again": (
        lambda history, log: history.deliver("default", Event(1, "u", "task.created")),
        "not in the log",
    ),
    "a listener skips": (lambda history, log: history.followed["listener"].pop(2), "5: listener received"),
    "a listener misses the end": (lambda history, log: history.followed["listener"].pop(), "5: not sent to listener"),
    "a listener repeats": (lambda history, log: history.follow("listener", log[4]), "5: listener received"),
    "a listener reorders": (lambda history, log: history.followed["listener"].reverse(), "5: listener received"),
}


def _content(event: Event) -> tuple[str, str, str | None]:
    return event.task_id, event.type, event.body_sha256


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(name: str) -> None:
    """Each fault by the words of its promise."""
    history, log = told()
    plant, problem = PLANTS[name]
    plant(history, log)
    assert [line for line in check(history, log) if problem in line]


def samples(rss: Callable[[float], float], descriptors: Callable[[float], int] = lambda minute: 50) -> list[Sample]:
    """An hour of samples, one a minute."""
    return [Sample(60 * n, rss(n), descriptors(n), 15, 4.1, 120 * n) for n in range(61)]


def test_growth_is_judged_after_the_warm_up() -> None:
    """Caches that fill, noise and a flat line are no leak; a slow leak, lost descriptors and a large WAL are found."""
    assert growth(samples(lambda minute: min(90 + 2 * minute, 110) + minute % 3))[1] == []
    assert growth(samples(lambda minute: 100 + minute))[1] == ["memory grew by 60 MB an hour"]
    assert growth(samples(lambda minute: 100, lambda minute: 50 + int(minute)))[1] == [
        "descriptors grew by 45 in 45 minutes"
    ]
    large = [*samples(lambda minute: 100), Sample(3660, 100, 50, 15, 65, 1)]
    assert growth(large)[1] == ["the WAL had 65 MB"]
