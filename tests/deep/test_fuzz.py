"""What no sender should send: every parser takes it or refuses it, and no answer is 500 or more.

The short form of `scripts/fuzz`, the same inputs each time.
"""

import logging
from collections.abc import Callable
from random import Random

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import Start
from tools.fuzz import bodies, parsers, wire


def test_the_parsers_stand_whatever_comes() -> None:
    """Bodies, answers, registrations, signatures, tokens, queries: 20,000 real ones with parts changed."""
    parsers.run(20_000, Random(1))


@pytest.mark.parametrize("make", [bodies.mutated, bodies.registered])
def test_the_same_random_is_the_same_input(make: Callable[[Random], bytes]) -> None:
    """What was found once can be seen again by the number that the failure names."""
    assert [make(Random(n)) for n in range(200)] == [make(Random(n)) for n in range(200)]


def test_no_answer_is_500(start: Start, gateway: Sandbox, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """500 requests, proven and not, whole and broken, each answered by 2xx, 4xx or by hanging up."""
    caplog.set_level(logging.ERROR)
    running = start(
        api_base=gateway.url,
        database_url=database_url,
        signing_secrets=parsers.SECRETS,
        webhook_secrets=(parsers.WEBHOOK_SECRET,),
    )
    statuses = wire.run(running.url, 500, Random(1))
    assert {200, 201, 401, 403, 404, 422} <= statuses.keys()
    running.stop()
    assert [record.getMessage() for record in caplog.records if record.exc_info] == []
