"""A file system in user space that ignores case and cannot sync folders, as a share of Windows behind CIFS.

It shows a folder of the real file system. Run as a program: `python -m tests.support.fuse FOLDER MOUNT_POINT`.
"""

import ctypes
import errno
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.receiver import ABSENT

ROOT = Path(__file__).parents[2]
IN = struct.Struct("<IIQQIIIHH")
"""The head of a request: length, operation, unique number, node, user, group, process, and two more."""
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
FOREVER = 0
"""Seconds for which the kernel keeps names and attributes: each question is asked."""
MAX_WRITE = 1 << 17

Answer = bytes


class CaselessFolder:
    """The answers to the kernel's requests. A node is a path; its number is an index."""

    def __init__(self, root: Path) -> None:
        self._paths = [Path(), root]
        self._operations: dict[int, Callable[[Path, bytes], Answer | None]] = {
            1: self._lookup,
            3: lambda path, body: self._attributes(path),
            4: self._set_attributes,
            9: self._make_folder,
            10: self._remove_file,
            11: self._remove_folder,
            12: lambda path, body: self._rename(path, body, 8),
            45: lambda path, body: self._rename(path, body, 16),
            14: self._open,
            15: self._read,
            16: self._write,
            17: lambda path, body: bytes(80),
            18: self._release,
            20: self._sync,
            25: lambda path, body: b"",
            26: self._begin,
            27: lambda path, body: struct.pack("<QII", 0, 0, 0),
            28: self._list,
            29: lambda path, body: b"",
            35: self._create,
        }

    def answer(self, operation: int, node: int, body: bytes) -> Answer | None:
        """The answer to a request; None if it needs none. Raises OSError: of FSYNCDIR, EINVAL."""
        if operation in (2, 42):  # FORGET: nothing is forgotten
            return None
        if operation == 30:
            raise OSError(errno.EINVAL, "folders cannot be synced")
        if operation not in self._operations:
            raise OSError(errno.ENOSYS, f"operation {operation}")
        return self._operations[operation](self._paths[node] if node < len(self._paths) else Path(), body)

    @staticmethod
    def _child(path: Path, name: bytes) -> Path:
        """The entry of this name, in whatever case; or the path at which it would be made."""
        wanted = os.fsdecode(name.partition(b"\0")[0])
        same = [each for each in path.iterdir() if each.name.casefold() == wanted.casefold()]
        return same[0] if same else path / wanted

    def _entry(self, path: Path) -> Answer:
        attributes = self._stat(path)
        if path not in self._paths:
            self._paths.append(path)
        return struct.pack("<QQQQII", self._paths.index(path), 0, FOREVER, FOREVER, 0, 0) + attributes

    def _stat(self, path: Path) -> bytes:
        status = path.lstat()
        times = (status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns)
        return ATTRIBUTES.pack(
            *(status.st_ino, status.st_size, status.st_blocks, *(each // 10**9 for each in times)),
            *(each % 10**9 for each in times),
            *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, 0, 4096, 0),
        )

    def _begin(self, path: Path, body: bytes) -> Answer:
        return struct.pack("<IIIIHHIIHHI7I", 7, 31, MAX_WRITE, 0, 16, 12, MAX_WRITE, 1, 0, 0, *[0] * 8)

    def _lookup(self, path: Path, body: bytes) -> Answer:
        return self._entry(self._child(path, body))

    def _attributes(self, path: Path) -> Answer:
        return struct.pack("<QII", FOREVER, 0, 0) + self._stat(path)

    def _set_attributes(self, path: Path, body: bytes) -> Answer:
        valid, _, _, size = struct.unpack_from("<IIQQ", body)
        if valid & 8:
            os.truncate(path, size)
        return self._attributes(path)

    def _make_folder(self, path: Path, body: bytes) -> Answer:
        child = self._child(path, body[8:])
        child.mkdir()
        return self._entry(child)

    def _rename(self, path: Path, body: bytes, head: int) -> Answer:
        (folder,) = struct.unpack_from("<Q", body)
        old, new = body[head:].split(b"\0")[:2]
        source, target = self._child(path, old), self._child(self._paths[folder], new)
        source.replace(target)
        self._paths = [target if each == source else each for each in self._paths]
        return b""

    def _open(self, path: Path, body: bytes) -> Answer:
        (flags,) = struct.unpack_from("<I", body)
        return struct.pack("<QII", os.open(path, flags & ~os.O_NOFOLLOW & (os.O_ACCMODE | os.O_TRUNC)), 0, 0)

    def _create(self, path: Path, body: bytes) -> Answer:
        flags, mode = struct.unpack_from("<II", body)
        child = self._child(path, body[16:])
        handle = os.open(child, flags & (os.O_ACCMODE | os.O_TRUNC | os.O_EXCL) | os.O_CREAT, mode & 0o777)
        return self._entry(child) + struct.pack("<QII", handle, 0, 0)

    def _read(self, path: Path, body: bytes) -> Answer:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return os.pread(handle, size, offset)

    def _write(self, path: Path, body: bytes) -> Answer:
        handle, offset, size = struct.unpack_from("<QQI", body)
        return struct.pack("<II", os.pwrite(handle, body[40 : 40 + size], offset), 0)

    def _release(self, path: Path, body: bytes) -> Answer:
        os.close(struct.unpack_from("<Q", body)[0])
        return b""

    def _sync(self, path: Path, body: bytes) -> Answer:
        os.fsync(struct.unpack_from("<Q", body)[0])
        return b""

    def _remove_file(self, path: Path, body: bytes) -> Answer:
        self._child(path, body).unlink()
        return b""

    def _remove_folder(self, path: Path, body: bytes) -> Answer:
        self._child(path, body).rmdir()
        return b""

    def _list(self, path: Path, body: bytes) -> Answer:
        _, offset, size = struct.unpack_from("<QQI", body)
        answer = b""
        for number, child in list(enumerate(sorted(path.iterdir()), 1))[offset:]:
            name = os.fsencode(child.name)
            entry = struct.pack("<QQII", child.lstat().st_ino, number, len(name), 0) + name
            entry += bytes(-len(entry) % 8)
            if len(answer) + len(entry) > size:
                break
            answer += entry
        return answer


def serve(device: int, folder: CaselessFolder) -> None:
    """Answer requests until the file system is unmounted."""
    while True:
        try:
            request = os.read(device, MAX_WRITE + 8192)
        except OSError as error:
            if error.errno == errno.ENODEV:
                return
            raise
        _, operation, unique, node, *_ = IN.unpack_from(request)
        try:
            answer, number = folder.answer(operation, node, request[IN.size :]), 0
        except OSError as error:
            answer, number = b"", error.errno or errno.EIO
        if answer is not None:
            os.write(device, struct.pack("<IiQ", 16 + len(answer), -number, unique) + answer)


@contextmanager
def caseless_folder(real: Path, mounted: Path) -> Iterator[Path]:
    """Show the folder `real` as `mounted`, ignoring case. Skips the test where nothing may be mounted."""
    if not os.access("/dev/fuse", os.W_OK) or os.geteuid():
        pytest.skip(f"{ABSENT}the right to mount")
    for path in (real, mounted):
        path.mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    program = subprocess.Popen([sys.executable, "-m", __name__, str(real), str(mounted)], env=environment)
    try:
        while not mounted.is_mount():
            assert program.poll() is None
            time.sleep(0.01)
        yield mounted
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=False)
        program.kill()
        program.wait(20)


def main() -> None:
    """Mount and serve."""
    real, mounted = sys.argv[1:]
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other".encode()
    library = ctypes.CDLL(None, use_errno=True)
    if library.mount(b"caseless", os.fsencode(mounted), b"fuse", 0, options):
        raise OSError(ctypes.get_errno(), "the file system cannot be mounted")
    serve(device, CaselessFolder(Path(real)))


if __name__ == "__main__":
    main()
