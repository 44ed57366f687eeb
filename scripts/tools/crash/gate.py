"""Intercept some system calls of a process: count them over all threads, and kill the process at the N-th.

Each such call waits in the kernel (seccomp's user notification) until it is allowed, so every call is counted.
No call is changed.
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
"""Bytes of one BPF instruction."""
PROGRAM = struct.Struct("@HP")
"""The kernel's `sock_fprog`: how many instructions, and their address."""
REQUEST = struct.Struct("=QIIiIQ6Q")
"""The kernel's `seccomp_notif`: id, thread, flags, number of the call, architecture, instruction pointer, arguments."""
RESPONSE = struct.Struct("=QqiI")
"""The kernel's `seccomp_notif_resp`: id, value, error, flags."""
ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")

PLACES = (
    (r"socket:.*", "socket"),
    (r".*eventfd.*", "wake"),
    (r"part-.*", "part"),
    (r"[0-9A-Z]{26}", "task folder"),
)


def available() -> bool:
    """Whether libseccomp is installed and the kernel has user notification."""
    return bool(find_library("seccomp")) and ACTIONS.exists() and "user_notif" in ACTIONS.read_text().split()


class Gate:
    """`count`: calls since `begin`; `place`: once `killed`, the call that was prevented, and its file."""

    def __init__(self, calls: str) -> None:
        self.count = 0
        self.killed = False
        self.place = ""
        self._kill_at: int | None = None
        self._lock = threading.Lock()
        self._seccomp = ctypes.CDLL(find_library("seccomp"))
        self._seccomp.seccomp_init.restype = ctypes.c_void_p
        self._names = {self._seccomp.seccomp_syscall_resolve_name(name.encode()): name for name in calls.split(",")}

    def launch(self, start: Callable[[], None]) -> None:
        """Call `start`, which starts the process, in a thread whose children are filtered."""
        # The filter applies to one thread and to what that thread starts; this process stays unfiltered.
        with ThreadPoolExecutor(1) as filtered:
            listener = filtered.submit(self._install_filter).result()
            threading.Thread(target=self._watch, args=(listener,), daemon=True).start()
            filtered.submit(start).result()

    def begin(self, n: int) -> None:
        """Count calls from now on, and kill the process at the n-th."""
        with self._lock:
            self.count, self._kill_at = 0, n

    def _install_filter(self) -> int:
        """Filter this thread and its children. Returns the descriptor on which the kernel reports their calls."""
        program = self._program()
        code = ctypes.create_string_buffer(program, len(program))
        pointer = ctypes.create_string_buffer(PROGRAM.pack(len(program) // INSTRUCTION, ctypes.addressof(code)))
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
        number = self._seccomp.seccomp_syscall_resolve_name(b"seccomp")
        listener: int = libc.syscall(number, SET_FILTER, NEW_LISTENER, pointer)
        assert listener >= 0, os.strerror(ctypes.get_errno())
        return listener

    def _program(self) -> bytes:
        """The BPF program of the filter: these calls are reported, all others allowed."""
        rules = ctypes.c_void_p(self._seccomp.seccomp_init(ALLOW))
        for number in self._names:
            assert self._seccomp.seccomp_rule_add_array(rules, NOTIFY, number, 0, None) == 0
        with tempfile.TemporaryFile() as file:
            assert self._seccomp.seccomp_export_bpf(rules, file.fileno()) == 0
            self._seccomp.seccomp_release(rules)
            file.seek(0)
            return file.read()

    def _watch(self, listener: int) -> None:
        """Decide about each reported call, until no filtered process is left."""
        poll = select.poll()
        poll.register(listener, select.POLLIN)
        while poll.poll()[0][1] & select.POLLIN:
            notification = ctypes.create_string_buffer(REQUEST.size)
            if self._seccomp.seccomp_notify_receive(listener, notification) == 0:
                self._decide(listener, *REQUEST.unpack(notification.raw))
        os.close(listener)

    def _decide(self, listener: int, request_id: int, thread: int, _flags: int, number: int, *rest: int) -> None:
        """Allow the call, or kill its process. After the kill no call is allowed."""
        with self._lock:
            if self.killed:  # a call of another thread that the kernel reported meanwhile
                return
            self.count += 1
            is_last = self.count == self._kill_at
        if is_last:
            self.place = f"{self._names[number]} {_place(thread, rest[2])}".strip()
            self.killed = True
            os.kill(thread, signal.SIGKILL)  # a signal to a thread id reaches its process
        else:
            self._seccomp.seccomp_notify_respond(listener, RESPONSE.pack(request_id, 0, 0, CONTINUE))


def _place(thread: int, descriptor: int) -> str:
    """A short name of the file that a descriptor is open on; empty if there is none."""
    try:
        place = Path(f"/proc/{thread}/fd/{descriptor}").readlink().name
    except OSError:
        return ""
    for pattern, name in PLACES:
        place = re.sub(pattern, name, place)
    return place
