"""The examples in the help of `kling`: each command has one or two, and they are what the command accepts."""

from pathlib import Path

import pytest

from kling_callback.cli.main import kling
from tests.client.cli.test_main import Run
from tests.client.cli.test_main import bare as bare  # a fixture
from tests.client.jobs.test_catalog import picture
from tests.support.examples import Page, examples, pages, parse

PAGES = {" ".join(page.path): page for page in pages(kling, "kling")}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples name."""
    for name in ("kangaroo.png", "face.jpg", "day.png", "night.png"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "body.json").write_text('{"prompt": "the kangaroo waves"}')
    (tmp_path / "squish.json").write_text(
        '{"effect_scene": "squish", "input": {"image": "https://example.com/cat.png", "duration": "5"}}'
    )
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_help_ends_with_examples_that_parse(page: Page) -> None:
    """One or two, of this command; of a group, of those in it."""
    found = examples(page)
    assert len(found) in (1, 2)
    for words in found:
        assert tuple(words[: len(page.path)]) == page.path
        parse(kling, words)


@pytest.mark.usefixtures("files")
def test_the_examples_of_jobs_are_valid(bare: Run) -> None:
    """Also to the table of jobs: their price is that of a known model, or unknown, but no parameter is refused."""
    tried = 0
    for page in PAGES.values():
        if any("--estimate" in option.opts for option in page.command.params) and page.path[-1] != "batch":
            for words in examples(page):
                ran = bare(*words[1:], *([] if "--estimate" in words else ["--estimate"]))
                assert ran.code == 0 or "No list price" in ran.err, (words, ran.err)
                tried += 1
    assert tried > 10
