"""The hooks file is authoritative: at each start, hooks are added, changed and removed to match it."""

import base64
import os
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook

from kling_callback.errors import SettingsError
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import HookConfig, InvalidHook
from kling_receiver.hooks.config_file import load_hooks
from kling_receiver.hooks.records import SECRET_OVERLAP_SECONDS
from kling_receiver.hooks.sync import detach, sync
from kling_receiver.net.guard import Allowlist
from kling_receiver.store.database import Database
from kling_receiver.store.tables import HOOK
from tests.support.database import Ledger
from tests.support.receiver import Running, Start, make_settings
from tests.support.web import host

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
SHORT = "whsec_" + base64.b64encode(b"short").decode()
NEXT = "whsec_" + base64.b64encode(b"the-next-secret-for-these-tests.").decode()

WHOLE = """
[hooks.studio]
address = "https://studio.example/in"
secret_env = "STUDIO_SECRET"
events = ["task.done"]
families = ["videos/effects"]
tags = ["night"]
retry_schedule = [5, 60.5]
concurrency = 4
rate_limit = 10
timeout = 5

[hooks.archive]
address = 'command:["true", "a b"]'

[hooks.stream]
address = "redis://127.0.0.1/events"
"""


def write_hooks(tmp_path: Path, content: str) -> Path:
    """Write a hooks file."""
    file = tmp_path / "hooks.toml"
    file.write_text(content)
    return file


def problems(tmp_path: Path, content: str, **environ: str) -> list[str]:
    """The problems of an invalid file."""
    with pytest.raises(InvalidHook) as raised:
        load_hooks(write_hooks(tmp_path, content), Allowlist(), environ)
    return raised.value.problems


def test_a_file(tmp_path: Path) -> None:
    """It has the same fields as the command; secrets come from the environment."""
    configs = load_hooks(write_hooks(tmp_path, WHOLE), Allowlist(), {"studio_secret": SECRET})
    studio, archive, stream = configs
    assert [each.name for each in configs] == ["studio", "archive", "stream"]
    assert (studio.secret, studio.events, studio.families) == (SECRET, ["task.done"], ["videos/effects"])
    assert (studio.retry_schedule, studio.concurrency, studio.rate_limit, studio.timeout) == (
        [5, 60.5],
        4,
        10,
        5,
    )
    assert archive.address.endswith('/true", "a b"]')
    assert stream.address == "redis://127.0.0.1/events"
    assert load_hooks(write_hooks(tmp_path, ""), Allowlist(), {}) == []


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[hooks.a", "is not valid TOML"),
        ("name = 1", "has other keys than hooks. Write a table [hooks.NAME] for each hook."),
        ("hooks = 1", "Write a table [hooks.NAME]"),
        ("[hooks]\na = 1", "hooks.a: this is not a table."),
        ('[hooks.""]\naddress = "command:true"', "hooks.: the hook has no name."),
        ("[hooks.a]", "hooks.a: address: Field required."),
        ('[hooks.a]\naddress = "https://x.example"', "hooks.a: a web address needs a secret. Set secret_env"),
        ('[hooks.a]\naddress = "https://x.example"\nsecret_env = "NONE"', "NONE is not set in the environment."),
        ('[hooks.default]\naddress = "command:true"', "name: default is the hook of KLING_HOOK_URL."),
        ('[hooks.A]\naddress = "command:true"', "hooks.A: name: must be small letters"),
        ('[hooks.a]\naddress = "command:no-such-thing"', "the command no-such-thing does not exist"),
        ('[hooks.a]\naddress = "command:true"\nconcurrency = "4"', "concurrency: "),
    ],
)
def test_an_invalid_file(tmp_path: Path, content: str, problem: str) -> None:
    """Each problem names its place."""
    [message] = problems(tmp_path, content)
    assert message.startswith(str(tmp_path / "hooks.toml"))
    assert problem in message


def test_a_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    assert len(load_hooks(write_hooks(tmp_path, '\ufeff[hooks.a]\naddress = "command:true"'), Allowlist(), {})) == 1


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """It is missing, not UTF-8, or a pipe, which may never end."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidHook, match="cannot be read: it is a pipe"):
        load_hooks(tmp_path / "pipe", Allowlist(), {})
    with pytest.raises(InvalidHook, match="cannot be read: No such file"):
        load_hooks(tmp_path / "none.toml", Allowlist(), {})
    (tmp_path / "hooks.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidHook, match="is not valid TOML"):
        load_hooks(tmp_path / "hooks.toml", Allowlist(), {})


def test_all_problems_of_a_file_stop_the_start_at_once(tmp_path: Path) -> None:
    """Together with those of other settings; no secret is shown."""
    content = f"""
[hooks.one]
address = "http://10.0.0.1/"
secret = "{SHORT}"
colour = "blue"
[hooks.two]
address = "kafka://x/y"
"""
    with pytest.raises(SettingsError) as raised:
        make_settings(tmp_path, hooks_file=str(write_hooks(tmp_path, content)), overdue_seconds=-1)
    [about_time] = [each for each in raised.value.problems if "OVERDUE" in each]
    [about_hooks] = [each for each in raised.value.problems if each.startswith("KLING_HOOKS_FILE")]
    for problem in ("one: address: 10.0.0.1", "one: secret: is too short", "one: colour", "two: address"):
        assert f"hooks.{problem}" in about_hooks
    assert SHORT not in about_hooks + about_time


def config(name: str, address: str = "https://x.example/", **fields: Any) -> HookConfig:
    """A hook of the file."""
    return HookConfig(name=name, address=address, secret=fields.pop("secret", SECRET), **fields)


def hooks(ledger: Ledger) -> dict[str, Any]:
    """The hooks' rows, by name."""
    return {row["name"]: row for row in ledger.rows(HOOK)}


def test_hooks_are_made_equal_to_the_file(database: Database) -> None:
    """Hooks are added, changed and removed, also those of commands; a changed hook keeps its cursor."""
    ledger = Ledger(database)
    ledger.put_task()
    ledger.change(lambda tx: sync(tx, "settings", [config("default")]))
    ledger.change(lambda tx: sync(tx, "file", [config("one"), config("two")], also="added"))
    ledger.put_hook("by-command")
    ledger.change(lambda tx: hook_records.add_for_task(tx, "t", "https://x.example"))
    ledger.change(lambda tx: hook_records.pause(tx, "two", "for a test"))
    ledger.log("one")
    before = hooks(ledger)["two"]
    changed = config("two", "https://y.example/", events=["task.done"], secret=NEXT, concurrency=1)
    ledger.change(lambda tx: sync(tx, "file", [changed, config("three")], also="added"))
    after = hooks(ledger)
    assert sorted(after) == ["default", "task:t", "three", "two"]
    assert sorted(ledger.committed.messages) == [
        "hook by-command was removed: it is no longer in KLING_HOOKS_FILE",
        "hook one was removed: it is no longer in KLING_HOOKS_FILE",
    ]
    two = after["two"]
    assert (two["address"], two["concurrency"]) == ("https://y.example/", 1)
    assert two["filter"]["events"] == ["task.done"]
    assert two["secrets"] == [[NEXT, None], [SECRET, ledger.now + int(SECRET_OVERLAP_SECONDS * 1000)]]
    for column in ("cursor", "paused_at", "paused_because", "created_at"):
        assert two[column] == before[column], column
    assert after["three"]["cursor"] == 1
    ledger.change(lambda tx: sync(tx, "file", [changed, config("three")], also="added"))
    assert hooks(ledger)["two"] == two
    ledger.change(lambda tx: sync(tx, "settings", []))
    assert ledger.committed.messages == ("hook default was removed: it is no longer in KLING_HOOK_URL",)


def test_hooks_stay_without_their_file(database: Database) -> None:
    """A forgotten variable drops no events; commands may then remove the hooks, and a later file does."""
    ledger = Ledger(database)
    ledger.change(lambda tx: sync(tx, "settings", [config("default")]))
    ledger.change(lambda tx: sync(tx, "file", [config("one")], also="added"))
    ledger.change(detach)
    assert ledger.committed.messages == (
        "hook one came from KLING_HOOKS_FILE, which is not set any more; the hook stays until a command removes it",
    )
    assert {name: row["source"] for name, row in hooks(ledger).items()} == {
        "default": "settings",
        "one": "added",
    }
    ledger.change(detach)
    assert not ledger.committed.messages
    ledger.change(lambda tx: sync(tx, "file", [config("two")], also="added"))
    assert sorted(hooks(ledger)) == ["default", "two"]


def test_a_hook_changes_its_kind_of_address(database: Database) -> None:
    """A command has no secret; a web address has one again."""
    ledger = Ledger(database)
    for address, secret in (("https://x.example/", SECRET), ("command:true", ""), ("https://x.example/", NEXT)):
        desired = HookConfig(name="one", address=address, secret=secret)
        ledger.change(lambda tx, desired=desired: sync(tx, "file", [desired]))  # type: ignore[misc]
        assert hooks(ledger)["one"]["secrets"] == ([[secret, None]] if secret else [])


def get(running: Running, path: str) -> Any:
    """A document of the API, for an admin."""
    return httpx.get(f"{running.url}/api/{path}", headers=running.headers("admin")).json()


def test_the_file_changes_between_starts(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With a file, commands can neither add nor change hooks; a changed secret signs beside the old one."""
    with host(lambda visit: visit.answer(204)) as server:
        content = f'[hooks.one]\naddress = "{server.url}"\nsecret_env = "ONE_SECRET"\n'
        monkeypatch.setenv("ONE_SECRET", SECRET)
        without = start(api_base="http://127.0.0.1:9")
        admin = without.headers("admin")
        httpx.post(f"{without.url}/api/hooks", headers=admin, json={"name": "x", "address": server.url})
        without.stop()
        first = start(api_base="http://127.0.0.1:9", hooks_file=str(write_hooks(tmp_path, content)))
        assert [hook["name"] for hook in get(first, "hooks")["hooks"]] == ["one"]
        assert "hook x was removed: it is no longer in KLING_HOOKS_FILE" in caplog.text
        added = httpx.post(f"{first.url}/api/hooks", headers=admin, json={"address": server.url})
        rotated = httpx.post(f"{first.url}/api/hooks/one/rotate", headers=admin)
        removed = httpx.delete(f"{first.url}/api/hooks/one", headers=admin)
        assert [each.json()["error"]["code"] for each in (added, rotated, removed)] == [
            *("kept_in_file", "kept_elsewhere", "kept_elsewhere"),
        ]
        first.stop()
        monkeypatch.setenv("ONE_SECRET", NEXT)
        second = start(api_base="http://127.0.0.1:9", hooks_file=str(write_hooks(tmp_path, content)))
        httpx.post(f"{second.url}/api/hooks/one/test", headers=admin)
        [visit] = server.wait_for(1)
    for secret in (NEXT, SECRET):
        Webhook(secret).verify(visit.body, dict(visit.headers))
    second.stop()
    third = start(api_base="http://127.0.0.1:9", hooks_file=str(write_hooks(tmp_path, "")))
    document = get(third, "hooks")
    assert (document["hooks"], document["kept_in_file"]) == ([], True)
