"""Mutated inputs: every parser accepts or refuses them, and no response is 500 or more.

The short form of `scripts/fuzz`, with the same inputs each time.
"""

import logging
from collections.abc import Callable
from random import Random

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import Start
from tools.fuzz import bodies, parsers, wire


def test_no_input_breaks_a_parser() -> None:
    """20,000 mutated bodies, answers, registrations, signatures, tokens and queries."""
    parsers.run(20_000, Random(1))


@pytest.mark.parametrize("make", [bodies.mutated, bodies.registered])
def test_the_same_seed_gives_the_same_input(make: Callable[[Random], bytes]) -> None:
    """A failure names the seed that reproduces it."""
    assert [make(Random(n)) for n in range(200)] == [make(Random(n)) for n in range(200)]


def test_no_response_is_500(
    start: Start, gateway: Sandbox, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """500 requests, authenticated or not, valid or broken: each is answered 2xx or 4xx, or the connection is closed."""
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
