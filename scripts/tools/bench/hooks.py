"""Delivery of events to a hook: latency, cost for callbacks, and the rate at which a backlog drains."""

import json
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from statistics import median
from typing import Any

import httpx

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, api_token
from tools.harness import servers

FAMILY = "images/generations"
SECRET = "whsec_YS1zZWNyZXQtb2YtYS1ob29rLTAxMjM0NTY3ODk="
REPORTED = ("callback.received", "task.succeed", "result.stored", "task.done")
EVENTS_PER_TASK = 7
CONCURRENCY = 64
RECEIPT_SECONDS = 300.0
"""Seconds until the hook must have all events."""
WITHOUT, WITH = "without a hook", "with a hook"


def run(rate: float, seconds: float, backlog: int, rounds: int) -> None:
    """Measure latency under steady load, then draining; each on a fresh receiver with SQLite."""
    with ExitStack() as stack:
        hook = stack.enter_context(servers.module("tools.bench.processes.hook"))
        kling = stack.enter_context(servers.module("tools.bench.processes.finished_kling"))
        _steady(kling, hook, rate, seconds)
        _drain(hook, backlog, rounds)


def _steady(kling: str, hook: str, rate: float, seconds: float) -> None:
    """The same load without and with a hook: p99 of callbacks in both, latency of events.

    Half of the time without a hook comes before, half after: the speed of a machine may change meanwhile.
    """
    print(f"{rate:g} finished tasks a second for {seconds:g} s; each: two callbacks, a query, a file\n")
    hook_settings = {"KLING_HOOK_URL": hook, "KLING_HOOK_SECRET": SECRET}
    durations: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    cpu = dict.fromkeys(durations, 0.0)
    for name, part_seconds in ((WITHOUT, seconds / 2), (WITH, seconds), (WITHOUT, seconds / 2)):
        settings = hook_settings if name == WITH else {}
        with servers.receiver(api_base=kling, KLING_PRIVATE_HOOK_HOSTS="127.0.0.1", **settings) as url:
            before = servers.cpu_seconds(servers.pids[url])
            load = run_load(url, rate, part_seconds)
            cpu[name] += servers.cpu_seconds(servers.pids[url]) - before
            durations[name] += load["ms"]
            if settings:
                sent_at, ended = load["sent_at"], time.monotonic()
                events = received(hook, EVENTS_PER_TASK * int(rate * seconds))
                behind = time.monotonic() - ended
    p99 = {name: percentile(sorted(ms), 99) for name, ms in durations.items()}
    for name, ms in durations.items():
        print(
            f"{name:16} callbacks: median {median(ms):6.1f} ms, p99 {p99[name]:6.1f} ms;"
            f" {cpu[name] / (len(ms) / 2) * 1000:.1f} ms of CPU a task"
        )
    print(f"{'':16} p99 with a hook is {p99[WITH] / p99[WITHOUT]:.2f} of that without\n")
    print("from a task's last callback to the hook's receipt of:")
    print(f"{'event':20} {'median ms':>10} {'p99 ms':>8} {'worst ms':>9}")
    for type_ in REPORTED:
        delays = sorted(
            (at - sent_at[event["task"]["id"]]) * 1000
            for at, event in events
            if event["type"] == type_ and (type_ != "callback.received" or event["data"]["status"] == "succeed")
        )
        print(f"{type_:20} {median(delays):10.1f} {percentile(delays, 99):8.1f} {delays[-1]:9.1f}")
    print(f"\n{len(events)} events received; the last {behind:.1f} s after the last callback was answered\n")


def run_load(url: str, rate: float, seconds: float) -> dict[str, Any]:
    """Send a steady load to a receiver; the output of `load_steady`."""
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ids = [new_id() for _ in range(int(rate * seconds))]
        file.writelines(f"{task_id} {signer.url(url, task_id, FAMILY)}\n" for task_id in ids)
        file.flush()
        command = [sys.executable, "-m", "tools.bench.processes.load_steady", file.name, str(rate)]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=seconds + 60)
    output: dict[str, Any] = json.loads(out.stdout)
    return output


def _drain(hook: str, backlog: int, rounds: int) -> None:
    """Drain the backlog of a paused hook; the bare client posts the same bodies for comparison."""
    with servers.receiver(KLING_HOOK_SECRET=SECRET, KLING_PRIVATE_HOOK_HOSTS="127.0.0.1") as url:
        admin = {"Authorization": f"Bearer {api_token([servers.SECRET], 'admin', 3600)}"}
        with httpx.Client(base_url=url, headers=admin, timeout=60) as http:
            config = {
                "name": "bench",
                "address": hook,
                "concurrency": CONCURRENCY,
                "events": ["callback.received"],
            }
            http.post("/api/hooks", json=config).raise_for_status()
            http.post("/api/hooks/bench/pause").raise_for_status()
            _fill(url, backlog)
            ratios = []
            for n in range(rounds):
                if n:
                    http.post("/api/deliveries/replay", json={"from": 1}).raise_for_status()
                else:
                    http.post("/api/hooks/bench/resume").raise_for_status()
                events = received(hook, backlog)
                rate = backlog / (events[-1][0] - events[0][0])
                bare_rate = _post_bare(hook, [json.dumps(event, separators=(",", ":")) for _, event in events])
                received(hook, backlog)
                ratios.append(rate / bare_rate)
                print(f"drained {rate:6.0f}/s, the bare client {bare_rate:6.0f}/s: {ratios[-1]:.2f}")
    print(f"\nmedian of {rounds} rounds of {backlog} events, {CONCURRENCY} at once: {median(ratios):.2f}")


def _fill(url: str, backlog: int) -> None:
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{signer.url(url, new_id(), FAMILY)}\n" for _ in range(backlog))
        file.flush()
        command = [sys.executable, "-m", "tools.bench.processes.load_sockets", file.name, "128", "processing"]
        subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)


def _post_bare(hook: str, bodies: list[str]) -> float:
    """Posts a second of the bare client."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{body}\n" for body in bodies)
        file.flush()
        command = [sys.executable, "-m", "tools.bench.processes.bare_client", file.name, hook, str(CONCURRENCY)]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)
    return float(out.stdout)


def received(hook: str, count: int) -> list[tuple[float, dict[str, Any]]]:
    """Wait until the hook has `count` events, take them: unix seconds of receipt and the event, each."""
    end = time.monotonic() + RECEIPT_SECONDS
    while int(httpx.head(hook).headers["X-Received"]) < count:
        if time.monotonic() > end:
            raise SystemExit(f"bench: the hook received {httpx.head(hook).headers['X-Received']} of {count} events.")
        time.sleep(0.05)
    return [(at, json.loads(body)) for at, body in httpx.get(hook, timeout=60).json()]


def percentile(ordered: list[float], percent: int) -> float:
    """The value below which so many percent of sorted values are."""
    return ordered[len(ordered) * percent // 100]
