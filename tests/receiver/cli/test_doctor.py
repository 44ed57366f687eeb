"""The doctor: the whole way a callback takes, and each step at which it may break."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kling_receiver.cli.doctor import Check, run_checks
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, Start, make_settings
from tests.support.web import Visit, host
from tools.harness.process import Process, environment, run
from tools.harness.submitting import rows

pytestmark = pytest.mark.anyio


async def findings(tmp_path: Path, **settings: Any) -> list[Check]:
    """What the doctor finds."""
    return [finding async for finding in run_checks(make_settings(tmp_path, **settings))]


async def broken(tmp_path: Path, **settings: Any) -> Check:
    """The one step that is broken, after which the walk ends."""
    found = await findings(tmp_path, api_key="", webhook_secrets=(), **settings)
    assert [finding.ok for finding in found] == [True] * (len(found) - 1) + [False]
    return found[-1]


async def test_the_way_is_open(start: Start, gateway: Sandbox) -> None:
    """Name, connection, callback, key: all good, and no task was made."""
    running = start(api_base=gateway.url, path="/prefix")
    found = [finding async for finding in run_checks(running.settings)]
    assert [finding.name for finding in found] == ["name", "connection", "callback", "key"]
    assert all(finding.ok for finding in found), found
    assert rows(running, "SELECT * FROM task") == []


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 70 + ".example"])
async def test_a_name_without_an_address(tmp_path: Path, name: str) -> None:
    """Nothing can be reached whose name nobody knows."""
    finding = await broken(tmp_path, receiver_url=f"https://{name}/x")
    assert finding.name == "name"
    assert "KLING_RECEIVER_URL" in finding.message


async def test_nobody_listens(tmp_path: Path) -> None:
    """The port is closed: the receiver or its proxy is not running."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    finding = await broken(tmp_path, receiver_url=f"http://127.0.0.1:{port}")
    assert (finding.name, "does not answer" in finding.message) == ("connection", True)


async def test_no_certificate(tmp_path: Path) -> None:
    """https where only http is spoken."""
    with host(lambda visit: visit.answer(200)) as there:
        finding = await broken(tmp_path, receiver_url=there.url.replace("http://", "https://"))
    assert (finding.name, "certificate" in finding.message) == ("connection", True)


@contextmanager
def answering(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    """A server that is not the receiver."""

    def respond(visit: Visit) -> None:
        visit.answer(status, body, **headers)

    with host(respond) as there:
        yield there.url


@pytest.mark.parametrize(
    ("status", "body", "headers", "said"),
    [
        (
            301,
            b"",
            {"Location": "https://www.example.com/callbacks/x"},
            "to https://www.example.com, ",
        ),
        (308, b"", {}, "Kling does not follow"),
        (200, b"<h1>It works!</h1>", {}, "not this receiver"),
        (200, b'{"doctor": "another"}', {}, "not this receiver"),
        (204, b"", {}, "Something else"),
        (401, b"", {}, "other KLING_SIGNING_SECRETS"),
        (403, b"", {}, "refuses"),
        (404, b"", {}, "not passed on"),
        (405, b"", {}, "POST"),
        (413, b"", {}, "limit on bodies"),
        (502, b"", {}, "does not reach the receiver"),
        (503, b"", {}, "/readyz"),
        (504, b"", {}, "in time"),
        (418, b"", {}, "Something else"),
    ],
)
async def test_something_else_answers(
    tmp_path: Path, status: int, body: bytes, headers: dict[str, str], said: str
) -> None:
    """Each answer says what stands in the way, and what to do."""
    with answering(status, body, **headers) as url:
        finding = await broken(tmp_path, receiver_url=url)
    assert finding.name == "callback"
    assert f"the answer was {status}" in finding.message
    assert said in finding.message


async def test_a_limit_on_bodies_below_what_is_kept(tmp_path: Path) -> None:
    """A proxy that lets half a megabyte through would lose callbacks."""

    def respond(visit: Visit) -> None:
        visit.answer(413 if len(visit.body) > 512_000 else 200)

    with host(respond) as there:
        finding = await broken(tmp_path, receiver_url=there.url)
    assert "the answer was 413" in finding.message


async def test_a_receiver_with_other_secrets(tmp_path: Path, start: Start) -> None:
    """It is a receiver, and not ours to sign for."""
    running = start()
    other = ("another-signing-secret-of-32-letters!",)
    finding = await broken(tmp_path, receiver_url=running.url, signing_secrets=other)
    assert "other KLING_SIGNING_SECRETS" in finding.message


async def test_a_key_that_kling_does_not_take(tmp_path: Path, start: Start, gateway: Sandbox) -> None:
    """The way in may be open, and the way to Kling not."""
    running = start()
    found = await findings(tmp_path, receiver_url=running.url, api_base=gateway.url, api_key="wrong-key")
    assert [finding.ok for finding in found] == [True, True, True, False]
    assert "KLING_API_KEY" in found[-1].message
    assert "wrong-key" not in found[-1].message


async def test_the_command(tmp_path: Path, gateway: Sandbox) -> None:
    """One line a step, exit code 0 when all is well and 1 when something is broken."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        good = run("doctor", env=receiver.env)
        assert (good.returncode, good.stdout.count("ok  ")) == (0, 4), good.stdout
    bad = run("doctor", env=environment(tmp_path, KLING_RECEIVER_URL=receiver.url, KLING_API_BASE=gateway.url))
    assert bad.returncode == 1
    assert "FAIL connection" in bad.stdout
    assert KEY not in bad.stdout + bad.stderr
