"""The list of tasks: fitted to a terminal's width with whole ids; elsewhere the same fields for every list."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.cells import cell_len

from kling_callback.base import BaseTask
from kling_callback.cli.task_table import format_age, print_tasks
from kling_callback.jobs.body import prompt_of

ULID = "01M8BY2G2EB8FKSM2S0KYN8W3"
CHINESE = "一只举着牌子的袋鼠，站在红色的沙漠里，背景是夕阳和远山，电影质感，细节丰富"
EMOJI = "👩‍🚀 an astronaut 🦘 jumps over the moon with her kangaroo friends ❤️ and 🇨🇳 flags"


def ago(seconds: float) -> str:
    return datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()


def task(own_id: str, status: str = "succeed", prompt: str = "x", *statuses: str, **more: Any) -> BaseTask:
    data = {
        "id": own_id,
        "status": status,
        "family": "videos/text2video",
        "model": "kling-v3",
        "created_at": ago(86_400 * 3.5),
        "request": {"prompt": prompt},
        "results": [{"index": index, "status": each} for index, each in enumerate(statuses)],
        "done": status in ("succeed", "failed"),
    }
    return BaseTask({**data, **more})


UNITS = [{"charge_type": "unit", "package_type": "video", "amount": "3.5"}]
TASKS = [
    task(f"{ULID}0", "created", "a kangaroo holding a sign " * 9, queue_position=12, tags=["spring"]),
    task(f"{ULID}1", "processing", CHINESE),
    task(f"{ULID}2", "succeed", EMOJI, *["stored"] * 4, tags=["spring", "launch"], cost=UNITS),
    task("order-42", "succeed", "two\nlines\tof it", "stored", "failed", cost="8"),
    task(f"{ULID}4", "succeed", "x", "stored", "pending", done=False),
    task(f"{ULID}5", "failed", "", family="videos/effects", tags=["袋鼠"]),
]


@pytest.mark.parametrize("width", [40, 60, 61, 80, 100, 120, 200])
def test_a_list_fits_the_terminal(capsys: pytest.CaptureFixture[str], width: int) -> None:
    """No line is longer, whatever is in the prompts; ids are whole, and the prompts begin."""
    print_tasks(TASKS, width)
    out = capsys.readouterr().out
    assert max(cell_len(line) for line in out.splitlines()) <= width
    assert all(line == line.rstrip() for line in out.splitlines())
    assert all(each.id in out for each in TASKS)
    shown = ["a kangaroo", "一只举着", "👩‍🚀", "two lines", "videos/effects", "#spring"]
    shown += ["queued #12", "fetching", "3d", "1, 1 failed", "1 of 2", "3.5 units", "8 units"]
    assert [each for each in shown if each not in out] == []
    assert "…" in out


def test_a_wide_terminal_has_one_line_for_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    """With the model where there is room; in a narrow one the prompt is below."""
    for width, lines, has_model in ((200, 7, True), (100, 7, False), (60, 13, False)):
        print_tasks(TASKS, width)
        out = capsys.readouterr().out
        assert (out.count("\n"), "kling-v3" in out) == (lines, has_model), width


def test_a_long_id_is_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    """It may be longer than the terminal is wide: the other columns leave their places."""
    print_tasks([task("x" * 128, "processing", "a kangaroo")], 60)
    out = capsys.readouterr().out
    assert "x" * 128 in out
    assert "a kangaroo" in out


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal; on stderr, as it is no task."""
    print_tasks([], 80)
    assert capsys.readouterr() == ("", "No tasks.\n")


def test_in_a_pipe_the_fields_are_always_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Separated by tabs, of which a prompt cannot add one; nothing is shortened, nothing depends on the time."""
    print_tasks(TASKS)
    heading, *lines = capsys.readouterr().out.splitlines()
    names = ["ID", "STATUS", "CREATED", "FAMILY", "MODEL", "TAGS", "FILES", "COST", "PROMPT"]
    assert heading.split("\t") == names
    rows = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    assert [row["ID"] for row in rows] == [each.id for each in TASKS]
    assert rows[2]["PROMPT"] == EMOJI
    assert rows[3] == {
        "ID": "order-42",
        "STATUS": "succeed",
        "CREATED": TASKS[3].data["created_at"],
        "FAMILY": "videos/text2video",
        "MODEL": "kling-v3",
        "TAGS": "",
        "FILES": "1/2",
        "COST": "8 units",
        "PROMPT": "two lines\\x09of it",
    }
    assert rows[0]["STATUS"] == "created"


@pytest.mark.parametrize(
    ("seconds", "age"),
    [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (86_400 * 92, "92d"), (-30, "0s")],
)
def test_an_age_has_its_largest_unit(seconds: int, age: str) -> None:
    """Of a clock that is ahead, 0."""
    now = 1_800_000_000.0
    assert format_age(datetime.fromtimestamp(now - seconds, UTC).isoformat(), now) == age
    assert format_age(None, now) == format_age("soon", now) == ""


@pytest.mark.parametrize(
    ("request_body", "prompt"),
    [
        ({"prompt": "a"}, "a"),
        ({"prompt": " ", "text": "b"}, "b"),
        ({"contents": [{"type": "image", "url": "https://x"}, {"type": "prompt", "text": "c"}]}, "c"),
        ({"multi_prompt": [{"index": 1, "prompt": "d"}, {"prompt": "e"}]}, "d"),
        ({"prompt": 5, "contents": "x", "multi_prompt": ["x"]}, ""),
        (None, ""),
    ],
)
def test_the_prompt_of_a_request(request_body: Any, prompt: str) -> None:
    """Wherever the standard has it; of a request that is none, nothing."""
    assert prompt_of(request_body) == prompt
