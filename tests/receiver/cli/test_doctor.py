"""The command `kling-receiver doctor`: every step of a callback's route, and each way in which a step fails."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from kling_receiver.cli.doctor import Check, run_checks
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tests.support.commands import run_here
from tests.support.proxies import http_proxy
from tests.support.receiver import KEY, Start, make_settings
from tests.support.relay import relay
from tests.support.web import Visit, host
from tools.harness.process import environment
from tools.harness.submitting import rows

pytestmark = pytest.mark.anyio


async def all_checks(tmp_path: Path, **settings: Any) -> list[Check]:
    """The checks with these settings."""
    return [check async for check in run_checks(make_settings(tmp_path, **settings))]


async def failed_check(tmp_path: Path, **settings: Any) -> Check:
    """The only check that fails, which is the last one."""
    checks = await all_checks(tmp_path, api_key="", webhook_secrets=(), **settings)
    assert [check.ok for check in checks] == [True] * (len(checks) - 1) + [False]
    return checks[-1]


async def test_all_checks_succeed(start: Start, gateway: Sandbox) -> None:
    """Database, name, connection, callback and key, in this order; no task is created."""
    running = start(api_base=gateway.url, path="/prefix")
    checks = [check async for check in run_checks(running.settings)]
    assert [check.name for check in checks] == ["database", "name", "connection", "callback", "key"]
    assert all(check.ok for check in checks), checks
    assert rows(running, "SELECT * FROM task") == []


async def test_the_address_of_links(start: Start, gateway: Sandbox) -> None:
    """A signed link must reach this receiver, and no other."""
    running = start(api_base=gateway.url, path="/prefix")

    async def check(links_url: str) -> tuple[bool, str]:
        settings = running.settings.model_copy(update={"links_url": links_url})
        (found,) = [check async for check in run_checks(settings) if check.name == "links"]
        return found.ok, found.message

    assert (await check(running.url.removesuffix("/prefix")))[0]
    assert "KLING_LINKS_URL" in (await check(f"{running.url}/elsewhere"))[1]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ok, message = await check(f"http://127.0.0.1:{port}")
    assert (ok, "does not answer" in message) == (False, True)


async def test_a_database_that_serve_would_refuse(tmp_path: Path) -> None:
    """Doctor says so first, with what to do; the other steps are checked all the same. No database is made."""
    assert (await all_checks(tmp_path, api_key=""))[0].ok
    assert not (tmp_path / "data").exists()
    database = Database(f"sqlite:///{tmp_path}/data/kling.db")
    database.migrate()
    with database.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    database.close()
    first, second, *_ = await all_checks(tmp_path, api_key="")
    assert (first.name, first.ok, second.name) == ("database", False, "name")
    assert "version 9999" in first.message


@pytest.mark.parametrize("name", ["no-such-host.invalid", "a..b", "x" * 70 + ".example"])
async def test_a_name_without_an_address(tmp_path: Path, name: str) -> None:
    """A name that DNS does not know, or that cannot be one, fails the first step."""
    check = await failed_check(tmp_path, receiver_url=f"https://{name}/x")
    assert check.name == "name"
    assert "KLING_RECEIVER_URL" in check.message


async def test_a_closed_port(tmp_path: Path) -> None:
    """The receiver or its proxy does not run."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    check = await failed_check(tmp_path, receiver_url=f"http://127.0.0.1:{port}")
    assert (check.name, "does not answer" in check.message) == ("connection", True)


async def test_no_certificate(tmp_path: Path) -> None:
    """https to a server that speaks http only."""
    with host(lambda visit: visit.answer(200)) as server:
        check = await failed_check(tmp_path, receiver_url=server.url.replace("http://", "https://"))
    assert (check.name, "certificate" in check.message) == ("connection", True)


@contextmanager
def answering(status: int, body: bytes = b"", **headers: str) -> Iterator[str]:
    """A server that is not the receiver."""

    def respond(visit: Visit) -> None:
        visit.answer(status, body, **headers)

    with host(respond) as server:
        yield server.url


@pytest.mark.parametrize(
    ("status", "body", "headers", "message"),
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
        (204, b"", {}, "Another server"),
        (401, b"", {}, "other KLING_SIGNING_SECRETS"),
        (403, b"", {}, "refuses"),
        (404, b"", {}, "not passed on"),
        (405, b"", {}, "POST"),
        (413, b"", {}, "limit on bodies"),
        (502, b"", {}, "does not reach the receiver"),
        (503, b"", {}, "/readyz"),
        (504, b"", {}, "in time"),
        (418, b"", {}, "Another server"),
    ],
)
async def test_another_server_answers(
    tmp_path: Path, status: int, body: bytes, headers: dict[str, str], message: str
) -> None:
    """The message for each status names the cause, and what to do."""
    with answering(status, body, **headers) as url:
        check = await failed_check(tmp_path, receiver_url=url)
    assert check.name == "callback"
    assert f"the answer was {status}" in check.message
    assert message in check.message


async def test_a_limit_on_bodies_below_what_is_kept(tmp_path: Path) -> None:
    """A proxy with a limit of half a megabyte would lose callbacks."""

    def respond(visit: Visit) -> None:
        visit.answer(413 if len(visit.body) > 512_000 else 200)

    with host(respond) as server:
        check = await failed_check(tmp_path, receiver_url=server.url)
    assert "the answer was 413" in check.message


async def test_a_receiver_with_other_secrets(tmp_path: Path, start: Start) -> None:
    """The callback's token is invalid there."""
    running = start()
    other = ("another-signing-secret-of-32-letters!",)
    check = await failed_check(tmp_path, receiver_url=running.url, signing_secrets=other)
    assert "other KLING_SIGNING_SECRETS" in check.message


async def test_a_key_that_kling_refuses(tmp_path: Path, start: Start, gateway: Sandbox) -> None:
    """The key is checked after the route of callbacks, which is in order."""
    running = start()
    checks = await all_checks(tmp_path, receiver_url=running.url, api_base=gateway.url, api_key="wrong-key")
    assert [check.ok for check in checks] == [True] * 4 + [False]
    assert "KLING_API_KEY" in checks[-1].message
    assert "wrong-key" not in checks[-1].message


async def test_a_relay_s_host_alone_is_not_kling_s_api(tmp_path: Path, start: Start) -> None:
    """Its OpenAI routes answer; the message names the address that is to be set."""
    running = start()
    with relay() as there:
        checks = await all_checks(tmp_path, receiver_url=running.url, api_base=there.url)
    assert [check.ok for check in checks] == [True] * 4 + [False]
    assert f"KLING_API_BASE={there.url}/kling" in checks[-1].message


async def test_a_relay_s_own_code_for_an_unknown_task_shows_a_good_key(tmp_path: Path, start: Start) -> None:
    """It answers about the task, so it accepted the key."""
    running = start()
    unknown = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
    with relay((200, {}), unknown) as there:
        checks = await all_checks(tmp_path, receiver_url=running.url, api_base=f"{there.url}/kling")
    assert [check.ok for check in checks] == [True] * 5


async def test_the_key_is_checked_on_the_way_of_the_receivers_questions(
    tmp_path: Path, start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the proxy that the environment names for Kling; the receiver on loopback is called directly."""
    running = start()
    with http_proxy(gateway.url) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        checks = await all_checks(tmp_path, receiver_url=running.url, api_base="http://kling.test", allow_http_api="on")
        assert [check.ok for check in checks] == [True] * 5, checks
        await running.receiver.work.kling_client.get("http://kling.test/v1/x")
    assert [visit.path.split("/")[2] for visit in proxy.visits] == ["kling.test"] * 2


@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy"])
def test_a_proxy_that_cannot_be_used_is_2(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that names the variable; also where only Kling needs it."""
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    env = environment(tmp_path, KLING_RECEIVER_URL="http://127.0.0.1:1", KLING_API_BASE="https://kling.test")
    for command in ("doctor", "serve"):
        failure = run_here(command, env={**env, name: "socks4://user:secret@127.0.0.1:7891"})
        assert (failure.returncode, failure.stderr.count("\n"), failure.stdout) == (2, 1, "")
        assert failure.stderr.startswith(f"kling-receiver: {name} is not the address of a proxy")
        assert "secret" not in failure.stderr


async def test_each_key_is_checked(tmp_path: Path, start: Start, gateway: Sandbox) -> None:
    """During a rotation: the message names the key's place, and shows no key."""
    running = start(api_base=gateway.url)
    settings = {"receiver_url": running.url, "api_base": gateway.url, "access_key": "access", "secret_key": "s" * 40}
    checks = await all_checks(tmp_path, api_key=f"{KEY},an-older-key", **settings)
    keys = [check for check in checks if check.name == "key"]
    assert [(check.ok, check.message.split(":")[0]) for check in keys] == [
        (False, "KLING_ACCESS_KEY"),
        (True, f"{gateway.url.partition(':')[0]}"),
        (False, "KLING_API_KEY, number 2 of 2"),
    ]
    assert keys[1].message == f"{gateway.url} accepts KLING_API_KEY, number 1 of 2"
    assert "an-older-key" not in " ".join(check.message for check in checks)


def test_the_command(tmp_path: Path, start: Start, gateway: Sandbox) -> None:
    """One line per step; exit code 0 if all succeed, 1 if one fails."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path, KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    success = run_here("doctor", env=env)
    assert (success.returncode, success.stdout.count("ok  ")) == (0, 5), success.stdout
    running.stop()
    failure = run_here("doctor", env=env)
    assert failure.returncode == 1
    assert "FAIL connection" in failure.stdout
    assert KEY not in failure.stdout + failure.stderr
