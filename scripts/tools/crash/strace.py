"""strace around a receiver: records system calls and changes none."""

import ast
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LINE = re.compile(r"^(\d+) +(?:<\.\.\. (\w+) resumed>|(\w+)\()(.*)$", re.DOTALL)
RESULT = re.compile(r"\) += (-?\d+)[^)]*(?:\([^)]*\))?$")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
LAST_NUMBER = re.compile(r", (\d+) *\) += \d+$")

ONLY_THESE = ("-f", "--seccomp-bpf")
"""With all threads; the calls that are not traced do not stop, which makes a start several times as fast."""


@dataclass(frozen=True)
class Call:
    """One system call. `started` and `ended`: line numbers of the trace, which order calls across threads."""

    name: str
    arguments: str
    started: int
    ended: int

    @cached_property
    def file(self) -> str:
        """The file of the call's first argument: a path, or `socket:[number]`."""
        match = re.match(r"\d+<([^>]*)>", self.arguments)
        return match[1] if match else ""

    @cached_property
    def descriptor(self) -> int:
        """The call's first argument."""
        return int(self.arguments[: self.arguments.index("<")])

    @cached_property
    def result(self) -> int:
        """What the call returned; -1 if it failed, or did not end before the trace did."""
        match = RESULT.search(self.arguments, max(0, len(self.arguments) - 600))
        return int(match[1]) if match else -1

    @cached_property
    def strings(self) -> list[bytes]:
        """The texts and the data among the arguments, whole if strace printed all of their bytes."""
        return [ast.literal_eval(f'b"{text}"') for text in STRING.findall(self.arguments)]

    @property
    def last_number(self) -> int:
        """The call's last argument: an offset, or a size."""
        match = LAST_NUMBER.search(self.arguments)
        assert match, self.arguments[-200:]
        return int(match[1])


def parse_calls(trace: str) -> list[Call]:
    """The calls of a trace in order of their start; calls that strace printed in two parts are joined."""
    calls: list[Call] = []
    unfinished: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(trace.splitlines()):
        if not (match := LINE.match(line)):
            continue
        thread, resumed, name, arguments = match.groups()
        if resumed:
            started, first_part = unfinished.pop(thread, (number, ""))
            calls.append(Call(resumed, first_part + arguments, started, number))
        elif arguments.endswith("<unfinished ...>"):
            unfinished[thread] = number, arguments.removesuffix("<unfinished ...>")
        else:
            calls.append(Call(name, arguments, number, number))
    return sorted(calls, key=lambda call: call.started)


def available() -> bool:
    """Whether strace is installed and may trace here."""
    program = shutil.which("strace")
    probe = [program or "false", "-qq", "-e", "trace=none", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def command(out: Path, calls: str, *options: str) -> list[str]:
    """The command prefix that traces these calls into a file."""
    return ["strace", *ONLY_THESE, "-qq", "-y", "-o", str(out), "-e", f"trace={calls}", *options]
