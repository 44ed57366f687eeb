"""The page for people who poll today: its examples run as printed."""

import io
import re
from pathlib import Path

import pytest
from PIL import Image

from kling_callback import Kling
from kling_sandbox import Sandbox
from tests.docs.test_docs import DOCS, blocks, run, sh
from tests.support.receiver import KEY, SECRET, Start

PAGE = (DOCS / "from-polling.md").read_text(encoding="utf-8")


@pytest.fixture
def photo(tmp_path: Path) -> None:
    """A picture in the current folder that Kling accepts."""
    content = io.BytesIO()
    Image.new("RGB", (300, 300)).save(content, "PNG")
    (tmp_path / "photo.png").write_bytes(content.getvalue())


def test_each_replacement_makes_its_file(
    settings: None, photo: None, gateway: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In Python and in the shell, one create each; Kling is asked once a task at most."""
    for example in blocks(PAGE):
        run([example], {})
    assert (tmp_path / "van-gogh.png").read_bytes().startswith(b"\x89PNG")
    assert b"ftyp" in (tmp_path / "kangaroo.mp4").read_bytes()[:12]
    commands = [example for example in blocks(PAGE, "sh") if example.strip().startswith("kling ")]
    assert len(commands) == 3
    for command in commands:
        assert sh(command).stdout.count("\n") == 1
    assert len(gateway.creates) == 6
    assert all(task.queries <= 1 for task in gateway.tasks.values())


def test_a_laptop_needs_no_public_address(start: Start, gateway: Sandbox) -> None:
    """With an address that nobody reaches, the deadline finds the task, and the client its files."""
    gateway.misbehave.add("no-callback")
    laptop = re.search(r"KLING_RECEIVER_URL=(https://laptop\S*)", PAGE)
    assert laptop
    receiver = start(api_base=gateway.url, overdue_seconds=0.5)
    with Kling(
        api_base=gateway.url,
        api_key=KEY,
        signing_secrets=SECRET,
        receiver_url=laptop[1],
        receiver_internal_url=receiver.url,
    ) as kling:
        task = kling.text_to_image("a kangaroo")
        assert task.wait(60).images[0].read().startswith(b"\x89PNG")
