"""Receivers that are killed while they make thumbnails: none leaves a broken one."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import is_webp
from tests.support.images import encoded

KILLS = 12

MAKER = """
import asyncio, sys
from pathlib import Path
from kling_receiver.results.storage import LocalStorage
from kling_receiver.results.thumbnails import ThumbnailCache, Thumbnails

async def main():
    storage = LocalStorage(Path(sys.argv[1]))
    cache, made = ThumbnailCache(storage), Thumbnails(storage)
    rows = [
        {"task_id": "task", "position": n, "content_type": "image/png", "size": 1, "path": f"task/{n}.png",
         "sha256": storage.sha256(f"task/{n}.png")}
        for n in range(5)
    ]
    content = (await made.get(rows[0])).content
    print("ready", flush=True)
    while True:
        for row in rows:
            await made.get(row)
        for n in range(200):
            cache.write(f"other/{n}.webp", content, source="task/0.png")
        cache.remove("task")

asyncio.run(main())
"""


@pytest.mark.timeout(300)
def test_kills(tmp_path: Path) -> None:
    """At any moment: each cached file is whole, and the next start removes the rest."""
    storage = LocalStorage(tmp_path / "results")
    storage.prepare()
    for n in range(5):
        part = storage.part(f"task/{n}", "https://files.example/x")
        part.write(encoded(Image.effect_noise((700 + n, 700), 90), "PNG"))
        storage.commit(part, f"task/{n}.png")
    cache, seen = storage.root / ".thumbnails", 0
    for n in range(KILLS):
        maker = subprocess.Popen([sys.executable, "-c", MAKER, str(storage.root)], stdout=subprocess.PIPE)
        assert maker.stdout
        assert maker.stdout.readline() == b"ready\n"
        time.sleep(random.Random(n).uniform(0, 0.5))
        maker.send_signal(signal.SIGKILL)
        maker.communicate()
        files = [path for path in cache.rglob("*") if path.is_file()]
        seen += len(files)
        assert [path for path in files if not is_webp(path.read_bytes())] == []
        storage.remove_orphans([])
        assert list((storage.root / ".parts").iterdir()) == []
    assert seen > KILLS
