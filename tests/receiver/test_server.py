"""`kling-receiver serve` as an operator meets it: how it starts, how it refuses to, how it ends."""

import signal
import socket
import threading
from pathlib import Path

import httpx
import pytest
from sqlalchemy import create_engine, text

from kling_callback.protocol.ids import new_id
from kling_receiver.server import bind
from kling_sandbox import Sandbox
from tests.support.receiver import Start
from tools.harness.loopback import free_port
from tools.harness.process import Process, environment, run
from tools.harness.submitting import post, register, rows, stream


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_with_streams_open(tmp_path: Path, number: signal.Signals) -> None:
    """Told to end, it ends its endless streams too, well within the grace, with exit code 0."""
    with Process(tmp_path / "data") as receiver:
        register(receiver, new_id())
        with stream(receiver, "/api/events") as coming:
            next(coming)
            receiver.signal(number)
            assert list(coming) == []
        code, seconds = receiver.wait()
        assert (code, seconds < 5) == (0, True), receiver.log_text()
        receiver.start()
        assert httpx.get(f"{receiver.url}/healthz").json() == {"ok": True}


def test_who_comes_while_it_ends_comes_too_late(start: Start) -> None:
    """A connection that was taken in at the last moment is not waited for."""
    running = start(api_base="http://127.0.0.1:9")
    assert not running._server.server_state.closed
    running.stop()
    assert running._server.server_state.closed


def test_it_says_where_it_is_and_where_its_data_lie(tmp_path: Path) -> None:
    """The address, the public address, the absolute paths of database and results."""
    with Process(tmp_path / "data") as receiver:
        said = receiver.log_text()
        for part in (receiver.url, f"{tmp_path}/data", "kling.db", "results"):
            assert part in said
        assert (tmp_path / "data" / "kling.db").stat().st_mode & 0o077 == 0


def test_a_second_one_on_the_same_data_is_refused(tmp_path: Path) -> None:
    """Naming who holds it; the first goes on."""
    with Process(tmp_path / "data") as receiver:
        url = f"http://127.0.0.1:{free_port()}"
        second = run("serve", "--port", "0", env={**receiver.env, "KLING_RECEIVER_URL": url})
        assert second.returncode == 1
        assert "is served by process " in second.stderr
        assert "Traceback" not in second.stderr
        assert post(receiver, new_id(), {}).status_code == 200


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """Is told in one line, and the data are free again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1")
        refused = run("serve", "--port", str(port), env=env)
    assert refused.returncode == 1
    assert "in use" in refused.stderr
    assert str(port) in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_start_that_fails_is_no_success(tmp_path: Path) -> None:
    """When the work that is owed cannot be read, it ends with exit code 1 and says why."""
    env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1")
    assert run("migrate", env=env).returncode == 0
    engine = create_engine(f"sqlite:///{tmp_path / 'data' / 'kling.db'}")
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE job RENAME TO gone"))
    engine.dispose()
    refused = run("serve", "--port", "0", env=env)
    assert refused.returncode == 1
    assert "no such table: job" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"KLING_DATABASE_URL": "postgresql://user:hidden@127.0.0.1:1/kling"}, "127.0.0.1"),
        ({"KLING_DATA_DIR": "/proc/nothing"}, "/proc/nothing"),
        ({"KLING_STORAGE_URL": "file:///proc/nothing"}, "/proc/nothing"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    """A database that is not there, a folder that cannot be made: exit code 1, and no password."""
    env = environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1", **settings)
    refused = run("serve", "--port", "0", env=env)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "hidden" not in refused.stderr


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """Is told in one line, and left as it is."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "kling.db").write_text("my diary\n" * 1000)
    refused = run("serve", env=environment(tmp_path / "data", KLING_RECEIVER_URL="http://127.0.0.1:1"))
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert "not a database" in refused.stderr
    assert (tmp_path / "data" / "kling.db").read_text().startswith("my diary")


def test_requests_under_way_are_answered_before_the_end(start: Start, gateway: Sandbox) -> None:
    """A callback whose body is still coming when the end is told is kept all the same."""
    running = start(api_base=gateway.url)
    task = new_id()
    path = httpx.URL(running.callback_url(task)).path
    with socket.create_connection(("127.0.0.1", httpx.URL(running.url).port or 0), timeout=20) as slow:
        slow.sendall(f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n{{"task_status"'.encode())
        assert httpx.get(f"{running.url}/healthz").status_code == 200  # by now the beginning was read
        ending = threading.Thread(target=running.stop)
        ending.start()
        slow.sendall(b':"processing"  }')
        assert slow.recv(65536).startswith(b"HTTP/1.1 200 ")
        ending.join()
    assert rows(running, "SELECT id, status FROM task") == [{"id": task, "status": "processing"}]
    running.receiver.database.close()  # to look into it opened it again


def test_both_kinds_of_address() -> None:
    """A host with a colon is IPv6; a taken address leaves no socket behind."""
    with bind("127.0.0.1", 0) as first:
        assert first.family == socket.AF_INET
        with pytest.raises(OSError, match="in use"):
            bind("127.0.0.1", first.getsockname()[1])
    if socket.has_dualstack_ipv6():
        with bind("::1", 0) as sixth:
            assert sixth.family == socket.AF_INET6
