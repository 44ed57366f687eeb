"""Many pages open at once: memory, from a callback to what they show, and callbacks accepted a second."""

import html
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import inf
from statistics import median
from typing import Any

import httpx

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import CallbackSigner
from kling_receiver.web.dashboard.live import MAX_SESSION_STREAMS
from tools.bench.callbacks import FAMILY, run_load
from tools.bench.pages.reads import Times, times_of
from tools.bench.pages.served import Browser
from tools.bench.processes.load_sockets import BODY
from tools.harness import servers

RARE_SECONDS = 1.5
"""Seconds between two callbacks of a receiver that has little to do."""
RARE_CALLBACKS = 10
RATE = 20.0
"""Callbacks a second of one that has more."""
RATE_SECONDS = 15.0
LAST_SECONDS = 3.0
"""Seconds in which the last change has reached every page."""
CONNECTIONS = 128
LIVE = re.compile(rb'sse-connect="\./([^"]+)"')


@dataclass(frozen=True, slots=True)
class Loaded:
    """Callbacks accepted a second, and milliseconds of the receiver's CPU for each."""

    rate: float
    cpu_ms: float


@dataclass(frozen=True, slots=True)
class Watched:
    """What was measured. `memory`: megabytes before and with the pages; `rounds`: without and with them.

    `rare`, `frequent`: milliseconds from the answer to a callback until the last page was sent its task.
    """

    memory: tuple[int, int]
    rare: Times
    frequent: Times
    rounds: list[tuple[Loaded, Loaded]]
    megabytes_per_second: float

    def median_of(self, side: int) -> Loaded:
        """The medians of the rounds without (0) and with (1) the pages."""
        each = [pair[side] for pair in self.rounds]
        return Loaded(median(one.rate for one in each), median(one.cpu_ms for one in each))

    @property
    def rate_ratio(self) -> float:
        """Callbacks accepted a second with the pages, of those without: the median of the rounds."""
        return median(with_pages.rate / without.rate for without, with_pages in self.rounds)

    @property
    def cpu_ratio(self) -> float:
        """The same of the CPU for a callback."""
        return median(with_pages.cpu_ms / without.cpu_ms for without, with_pages in self.rounds)


def measure_watched(browser: Browser, pages: int, pairs: int, requests: int) -> Watched:
    """Measure without and with so many open pages; the callbacks of each round are of new tasks."""
    pid = servers.pids[browser.url]
    _load(browser.url, requests)  # whatever the first callbacks need, no round pays for
    before = servers.rss_mb(pid)
    with _open_pages(browser, pages, "watch") as output:
        memory = servers.rss_mb(pid)
        rare = _send(browser.url, RARE_CALLBACKS if pairs > 1 else 2, RARE_SECONDS)
        frequent = _send(browser.url, int(RATE * (RATE_SECONDS if pairs > 1 else 1)), 1 / RATE)
        time.sleep(LAST_SECONDS)
    rare_times, frequent_times = (_delays(output["tasks"], answered) for answered in (rare, frequent))
    rounds, sent, seconds = [], 0, 0.0
    for number in range(pairs):
        each = {}
        for with_pages in (False, True) if number % 2 else (True, False):
            if not with_pages:
                each[False] = _load(browser.url, requests)
                continue
            with _open_pages(browser, pages) as output:
                started = time.monotonic()
                each[True] = _load(browser.url, requests)
                seconds += time.monotonic() - started
                memory = max(memory, servers.rss_mb(pid))
            sent += output["bytes"]
        rounds.append((each[False], each[True]))
    return Watched((before, memory), rare_times, frequent_times, rounds, sent / 1e6 / seconds)


@contextmanager
def _open_pages(browser: Browser, count: int, *options: str) -> Iterator[dict[str, Any]]:
    """Keep so many first pages of the list open; the dict has the output of `open_pages` after the block."""
    match = LIVE.search(browser.get("/"))
    assert match, "the first page of the list is live"
    path = f"/{html.unescape(match[1].decode())}"
    name = "tools.bench.processes.open_pages"
    cookies = []
    for _ in range(-(-count // MAX_SESSION_STREAMS)):
        with closing(Browser(browser.url)) as visitor:
            cookies.append(visitor.cookie)
    command = [sys.executable, "-m", name, browser.url, path, str(count), " ".join(cookies), *options]
    output: dict[str, Any] = {}
    with subprocess.Popen(
        command, cwd=servers.SCRIPTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        try:
            if process.stdout.readline() != "open\n":
                raise SystemExit("bench: the pages could not be opened")
            yield output
            process.stdin.close()
            output |= json.loads(process.stdout.read())
        finally:
            process.kill()


def _load(url: str, requests: int) -> Loaded:
    before = servers.cpu_seconds(servers.pids[url])
    rate = run_load(url, requests, CONNECTIONS, "load_sockets")["rate"]
    return Loaded(rate, (servers.cpu_seconds(servers.pids[url]) - before) / requests * 1000)


def _send(url: str, count: int, seconds: float) -> dict[str, float]:
    """Send so many callbacks of new tasks, one each so many seconds: when each was answered, in monotonic seconds."""
    signer, answered = CallbackSigner([servers.SECRET]), {}
    with httpx.Client(timeout=30) as http:
        due = time.monotonic()
        for number in range(count):
            time.sleep(max(due - time.monotonic(), 0.0))
            task_id = new_id()
            content = BODY % (number, b"processing")
            http.post(signer.url(url, task_id, FAMILY), content=content).raise_for_status()
            answered[task_id] = time.monotonic()
            due += seconds
    return answered


def _delays(tasks: dict[str, tuple[float, float]], answered: dict[str, float]) -> Times:
    """Milliseconds from each answer to the last page; without end for a task that newer ones pushed off the list."""
    return times_of((tasks[task_id][1] - at) * 1000 if task_id in tasks else inf for task_id, at in answered.items())
