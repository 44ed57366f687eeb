"""The examples in the help of `kling-receiver`: each command has one or two, which it accepts."""

import pytest

from kling_receiver.cli.main import main
from tests.support.examples import Page, examples, pages, parse

PAGES = {" ".join(page.path): page for page in pages(main, "kling-receiver")}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
def test_every_help_ends_with_examples_that_parse(page: Page) -> None:
    """Of this command; of a group, of those in it."""
    found = examples(page)
    assert len(found) in (1, 2)
    for words in found:
        assert tuple(words[: len(page.path)]) == page.path
        parse(main, words)


def test_all_commands_were_seen() -> None:
    """The groups and what is in them."""
    assert {"kling-receiver", "kling-receiver serve", "kling-receiver hooks add"} <= PAGES.keys()
