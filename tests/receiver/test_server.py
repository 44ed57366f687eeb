"""`kling-receiver serve`: start, refused start and shutdown, with each version of uvicorn."""

import os
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from kling_callback.protocol.ids import new_id
from kling_receiver import server
from kling_receiver.app import Receiver, create_app
from kling_receiver.results.owner import RECORD
from kling_receiver.server import LIMIT_NAMES, SHUTDOWN_NAMES, bind, missing_names
from kling_receiver.store.errors import DatabaseError
from kling_receiver.web.connections import ConnectionTable
from kling_sandbox import Sandbox
from tests.support.commands import run_here
from tests.support.receiver import Running, Start, make_settings
from tools.harness.loopback import free_port
from tools.harness.process import Process, environment, run
from tools.harness.submitting import post, register, rows, stream


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_shuts_down_in_order_with_streams_open(start: Start, tmp_path: Path, number: signal.Signals) -> None:
    """A signal closes the event streams too, well within the grace, with exit code 0; the data can be served again."""
    with Process(tmp_path / "data") as receiver:
        register(receiver, new_id())
        with stream(receiver, "/api/events") as coming:
            next(coming)
            receiver.signal(number)
            assert list(coming) == []
        code, seconds = receiver.wait()
        assert (code, seconds < 5) == (0, True), receiver.log_text()
    running = start(api_base="http://127.0.0.1:9", data_dir=tmp_path / "data")
    assert httpx.get(f"{running.url}/healthz").json() == {"ok": True}


def test_no_connection_is_accepted_during_shutdown(start: Start) -> None:
    """A connection that was accepted at the last moment is not waited for."""
    running = start(api_base="http://127.0.0.1:9")
    connections = running._server.server_state
    assert isinstance(connections, ConnectionTable)
    assert not connections.closed
    running.stop()
    assert connections.closed


@pytest.mark.usefixtures("processes_are_forked")
def test_it_prints_its_address_and_the_paths_of_its_data(tmp_path: Path) -> None:
    """Its own address, the public address, the absolute paths of database and results."""
    with Process(tmp_path / "data") as receiver:
        said = receiver.log_text()
        for part in (receiver.url, f"{tmp_path}/data", "kling.db", "results"):
            assert part in said
        assert (tmp_path / "data" / "kling.db").stat().st_mode & 0o077 == 0


@pytest.mark.usefixtures("processes_are_forked")
def test_a_second_one_on_the_same_data_is_refused(start: Start) -> None:
    """The message names the first process, which goes on."""
    running = start(api_base="http://127.0.0.1:9")
    env = environment(running.settings.data_dir, KLING_RECEIVER_URL=f"http://127.0.0.1:{free_port()}")
    second = run("serve", "--port", "0", env=env)
    assert second.returncode == 1
    assert f"is served by process {os.getpid()}" in second.stderr
    assert "Traceback" not in second.stderr
    assert post(running, new_id(), {}).status_code == 200


def test_a_port_in_use(tmp_path: Path) -> None:
    """The error is one line, and the data are unlocked again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1")
        refused = run_here("serve", "--port", str(port), env=env)
    assert refused.returncode == 1
    assert "in use" in refused.stderr
    assert str(port) in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


@pytest.mark.usefixtures("processes_are_forked")
def test_a_start_that_fails_has_exit_code_1(tmp_path: Path) -> None:
    """When the jobs cannot be read, although the checks found nothing: one line says why, without a traceback."""
    env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1")
    assert run_here("migrate", env=env).returncode == 0
    engine = create_engine(f"sqlite:///{tmp_path / 'data' / 'kling.db'}")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE job RENAME TO gone"))
    engine.dispose()
    refused = run("serve", "--port", "0", env=env)
    assert refused.returncode == 1
    assert "ERROR uvicorn.error: The database cannot be used: no such table: job." in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "The receiver could not start." in refused.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"KLING_DATABASE_URL": "postgresql://user:hidden@127.0.0.1:1/kling"}, "127.0.0.1"),
        ({"KLING_DATA_DIR": "/proc/nothing"}, "/proc/nothing"),
        ({"KLING_STORAGE_URL": "file:///proc/nothing"}, "/proc/nothing"),
    ],
)
def test_unusable_storage_is_reported_in_one_line(tmp_path: Path, settings: dict[str, str], error: str) -> None:
    """A database that cannot be reached, a folder that cannot be made: exit code 1, and no password."""
    env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1", **settings)
    refused = run_here("serve", "--port", "0", env=env)
    assert refused.returncode == 1
    assert error in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hidden" not in refused.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["prepare", "start"])
async def test_a_start_that_fails_leaves_nothing_locked(tmp_path: Path, fault: str) -> None:
    """Neither the database nor the folder: a program may start another receiver; no thread is left."""
    settings = make_settings(tmp_path)
    if fault == "prepare":
        (tmp_path / "data" / "results" / RECORD).mkdir(parents=True)
        with pytest.raises((DatabaseError, OSError)):
            Receiver(settings).prepare()
        (tmp_path / "data" / "results" / RECORD).rmdir()
    else:
        broken = Receiver(settings)
        broken.prepare()
        with broken.store.database.write() as connection:
            connection.execute(text("ALTER TABLE hook RENAME TO elsewhere"))
        app = create_app(broken)
        with pytest.raises(DatabaseError, match="hook"):
            async with app.router.lifespan_context(app):
                pass
        with closing(sqlite3.connect(tmp_path / "data" / "kling.db")) as connection:
            connection.execute("ALTER TABLE elsewhere RENAME TO hook")
    another = Receiver(settings)
    another.prepare()
    another.release()
    left = {thread.name for thread in threading.enumerate()}
    assert left.isdisjoint({"writer", "owner-recorder"})


def test_a_file_that_is_not_a_database(tmp_path: Path) -> None:
    """The error is one line, and the file is not changed."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kling.db").write_text("my diary\n" * 1000)
    refused = run_here("serve", env=environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1"))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "not a database" in refused.stderr
    assert (tmp_path / "data" / "kling.db").read_text().startswith("my diary")


def test_requests_in_progress_are_answered_before_the_shutdown(start: Start, gateway: Sandbox) -> None:
    """A callback whose body is incomplete when the shutdown begins is stored."""
    running = start(api_base=gateway.url)
    task = new_id()
    path = httpx.URL(running.callback_url(task)).path
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port or 0), timeout=20) as slow:
        slow.sendall(f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{{"task_status"'.encode())
        assert (
            httpx.get(f"{running.url}/healthz").status_code == 200
        )  # the start of the body was read before this request
        ending = threading.Thread(target=running.stop)
        ending.start()
        slow.sendall(b':"processing"  }')
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        ending.join()
    assert rows(running, "SELECT id, status FROM task") == [{"id": task, "status": "processing"}]
    running.receiver.store.database.close()  # reading the rows opened it again


def test_both_kinds_of_address() -> None:
    """A host with a colon is IPv6; an address in use leaves no socket open."""
    with bind("127.0.0.1", 0) as first:
        assert first.family == socket.AF_INET
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", first.getsockname()[1])
    if socket.has_dualstack_ipv6():
        with bind("::1", 0) as sixth:
            assert sixth.family == socket.AF_INET6


# --- other versions of uvicorn -----------------------------------------------------------------------------


def test_this_uvicorn_has_all_that_is_overridden_or_used() -> None:
    """Methods, attributes of instances, and names of modules."""
    assert missing_names(LIMIT_NAMES) == []
    assert missing_names(SHUTDOWN_NAMES) == []


def test_missing_names_are_found() -> None:
    """A module, a name, a class, a method, an attribute that no constructor sets."""
    assert missing_names({"uvicorn.gone": ("Server",), "uvicorn.server": ("gone", "Gone.main_loop")}) == [
        *("uvicorn.gone", "gone", "Gone.main_loop")
    ]
    assert missing_names({"uvicorn.server": ("Server.main_loop", "Server.gone", "Server.should_exit")}) == [
        "Server.gone"
    ]


def use(running: Running) -> None:
    """Register a task, send its callback, and read an event of the stream, which stays open."""
    task = new_id()
    register(running, task)
    assert post(running, task, {"task_status": "processing"}).status_code == 200
    with stream(running, "/api/events") as events:
        assert next(events)["task"]["id"] == task


def remove_method(monkeypatch: pytest.MonkeyPatch) -> str:
    """uvicorn without a method that only our subclass needs."""
    monkeypatch.delattr(HttpToolsProtocol, "send_400_response")
    return "HttpToolsProtocol.send_400_response"


def remove_module(monkeypatch: pytest.MonkeyPatch) -> str:
    """uvicorn without its httptools protocol: it serves with h11."""
    monkeypatch.delitem(sys.modules, "uvicorn.protocols.http.auto", raising=False)
    for name in ("httptools", "uvicorn.protocols.http.httptools_impl"):
        monkeypatch.setitem(sys.modules, name, None)
    return "lacks uvicorn.protocols.http.httptools_impl. "


def remove_httptools(monkeypatch: pytest.MonkeyPatch) -> str:
    """uvicorn installed without httptools, which its protocol imports."""
    for name in ("uvicorn.protocols.http.auto", "uvicorn.protocols.http.httptools_impl"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "httptools", None)
    return "lacks httptools. "


def add_requirement(monkeypatch: pytest.MonkeyPatch) -> str:
    """uvicorn without an attribute of its instances."""
    monkeypatch.setitem(LIMIT_NAMES, "uvicorn.server", ("ServerState.gone",))
    return "ServerState.gone"


@pytest.mark.parametrize("change", [remove_method, remove_module, remove_httptools, add_requirement])
def test_without_parts_of_uvicorn_it_serves_without_limits(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[pytest.MonkeyPatch], str],
) -> None:
    """It warns of the limits that are off, and serves with uvicorn's own protocol."""
    missing = change(monkeypatch)
    running = start(api_base="http://127.0.0.1:9")
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert missing in warning
    assert "These limits are off: seconds for a request head" in warning
    assert type(running._server.server_state) is ServerState
    use(running)
    running.stop()


@pytest.mark.parametrize("name", ["handle_exit", "main_loop", "on_tick", "shutdown"])
def test_without_parts_of_uvicorn_s_server_it_serves_and_stops(
    start: Start, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """It warns that a shutdown takes longer, and serves with uvicorn's own server; the limits are on."""
    monkeypatch.setattr(server, "SHUTDOWN_NAMES", {"uvicorn.server": (f"Server.no_{name}", f"Server.{name}")})
    running = start(api_base="http://127.0.0.1:9")
    [warning] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert f"lacks Server.no_{name}. A shutdown while event streams are open takes 10 s." in warning
    assert type(running._server) is server.PlainServer
    assert isinstance(running._server.server_state, ConnectionTable)
    use(running)
    running.stop()
