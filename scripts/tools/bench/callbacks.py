"""Callbacks accepted a second, each durable before its 200, as a ratio to a bare route that keeps nothing."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from statistics import median
from typing import Any

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from tools.bench import servers

FAMILY = "videos/text2video"


def run(rounds: int, requests: int, connections: int, client: str) -> None:
    """Load each server in turn, several times, and print medians. `client`: the module that sends the load."""
    with ExitStack() as stack:
        postgresql = stack.enter_context(servers.postgresql())
        urls = {
            "bare route": stack.enter_context(servers.bare()),
            "SQLite": stack.enter_context(servers.receiver()),
            "PostgreSQL": stack.enter_context(servers.receiver(postgresql)),
        }
        seen: dict[str, list[dict[str, Any]]] = {name: [] for name in urls}
        for _ in range(rounds):
            for name, url in urls.items():
                seen[name].append(_load(url, requests, connections, client))
    _print(seen, rounds, requests, connections)


def _load(url: str, requests: int, connections: int, client: str) -> dict[str, Any]:
    """One run: each request is the first callback of a new task."""
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{signer.url(url, new_id(), FAMILY)}\n" for _ in range(requests))
        file.flush()
        command = [sys.executable, "-m", f"benches.{client}", file.name, str(connections), "processing"]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)
    seen: dict[str, Any] = json.loads(out.stdout)
    if set(seen["statuses"]) != {"200"}:
        raise SystemExit(f"bench: not every callback was answered 200: {seen['statuses']}")
    return seen


def _print(seen: dict[str, list[dict[str, Any]]], rounds: int, requests: int, connections: int) -> None:
    print(f"{rounds} rounds, each {requests} callbacks of new tasks over {connections} connections; medians\n")
    print(f"{'':12} {'accepted/s':>11} {'ratio':>6} {'median ms':>10} {'p99 ms':>7}")
    rates = [run["rate"] for run in seen["bare route"]]
    for name, runs in seen.items():
        ratio = median(run["rate"] / rate for run, rate in zip(runs, rates, strict=True))
        middle = {key: median(run[key] for run in runs) for key in ("rate", "median_ms", "p99_ms")}
        print(f"{name:12} {middle['rate']:11.0f} {ratio:6.2f} {middle['median_ms']:10.1f} {middle['p99_ms']:7.1f}")
