"""The page of health: lights, remedies, facts, settings without secrets, and the checks that a button runs."""

import asyncio
import html
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kling_callback.protocol.signing import Role, key_fingerprint
from kling_receiver import __version__
from kling_receiver.doctor import checks as doctor_checks
from kling_receiver.doctor.checks import Check
from kling_receiver.doctor.local import disk_checks, disk_folders
from kling_receiver.settings import ReceiverSettings
from kling_receiver.web import doctor as doctor_routes
from kling_receiver.web.dashboard import health
from kling_sandbox import Sandbox
from tests.support.pages import Browser
from tests.support.receiver import Running, Start, make_settings
from tools.harness.submitting import rows

NO_KLING = "http://127.0.0.1:9"
WEBHOOK = "whsec_" + "c2VjcmV0LW9mLWtsaW5nLXRoYXQtbm9ib2R5LXNlZXM="
HOOK = "whsec_" + "aG9vay1zZWNyZXQtdGhhdC1ub2JvZHktZXZlci1zZWVz"
SECRETS: dict[str, Any] = {
    "signing_secrets": ("first-signing-secret-0123456789-abcdef", "second-signing-secret-0123456789-abcdef"),
    "webhook_secrets": (WEBHOOK,),
    "api_key": "the-new-key-of-kling,the-old-key-of-kling",
    "access_key": "an-access-key",
    "secret_key": "its-secret-key",
    "dashboard_password": "a password of the pages",
    "hook_url": "http://127.0.0.1:9/in/pathsecret?key=querysecret",
    "hook_secret": HOOK,
    "egress_proxy": "http://proxyuser:proxyword@127.0.0.1:9",
}
HIDDEN = (
    *SECRETS["signing_secrets"],
    *("c2VjcmV0", "aG9vay1zZWNy", "the-new-key", "the-old-key", "an-access-key", "its-secret-key", "a password of"),
    *("pathsecret", "querysecret", "proxyuser", "proxyword"),
)


def text_of(running: Running, role: Role = "admin") -> str:
    """The page as this role sees it."""
    with Browser(running) as browser:
        answer = browser.sign_in(role).get("/dashboard/health")
        assert answer.status_code == 200
        return html.unescape(answer.text)


def test_no_secret_is_in_the_page(start: Start, tmp_path: Path) -> None:
    """Of any setting, of any hook, or of an address; what is set is named, and a key by its fingerprint."""
    hooks = tmp_path / "hooks.toml"
    hooks.write_text(f'[hooks.mail]\naddress = "http://127.0.0.1:9/x?key=filehookword"\nsecret = "{HOOK}"\n')
    running = start(api_base=NO_KLING, hooks_file=str(hooks), **SECRETS)
    shown = text_of(running)
    for secret in (*HIDDEN, "filehookword", *(each for each in running.settings.secrets if len(each) > 8)):
        assert secret not in shown, secret
    assert "*** (2)" in shown
    assert f"*** (fingerprint {key_fingerprint('the-new-key-of-kling')}, " in shown
    assert "http://127.0.0.1/***" in shown
    assert f'KLING_HOOKS_FILE</code></td><td data-label="Value" class="setting-value">{hooks}' in shown


def test_a_database_server_is_named_without_its_password(tmp_path: Path) -> None:
    """Nor its user, name and options; a database's file is shown."""
    url = "postgresql://dbuser:db/w@rd@db.example:5432/kling?sslpassword=optionword"
    settings = health.shown_settings(make_settings(tmp_path, database_url=url))
    shown = {each.name: each.value for each in settings}
    assert shown["KLING_HOOK_PAUSE_SECONDS"] == "43200"
    assert shown["KLING_DATABASE_URL"] == "postgresql://db.example/***"
    url = f"sqlite:///{tmp_path}/a.db"
    shown = {each.name: each.value for each in health.shown_settings(make_settings(tmp_path, database_url=url))}
    assert shown["KLING_DATABASE_URL"] == url


def test_every_secret_setting_is_tested_here(tmp_path: Path) -> None:
    """A setting that is new and secret needs a line in SECRETS, or the test above proves nothing about it."""
    secret = {name for name, field in ReceiverSettings.model_fields.items() if not field.repr}
    assert secret == {*SECRETS, "database_url"}


def test_each_setting_has_its_origin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment, `.env`, an argument, or the default."""
    (tmp_path / ".env").write_text("KLING_RESULT_MAX_BYTES=77\n")
    (tmp_path / ".env").chmod(0o600)
    monkeypatch.setenv("KLING_CONCURRENCY", "5")
    settings = ReceiverSettings.load(links_url="https://links.example")
    shown = {each.name: (each.value, each.origin) for each in health.shown_settings(settings)}
    assert shown["KLING_CONCURRENCY"] == ("5", "environment")
    assert shown["KLING_RESULT_MAX_BYTES"] == ("77", str(tmp_path / ".env"))
    assert shown["KLING_LINKS_URL"] == ("https://links.example", "argument")
    assert shown["KLING_DATA_DIR"] == (str(tmp_path / "data"), "default")
    assert shown["KLING_HOOK_URL"] == (None, "")
    assert shown.keys() == {f"KLING_{name.upper()}" for name in ReceiverSettings.model_fields}


def test_what_each_role_sees(start: Start) -> None:
    """All see the lights; an admin sees the settings, what was found, and the button, which the API refuses others."""
    running = start(api_base=NO_KLING)
    admin = text_of(running)
    assert "Settings in effect" in admin
    assert "GB are free for the database and result files" in admin
    assert 'data-api="POST /api/doctor"' in admin
    for role in ("client", "read"):
        shown = text_of(running, role)
        assert "Disk space" in shown
        assert "All checks are fine" in shown
        for hidden in ("GB are free", "KLING_SIGNING_SECRETS", str(running.settings.data_dir), "data-api"):
            assert hidden not in shown, hidden
        with Browser(running) as browser:
            assert browser.sign_in(role).send("POST", "/api/doctor").status_code == 403
    with Browser(running) as browser:
        assert browser.get("/dashboard/health").status_code == 303
        assert browser.send("POST", "/api/doctor").status_code == 401
    assert rows(running, "SELECT * FROM audit_entry WHERE action = 'doctor'") == []


def test_the_checks_that_send_requests(start: Start, gateway: Sandbox) -> None:
    """They run when an admin asks, in the audit log; the page shows what they found, and masks quoted secrets."""
    running = start(api_base=gateway.url)
    with Browser(running) as browser:
        browser.sign_in()
        assert "have not run since the start" in browser.get("/dashboard/health").text
        answer = browser.send("POST", "/api/doctor", page="/dashboard/health")
        assert answer.status_code == 200, answer.text
        document = answer.json()
        names = [check["name"] for check in document["checks"]]
        assert names == ["name", "connection", "callback", "links", "key"]
        assert document["ok"]
        assert all(check["ok"] for check in document["checks"])
        shown = html.unescape(browser.get("/dashboard/health").text)
        assert all(check["message"] in shown for check in document["checks"])
        again = browser.send("POST", "/api/doctor")
        assert (again.status_code, again.json()["error"]["code"]) == (429, "too_soon")
        assert int(again.headers["Retry-After"]) >= 1
    entries = rows(running, "SELECT result FROM audit_entry WHERE action = 'doctor' ORDER BY id")
    assert [entry["result"] for entry in entries] == ["done", "too_soon"]
    assert rows(running, "SELECT * FROM task") == []


def test_the_checks_end_no_lock_on_the_database(start: Start, gateway: Sandbox) -> None:
    """A process loses SQLite's locks when it closes any descriptor of the file: the next program would take its log."""
    running = start(api_base=gateway.url)
    database = running.settings.database_file
    assert database is not None
    log = database.with_name(f"{database.name}-wal")
    before = log.stat().st_ino
    with Browser(running) as browser:
        assert browser.sign_in().send("POST", "/api/doctor").json()["ok"]
    visit = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM task').fetchall(); c.close()"
    )
    subprocess.run([sys.executable, "-c", visit, database], check=True)
    assert log.stat().st_ino == before


def test_one_run_at_a_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one is told so. What a check quotes is escaped, and without our secrets."""
    begun, may_end = threading.Event(), threading.Event()
    running = start(api_base=NO_KLING)
    secret = running.settings.signing_secrets[0]

    async def slow(settings: ReceiverSettings) -> Any:
        begun.set()
        await asyncio.to_thread(may_end.wait, 10)
        yield Check("key", False, f"<script>alert(1)</script> {secret}. Set another one.")

    monkeypatch.setattr(doctor_routes, "run_request_checks", slow)
    with Browser(running) as first, Browser(running) as second:
        first.sign_in()
        second.sign_in()
        thread = threading.Thread(target=first.send, args=("POST", "/api/doctor"))
        thread.start()
        begun.wait(5)
        answer = second.send("POST", "/api/doctor")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "doctor_is_running")
        may_end.set()
        thread.join(5)
        shown = second.get("/dashboard/health").text
        assert "&lt;script&gt;alert(1)&lt;/script&gt; ***. Set another one." in shown
        assert "1 check fails" in shown
        assert secret not in shown


def test_a_run_that_hangs_ends(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what was found until then, and a remedy."""

    async def hang(settings: ReceiverSettings) -> Any:
        yield Check("name", True, "fine")
        await asyncio.sleep(60)

    monkeypatch.setattr(doctor_routes, "run_request_checks", hang)
    monkeypatch.setattr(doctor_routes, "MAX_SECONDS", 0.05)
    with Browser(start(api_base=NO_KLING)) as browser:
        document = browser.sign_in().send("POST", "/api/doctor").json()
    assert [(check["name"], check["ok"]) for check in document["checks"]] == [("name", True), ("time", False)]
    assert "Check the network" in document["checks"][1]["message"]


class Usage(NamedTuple):
    """What `shutil.disk_usage` returns."""

    total: int
    used: int
    free: int


@pytest.mark.parametrize(
    ("free", "maximum", "ok"), [(999_999_999, 5, False), (10**9, 5, True), (3 * 10**9, 4 * 10**9, False)]
)
def test_the_space_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, maximum: int, ok: bool
) -> None:
    """One gigabyte, and the largest result file, must fit."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**12, 10**12 - free, free))
    settings = make_settings(tmp_path, result_max_bytes=maximum)
    (check,) = disk_checks(settings)
    assert check.ok == ok
    assert f"{free / 1e9:.1f} of 1000.0 GB are free" in check.message
    assert ("Remove what is not needed" in check.message) != ok
    assert disk_folders(settings) == {"database and result files": tmp_path}


def test_a_disk_that_hangs_or_fails(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is shown all the same, and visits start no second thread on a disk that hangs."""
    may_end, calls = threading.Event(), []

    def hang(settings: ReceiverSettings) -> list[Check]:
        calls.append(time.monotonic())
        may_end.wait(20)
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr(health, "disk_checks", hang)
    monkeypatch.setattr(health, "DISK_SECONDS", 0.1)
    running = start(api_base=NO_KLING)
    assert "did not answer within 0.1 s. Check its volume." in text_of(running)
    assert "did not answer within 0.1 s. Check its volume." in text_of(running)
    assert len(calls) == 1
    may_end.set()
    assert "/somewhere cannot be read: Permission denied. Check its volume." in text_of(running)


def test_why_the_receiver_is_not_ready(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason of /readyz, which all may see."""
    running = start(api_base=NO_KLING)

    def refuse() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(running.receiver.store.storage, "probe", refuse)
    shown = text_of(running, "read")
    assert "The folder for result files cannot be written: No space left on device." in shown
    assert "1 check fails" in shown


def test_a_private_address_and_misspelt_settings(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `serve` warns about is on the page."""
    monkeypatch.setenv("KLING_HOOK_URLS", "https://hook.example")
    running = start(api_base="https://api.example.com")
    shown = text_of(running)
    assert "api.example.com cannot call back http://127.0.0.1" in shown
    assert "KLING_HOOK_URLS is not a setting. Did you mean KLING_HOOK_URL?" in shown
    assert "2 checks fail" in shown


def test_the_facts(start: Start, database_url: str) -> None:
    """The version of the program, and the engine with its size."""
    shown = text_of(start(api_base=NO_KLING, database_url=database_url))
    assert __version__ in shown
    assert ("PostgreSQL 1" if database_url.startswith("postgresql") else "SQLite 3.") in shown
    assert "Size of the database" in shown


def test_the_titles_of_all_checks() -> None:
    """A check without one is shown by its name, which is for programs. That of the database is the command's alone."""
    source = Path(doctor_checks.__file__).read_text()
    assert set(re.findall(r'Check\(\s*"(\w+)"', source)) - {"database"} <= health.TITLES.keys()
