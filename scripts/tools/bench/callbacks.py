"""Callbacks accepted a second, each durable before its 200, as a ratio to a bare route that stores nothing."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from statistics import median
from typing import Any

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from tools.harness import servers
from tools.harness.postgresql import postgresql

FAMILY = "videos/text2video"


def run(rounds: int, requests: int, connections: int, load: str) -> None:
    """Load each server in turn, several times, and print medians. `load`: the module that sends the load."""
    with ExitStack() as stack:
        database_url = stack.enter_context(postgresql())
        urls = {
            "bare route": stack.enter_context(servers.module("tools.bench.processes.bare_route")),
            "SQLite": stack.enter_context(servers.receiver()),
            "PostgreSQL": stack.enter_context(servers.receiver(database_url)),
        }
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                results[name].append(run_load(url, requests, connections, load))
    _print(results, rounds, requests, connections)


def run_load(url: str, requests: int, connections: int, load: str) -> dict[str, Any]:
    """One round: each request is the first callback of a new task."""
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{signer.url(url, new_id(), FAMILY)}\n" for _ in range(requests))
        file.flush()
        command = [sys.executable, "-m", f"tools.bench.processes.{load}", file.name, str(connections), "processing"]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)
    result: dict[str, Any] = json.loads(out.stdout)
    if set(result["statuses"]) != {"200"}:
        raise SystemExit(f"bench: not every callback was answered 200: {result['statuses']}")
    return result


def _print(results: dict[str, list[dict[str, Any]]], rounds: int, requests: int, connections: int) -> None:
    print(f"{rounds} rounds, each {requests} callbacks of new tasks over {connections} connections; medians\n")
    print(f"{'':12} {'accepted/s':>11} {'ratio':>6} {'median ms':>10} {'p99 ms':>7}")
    bare_rates = [result["rate"] for result in results["bare route"]]
    for name, each in results.items():
        ratio = median(result["rate"] / bare for result, bare in zip(each, bare_rates, strict=True))
        middle = {key: median(result[key] for result in each) for key in ("rate", "median_ms", "p99_ms")}
        print(f"{name:12} {middle['rate']:11.0f} {ratio:6.2f} {middle['median_ms']:10.1f} {middle['p99_ms']:7.1f}")
