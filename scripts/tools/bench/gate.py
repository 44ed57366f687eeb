"""Callback latency under hook traffic with and without the foreground gate (store/foreground_gate): paired runs."""

import sys
from contextlib import ExitStack
from statistics import median

from tools.bench.hooks import EVENTS_PER_TASK, SECRET, percentile, received, run_load
from tools.harness import servers

SWITCH = (sys.executable, "-m", "tools.bench.processes.gate_switch")


def run(pairs: int, rate: float, seconds: float) -> None:
    """Alternate runs with and without the gate. A ratio over 1: callbacks are slower without the gate."""
    print(f"{pairs} pairs, {seconds:g} s a run, {rate:g} finished tasks a second, all events to one hook\n")
    print(f"{'pair':>4} {'median ms':>20} {'p99 ms':>22} {'ratio of medians':>17} {'ratio of p99':>13}")
    medians, p99s = [], []
    with ExitStack() as stack:
        hook = stack.enter_context(servers.module("tools.bench.processes.hook"))
        kling = stack.enter_context(servers.module("tools.bench.processes.finished_kling"))
        for pair in range(1, pairs + 1):
            gated, open_ = (_callback_ms(kling, hook, switch, rate, seconds) for switch in ("on", "off"))
            middle, tail = [median(ms) for ms in (gated, open_)], [percentile(ms, 99) for ms in (gated, open_)]
            medians.append(middle[1] / middle[0])
            p99s.append(tail[1] / tail[0])
            print(
                f"{pair:4} {middle[0]:6.2f}, without {middle[1]:5.2f} {tail[0]:7.2f}, without {tail[1]:6.2f}"
                f" {medians[-1]:17.2f} {p99s[-1]:13.2f}",
                flush=True,
            )
    print(f"\nwithout the gate, median of pairs: p99 {median(p99s):.2f}, median {median(medians):.2f} of that with it")


def _callback_ms(kling: str, hook: str, switch: str, rate: float, seconds: float) -> list[float]:
    """The durations of callbacks in one run, sorted; ends when the hook has all events."""
    settings = {"KLING_HOOK_URL": hook, "KLING_HOOK_SECRET": SECRET, "KLING_PRIVATE_HOOK_HOSTS": "127.0.0.1"}
    with servers.receiver(api_base=kling, command=(*SWITCH, switch), **settings) as url:
        durations: list[float] = sorted(run_load(url, rate, seconds)["ms"])
        received(hook, EVENTS_PER_TASK * int(rate * seconds))
    return durations
