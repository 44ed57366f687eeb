"""Kling's own API at the receiver: what it adds to a create, queries, held queries, and a queue for slots."""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import httpx

from kling_callback.protocol.ids import new_id
from kling_sandbox.receiver import API_KEY
from tools.bench.hooks import percentile
from tools.bench.processes.slow_kling import CREATE_SECONDS, HELD
from tools.harness import servers

PATH = "/v1/images/generations"
HEADERS = {"Authorization": f"Bearer {API_KEY}"}
TASK_SECONDS = 1.0
"""Seconds that a task takes at Kling while queries are measured."""
CREATE_RATE = 25.0
"""Creates a second that cause the callbacks during the queries, and end the held tasks."""
FILL_RATE = 100.0
"""Creates a second that only prepare a measurement."""
END_SECONDS = 300.0
"""Seconds until all tasks must have ended."""

Line = tuple[str, str, dict[str, str], Any]
Json = dict[str, Any]


def run(creates: int, rate: float, seconds: float, held: int, queued: int, slots: int, task_seconds: float) -> None:
    """Run the four measurements, each at a fresh receiver with SQLite. `rate`: queries a second."""
    with servers.module("tools.bench.processes.slow_kling") as kling:
        _measure_creates(kling, creates)
        _measure_queries(kling, rate, seconds)
        _measure_holding(kling, held)
        _measure_queue(kling, queued, slots, task_seconds)


@contextmanager
def _receiver(kling: str, **settings: str) -> Iterator[str]:
    with servers.receiver(api_base=kling, KLING_COMPAT_API="on", **settings) as url:
        yield url


def _create(base: str, prompt: str, task_id: str = "") -> Line:
    body = {"model_name": "kling-v2-1", "prompt": prompt, "external_task_id": task_id or new_id()}
    return "POST", f"{base}{PATH}", HEADERS, body


@contextmanager
def _load(lines: Iterable[Line], rate: float) -> Iterator[Json]:
    """Send requests at a rate while the block runs; the dict has the output of `load_requests` after it."""
    output: Json = {}
    # Its output goes to a file: nobody reads a pipe while the block runs.
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file, tempfile.TemporaryFile("w+") as printed:
        file.writelines(f"{json.dumps(line)}\n" for line in lines)
        file.flush()
        command = [sys.executable, "-m", "tools.bench.processes.load_requests", file.name, str(rate)]
        load = subprocess.Popen(command, cwd=servers.SCRIPTS, stdout=printed)
        try:
            yield output
            load.wait(END_SECONDS)
        finally:
            load.kill()
            load.wait()
        printed.seek(0)
        output |= json.load(printed)
    output["ms"] = sorted(
        (answered - due) * 1000 for due, answered in zip(output["due_at"], output["answered_at"], strict=True)
    )
    if wrong := set(output["statuses"]) - {200}:
        raise SystemExit(f"bench: HTTP {wrong}, such as {next(filter(None, output['bodies']), '')[:300]}")


def _send(lines: Sequence[Line], rate: float) -> Json:
    with _load(lines, rate) as output:
        pass
    return output


def _report(kling: str, count: int) -> Json:
    """Wait until so many tasks have been called back. Returns what Kling counted; checks creates and queries."""
    end = time.monotonic() + END_SECONDS
    while (progress := httpx.get(f"{kling}/progress").json())["finished"] < count:
        if time.monotonic() > end:
            raise SystemExit(f"bench: {progress} of {count} tasks")
        time.sleep(0.1)
    time.sleep(0.5)  # a second query of a task would come after the first one's answer
    report: Json = httpx.post(f"{kling}/report", timeout=60).json()
    if report["most_creates"] > 1 or report["most_queries"] > 1:
        raise SystemExit(f"bench: {report['most_creates']} creates and {report['most_queries']} queries for one task")
    return report


def _line(name: str, ms: Sequence[float]) -> str:
    ordered = sorted(ms)
    return f"{name:44} median {median(ordered):7.1f} ms, p99 {percentile(ordered, 99):7.1f} ms"


def _measure_creates(kling: str, creates: int) -> None:
    """The same creates sent to Kling and to the receiver, at a rate that fills neither."""
    print(f"{creates} creates, {CREATE_RATE:g} a second, at a Kling that answers in {CREATE_SECONDS * 1000:g} ms\n")
    direct = _send([_create(kling, HELD) for _ in range(creates)], CREATE_RATE)
    httpx.post(f"{kling}/report").raise_for_status()
    with _receiver(kling) as url:
        lines = [_create(url, str(TASK_SECONDS)) for _ in range(creates)]
        through = _send(lines, CREATE_RATE)
        report = _report(kling, creates)
    created_at = {task["external_id"]: task["created_at"] for task in report["tasks"]}
    due_at = [(line[3]["external_task_id"], due) for line, due in zip(lines, through["due_at"], strict=True)]
    sent = [(created_at[task_id] - due) * 1000 for task_id, due in due_at]
    print(_line("answered by Kling itself", direct["ms"]))
    print(_line("answered by the receiver", through["ms"]))
    print(_line("from the request to its arrival at Kling", sent))
    added = (median(through["ms"]) - median(direct["ms"]), percentile(through["ms"], 99) - percentile(direct["ms"], 99))
    print(f"{'the receiver adds':44} median {added[0]:7.1f} ms, p99 {added[1]:7.1f} ms\n")


def _measure_queries(kling: str, rate: float, seconds: float) -> None:
    """Queries of open tasks at a fixed rate, while other tasks are created and called back."""
    creates = int(CREATE_RATE * seconds)
    print(f"{rate:g} queries a second for {seconds:g} s, while {CREATE_RATE:g} tasks a second are created and end\n")
    with _receiver(kling) as url:
        known = [new_id() for _ in range(50)]
        _send([_create(url, HELD, task_id) for task_id in known], FILL_RATE)
        queries = [("GET", f"{url}{PATH}/{known[n % len(known)]}", HEADERS, None) for n in range(int(rate * seconds))]
        before = servers.cpu_seconds(servers.pids[url])
        with _load([_create(url, str(TASK_SECONDS)) for _ in range(creates)], CREATE_RATE) as created:
            queried = _send(queries, rate)
        cpu = servers.cpu_seconds(servers.pids[url]) - before
        httpx.post(f"{kling}/release", params={"rate": CREATE_RATE}).raise_for_status()
        report = _report(kling, creates + len(known))
    reached = len(queries) / (max(queried["answered_at"]) - min(queried["due_at"]))
    print(_line(f"queries, {reached:.0f} answered a second", queried["ms"]))
    print(_line("creates meanwhile", created["ms"]))
    print(_line("callbacks meanwhile", report["callback_ms"]))
    print(f"the receiver used {cpu / (seconds + TASK_SECONDS):.2f} of a core\n")


def _measure_holding(kling: str, held: int) -> None:
    """Hold a query of each of many tasks, then end them one by one."""
    print(f"{held} held queries, then {CREATE_RATE:g} tasks a second end\n")
    with _receiver(kling) as url:
        task_ids = [new_id() for _ in range(held)]
        _send([_create(url, HELD, task_id) for task_id in task_ids], FILL_RATE)
        before = servers.rss_mb(servers.pids[url])
        hold = {**HEADERS, "Prefer": f"wait={END_SECONDS:.0f}"}
        with _load([("GET", f"{url}{PATH}/{task_id}", hold, None) for task_id in task_ids], FILL_RATE * 4) as queried:
            time.sleep(held / (FILL_RATE * 4) + 2)
            memory = servers.rss_mb(servers.pids[url]) - before
            httpx.post(f"{kling}/release", params={"rate": CREATE_RATE}).raise_for_status()
        report = _report(kling, held)
    called_back_at = {task["external_id"]: task["called_back_at"] for task in report["tasks"]}
    delays = [
        (answered - called_back_at[task_id]) * 1000
        for task_id, answered in zip(task_ids, queried["answered_at"], strict=True)
    ]
    statuses = {json.loads(body)["data"]["task_status"] for body in queried["bodies"]}
    if min(delays) < 0 or statuses != {"succeed"}:
        raise SystemExit(f"bench: held queries were answered too early: {statuses}, {min(delays):.0f} ms")
    print(_line("from the callback to the held answer", delays))
    print(f"memory for {held} held queries: {memory} MB, {memory / held * 1000:.0f} KB each\n")


def _measure_queue(kling: str, queued: int, slots: int, task_seconds: float) -> None:
    """Queue many tasks for a few slots: how many Kling had at once, and how long a slot was idle between two tasks."""
    print(f"{queued} queued tasks of {task_seconds / 2:g} to {task_seconds * 1.5:g} s over {slots} slots\n")
    with _receiver(kling, KLING_CONCURRENCY=str(slots)) as url:
        # Tasks of different durations: otherwise all slots become free at the same moment, again and again.
        durations = [task_seconds * random.uniform(0.5, 1.5) for _ in range(queued)]
        _send([_create(url, f"{duration:.3f}") for duration in durations], FILL_RATE)
        report = _report(kling, queued)
    if report["peak"] > slots:
        raise SystemExit(f"bench: {report['peak']} tasks were at Kling at once, over {slots} slots")
    began = sorted(task["created_at"] for task in report["tasks"])
    ended = sorted(task["ended_at"] for task in report["tasks"])
    # The queue grows faster than Kling works, so every slot that becomes free has a next task.
    idle = [(next_began - each) * 1000 for each, next_began in zip(ended, began[slots:], strict=False)]
    print(_line("idle time of a slot", idle))
    seconds = max(ended) - min(began)
    ideal = (sum(durations) + queued * CREATE_SECONDS) / slots
    print(f"at most {report['peak']} tasks at Kling at once; {seconds:.1f} s in all, {ideal:.1f} s with no idle time")
