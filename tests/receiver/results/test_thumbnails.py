"""Thumbnails of stored images: made once, by another process, with limits; never a broken one."""

import asyncio
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

from kling_receiver.results import thumbnail_child, thumbnails
from kling_receiver.results.media import INLINE_TYPES
from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import (
    MISSING_THUMBNAIL,
    RETRY_SECONDS,
    UNDECODABLE_THUMBNAIL,
    SourceLost,
    ThumbnailCache,
    Thumbnails,
    TooManyWaiting,
    is_webp,
)
from kling_receiver.store.rows import ResultRow
from tests.support.images import bomb, chunk, decoded, encoded, gif, png

pytestmark = pytest.mark.anyio

CHILD = Path(thumbnail_child.__file__)
TYPES = sorted(thumbnail_child.DECODERS.items())


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    """A prepared storage."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    return storage


def stored(storage: LocalStorage, content: bytes, media_type: str = "image/png", *, position: int = 0) -> ResultRow:
    """The row of a stored file."""
    part = storage.part(f"task/{position}", "https://files.example/x")
    part.write(content)
    size, sha256, path = part.size, part.sha256, storage.commit(part, f"task/{position}.bin", f"task/{position}.bin")
    return {
        "task_id": "task",
        "position": position,
        "kind": "image",
        "kling_id": None,
        "duration": None,
        "status": "stored",
        "content_type": media_type,
        "size": size,
        "sha256": sha256,
        "path": path,
        "source_url": "",
        "expires_at": None,
        "error": "",
        "warning": "",
    }


def cached(storage: LocalStorage) -> list[Path]:
    """The files in the cache."""
    return sorted(path for path in (storage.root / ".thumbnails").rglob("*") if path.is_file())


def made(content: bytes, media_type: str) -> Image.Image:
    """The thumbnail of an image, made in this process."""
    return decoded(thumbnail_child.make_thumbnail(io.BytesIO(content), media_type))


PHOTO = Image.radial_gradient("L").resize((1200, 800)).convert("RGB")


@pytest.mark.parametrize(("media_type", "decoder"), TYPES)
async def test_an_image_of_each_type(storage: LocalStorage, media_type: str, decoder: str) -> None:
    """By the real program: a small WebP in a file of its own, which is no result."""
    result = stored(storage, encoded(PHOTO, decoder), media_type)
    thumbnail = await Thumbnails(storage).get(result)
    assert (thumbnail.media_type, thumbnail.is_final) == ("image/webp", True)
    assert decoded(thumbnail.content).format == "WEBP"
    assert decoded(thumbnail.content).size == (480, 320)
    (path,) = cached(storage)
    assert path.relative_to(storage.root).parts[:2] == (".thumbnails", "task")
    assert path.read_bytes() == thumbnail.content
    assert path.stat().st_mode & 0o777 == 0o600
    assert list((storage.root / ".parts").iterdir()) == []


def test_the_types_are_known_to_both_sides() -> None:
    """Receiver and program do not import each other."""
    assert thumbnail_child.DECODERS.keys() == thumbnails.DECODABLE_TYPES <= INLINE_TYPES
    assert thumbnail_child.UNDECODABLE == thumbnails.UNDECODABLE
    assert thumbnail_child.MAX_OUTPUT_BYTES == thumbnails.MAX_BYTES
    assert thumbnail_child.CPU_SECONDS < thumbnails.TIMEOUT_SECONDS


@pytest.mark.parametrize(
    ("size", "small"), [((30, 20), (30, 20)), ((480, 481), (479, 480)), ((5000, 3), (480, 1)), ((1, 1), (1, 1))]
)
def test_the_size(size: tuple[int, int], small: tuple[int, int]) -> None:
    """At most 480 pixels, and never more than the image has."""
    assert made(encoded(Image.new("RGB", size), "PNG"), "image/png").size == small


@pytest.mark.parametrize(
    ("image", "decoder", "pixel"),
    [
        (Image.new("RGB", (600, 600), (200, 30, 30)), "PNG", (200, 30, 30)),
        (Image.new("RGBA", (600, 600), (200, 30, 30, 0)), "PNG", (None, None, None, 0)),
        (Image.new("L", (600, 600), 90), "PNG", (90, 90, 90)),
        (Image.new("LA", (600, 600), (90, 255)), "PNG", (90, 90, 90)),
        (Image.new("1", (600, 600), 1), "PNG", (255, 255, 255)),
        (Image.new("P", (600, 600), 0), "PNG", (0, 0, 0)),
        (Image.new("I;16", (600, 600), 40_000), "PNG", (156, 156, 156)),
        (Image.new("CMYK", (600, 600), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_the_colours(image: Image.Image, decoder: str, pixel: tuple[int | None, ...]) -> None:
    """Of every mode that a file of these types has; what is transparent stays so."""
    found = made(encoded(image, decoder), f"image/{decoder.lower()}").getpixel((100, 100))
    assert isinstance(found, tuple)
    for value, expected in zip(found, pixel, strict=False):
        assert expected is None or abs(value - expected) <= 6, (found, pixel)


def test_it_is_upright_and_without_metadata() -> None:
    """The orientation is applied; place, comment, profile and text are gone."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    exif[0x010E] = "secret place"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = encoded(PHOTO, "JPEG", exif=exif, icc_profile=profile, comment=b"secret comment")
    content = thumbnail_child.make_thumbnail(io.BytesIO(source), "image/jpeg")
    assert decoded(content).size == (320, 480)
    assert b"secret place" in source
    assert b"secret" not in content
    assert not {b"EXIF", b"ICCP", b"XMP "} & {content[at : at + 4] for at in range(0, len(content), 2)}
    assert decoded(content).info.keys() & {"exif", "icc_profile", "xmp", "comment"} == set()


def test_an_animation_shows_its_first_frame() -> None:
    """Whatever the number of its frames."""
    frames = [Image.new("RGB", (50, 50), colour) for colour in ("red", "blue")]
    source = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    thumbnail = made(source, "image/gif")
    assert getattr(thumbnail, "n_frames", 1) == 1
    assert thumbnail.convert("RGB").getpixel((25, 25))[0] > 240  # type: ignore[index]


def test_a_million_frames_cost_what_one_costs() -> None:
    """Only the first is read."""
    source = gif(1_000_000)
    began = time.process_time()
    assert made(source, "image/gif").size == (1, 1)
    assert time.process_time() - began < 0.2


HARMFUL = {
    "dimensions": png(2_000_000_000, 2_000_000_000),
    "too many pixels": bomb(7_100, 7_100),
    "no pixels": png(0, 0),
    "truncated": encoded(PHOTO, "PNG")[:-2000],
    "head only": encoded(PHOTO, "PNG")[:30],
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>",
    "html": b"\x89PNG\r\n\x1a\n<html><script>alert(1)</script>",
    "another type": encoded(PHOTO, "JPEG"),
    "text bomb": png(1, 1, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 << 20)))),
    "empty": b"",
    "noise": hashlib.sha512(b"x").digest() * 100,
}


@pytest.mark.parametrize("name", HARMFUL)
async def test_a_file_that_harms(storage: LocalStorage, name: str) -> None:
    """It has a placeholder, which is remembered: also another receiver starts no program for it."""
    began = os.times()
    assert await Thumbnails(storage).get(stored(storage, HARMFUL[name])) == UNDECODABLE_THUMBNAIL
    ended = os.times()
    assert (ended.children_user - began.children_user) + (ended.children_system - began.children_system) < 2
    assert [path.read_bytes() for path in cached(storage)] == [thumbnails.UNDECODABLE_NOTE]
    again = Thumbnails(storage, program=Path("/does/not/exist"))
    assert await again.get(stored(storage, HARMFUL[name])) == UNDECODABLE_THUMBNAIL


async def test_the_largest_image_that_is_decoded(storage: LocalStorage) -> None:
    """Within the memory and the time that the program has."""
    thumbnail = await Thumbnails(storage).get(stored(storage, bomb(7_000, 7_000)))
    assert decoded(thumbnail.content).size == (480, 480)


@pytest.mark.parametrize(
    "change",
    [{"content_type": each} for each in ("image/tiff", "image/heic", "image/svg+xml", "video/mp4", None)]
    + [{"size": 200 << 20}],
    ids=str,
)
async def test_no_program_is_started_for_other_files(storage: LocalStorage, change: dict[str, Any]) -> None:
    """Nor for one that is far too large."""
    row: ResultRow = {**stored(storage, encoded(PHOTO, "PNG")), **change}  # type: ignore[typeddict-item]
    assert await Thumbnails(storage, program=Path("/does/not/exist")).get(row) == UNDECODABLE_THUMBNAIL
    assert cached(storage) == []


def program(tmp_path: Path, text: str) -> Path:
    """A program in place of the real one. `log` is a function that appends a line to `tmp_path / "log"`."""
    path = tmp_path / "program.py"
    head = f"import os, sys, time\ndef log(text): print(text, file=open({str(tmp_path / 'log')!r}, 'a'), flush=True)\n"
    path.write_text(head + text)
    return path


def lines(tmp_path: Path) -> list[str]:
    """The lines that programs logged."""
    log = tmp_path / "log"
    return log.read_text().splitlines() if log.exists() else []


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what a program does."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  # no event tells it
            await asyncio.sleep(0.01)


WEBP = encoded(Image.new("RGB", (4, 4)), "WEBP")
COPY = f"sys.stdout.buffer.write({WEBP!r})\n"


async def test_what_the_program_has(storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and a place for its thumbnail: no environment, no other descriptor, and a session of its own."""
    monkeypatch.setenv("KLING_SIGNING_SECRETS", "secret")
    report = "import json\nfds = [int(n) for n in os.listdir('/dev/fd')]\n"
    report += "log(json.dumps([dict(os.environ), [n for n in fds if n > 2 and os.path.exists(f'/dev/fd/{n}')],"
    report += " sys.argv[1], sys.stdin.buffer.read(4) == b'\\x89PNG', os.getsid(0) == os.getpid(), sys.path]))\n"
    content = encoded(PHOTO, "PNG")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(descriptor, True)
    try:
        thumbnail = await Thumbnails(storage, program=program(tmp_path, report + COPY)).get(stored(storage, content))
    finally:
        os.close(descriptor)
    assert thumbnail.content == WEBP
    environment, descriptors, media_type, has_file, has_session, path = json.loads(lines(tmp_path)[0])
    assert "KLING_SIGNING_SECRETS" not in environment
    assert environment.keys() <= {"LC_CTYPE"}
    assert (descriptors, media_type, has_file, has_session) == ([], "image/png", True, True)
    assert not {"", str(Path.cwd())} & set(path)


LIMITED = f"""
import importlib.util, json, os, resource
spec = importlib.util.spec_from_file_location("child", {str(CHILD)!r})
child = importlib.util.module_from_spec(spec)
spec.loader.exec_module(child)
score = open("/proc/self/oom_score_adj") if os.path.exists("/proc/self/oom_score_adj") else None
child.limit_process()
refused = []
for attempt in (lambda: open("/etc/passwd"), lambda: os.pipe(), lambda: bytearray(2 << 30)):
    try:
        attempt()
    except (OSError, MemoryError) as error:
        refused.append(type(error).__name__)
limits = [resource.getrlimit(getattr(resource, f"RLIMIT_{{name}}")) for name in ("CPU", "FSIZE", "NPROC", "CORE")]
print(json.dumps([refused, limits, os.nice(0), score.read().strip() if score else "1000"]))
"""


def test_what_the_program_gives_up() -> None:
    """No file can be opened, little memory had; CPU time, output and processes are limited."""
    done = subprocess.run([sys.executable, "-I", "-c", LIMITED], capture_output=True, check=True)
    refused, limits, niceness, oom_score = json.loads(done.stdout)
    assert refused == ["OSError", "OSError", "MemoryError"]
    assert limits == [[10, 11], [1 << 20, 1 << 20], [0, 0], [0, 0]]
    assert niceness >= 15
    assert oom_score == "1000", "the receiver outlives it where memory ends"


async def test_a_program_that_hangs_is_killed(storage: LocalStorage, tmp_path: Path) -> None:
    """Its file is tried again later, for the machine may have been busy: not sooner, nor for good."""
    now = 1_000.0
    hanging = program(tmp_path, "log(os.getpid())\nif len(open(__file__).read()): time.sleep(60)\n")
    made = Thumbnails(storage, program=hanging, timeout_seconds=0.5, clock=lambda: now)
    row = stored(storage, encoded(PHOTO, "PNG"))
    assert await made.get(row) == MISSING_THUMBNAIL
    assert await made.get(row) == MISSING_THUMBNAIL
    (pid,) = lines(tmp_path)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    assert cached(storage) == []
    program(tmp_path, COPY)
    now += RETRY_SECONDS
    assert (await made.get(row)).content == WEBP
    assert (await made.get(row)).is_final


@pytest.mark.parametrize(
    ("text", "is_final"),
    [
        ("os.kill(os.getpid(), 9)", False),
        ("sys.exit(1)", False),
        ("sys.exit(3)", True),
        (f"os.kill(os.getpid(), {int(signal.SIGXCPU)})", True),
        (f"os.kill(os.getpid(), {int(signal.SIGSEGV)})", True),
        ("print('<script>')", True),
        (f"sys.stdout.buffer.write({WEBP[:-1]!r})", True),
        ("", True),
        ("sys.stdout.buffer.write(b'RIFF' + (2000004).to_bytes(4, 'little') + b'WEBP' + bytes(2000000))", True),
    ],
)
async def test_how_a_program_ends(storage: LocalStorage, tmp_path: Path, text: str, is_final: bool) -> None:
    """What the file causes is remembered for good, what the machine causes is not. No other output is believed."""
    made = Thumbnails(storage, program=program(tmp_path, text))
    row = stored(storage, encoded(PHOTO, "PNG"))
    assert await made.get(row) == (UNDECODABLE_THUMBNAIL if is_final else MISSING_THUMBNAIL)
    assert [path.read_bytes() for path in cached(storage)] == [thumbnails.UNDECODABLE_NOTE] * is_final


async def test_an_interpreter_that_cannot_start(storage: LocalStorage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is no news about the file."""
    monkeypatch.setattr(sys, "executable", "/does/not/exist")
    assert await Thumbnails(storage).get(stored(storage, encoded(PHOTO, "PNG"))) == MISSING_THUMBNAIL


async def test_one_program_at_a_time_and_one_for_each_file(storage: LocalStorage, tmp_path: Path) -> None:
    """However many pages ask."""
    slow = program(tmp_path, "log('+')\ntime.sleep(0.05)\nlog('-')\n" + COPY)
    made = Thumbnails(storage, program=slow)
    rows = [stored(storage, encoded(PHOTO, "PNG"), position=n) for n in range(3)]
    found = await asyncio.gather(*(made.get(row) for row in rows * 4))
    assert {thumbnail.content for thumbnail in found} == {WEBP}
    assert lines(tmp_path) == ["+", "-"] * 3


async def test_too_many_wait(storage: LocalStorage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are refused; who asks for one that is waited for waits with the others."""
    monkeypatch.setattr(thumbnails, "MAX_WAITING", 2)
    made = Thumbnails(storage, program=program(tmp_path, "time.sleep(0.2)\n" + COPY))
    rows = [stored(storage, encoded(PHOTO, "PNG"), position=n) for n in range(3)]
    waiting = [asyncio.create_task(made.get(row)) for row in (*rows[:2], rows[0])]
    await until(lambda: len(made._making) == 2)
    with pytest.raises(TooManyWaiting):
        await made.get(rows[2])
    assert [each.content for each in await asyncio.gather(*waiting)] == [WEBP] * 3
    assert (await made.get(rows[2])).content == WEBP


async def test_who_leaves_does_not_stop_it(storage: LocalStorage, tmp_path: Path) -> None:
    """Others wait for the same one."""
    made = Thumbnails(storage, program=program(tmp_path, "time.sleep(0.2)\n" + COPY))
    row = stored(storage, encoded(PHOTO, "PNG"))
    first, second = asyncio.create_task(made.get(row)), asyncio.create_task(made.get(row))
    await asyncio.sleep(0.05)
    first.cancel()
    assert (await second).content == WEBP


async def test_the_receiver_stops_while_one_is_made(storage: LocalStorage, tmp_path: Path) -> None:
    """The program is ended with it, and those who wait learn it."""
    made = Thumbnails(storage, program=program(tmp_path, "log(os.getpid())\ntime.sleep(60)\n"))
    waiting = asyncio.create_task(made.get(stored(storage, encoded(PHOTO, "PNG"))))
    await until(lambda: bool(lines(tmp_path)))
    await made.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(ProcessLookupError):
        os.kill(int(lines(tmp_path)[0]), 0)
    assert cached(storage) == []


async def test_a_cached_file_that_is_broken_is_made_again(storage: LocalStorage) -> None:
    """Or missing, or replaced by a folder of somebody's own."""
    row, made = stored(storage, encoded(PHOTO, "PNG")), Thumbnails(storage)
    whole = (await made.get(row)).content
    (path,) = cached(storage)
    changes: list[Callable[[], object]] = [
        lambda: path.write_bytes(whole[:-1]),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(b"<html>"),
        path.unlink,
        lambda: shutil.rmtree(path.parent),
        lambda: shutil.rmtree(path.parent.parent),
    ]
    for change in changes:
        change()
        assert (await made.get(row)).content == whole
        assert path.read_bytes() == whole


async def test_a_file_that_was_altered_has_no_thumbnail(storage: LocalStorage) -> None:
    """As it has no download; one that was downloaded anew has another thumbnail than before."""
    row, made = stored(storage, encoded(PHOTO, "PNG")), Thumbnails(storage)
    first = await made.get(row)
    other = stored(storage, encoded(PHOTO.resize((100, 100)), "PNG"))
    assert decoded((await made.get(other)).content).size == (100, 100)
    assert await made.get(row) == first
    storage.path("task/0.bin").write_bytes(encoded(Image.new("RGB", (9, 9)), "PNG"))
    for path in cached(storage):
        path.unlink()
    with pytest.raises(SourceLost):
        await made.get(row)
    storage.path("task/0.bin").unlink()
    with pytest.raises(SourceLost):
        await made.get(row)


async def test_a_cache_that_cannot_be_written(storage: LocalStorage) -> None:
    """The thumbnail is shown all the same; no folder is made where the storage's volume was."""
    (storage.root / ".thumbnails").write_bytes(b"")
    row = stored(storage, encoded(PHOTO, "PNG"))
    assert decoded((await Thumbnails(storage).get(row)).content).size == (480, 320)
    storage.root.rename(storage.root.with_name("gone"))
    with pytest.raises(OSError, match="the folder is gone"):
        ThumbnailCache(storage).write("task/0-x.webp", WEBP, source="task/0.bin")
    assert not storage.root.exists()


def test_thumbnails_are_removed_with_their_task(storage: LocalStorage) -> None:
    """And one that is made meanwhile; those of others stay. No name leads out of the cache."""
    cache, row = ThumbnailCache(storage), stored(storage, encoded(PHOTO, "PNG"))
    cache.write("task/0-x.webp", WEBP, source=str(row["path"]))
    cache.write("other/0-x.webp", WEBP, source=str(row["path"]))
    for folder in ("task", "task", "never", "..", ".", "../.parts", ""):
        cache.remove(folder)
    assert [path.parent.name for path in cached(storage)] == ["other"]
    cache.write("late/0-x.webp", WEBP, source="removed/0.bin")
    assert [path.parent.name for path in cached(storage)] == ["other"]
    cache.write("../../out.webp", WEBP, source=str(row["path"]))
    assert not (storage.root.parent / "out.webp").exists()


def test_the_start_removes_what_a_killed_receiver_left(storage: LocalStorage) -> None:
    """An unfinished thumbnail is a part; whole ones stay, and are no results."""
    cache, row = ThumbnailCache(storage), stored(storage, encoded(PHOTO, "PNG"))
    cache.write("task/0-x.webp", WEBP, source=str(row["path"]))
    storage.temporary_path().write_bytes(WEBP[:9])
    storage.remove_orphans([])
    assert list((storage.root / ".parts").iterdir()) == []
    assert [path.name for path in cached(storage)] == ["0-x.webp"]


@pytest.mark.parametrize(
    ("content", "expected"), [(WEBP, True), (WEBP[:-1], False), (WEBP + b"x", False), (b"", False), (b"RIFF", False)]
)
def test_a_whole_thumbnail_is_recognized(content: bytes, expected: bool) -> None:
    """By its length, which it names."""
    assert is_webp(content) == expected


ALONE = """
import asyncio, sys
from kling_receiver.app import Receiver
from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import Thumbnails
from pathlib import Path
import kling_receiver.server
thumbnail = asyncio.run(Thumbnails(LocalStorage(Path(sys.argv[1]))).get(eval(sys.argv[2])))
print(thumbnail.media_type, sorted(name for name in sys.modules if name.startswith(("PIL.", "av."))))
"""


def test_the_receiver_never_decodes(storage: LocalStorage) -> None:
    """A process that made a thumbnail has no decoder loaded."""
    row = stored(storage, encoded(PHOTO, "PNG"))
    argv = [sys.executable, "-c", ALONE, str(storage.root), repr(row)]
    assert subprocess.run(argv, capture_output=True, check=True, text=True).stdout == "image/webp []\n"
