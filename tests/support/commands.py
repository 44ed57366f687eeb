"""The commands in the test process: as in a process of their own, without the start of an interpreter each time."""

import asyncio
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from subprocess import CompletedProcess
from typing import Any

import alembic  # noqa: F401  # the first import adds a handler to its logger
from click.testing import CliRunner

from kling_receiver.cli.main import main as kling_receiver

LOGGERS = ("root", "kling_callback", "kling_receiver", "alembic", "httpx", "uvicorn.error")


def run_here(*arguments: str, env: dict[str, str], stdin: str = "") -> CompletedProcess[str]:
    """Run `kling-receiver` in this process, like `tools.harness.process.run`. An error that is a bug is raised.

    `serve`: only for a start that is refused.
    """
    with leaves_no_trace(), _restored_logging() if arguments[0] == "serve" else nullcontext():
        result = CliRunner().invoke(
            kling_receiver, arguments, input=stdin, env=env, catch_exceptions=False, prog_name="kling-receiver"
        )
    return CompletedProcess(["kling-receiver", *arguments], result.exit_code, result.stdout, result.stderr)


@contextmanager
def _restored_logging() -> Iterator[None]:
    """After the block, put the log back that `serve` replaces: its process has its own."""
    before = {name: _logger_state(logging.getLogger(name)) for name in LOGGERS}
    yield
    for name, state in before.items():
        logger = logging.getLogger(name)
        logger.setLevel(state[0])
        logger.disabled, logger.handlers = state[1:]


@contextmanager
def leaves_no_trace() -> Iterator[None]:
    """Check that the block leaves the process as it was: logging, signal handlers, event loops, thread switches."""
    before = _process_state()
    yield
    assert _process_state() == before


def _process_state() -> dict[str, Any]:
    with closing(asyncio.new_event_loop()) as loop:
        loop_class = type(loop)
    return {
        **{name: _logger_state(logging.getLogger(name)) for name in LOGGERS},
        "signal handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "event loop": loop_class,
        "wakeup": _wakeup_descriptor(),
        "switch interval": sys.getswitchinterval(),
    }


def _logger_state(logger: logging.Logger) -> tuple[int, bool, list[logging.Handler]]:
    return logger.level, logger.disabled, list(logger.handlers)


def _wakeup_descriptor() -> int:
    """The descriptor by which an event loop hears of signals; -1 without a loop that handles signals."""
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return descriptor
