"""The command `kling-receiver serve`."""

import gc
import logging
import os
import sys
import threading

import click

from kling_callback.cli import terminal, usage
from kling_receiver import __version__
from kling_receiver.app import Receiver
from kling_receiver.cli.access import LINK_SECONDS, new_login_link
from kling_receiver.cli.base import FAILED, exit_with, load_settings, report_errors, warn_if_unreachable
from kling_receiver.logs import LineFormatter
from kling_receiver.server import bind, create_server
from kling_receiver.settings import TO_SERVE

log = logging.getLogger("kling_receiver")

GIL_SWITCH_SECONDS = 0.0005
"""Seconds for which the event loop may keep the writer thread waiting at each step of a commit; Python's default is
ten times as long."""

QUIET_LOGGERS = {"alembic": logging.WARNING, "httpx": logging.WARNING, "uvicorn.error": logging.ERROR}
"""Minimum levels: uvicorn warns of each request that is not HTTP, and any peer can send those."""

EXIT_SECONDS = 2.0
"""Seconds from the end of the shutdown to the end of the process, if threads are blocked."""


@click.command(cls=usage.Command, examples=["kling-receiver serve", "kling-receiver serve --host 0.0.0.0 --port 8080"])
@usage.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@usage.option("--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="0: any free port.")
@report_errors
def serve(host: str, port: int) -> None:
    """Run the receiver until SIGTERM or Ctrl-C."""
    if not host:  # the system would take it for all addresses
        usage.problems().refuse("--host is empty. 127.0.0.1 is this machine, 0.0.0.0 all addresses.")
    settings = load_settings(TO_SERVE)
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(hidden=settings.secrets))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name, level in QUIET_LOGGERS.items():
        logging.getLogger(name).setLevel(level)
    receiver = Receiver(settings)
    receiver.prepare()
    try:
        listener = bind(host, port)
    except BaseException:
        receiver.release()
        raise
    url_host = f"[{host}]" if ":" in host else host
    database, results = receiver.store.database, receiver.store.storage.root
    address = f"http://{url_host}:{listener.getsockname()[1]}"
    terminal.print_message(f"kling-receiver {__version__} on {address}, reached by Kling as {settings.receiver_url}")
    terminal.print_message(f"data in {settings.data_dir}: database {database}, results {results}")
    terminal.print_message(
        f"open the pages (works once, within {LINK_SECONDS // 60} minutes): {new_login_link(settings)}"
    )
    warn_if_unreachable(settings)
    sys.setswitchinterval(GIL_SWITCH_SECONDS)
    gc.freeze()  # modules and settings live until the end: no collection needs to visit them
    server = create_server(receiver)
    receiver.on_stopped = lambda: _exit_soon(0 if server.started else FAILED)
    try:
        server.run(sockets=[listener])
    except SystemExit:  # uvicorn exits with 3, which means a timeout in our commands
        exit_with(["The receiver could not start. The lines above state the reason."], FAILED)


def _exit_soon(code: int) -> None:
    """End the process although the interpreter waits for threads that the disk or the database blocks for ever."""
    timer = threading.Timer(EXIT_SECONDS, _exit, [code])
    timer.daemon = True
    timer.start()


def _exit(code: int) -> None:
    log.warning("the disk or the database does not answer; the process ends without it")
    logging.shutdown()
    os._exit(code)
