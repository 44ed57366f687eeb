"""docs/submitting.md: its examples run as printed, by a client without a Kling key."""

from pathlib import Path

import pytest

from kling_sandbox import Sandbox
from tests.client.jobs.test_catalog import picture
from tests.docs.test_docs import DOCS, blocks, run, sh

PAGE = (DOCS / "submitting.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def keyless(settings: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KLING_API_KEY")


def part(title: str) -> str:
    """A section of the page."""
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_a_program_needs_no_key(gateway: Sandbox, tmp_path: Path) -> None:
    """In Python and by the command, the receiver sends the creates."""
    run(blocks(part("From a program")), {})
    assert (tmp_path / "kangaroo.png").read_bytes().startswith(b"\x89PNG")
    (code,) = blocks(part("From a program"), "sh")
    ran = sh(code)
    assert (ran.returncode, ran.stderr, len(gateway.creates)) == (0, "", 2)


def test_the_batch_runs(gateway: Sandbox, tmp_path: Path) -> None:
    """The file of the page: its estimate lacks the effect's price, and its run saves three files."""
    (lines,) = blocks(part("A batch"), "")
    (tmp_path / "jobs.jsonl").write_text(lines.strip() + "\n")
    (tmp_path / "kangaroo.png").write_bytes(picture())
    estimate, batch = blocks(part("A batch"), "sh")[0].strip().splitlines()
    ran = sh(estimate)
    assert (ran.returncode, len(ran.stdout.splitlines())) == (1, 5)
    assert gateway.creates == []
    ran = sh(batch)
    assert ran.returncode == 0, ran.stderr
    assert len(ran.stdout.splitlines()) == len(list((tmp_path / "out").glob("*"))) == 3
    assert "3 of 3 jobs succeeded" in ran.stderr
