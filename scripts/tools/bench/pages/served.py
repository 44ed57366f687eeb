"""The pages of a running receiver, one request after the other, as a browser with a session sends them."""

import http.client
import secrets
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import cycle, islice
from typing import Any
from urllib.parse import urlencode, urlsplit

from sqlalchemy import Row, text

from kling_callback.protocol.signing import CallbackSigner, Grant, sign_grant
from kling_receiver.store.database import Database
from kling_receiver.web.api.paging import encode_cursor
from kling_receiver.web.dashboard import health, overview
from kling_receiver.web.shared import KEPT_TIMES
from tools.bench import filled
from tools.bench.pages.reads import DAY_MS, DEEP_DAYS, NEWEST, Times, single_filters, times_of
from tools.bench.processes.load_sockets import BODY
from tools.harness import servers

KEPT = {f"overview, {name}": f"/{overview.PATH}?range={name}" for name in overview.RANGES} | {
    "health": "/dashboard/health"
}
"""Pages whose numbers the receiver makes once for all visitors of some seconds."""
KEPT_SECONDS = max(overview.KEPT_SECONDS, health.KEPT_SECONDS)
KEPT_ROUNDS = 7
"""How often each of them is made; before, the bench waits until nothing is kept."""
AGAIN = 5
"""How often it is opened again at once; not `health`, which lets callbacks rest between two of its checks."""
SHOWN_TASKS = 20
"""Tasks whose own pages are opened, over and over."""
LATE_CALLBACKS = 3
"""Callbacks that each of them gets first: they are its history."""
SHOWN = text("SELECT id, family FROM task WHERE created_at <= :at AND done ORDER BY created_at DESC, id DESC LIMIT 1")
TO_API = {"kling_id": "task_id"}
"""Parameters of the list that have another name than in a `TaskFilter`."""


class Browser:
    """A session, over one kept-alive connection. `cookie`: its header, for other connections."""

    def __init__(self, url: str) -> None:
        """Sign in by a login link."""
        host = urlsplit(url)
        assert host.hostname is not None
        self.url, self.cookie = url, ""
        self._connection = http.client.HTTPConnection(host.hostname, host.port, timeout=60)
        link = sign_grant([servers.SECRET], "login", Grant("admin", int(time.time()) + 60, secrets.token_urlsafe(9)))
        headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": "application/x-www-form-urlencoded"}
        response, _ = self._send("POST", "/dashboard/login", headers, urlencode({"link": link}))
        self.cookie = (response.getheader("Set-Cookie") or "").partition(";")[0]
        if response.status != 303 or not self.cookie:
            raise SystemExit(f"bench: the login was answered HTTP {response.status}")

    def close(self) -> None:
        """Close the connection. The receiver keeps the session."""
        self._connection.close()

    def get(self, path: str) -> bytes:
        """Read a page to its end."""
        response, body = self._send("GET", path, {"Cookie": self.cookie})
        if response.status != 200:
            raise SystemExit(f"bench: {path} was answered HTTP {response.status}: {body[:300]!r}")
        return body

    def _send(
        self, method: str, path: str, headers: dict[str, str], body: str | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        self._connection.request(method, path, body, headers)
        response = self._connection.getresponse()
        return response, response.read()


def measure_pages(browser: Browser, database: Database, rounds: int) -> dict[str, Times]:
    """How long each page takes, from the request to the last byte."""
    pages = _pages(browser, database)
    for path in (path for paths in pages.values() for path in paths):
        browser.get(path)
    times = {
        name: times_of(_open(browser, path) for path in islice(cycle(paths), rounds)) for name, paths in pages.items()
    }
    made: dict[str, list[float]] = {name: [] for name in KEPT}
    again: dict[str, list[float]] = {name: [] for name in KEPT if name != "health"}
    slowest = 0.0
    for _ in range(min(rounds, KEPT_ROUNDS) + 1):
        time.sleep(max(KEPT_SECONDS, KEPT_TIMES * slowest / 1000) * 1.1)
        for name, path in KEPT.items():
            made[name].append(_open(browser, path))
            if name in again:
                again[name] += [_open(browser, path) for _ in range(AGAIN)]
        slowest = max(each[-1] for each in made.values())
    for name in KEPT:
        times[name] = times_of(made[name][1:])
        if name in again:
            times[f"{name}, shown again"] = times_of(again[name][AGAIN:])
    return times


def _open(browser: Browser, path: str) -> float:
    """Milliseconds for a page."""
    started = time.perf_counter()
    browser.get(path)
    return (time.perf_counter() - started) * 1000


def _pages(browser: Browser, database: Database) -> dict[str, list[str]]:
    """The paths of each kind of page."""
    with database.read() as connection:
        newest = connection.exec_driver_sql(NEWEST).scalar_one()
        days = [newest - number * filled.DAYS * DAY_MS // SHOWN_TASKS for number in range(SHOWN_TASKS)]
        shown = [row for at in days for row in connection.execute(SHOWN, {"at": at})]
    _call_back(browser, shown)
    pages = {f"tasks: {name}": [_list_path(values)] for name, values in single_filters(newest).items()}
    pages["tasks: no filter, deep"] = [_list_path({"cursor": encode_cursor((newest - DEEP_DAYS * DAY_MS, "0"))})]
    pages["a task"] = [f"/dashboard/tasks/{row.id}" for row in shown]
    return pages | {"hooks": ["/dashboard/hooks"], "create": ["/dashboard/create"]}


def _list_path(values: Any) -> str:
    query = {TO_API.get(name, name): value for name, value in values.items()}
    for name in ("since", "until"):
        if name in query:
            query[name] = datetime.fromtimestamp(query[name] / 1000, UTC).isoformat()
    return f"/?{urlencode(query)}"


def _call_back(browser: Browser, shown: Sequence[Row[Any]]) -> None:
    """Send some late callbacks of finished tasks, which their pages then show."""
    host = urlsplit(browser.url)
    assert host.hostname is not None
    connection = http.client.HTTPConnection(host.hostname, host.port, timeout=60)
    signer = CallbackSigner([servers.SECRET])
    for row in shown:
        path = urlsplit(signer.url(browser.url, row.id, row.family)).path
        for number in range(LATE_CALLBACKS):
            connection.request("POST", path, BODY % (number, b"processing"))
            response = connection.getresponse()
            if response.read() and response.status != 200:
                raise SystemExit(f"bench: a callback was answered HTTP {response.status}")
    connection.close()


def prepare(database: Database) -> None:
    """Let nothing in a filled database be due, so that only the pages are measured: hooks are paused, jobs wait."""
    later = int(time.time() * 1000) + filled.DAY_MS
    with database.write() as connection:
        connection.exec_driver_sql(f"UPDATE hook SET paused_at = {later - filled.DAY_MS}, paused_because = 'bench'")
        connection.exec_driver_sql(f"UPDATE job SET due_at = {later} WHERE state = 'ready'")


def settle(database: Database) -> None:
    """The same of a receiver that has started: it would ask Kling about each open task."""
    with database.write() as connection:
        connection.exec_driver_sql("DELETE FROM job WHERE kind = 'sweep'")
