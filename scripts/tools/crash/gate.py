"""A gate before some calls of a process: counts them over all threads, kills at the N-th, and changes none.

Each such call waits in the kernel (seccomp's user notification) until it is let through: none goes uncounted.
"""

import ctypes
import os
import re
import select
import signal
import struct
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path

ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
CONTINUE = 1
NO_NEW_PRIVILEGES, SET_FILTER, NEW_LISTENER = 38, 1, 8
INSTRUCTION = 8
"""Bytes of one."""
PROGRAM = struct.Struct("@HP")
"""The kernel's `sock_fprog`: instructions, and where they are."""
REQUEST = struct.Struct("=QIIiIQ6Q")
"""The kernel's `seccomp_notif`: id, thread, flags, number of the call, architecture, place, arguments."""
RESPONSE = struct.Struct("=QqiI")
"""The kernel's `seccomp_notif_resp`: id, value, error, flags."""
OFFERED = Path("/proc/sys/kernel/seccomp/actions_avail")

PLACES = (
    (r"socket:.*", "socket"),
    (r".*eventfd.*", "wake"),
    (r"part-.*", "part"),
    (r"[0-9A-Z]{26}", "task folder"),
)


def present() -> bool:
    """Whether this machine has it, and lets us use it."""
    return bool(find_library("seccomp")) and OFFERED.exists() and "user_notif" in OFFERED.read_text().split()


class Gate:
    """`count`: calls since `begin`; `place`: the call that was never made, and on what, once `killed`."""

    def __init__(self, calls: str) -> None:
        self.count = 0
        self.killed = False
        self.place = ""
        self._at: int | None = None
        self._counting = threading.Lock()
        self._seccomp = ctypes.CDLL(find_library("seccomp"))
        self._seccomp.seccomp_init.restype = ctypes.c_void_p
        self._names = {self._seccomp.seccomp_syscall_resolve_name(name.encode()): name for name in calls.split(",")}

    def launch(self, start: Callable[[], None]) -> None:
        """Start a process behind the gate."""
        # The filter holds for one thread and for what it starts, so that we ourselves stay outside.
        with ThreadPoolExecutor(1) as behind:
            listener = behind.submit(self._filter).result()
            threading.Thread(target=self._watch, args=(listener,), daemon=True).start()
            behind.submit(start).result()

    def begin(self, n: int) -> None:
        """From now on, count; at the n-th call, kill."""
        with self._counting:
            self.count, self._at = 0, n

    def _filter(self) -> int:
        """Put this thread behind the gate: the descriptor on which its calls, and its children's, are told."""
        program = self._program()
        code = ctypes.create_string_buffer(program, len(program))
        described = ctypes.create_string_buffer(PROGRAM.pack(len(program) // INSTRUCTION, ctypes.addressof(code)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        number = self._seccomp.seccomp_syscall_resolve_name(b"seccomp")
        listener: int = libc.syscall(number, SET_FILTER, NEW_LISTENER, described)
        assert listener >= 0, os.strerror(ctypes.get_errno())
        return listener

    def _program(self) -> bytes:
        """The filter as the kernel wants it: these calls are told, all others go on."""
        rules = ctypes.c_void_p(self._seccomp.seccomp_init(ALLOW))
        for number in self._names:
            assert self._seccomp.seccomp_rule_add_array(rules, NOTIFY, number, 0, None) == 0
        with tempfile.TemporaryFile() as file:
            assert self._seccomp.seccomp_export_bpf(rules, file.fileno()) == 0
            self._seccomp.seccomp_release(rules)
            file.seek(0)
            return file.read()

    def _watch(self, listener: int) -> None:
        """Until nobody is behind the gate any more."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while poll.poll()[0][1] & select.POLLIN:
            asked = ctypes.create_string_buffer(REQUEST.size)
            if self._seccomp.seccomp_notify_receive(listener, asked) == 0:
                self._decide(listener, *REQUEST.unpack(asked.raw))
        os.close(listener)

    def _decide(self, listener: int, call: int, thread: int, _flags: int, number: int, *rest: int) -> None:
        with self._counting:
            self.count += 1
            last = self.count == self._at
        if last:
            self.place = f"{self._names[number]} {_place(thread, rest[2])}".strip()
            self.killed = True
            os.kill(thread, signal.SIGKILL)  # a thread's number stands for its process
        elif not self.killed:
            self._seccomp.seccomp_notify_respond(listener, RESPONSE.pack(call, 0, 0, CONTINUE))


def _place(thread: int, descriptor: int) -> str:
    """What a descriptor is open on, in a few words; nothing for what is none."""
    try:
        place = Path(f"/proc/{thread}/fd/{descriptor}").readlink().name
    except OSError:
        return ""
    for pattern, name in PLACES:
        place = re.sub(pattern, name, place)
    return place
