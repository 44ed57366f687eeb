"""A model of a disk under a page cache: the files of a traced run, as any power cut could have left them.

What was synced before the cut is on the disk. Of the rest, each change is there or not, in any combination: each sector
of a write, each truncation, each name that was made, renamed or removed. A name is synced with its folder, a content
with its file.
"""

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath

from tools.crash.strace import Call

SECTOR = 512
"""Bytes that a disk writes as a whole."""
KNOWN = ("openat", "lseek", "read", "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename", "unlink", "mkdir")
UNKNOWN = (
    *(
        "open",
        "creat",
        "link",
        "linkat",
        "symlink",
        "symlinkat",
        "renameat",
        "renameat2",
        "unlinkat",
        "rmdir",
        "mkdirat",
    ),
    *("truncate", "fallocate", "pwritev", "pwritev2", "sync_file_range", "sendfile", "copy_file_range"),
)
"""Calls that the model would have to know if the receiver used them."""
HERE = PurePosixPath()
SHARED_MEMORY = "-shm"
"""SQLite's index of the WAL. It is made anew after a cut: no process has it open."""


@dataclass
class Node:
    """A file or a folder, by whatever name. `content`: of a file, as the receiver sees it last."""

    is_folder: bool
    content: bytearray = field(default_factory=bytearray)
    names: dict[str, "Node"] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """One change. `synced_with`: the file or folder whose sync puts it on disk; `apply`: make it in an image."""

    call: Call
    synced_with: Node
    apply: Callable[["Image"], None]


@dataclass(frozen=True)
class Sync:
    """One sync of a file or folder."""

    call: Call
    node: Node


class Image:
    """The content of a disk, built by changes."""

    def __init__(self) -> None:
        self.contents: dict[int, bytearray] = {}
        self.folders: dict[int, dict[str, Node]] = {}

    def write(self, node: Node, offset: int, data: bytes) -> None:
        """Write to a file."""
        content = self.contents.setdefault(id(node), bytearray())
        content.extend(bytes(max(0, offset - len(content))))
        content[offset : offset + len(data)] = data

    def truncate(self, node: Node, size: int) -> None:
        """Cut a file, or extend it by zeros."""
        content = self.contents.setdefault(id(node), bytearray())
        del content[size:]
        content.extend(bytes(size - len(content)))

    def name(self, folder: Node, name: str, node: Node) -> None:
        """Give a file or folder a name."""
        self.folders.setdefault(id(folder), {})[name] = node

    def forget(self, folder: Node, name: str, node: Node) -> None:
        """Remove a name, if it is still that of `node`."""
        names = self.folders.setdefault(id(folder), {})
        if names.get(name) is node:
            del names[name]

    def files(self, folder: Node, path: PurePosixPath = HERE) -> Iterator[tuple[PurePosixPath, bytes | None]]:
        """Each path below a folder, folders first, with the content of a file."""
        for name, node in self.folders.get(id(folder), {}).items():
            yield path / name, None if node.is_folder else bytes(self.contents.get(id(node), b""))
            if node.is_folder:
                yield from self.files(node, path / name)

    def save(self, folder: Node, target: Path) -> None:
        """Write everything below `folder` of this image into an empty folder of this machine."""
        for path, content in self.files(folder):
            if content is None:
                (target / path).mkdir()
            else:
                (target / path).write_bytes(content)


Opening = tuple[int, int, Node | None, bool]
"""A call that opens a descriptor: the line of its end, the descriptor, its file, and whether it appends."""


class Disk:
    """The changes and syncs below one folder, in the order in which a traced run made them."""

    def __init__(self, root: Path) -> None:
        """`root`: a folder that exists, and that is empty when the trace begins."""
        self.root = Node(is_folder=True)
        self._path = root
        self._open: dict[int, tuple[Node, bool]] = {}
        self._offsets: dict[int, int] = {}
        self._opening: list[Opening] = []
        """A heap of the opens that have not ended yet."""
        self.changes: list[Change] = []
        self.syncs: list[Sync] = []

    def replay(self, calls: Iterable[Call]) -> None:
        """Take in the calls of a trace. Raises NotImplementedError for one that changes a file in an unknown way."""
        handlers = {name: getattr(self, f"_{name}") for name in KNOWN}
        for call in calls:
            while self._opening and self._opening[0][0] < call.started:
                self._set_descriptor(heappop(self._opening))
            if call.result < 0:
                continue
            if handler := handlers.get(call.name):
                handler(call)
            elif call.name in UNKNOWN and str(self._path) in call.arguments:
                raise NotImplementedError(f"{call.name}({call.arguments[:200]}")

    def after_cut(self, cut: int, draw: random.Random, *, ignore: Callable[[Sync], bool] = lambda sync: False) -> Image:
        """What is on the disk after a cut before this line of the trace. `ignore`: syncs that never happened."""
        image, keep = Image(), _policy(draw, cut)
        synced: dict[int, int] = {}
        for sync in self.syncs:
            if sync.call.ended < cut and not ignore(sync):
                synced[id(sync.node)] = sync.call.started
        for change in self.changes:
            if change.call.started >= cut:
                continue
            if change.call.ended < synced.get(id(change.synced_with), -1) or keep(change):
                change.apply(image)
        return image

    def everything(self) -> Image:
        """The disk with all changes, as the receiver saw it at its end."""
        image = Image()
        for change in self.changes:
            change.apply(image)
        return image

    # The calls that the model knows, by their names.

    def _openat(self, call: Call) -> None:
        path, flags = call.strings[0].decode(), call.arguments
        if not self._is_below(path) or path.endswith(SHARED_MEMORY):
            heappush(self._opening, (call.ended, call.result, None, False))
            return
        node = self._find(path)
        if node is None:
            assert "O_CREAT" in flags, call.arguments
            node = self._add(call, path, Node(is_folder=False))
        elif "O_TRUNC" in flags:
            self._truncate(call, node, 0)
        heappush(self._opening, (call.ended, call.result, node, "O_APPEND" in flags))

    def _set_descriptor(self, opened: Opening) -> None:
        """Only now: while the call ran, another thread may have opened and closed the same descriptor."""
        _, descriptor, node, append = opened
        self._open.pop(descriptor, None)
        if node:
            self._open[descriptor] = node, append
            self._offsets[descriptor] = 0

    def _lseek(self, call: Call) -> None:
        self._offsets[call.descriptor] = call.result

    def _read(self, call: Call) -> None:
        self._offsets[call.descriptor] = self._offsets.get(call.descriptor, 0) + call.result

    def _write(self, call: Call) -> None:
        if node := self._node_of(call):
            append = self._open[call.descriptor][1]
            offset = len(node.content) if append else self._offsets[call.descriptor]
            self._offsets[call.descriptor] = offset + call.result
            self._write_at(call, node, offset)

    def _pwrite64(self, call: Call) -> None:
        if node := self._node_of(call):
            self._write_at(call, node, call.last_number)

    def _ftruncate(self, call: Call) -> None:
        if node := self._node_of(call):
            self._truncate(call, node, call.last_number)

    def _fsync(self, call: Call) -> None:
        if node := self._node_of(call):
            self.syncs.append(Sync(call, node))

    _fdatasync = _fsync

    def _rename(self, call: Call) -> None:
        source, target = (each.decode() for each in call.strings[:2])
        if not self._is_below(source):
            return
        (old, old_name), (new, new_name) = self._parent(source), self._parent(target)
        node = old.names.pop(old_name)
        new.names[new_name] = node

        def apply(image: Image) -> None:
            image.forget(old, old_name, node)
            image.name(new, new_name, node)

        self.changes.append(Change(call, new, apply))

    def _unlink(self, call: Call) -> None:
        path = call.strings[0].decode()
        if self._is_below(path) and not path.endswith(SHARED_MEMORY):
            folder, name = self._parent(path)
            node = folder.names.pop(name)
            self.changes.append(Change(call, folder, lambda image: image.forget(folder, name, node)))

    def _mkdir(self, call: Call) -> None:
        path = call.strings[0].decode()
        if self._is_below(path):
            self._add(call, path, Node(is_folder=True))

    def _add(self, call: Call, path: str, node: Node) -> Node:
        folder, name = self._parent(path)
        folder.names[name] = node
        self.changes.append(Change(call, folder, lambda image: image.name(folder, name, node)))
        return node

    def _write_at(self, call: Call, node: Node, offset: int) -> None:
        """One change for each sector: a cut may tear a write."""
        data = call.strings[0][: call.result]
        node.content.extend(bytes(max(0, offset - len(node.content))))
        node.content[offset : offset + len(data)] = data
        while data:
            part, data = data[: SECTOR - offset % SECTOR], data[SECTOR - offset % SECTOR :]
            self.changes.append(Change(call, node, _writing(node, offset, part)))
            offset += len(part)

    def _truncate(self, call: Call, node: Node, size: int) -> None:
        del node.content[size:]
        node.content.extend(bytes(size - len(node.content)))
        self.changes.append(Change(call, node, lambda image: image.truncate(node, size)))

    def _node_of(self, call: Call) -> Node | None:
        """The file or folder that a descriptor is open on, if it is below the root."""
        known = self._open.get(call.descriptor)
        return known[0] if known and self._is_below(call.file) else None

    def _is_below(self, path: str) -> bool:
        return PurePosixPath(path).is_relative_to(self._path)

    def _find(self, path: str) -> Node | None:
        node: Node | None = self.root
        for name in PurePosixPath(path).relative_to(self._path).parts:
            node = node.names.get(name) if node else None
        return node

    def _parent(self, path: str) -> tuple[Node, str]:
        folder = self._find(str(PurePosixPath(path).parent))
        assert folder, path
        return folder, PurePosixPath(path).name


def _writing(node: Node, offset: int, data: bytes) -> Callable[[Image], None]:
    return lambda image: image.write(node, offset, data)


def _policy(draw: random.Random, cut: int) -> Callable[[Change], bool]:
    """Which changes that were not synced are on the disk all the same: none, all up to some moment, or any."""
    kind, share, until = draw.randrange(4), draw.random(), draw.randrange(cut + 1)
    if kind == 0:
        return lambda change: False
    if kind == 1:
        return lambda change: change.call.started < until
    by_call: dict[int, bool] = {}

    def whole_calls(change: Change) -> bool:
        return by_call.setdefault(change.call.started, draw.random() < share)

    return whole_calls if kind == 2 else lambda change: draw.random() < share
