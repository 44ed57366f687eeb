"""What a traced run shows: nothing is said before it is on disk. (A SIGKILL spares the page cache.)"""

import ast
import hashlib
import re
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tools.crash import strace
from tools.crash.checks import Kept, kept
from tools.crash.everywhere import PATIENCE, submitted
from tools.crash.script import stage, three
from tools.crash.waiting import all_done

READS = ("read", "recvfrom", "recvmsg")
WRITES = ("write", "writev", "sendto", "sendmsg")
CALLS = "recvfrom,recvmsg,read,write,writev,sendto,sendmsg,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
LONGEST = "5000"
"""Bytes of an argument that are shown: a page of the database, and some."""


@dataclass(frozen=True)
class Call:
    """One call, by line of the trace: `began` and `ended` order it among those of other threads."""

    name: str
    said: str
    began: int
    ended: int


@dataclass
class Row:
    """How often something was seen, and where it was seen to go wrong."""

    what: str
    seen: int = 0
    wrong: list[str] = field(default_factory=list)

    def note(self, good: bool, where: str) -> None:
        """One sight of it."""
        self.seen += 1
        if not good:
            self.wrong.append(where)


LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$", re.DOTALL)


def calls(trace: str) -> list[Call]:
    """The calls of a trace, each put together again where another thread's came between."""
    found: list[Call] = []
    open_calls: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        if not (match := LINE.match(line)):
            continue
        thread, resumed, name, said = match.groups()
        if resumed:
            began, start = open_calls.pop(thread, (number, ""))
            found.append(Call(resumed, start + said, began, number))
        elif said.endswith("<unfinished ...>"):
            open_calls[thread] = number, said.removesuffix("<unfinished ...>")
        else:
            found.append(Call(name, said, number, number))
    return sorted(found, key=lambda call: call.began)


def witnessed() -> list[Row]:
    """The scripted run under strace, from its first start on."""
    with tempfile.TemporaryDirectory(prefix="kling-crash-") as name, stage(Path(name)) as scene:
        scene.jobs = three()
        trace = Path(name, "trace")
        scene.receiver.start(*strace.command(trace, CALLS, "-s", LONGEST, "-D"))
        submitted(scene)
        all_done(scene, PATIENCE)
        rows = kept(scene)
        scene.receiver.signal(signal.SIGTERM)
        scene.receiver.wait()
        seen = calls(trace.read_text(errors="replace"))
        return [answered(seen), *filed(seen, rows)]


def answered(seen: list[Call]) -> Row:
    """Of each callback: its row was written to the log, then the log was synced, then its 200 was sent."""
    row = Row("200 after the callback's row was written and synced")
    for number, call in enumerate(seen):
        if call.name in READS and '"POST /callbacks/' in call.said:
            row.note(_synced_before_200(seen[number:]), f"line {call.began + 1}")
    return row


def _synced_before_200(seen: list[Call]) -> bool:
    """`seen` begins with the read of a callback."""
    socket, text = _file(seen[0]), b""
    for call in seen:
        if _file(call) != socket or '"' not in call.said:
            continue
        if call.name in WRITES:
            synced = _kept(seen, hashlib.sha256(text.partition(b"\r\n\r\n")[2]).hexdigest())
            return "HTTP/1.1 200 " in call.said and synced is not None and synced.ended < call.began
        text += _bytes(call)
    return False


def _kept(seen: list[Call], digest: str) -> Call | None:
    """The sync after the row of this digest was written."""
    written = _first(seen, lambda call: _is_log(call, "pwrite64") and digest in call.said, seen[0].ended)
    return written and _first(seen, lambda call: _is_log(call, "fdatasync"), written.ended)


def filed(seen: list[Call], rows: Kept) -> list[Row]:
    """Of each file: synced before it got its name; the name, and the folder's, before `result.stored`."""
    file = Row("file synced before it was renamed")
    folder = Row("renamed, its folder and the folder above synced before `result.stored` was written")
    for result in rows.results:
        name, n = f"/results/{result['name']}", result["n"]
        renamed = _first(seen, lambda call: call.name.startswith("rename") and name in call.said)  # noqa: B023
        told = re.compile(rf'{result["task"]}result\.stored.{{0,60}}?{{\\"index\\":{n},', re.DOTALL)
        said = _first(seen, lambda call: _is_log(call, "pwrite64") and bool(told.search(call.said)))  # noqa: B023
        assert renamed, name
        assert said, name
        file.note(_synced(seen, _part(renamed), 0, renamed), name)
        above = name.rpartition("/")[0]
        folder.note(all(_synced(seen, each, renamed.ended, said) for each in (above, "/results")), name)
    return [file, folder]


def _synced(seen: list[Call], path: str, after: int, before: Call) -> bool:
    """Whether a file was synced between two calls, after all that was written to it until the second."""
    mine = [call for call in seen if _file(call).endswith(path) and after < call.began < before.began]
    synced = [call.ended for call in mine if call.name == "fsync"]
    written = [call.ended for call in mine if call.name == "write"]
    return bool(synced) and max(written, default=0) < synced[-1] < before.began


def _first(seen: list[Call], fits: Callable[[Call], bool], after: int = -1) -> Call | None:
    return next((call for call in seen if call.began > after and fits(call)), None)


def _is_log(call: Call, name: str) -> bool:
    return call.name == name and _file(call).endswith("-wal")


def _file(call: Call) -> str:
    """What the call's first argument is open on: a path, or `socket:[number]`."""
    match = re.match(r"\d+<([^>]*)>", call.said)
    return match[1] if match else ""


def _part(renamed: Call) -> str:
    """The end of the name that a file had before."""
    match = re.search(r"/\.parts/part-\w+", renamed.said)
    assert match, renamed.said
    return match[0]


def _bytes(call: Call) -> bytes:
    """What was read, as strace quotes it."""
    quoted = call.said[call.said.index('"') : call.said.rindex('"') + 1]
    read: bytes = ast.literal_eval(f"b{quoted}")
    return read
