"""`kling-receiver` with the foreground gate `on` or `off`.

Run as a process of its own: `python -m tools.bench.processes.gate_switch off serve --port 8000`.
"""

import sys

from kling_receiver.cli.main import main
from kling_receiver.store.foreground_gate import ForegroundGate


async def no_wait(gate: ForegroundGate) -> None:
    """Let background work start at once."""


if __name__ == "__main__":
    if sys.argv.pop(1) == "off":
        setattr(ForegroundGate, "wait_idle", no_wait)  # noqa: B010  # mypy allows no assignment to a method
    main()
