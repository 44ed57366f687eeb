"""The command `kling-receiver doctor`: every step of a callback's route, and each way in which a step fails."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from sqlalchemy import text

from kling_receiver.doctor import starting
from kling_receiver.doctor.checks import Check, run_checks
from kling_receiver.store.database import Database
from kling_sandbox import Sandbox
from tests.support.commands import run_here
from tests.support.proxies import http_proxy
from tests.support.receiver import KEY, Running, Start, make_settings
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
    """Database, name, connection, callback, links and key, in this order; no task is created."""
    running = start(api_base=gateway.url, path="/prefix")
    checks = [check async for check in run_checks(running.settings)]
    assert [check.name for check in checks] == ["database", "name", "connection", "callback", "links", "key"]
    assert all(check.ok for check in checks), checks
    assert rows(running, "SELECT * FROM task") == []


@contextmanager
def proxy(target: str, respond: Callable[[Visit, Callable[[str], None]], None]) -> Iterator[str]:
    """A server in front of a receiver. `respond` may pass the request on, to the path that it names."""

    def answer(visit: Visit) -> None:
        def pass_on(path: str) -> None:
            response = client.request(visit.method, f"{target}{path}", content=visit.body)
            visit.answer(response.status_code, response.content, Content_Type=response.headers["Content-Type"])

        respond(visit, pass_on)

    with httpx.Client() as client, host(answer) as server:
        yield server.url


async def link_check(running: Running, links_url: str = "") -> Check:
    """The check of links, with this setting."""
    settings = running.settings.model_copy(update={"links_url": links_url, "api_key": ""})
    (found,) = [check async for check in run_checks(settings) if check.name == "links"]
    return found


async def test_a_link_opens_at_the_address_of_links(start: Start, gateway: Sandbox) -> None:
    """With the prefix or without; the query, which is a signature, is in no line."""
    running = start(api_base=gateway.url, path="/prefix")
    for base in ("", running.url, running.url.removesuffix("/prefix")):
        check = await link_check(running, base)
        assert check == Check("links", True, f"a signed link of {base or running.url} opens")
    for base in (f"{running.url}/elsewhere", "http://127.0.0.1:1"):
        assert "signature=" not in (await link_check(running, base)).message


async def test_the_link_is_opened_as_by_a_browser(start: Start) -> None:
    """A login in front tells browsers and programs apart."""
    running = start()

    def respond(visit: Visit, pass_on: Callable[[str], None]) -> None:
        headers.update(visit.headers)
        pass_on(visit.path)

    headers: dict[str, str] = {}
    with proxy(running.url, respond) as url:
        assert (await link_check(running, url)).ok
    assert headers["accept"].startswith("text/html")
    assert headers["user-agent"].startswith("Mozilla/")
    assert "authorization" not in headers
    assert "cookie" not in headers


async def test_only_callbacks_are_public(tmp_path: Path, start: Start) -> None:
    """Every printed link would be answered 404: the check fails, and names the setting."""
    running = start()

    def respond(visit: Visit, pass_on: Callable[[str], None]) -> None:
        if visit.path.startswith("/callbacks/"):
            pass_on(visit.path)
        else:
            visit.answer(404, b"<h1>404 Not Found</h1>", Content_Type="text/html")

    with proxy(running.url, respond) as url:
        check = await failed_check(tmp_path, receiver_url=url)
        checks = await all_checks(tmp_path, api_key="", receiver_url=url, links_url=running.url)
    assert (check.name, "answered a signed link with 404" in check.message) == ("links", True)
    assert "the path is not passed on" in check.message
    assert "set KLING_LINKS_URL" in check.message
    assert checks[-1] == Check("links", True, f"a signed link of {running.url} opens")


def to_https(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A redirect of every request to the same path elsewhere."""
    visit.answer(308, Location=f"https://files.example.com/kling{visit.path}")


def to_itself(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A redirect that adds a slash."""
    path, _, query = visit.path.partition("?")
    visit.answer(301, Location=f"{path}/?{query}")


def to_login(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A redirect as of a single sign-on."""
    visit.answer(302, Location=f"https://me:secret@sso.example.com/start?rd={visit.path}")


def login_page(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A form in place of the page."""
    visit.answer(200, b"<form><input name=p TYPE='password'></form>", Content_Type="text/html")


def welcome_page(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """The first page of a server without routes."""
    visit.answer(200, b"<h1>It works!</h1>", Content_Type="text/html")


def basic(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A password that the proxy asks for."""
    visit.answer(401, b"{}", WWW_Authenticate="Basic")


def forbidden(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A rule of the proxy."""
    visit.answer(403, b"<h1>Forbidden</h1>")


def wrong_prefix(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A prefix that the receiver does not know."""
    pass_on(f"/files{visit.path}")


def without_query(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A proxy that drops the signature."""
    pass_on(visit.path.partition("?")[0])


def stopped(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """A proxy whose receiver does not run."""
    visit.answer(502, b"<h1>Bad Gateway</h1>")


def teapot(visit: Visit, pass_on: Callable[[str], None]) -> None:
    """Any other answer."""
    visit.answer(418, b"[]")


@pytest.mark.parametrize(
    ("respond", "messages"),
    [
        (to_https, ("with 308. It redirects to https://files.example.com/kling,", "Set KLING_LINKS_URL to that.")),
        (to_itself, ("which is the same address",)),
        (to_login, ("It redirects to https://sso.example.com/start, as a login does.", "without a login")),
        (login_page, ("with 200. A login page answers.", "without a login")),
        (welcome_page, ("A page of another server answers.",)),
        (basic, ("with 401. A login in front", "exempt /api/tasks/*/results/*")),
        (forbidden, ("with 403. A server in front",)),
        (wrong_prefix, ("with 404. It is a receiver that does not know this path.", "KLING_LINKS_URL")),
        (without_query, ("with 401. The proxy drops the query of links",)),
        (stopped, ("with 502. The proxy does not reach the receiver.",)),
        (teapot, ("with 418. Another server",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_what_is_in_front_of_links(
    start: Start, respond: Callable[[Visit, Callable[[str], None]], None], messages: tuple[str, ...]
) -> None:
    """Each cause has a message that says what to do; no message has the signature or a password."""
    running = start()
    with proxy(running.url, respond) as url:
        check = await link_check(running, url)
    assert not check.ok
    assert check.message.startswith(f"{url} answered a signed link with ")
    for message in messages:
        assert message in check.message
    assert "signature=" not in check.message
    assert "secret@" not in check.message


async def test_links_lead_to_a_receiver_with_other_secrets_or_another_clock(start: Start) -> None:
    """Or of an earlier version, or to nobody at all."""
    running = start()
    settings = running.settings.model_copy(update={"signing_secrets": ("another-signing-secret-of-32-letters!",)})
    with proxy(running.url, lambda visit, pass_on: pass_on(visit.path)) as url:
        settings = settings.model_copy(update={"links_url": url})
        (check,) = [check async for check in run_checks(settings) if check.name == "links"]
    assert "other KLING_SIGNING_SECRETS" in check.message
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    check = await link_check(running, f"http://127.0.0.1:{port}")
    assert (check.ok, "does not answer" in check.message) == (False, True)
    old = b'{"error": {"code": "bad_link", "message": "The link has expired.", "hint": ""}}'
    with proxy(running.url, lambda visit, pass_on: visit.answer(401, old)) as url:
        assert "clocks" in (await link_check(running, url)).message
    earlier = b'{"error": {"code": "unknown_task", "message": "There is no such task.", "hint": ""}}'
    with proxy(running.url, lambda visit, pass_on: visit.answer(404, earlier)) as url:
        assert "earlier version" in (await link_check(running, url)).message


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
    assert [check.ok for check in checks] == [True] * 5 + [False]
    assert "KLING_API_KEY" in checks[-1].message
    assert "wrong-key" not in checks[-1].message


async def test_a_relay_s_host_alone_is_not_kling_s_api(tmp_path: Path, start: Start) -> None:
    """Its OpenAI routes answer; the message names the address that is to be set."""
    running = start()
    with relay() as there:
        checks = await all_checks(tmp_path, receiver_url=running.url, api_base=there.url)
    assert [check.ok for check in checks] == [True] * 5 + [False]
    assert f"KLING_API_BASE={there.url}/kling" in checks[-1].message


async def test_a_relay_s_own_code_for_an_unknown_task_shows_a_good_key(tmp_path: Path, start: Start) -> None:
    """It answers about the task, so it accepted the key."""
    running = start()
    unknown = (400, {"code": "task_not_exist", "message": "task_not_exist", "data": None})
    with relay((200, {}), unknown) as there:
        checks = await all_checks(tmp_path, receiver_url=running.url, api_base=f"{there.url}/kling")
    assert [check.ok for check in checks] == [True] * 6


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
        assert [check.ok for check in checks] == [True] * 6, checks
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


def test_the_command(tmp_path: Path, start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line per step; exit code 0 if all succeed, 1 if one fails."""
    running = start(api_base=gateway.url)
    env = environment(tmp_path, KLING_RECEIVER_URL=running.url, KLING_API_BASE=gateway.url)
    success = run_here("doctor", env=env)
    assert (success.returncode, success.stdout.count("ok  "), success.stderr) == (0, 6, ""), success.stdout
    lines = [json.loads(line) for line in run_here("doctor", "--json", env=env).stdout.splitlines()]
    assert [f"ok   {line['name']}: {line['message']}" for line in lines if line["ok"]] == success.stdout.splitlines()
    running.stop()
    monkeypatch.setattr(starting, "START_SECONDS", 0.3)
    failure = run_here("doctor", env=env)
    assert failure.returncode == 1
    place = running.url.removeprefix("http://")
    assert failure.stderr.startswith(f"{place} refuses the connection. Waiting for up to 10 seconds")
    assert "FAIL connection" in failure.stdout
    assert KEY not in failure.stdout + failure.stderr


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_a_receiver_that_is_starting_is_waited_for(name: str) -> None:
    """Its loopback address refuses connections until it listens."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        place = f"{name}:{server.getsockname()[1]}"
        reasons: list[str] = []

        def begin(reason: str) -> None:
            reasons.append(reason)
            server.listen()
            thread.start()

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        thread = threading.Thread(target=answer)
        with anyio.fail_after(starting.START_SECONDS / 2):
            await starting.wait_for_start(f"http://{place}", begin)
        thread.join()
    assert reasons == [f"{place} refuses the connection"]


@pytest.mark.parametrize("status", [502, 504])
async def test_a_proxy_that_does_not_reach_the_receiver_yet_is_asked_again(status: int) -> None:
    """Such as a tunnel: the receiver behind it may be starting."""
    reasons: list[str] = []
    with host(lambda visit: visit.answer(200 if reasons else status)) as web:
        with anyio.fail_after(starting.START_SECONDS / 2):
            await starting.wait_for_start(web.url, reasons.append)
        assert [visit.path for visit in web.visits] == ["/healthz"] * 2
    assert reasons == [f"{web.url.removeprefix('http://')} answers {status}"]


async def test_nothing_else_is_waited_for() -> None:
    """An answer is one, whatever it is; and so is a connection that breaks, or a name without an address."""
    reasons: list[str] = []
    with host(lambda visit: visit.answer(503)) as web:
        for url in (web.url, "https://name.invalid", web.url.replace("http", "https")):
            await starting.wait_for_start(url, reasons.append)
    assert reasons == []
