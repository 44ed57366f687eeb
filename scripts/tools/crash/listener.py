"""A listener that follows the whole event log through all kills of the receiver, and records what it is sent."""

import json
import threading
from contextlib import suppress
from typing import Self

import httpx

from tools.crash.history import Event, History
from tools.harness.process import Process

SILENCE_SECONDS = 1.0
"""Seconds without a byte after which the listener connects again."""
RECONNECT_SECONDS = 0.05


class Listener:
    """A thread that follows `/api/events` from the first event on until the block ends."""

    def __init__(self, receiver: Process, history: History, name: str = "listener") -> None:
        self._receiver, self._history, self._name = receiver, history, name
        self._last, self._cursor = 0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, event_id: int, seconds: float) -> None:
        """Wait until the listener has this event; not longer than so long."""
        waiting = threading.Event()
        for _ in range(int(seconds / RECONNECT_SECONDS)):
            if self._last >= event_id or waiting.wait(RECONNECT_SECONDS):
                return

    def _follow(self) -> None:
        while not self._stop.wait(RECONNECT_SECONDS):
            with suppress(httpx.TransportError):
                self._read()

    def _read(self) -> None:
        """Read one stream until it breaks, or the block ends."""
        headers = self._receiver.headers("read") | ({"Last-Event-ID": self._cursor} if self._cursor else {})
        url = f"{self._receiver.url}/api/events"
        with httpx.stream("GET", url, headers=headers, timeout=SILENCE_SECONDS, trust_env=False) as response:
            if response.status_code != 200:
                return
            cursor = self._cursor
            for line in response.iter_lines():
                if line.startswith("id: "):
                    cursor = line[4:]
                if line.startswith("data: "):
                    event = Event.parse(json.loads(line[6:]))
                    self._history.follow(self._name, event)
                    self._last, self._cursor = event.id, cursor
                if self._stop.is_set():
                    return
