"""Events on their way to a hook: how soon they come, how fast a backlog drains, what it costs callbacks."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import httpx

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner, api_token
from tools.bench import servers
from tools.harness import loopback

FAMILY = "images/generations"
SECRET = "whsec_YS1zZWNyZXQtb2YtYS1ob29rLTAxMjM0NTY3ODk="
SHOWN = ("callback.received", "task.succeed", "result.stored", "task.done")
CONCURRENCY = 64
PATIENCE = 300.0
WITHOUT, WITH = "without a hook", "with a hook"


def run(rate: float, seconds: float, backlog: int, rounds: int) -> None:
    """All three questions, each on a fresh receiver; SQLite."""
    with ExitStack() as stack:
        hook = stack.enter_context(server("tools.bench.hook"))
        gateway = stack.enter_context(server("tools.bench.ending"))
        _steady(gateway, hook, rate, seconds)
        _drain(hook, backlog, rounds)


@contextmanager
def server(module: str) -> Iterator[str]:
    """A server of this folder."""
    port = loopback.free_port()
    url = f"http://127.0.0.1:{port}"
    with servers.process([sys.executable, "-m", module, str(port)], url):
        yield url


def _steady(gateway: str, hook: str, rate: float, seconds: float) -> None:
    """The same load without a hook and with one: callbacks' p99 in both, and how soon events come.

    Without one half of the time before, half after: a machine may be faster at one time than at another.
    """
    print(f"{rate:g} finished tasks a second for {seconds:g} s; each: two callbacks, a question, a file\n")
    hooked = {"KLING_HOOK_URL": hook, "KLING_HOOK_SECRET": SECRET}
    took: dict[str, list[float]] = {WITHOUT: [], WITH: []}
    cpu = dict.fromkeys(took, 0.0)
    for name, lasting in ((WITHOUT, seconds / 2), (WITH, seconds), (WITHOUT, seconds / 2)):
        settings = hooked if name == WITH else {}
        with servers.receiver(api_base=gateway, KLING_PRIVATE_HOOK_HOSTS="127.0.0.1", **settings) as url:
            before = servers.cpu(servers.pids[url])
            load = _load(url, rate, lasting)
            cpu[name] += servers.cpu(servers.pids[url]) - before
            took[name] += load["ms"]
            if settings:
                sent, ended = load["sent"], time.monotonic()
                came = _came(hook, 7 * int(rate * seconds))
                behind = time.monotonic() - ended
    p99 = {name: _part(sorted(ms), 99) for name, ms in took.items()}
    for name, ms in took.items():
        print(
            f"{name:16} callbacks: median {median(ms):6.1f} ms, p99 {p99[name]:6.1f} ms;"
            f" {cpu[name] / (len(ms) / 2) * 1000:.1f} ms of CPU a task"
        )
    print(f"{'':16} p99 with a hook is {p99[WITH] / p99[WITHOUT]:.2f} of that without\n")
    print("from a task's last callback to the hook's receipt of:")
    print(f"{'event':20} {'median ms':>10} {'p99 ms':>8} {'worst ms':>9}")
    for type_ in SHOWN:
        waits = sorted(
            (at - sent[event["task"]["id"]]) * 1000
            for at, event in came
            if event["type"] == type_ and (type_ != "callback.received" or event["data"]["status"] == "succeed")
        )
        print(f"{type_:20} {median(waits):10.1f} {_part(waits, 99):8.1f} {waits[-1]:9.1f}")
    print(f"\n{len(came)} events came; the last {behind:.1f} s after the last callback was answered\n")


def _load(url: str, rate: float, seconds: float) -> dict[str, Any]:
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ids = [new_id() for _ in range(int(rate * seconds))]
        file.writelines(f"{task} {signer.url(url, task, FAMILY)}\n" for task in ids)
        file.flush()
        command = [sys.executable, "-m", "tools.bench.steady", file.name, str(rate)]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=seconds + 60)
    loaded: dict[str, Any] = json.loads(out.stdout)
    return loaded


def _drain(hook: str, backlog: int, rounds: int) -> None:
    """A backlog that waited for a paused hook, against the bare client posting the same bodies."""
    with servers.receiver(KLING_HOOK_SECRET=SECRET, KLING_PRIVATE_HOOK_HOSTS="127.0.0.1") as url:
        admin = {"Authorization": f"Bearer {api_token([servers.SECRET], 'admin', 3600)}"}
        with httpx.Client(base_url=url, headers=admin, timeout=60) as http:
            given = {
                "name": "bench",
                "address": hook,
                "concurrency": CONCURRENCY,
                "events": ["callback.received"],
            }
            http.post("/api/hooks", json=given).raise_for_status()
            http.post("/api/hooks/bench/pause").raise_for_status()
            _fill(url, backlog)
            ratios = []
            for n in range(rounds):
                if n:
                    http.post("/api/deliveries/replay", json={"from": 1}).raise_for_status()
                else:
                    http.post("/api/hooks/bench/resume").raise_for_status()
                came = _came(hook, backlog)
                ours = backlog / (came[-1][0] - came[0][0])
                bare = _bare(hook, [json.dumps(event, separators=(",", ":")) for _, event in came])
                _came(hook, backlog)
                ratios.append(ours / bare)
                print(f"drained {ours:6.0f}/s, the bare client {bare:6.0f}/s: {ratios[-1]:.2f}")
    print(f"\nmedian of {rounds} rounds of {backlog} events, {CONCURRENCY} at once: {median(ratios):.2f}")


def _fill(url: str, backlog: int) -> None:
    signer = CallbackSigner([servers.SECRET])
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{signer.url(url, new_id(), FAMILY)}\n" for _ in range(backlog))
        file.flush()
        command = [sys.executable, "-m", "tools.bench.load", file.name, "128", "processing"]
        subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)


def _bare(hook: str, bodies: list[str]) -> float:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.writelines(f"{body}\n" for body in bodies)
        file.flush()
        command = [sys.executable, "-m", "tools.bench.posting", file.name, hook, str(CONCURRENCY)]
        out = subprocess.run(command, cwd=servers.SCRIPTS, stdout=subprocess.PIPE, check=True, timeout=300)
    return float(out.stdout)


def _came(hook: str, count: int) -> list[tuple[float, dict[str, Any]]]:
    """What came to the hook, once there is so much of it."""
    end = time.monotonic() + PATIENCE
    while int(httpx.head(hook).headers["X-Came"]) < count:
        if time.monotonic() > end:
            raise SystemExit(f"bench: {httpx.head(hook).headers['X-Came']} of {count} events came")
        time.sleep(0.05)
    return [(at, json.loads(body)) for at, body in httpx.get(hook, timeout=60).json()]


def _part(values: list[float], percent: int) -> float:
    return values[len(values) * percent // 100]
