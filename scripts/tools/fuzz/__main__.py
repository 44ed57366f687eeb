"""`scripts/fuzz`: a long run, and what came of it."""

import time
from random import Random, SystemRandom

import click

from kling_sandbox import Sandbox
from tools.fuzz import interface, parsers, wire
from tools.harness.servers import receiver


@click.command()
@click.option("--seed", type=int, help="The same seed, the same inputs. By default a new one, which is printed.")
@click.option("--direct", default=1_000_000, show_default=True, help="Inputs for the parsers themselves.")
@click.option("--http", default=20_000, show_default=True, help="Requests to a receiver of its own.")
@click.option("--described", default=200, show_default=True, help="Requests of each kind that it describes.")
def main(seed: int | None, direct: int, http: int, described: int) -> None:
    """Feed the parsers and a receiver what no sender should send; end at the first that is no answer."""
    seed = SystemRandom().getrandbits(32) if seed is None else seed
    click.echo(f"seed {seed}")
    random = Random(seed)
    began = time.perf_counter()
    parsers.run(direct, random)
    click.echo(f"{direct} inputs to the parsers, {direct / (time.perf_counter() - began):,.0f} a second: all is well")
    settings = {
        "KLING_SIGNING_SECRETS": ",".join(parsers.SECRETS),
        "KLING_WEBHOOK_SECRETS": parsers.WEBHOOK_SECRET,
    }
    with Sandbox() as kling, receiver(api_base=kling.url, **settings) as url:
        began = time.perf_counter()
        statuses = wire.run(url, http, random)
        rate = http / (time.perf_counter() - began)
        assert wire.answered(url, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", True) == 200
        answers = ", ".join(f"{count} x {status or 'closed'}" for status, count in sorted(statuses.items()))
        click.echo(f"{http} requests, {rate:,.0f} a second: {answers}")
        raise SystemExit(interface.run(url, described, seed) if described else 0)


main(prog_name="scripts/fuzz")
