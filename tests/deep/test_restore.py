"""A database is restored from a backup under real consumers: each gets every later event, and none for a repeat."""

import asyncio
import base64
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nats as nats_client
import pytest

from kling_sandbox import Sandbox
from tests.support.backups import back_up, end_sessions, restore_database, restore_files
from tests.support.brokers import Broker, nats
from tests.support.web import Host, host
from tools.harness.forkserver import ForkServer
from tools.harness.process import CLIENT, Process, run
from tools.harness.submitting import cursor, events, finished, poll_until, stream, submit

pytestmark = pytest.mark.no_cover  # the receiver is another process, which is not measured

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
Json = dict[str, Any]


@pytest.fixture
def jetstream(tmp_path: Path) -> Iterator[Broker]:
    """A JetStream that remembers ids for a day."""
    with nats(tmp_path / "nats") as broker:

        async def add() -> None:
            client = await nats_client.connect(f"nats://127.0.0.1:{broker.port}")
            await client.jetstream().add_stream(name="KLING", subjects=["kling.>"], duplicate_window=86_400)
            await client.close()

        asyncio.run(add())
        yield broker


def published(broker: Broker) -> list[str]:
    """The ids of the messages in the stream."""

    async def read() -> list[str]:
        client = await nats_client.connect(f"nats://127.0.0.1:{broker.port}")
        state = (await client.jetstream().stream_info("KLING")).state
        found = [await client.jetstream().get_msg("KLING", n) for n in range(1, state.messages + 1)]
        await client.close()
        return [(each.headers or {})["Nats-Msg-Id"] for each in found]

    return asyncio.run(read())


def posted(endpoint: Host) -> list[str]:
    """The ids of the messages that came to the hook."""
    return [visit.headers["webhook-id"] for visit in list(endpoint.visits)]


@contextmanager
def listening(receiver: Process, folder: Path) -> Iterator[None]:
    """`kling listen` while the block runs; it adds what it prints to the file `printed`."""
    with (folder / "printed").open("ab") as out:
        process = subprocess.Popen(
            [CLIENT, "listen", "--json", "--state", str(folder / "state")],
            env={**os.environ, **receiver.env},
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
        )
    with process:
        try:
            assert process.stderr
            assert any("Listening to" in line for line in process.stderr)
            yield
        finally:
            process.send_signal(signal.SIGTERM)


def printed_ids(folder: Path) -> list[str]:
    """The cursors of the events that `kling listen` has printed."""
    return [cursor(json.loads(line)) for line in (folder / "printed").read_text().splitlines()]


def everything(receiver: Process, last: str) -> list[Json]:
    """All events of the log, up to the `task.done` of the task `last`."""
    found = []
    with stream(receiver, "/api/events?after=0") as coming:
        for event in coming:
            found.append(event)
            if event["type"] == "task.done" and event["task"]["id"] == last:
                return found
    raise AssertionError


def done(receiver: Process, gateway: Sandbox) -> str:
    task, _ = submit(receiver, gateway)
    finished(receiver, task)
    return task


WAYS = ["by the procedure", "without the command", "from a copy that nothing tells from the original"]


@pytest.mark.parametrize("way", WAYS)
def test_every_consumer_gets_every_event_after_a_restore(
    way: str, bare_database_url: str, gateway: Sandbox, jetstream: Broker, tmp_path: Path
) -> None:
    """JetStream, a hook and a listener have more events than the restored database: its next ones have old numbers."""
    if way == WAYS[2] and not bare_database_url.startswith("sqlite"):
        way = WAYS[1]  # a dump always says that it is one
    data, backup = tmp_path / "data", tmp_path / "backup"
    with host(lambda visit: visit.answer(204)) as endpoint:
        settings = {"KLING_API_BASE": gateway.url, "KLING_HOOK_URL": endpoint.url, "KLING_HOOK_SECRET": HOOK_SECRET}
        with Process(data, KLING_DATABASE_URL=bare_database_url, **settings) as receiver:
            hook = run("hooks", "add", f"nats://127.0.0.1:{jetstream.port}/kling.events", env=receiver.env)
            assert hook.returncode == 0, hook.stderr
            with listening(receiver, tmp_path):
                kept = done(receiver, gateway)
                poll_until(lambda: len(published(jetstream)) == len(everything(receiver, kept)))
                if way == WAYS[2]:
                    stop(receiver)
                    copy(bare_database_url, data, backup)
                    receiver.start()
                else:
                    back_up(receiver.env, backup)
                lost = [done(receiver, gateway) for _ in range(2)]
                before = everything(receiver, lost[-1])
                poll_until(lambda: {*map(cursor, before)} <= {*published(jetstream)} & {*printed_ids(tmp_path)})
                poll_until(lambda: {f"default_{cursor(event)}" for event in before} <= {*posted(endpoint)})
            old = len(published(jetstream)), len(posted(endpoint)), len(printed_ids(tmp_path))
            receiver.kill()
            end_sessions(bare_database_url)
            restore(way, bare_database_url, receiver, data, backup)
            receiver.start()
            # Past the numbers that the consumers have, so that only a log's id, or a time, tells the events apart.
            new = [done(receiver, gateway) for _ in range(3)]
            after = everything(receiver, new[-1])
            assert after[-1]["id"] > before[-1]["id"]
            later = {cursor(event) for event in after if event["task"]["id"] in new}
            with listening(receiver, tmp_path):
                poll_until(lambda: later <= {*published(jetstream)[old[0] :]})
                poll_until(lambda: {f"default_{each}" for each in later} <= {*posted(endpoint)[old[1] :]})
                poll_until(lambda: later <= {*printed_ids(tmp_path)[old[2] :]})
            assert not later & {cursor(event) for event in before}
            assert show_log(receiver, way)


def show_log(receiver: Process, way: str) -> bool:
    """Whether the receiver's log says what happened to the log of events, where it can know."""
    said = receiver.log_text()
    if way == WAYS[0]:
        return "was restored" not in said  # the command said it
    return ("the database was restored" if way == WAYS[1] else "run: kling-receiver restored") in said


def stop(receiver: Process) -> None:
    receiver.signal(signal.SIGTERM)
    receiver.wait()


def copy(url: str, data: Path, backup: Path) -> None:
    """Copy the files of a receiver that does not run: its data folder, and the database beside it."""
    shutil.copytree(data, backup / "data")
    shutil.copy(url.removeprefix("sqlite:///"), backup / "kling.db")


def restore(way: str, url: str, receiver: Process, data: Path, backup: Path) -> None:
    if way == WAYS[2]:
        shutil.rmtree(data)
        shutil.copytree(backup / "data", data)
    restore_database(url, backup)
    if way == WAYS[0]:
        restore_files(data / "results", backup)
        ran = run("restored", env=receiver.env)
        assert ran.returncode == 0, ran.stderr


@contextmanager
def killed_at(call: str, number: int, server: ForkServer) -> Iterator[None]:
    """While the block runs, each command that the server starts is killed as it enters this system call."""
    inject = f"inject={call}:signal=KILL:when={number}"
    strace = subprocess.Popen(
        ["strace", "-f", "-o", "/dev/null", "-e", inject, "-p", str(server.pid)], stderr=subprocess.PIPE, text=True
    )
    with strace:
        try:
            assert strace.stderr
            assert "attached" in strace.stderr.readline()
            yield
        finally:
            strace.send_signal(signal.SIGINT)


def test_a_backup_killed_at_any_time_is_complete_or_absent(
    gateway: Sandbox, fork_server: ForkServer, tmp_path: Path
) -> None:
    """Under its name there is a folder whose manifest is true, or none; the receiver goes on."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        tasks = [done(receiver, gateway) for _ in range(3)]
        complete, ended = 0, []
        for call in ("linkat,link", "rename,renameat,renameat2", "fsync,fdatasync", "mkdir,mkdirat"):
            for number in (1, 2, 3):
                target = tmp_path / f"{call.partition(',')[0]}-{number}"
                with killed_at(call, number, fork_server):
                    ended.append(run("backup", str(target), env=receiver.env).returncode)
                complete += target.exists() and is_complete(target)
                assert not target.exists() or is_complete(target)
        back_up(receiver.env, tmp_path / "last")
        assert is_complete(tmp_path / "last")
        assert complete < 12
        assert set(ended) == {0, -signal.SIGKILL}
        assert events(receiver, tasks[0])


def is_complete(folder: Path) -> bool:
    """Whether every file of the manifest is there."""
    manifest = json.loads((folder / "manifest.json").read_text())
    return all((folder / each["path"]).stat().st_size == each["size"] for each in manifest["files"])


def test_backups_during_a_load_hold_every_file_that_they_name(gateway: Sandbox, tmp_path: Path) -> None:
    """Tasks end and files are stored while each backup is made: whatever its database says is stored, is there."""
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as receiver:
        last = ""
        for number in range(5):
            for _ in range(10):
                last, _ = submit(receiver, gateway)
            folder = back_up(receiver.env, tmp_path / f"backup-{number}")
            assert is_complete(folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            restored = tmp_path / f"restored-{number}"
            restored.mkdir()
            shutil.copy(folder / "kling.db", restored / "kling.db")
            shutil.copytree(folder / "results", restored / "results")
            ran = run("restored", env={**receiver.env, "KLING_DATA_DIR": str(restored)})
            assert (ran.returncode, manifest["lost"]) == (0, []), ran.stderr
        finished(receiver, last)
