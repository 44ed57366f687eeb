"""The command `scripts/fuzz`: a long run, and its results."""

import time
from random import Random, SystemRandom

import click

from kling_sandbox import Sandbox
from tools.fuzz import interface, parsers, wire
from tools.harness.servers import receiver


@click.command()
@click.option("--seed", type=int, help="Repeat the inputs of an earlier run. Default: random, and printed.")
@click.option("--direct", default=1_000_000, show_default=True, help="Inputs to the parsers, called directly.")
@click.option("--http", default=20_000, show_default=True, help="Requests to a receiver.")
@click.option("--described", default=200, show_default=True, help="Requests to each operation of the OpenAPI document.")
def main(seed: int | None, direct: int, http: int, described: int) -> None:
    """Send invalid inputs to the parsers and to a receiver; stop at the first failure."""
    seed = SystemRandom().getrandbits(32) if seed is None else seed
    click.echo(f"seed {seed}")
    random = Random(seed)
    started = time.perf_counter()
    parsers.run(direct, random)
    click.echo(
        f"{direct} inputs to the parsers, {direct / (time.perf_counter() - started):,.0f} a second, without a failure"
    )
    settings = {
        "KLING_SIGNING_SECRETS": ",".join(parsers.SECRETS),
        "KLING_WEBHOOK_SECRETS": parsers.WEBHOOK_SECRET,
    }
    with Sandbox() as kling, receiver(api_base=kling.url, **settings) as url:
        started = time.perf_counter()
        statuses = wire.run(url, http, random)
        rate = http / (time.perf_counter() - started)
        assert wire.send(url, b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", True) == 200
        answers = ", ".join(f"{count} x {status or 'closed'}" for status, count in sorted(statuses.items()))
        click.echo(f"{http} requests, {rate:,.0f} a second: {answers}")
        raise SystemExit(interface.run(url, described, seed) if described else 0)


main(prog_name="scripts/fuzz")
