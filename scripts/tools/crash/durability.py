"""Check in a trace that data is synced before it is acknowledged. A SIGKILL cannot show it: the page cache survives."""

import hashlib
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.crash import strace
from tools.crash.checks import Rows, read_rows
from tools.crash.completion import wait_until_done
from tools.crash.everywhere import DONE_SECONDS, submit_all
from tools.crash.scenario import stage, three_jobs
from tools.crash.strace import Call

READS = ("read", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")
CALLS = "recvfrom,recvmsg,read,write,writev,sendto,sendmsg,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
MAX_ARGUMENT_BYTES = "5000"
"""Bytes of an argument that strace prints: more than a page of the database."""


@dataclass
class Row:
    """How often an order was checked, and where it was wrong."""

    what: str
    checked: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, good: bool, where: str) -> None:
        """Count one check."""
        self.checked += 1
        if not good:
            self.wrong.append(where)


def trace_run() -> list[Row]:
    """Run the scenario under strace, from its first start on, and check the order of its calls."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, stage(Path(name)) as scene:
        scene.jobs = three_jobs()
        trace = Path(name, "trace")
        scene.receiver.start(*strace.command(trace, CALLS, "-s", MAX_ARGUMENT_BYTES, "-D"))
        submit_all(scene)
        wait_until_done(scene, DONE_SECONDS)
        rows = read_rows(scene)
        scene.receiver.signal(signal.SIGTERM)
        scene.receiver.wait()
        calls = strace.parse_calls(trace.read_text(errors="replace"))
        return [check_callbacks(calls), *check_files(calls, rows)]


def check_callbacks(calls: list[Call]) -> Row:
    """For each callback: its row was written to the WAL, then the WAL was synced, then its 200 was sent."""
    row = Row("200 after the callback's row was written and synced")
    for number, call in enumerate(calls):
        # Sockets only: Python reads source files too, and their docstrings name this request.
        if call.name in READS and call.file.startswith("socket:") and '"POST /callbacks/' in call.arguments:
            row.note(_synced_before_200(calls[number:]), f"line {call.started + 1}")
    return row


def _synced_before_200(calls: list[Call]) -> bool:
    """`calls` begins with the read of a callback."""
    socket, request = calls[0].file, b""
    for call in calls:
        if call.file != socket or '"' not in call.arguments:
            continue
        if call.name in WRITES:
            synced = _sync_of_row(calls, hashlib.sha256(request.partition(b"\r\n\r\n")[2]).hexdigest())
            return "HTTP/1.1 200 " in call.arguments and synced is not None and synced.ended < call.started
        request += call.strings[0]
    return False


def _sync_of_row(calls: list[Call], body_sha256: str) -> Call | None:
    """The sync after the row with this digest was written."""
    written = _first(calls, lambda call: _is_wal(call, "pwrite64") and body_sha256 in call.arguments, calls[0].ended)
    return written and _first(calls, lambda call: _is_wal(call, "fdatasync"), written.ended)


def check_files(calls: list[Call], rows: Rows) -> list[Row]:
    """For each file: synced before its rename; its name and its folder's synced before `result.stored`."""
    file = Row("file synced before it was renamed")
    folder = Row("renamed, its folder and the folder above synced before `result.stored` was written")
    for result in rows.results:
        path, position = f"/results/{result['path']}", result["position"]
        renamed = _first(calls, lambda call: call.name.startswith("rename") and path in call.arguments)  # noqa: B023
        event = re.compile(rf'{result["task_id"]}result\.stored.{{0,60}}?{{\\"index\\":{position},', re.DOTALL)
        logged = _first(calls, lambda call: _is_wal(call, "pwrite64") and bool(event.search(call.arguments)))  # noqa: B023
        assert renamed, path
        assert logged, path
        file.note(_is_synced(calls, _part_file(renamed), 0, renamed), path)
        parent = path.rpartition("/")[0]
        folder.note(all(_is_synced(calls, each, renamed.ended, logged) for each in (parent, "/results")), path)
    return [file, folder]


def _is_synced(calls: list[Call], path: str, after: int, before: Call) -> bool:
    """Whether a sync of the file lies between two calls, after every write to the file before the second one.

    One such sync is enough: another thread may be syncing the same folder for a file of its own.
    """
    own = [call for call in calls if call.file.endswith(path) and after < call.started < before.started]
    written = max((call.ended for call in own if call.name == "write"), default=after)
    return any(call.name == "fsync" and written < call.started and call.ended < before.started for call in own)


def _first(calls: list[Call], matches: Callable[[Call], bool], after: int = -1) -> Call | None:
    return next((call for call in calls if call.started > after and matches(call)), None)


def _is_wal(call: Call, name: str) -> bool:
    return call.name == name and call.file.endswith("-wal")


def _part_file(renamed: Call) -> str:
    """The end of the path that a file had before its rename."""
    match = re.search(r"/\.parts/part-\w+", renamed.arguments)
    assert match, renamed.arguments
    return match[0]
