"""The file of a batch: what a line may be, its id, and all problems with their lines before anything is sent."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kling_callback.batch import lines
from kling_callback.batch.lines import BatchFile, BatchJob
from kling_callback.errors import ParameterError
from kling_callback.protocol.ids import is_id
from tests.client.jobs.test_catalog import picture

PAPER = {"job": "text-to-image", "prompt": "a paper kangaroo"}


def written(*content: Any) -> BatchFile:
    """The file of these lines: objects as JSON, texts and bytes as they are."""
    file = Path("jobs.jsonl")
    encoded = [
        each if isinstance(each, bytes) else (each if isinstance(each, str) else json.dumps(each)).encode()
        for each in content
    ]
    file.write_bytes(b"\n".join(encoded))
    return BatchFile(file)


def jobs_of(*content: Any) -> list[BatchJob]:
    return written(*content).check()


def problems_of(*content: Any) -> list[str]:
    with pytest.raises(ParameterError) as error:
        jobs_of(*content)
    return error.value.problems


def test_a_typed_job_and_any_other() -> None:
    """As the command of its name, and as `kling create`; each line is read again to be sent."""
    file = written(
        b'\xef\xbb\xbf{"job": "text-to-video", "prompt": "\xe8\xa2\x8b", "model_name": "kling-v3", "duration": 10}\r',
        "",
        {"family": "/text-to-video/kling-3.0-turbo", "body": {"prompt": "x"}, "external_task_id": "a-1"},
        {"family": "videos/effects", "body": {"effect_scene": "squish"}, "priority": 7, "hook": "https://app.test"},
        "  ",
    )
    first, second, third = file.check()
    assert [(each.line, each.family) for each in (first, second, third)] == [
        (1, "videos/text2video"),
        (3, "/text-to-video/kling-3.0-turbo"),
        (4, "videos/effects"),
    ]
    assert file.read(first).body == {"prompt": "袋", "model_name": "kling-v3", "duration": "10"}
    assert (file.read(second).task_id, second.task_id) == ("a-1", "a-1")
    assert (file.read(third).priority, file.read(third).hook, file.read(first).priority) == (
        7,
        "https://app.test",
        None,
    )
    assert (first.cost and first.cost.units, third.cost) == (6, None)


def test_an_image_is_a_file_on_this_machine() -> None:
    """Encoded when its line is read; a missing one is a problem before anything is sent."""
    Path("in.png").write_bytes(picture())
    line = {"job": "image-to-image", "prompt": "x", "image": "in.png"}
    file = written(line)
    assert file.read(file.check()[0]).body["image"].startswith("iVBOR")
    assert problems_of(line, {**line, "image": "gone.png"})[0].startswith("line 2: image: ")


def test_tags_and_priority_of_the_command() -> None:
    """Tags are added to those of the line, once each; the priority is that of lines without one."""
    file = written({**PAPER, "tags": ["a", "b"], "priority": 0}, {**PAPER, "tags": "c"}, PAPER)
    file = BatchFile(file.path, tags=("all", "b"), priority=5)
    creates = [file.read(job) for job in file.check()]
    assert [each.tags for each in creates] == [("all", "b", "a"), ("all", "b", "c"), ("all", "b")]
    assert [each.priority for each in creates] == [0, 5, 5]


def test_a_line_without_an_id_is_known_by_its_content() -> None:
    """Wherever it is, and however it is written; each copy has an id of its own. Any other content has another id."""
    first, copy, other = (each.task_id for each in jobs_of(PAPER, PAPER, {**PAPER, "n": 2}))
    again = '{"prompt" : "a paper kangaroo",  "job":"text-to-image", "tags": ["x"], "negative_prompt": ""}'
    moved = [each.task_id for each in jobs_of({**PAPER, "n": 3}, again, PAPER)]
    assert moved[1:] == [first, copy]
    assert len({first, copy, other, moved[0]}) == 4
    assert all(map(is_id, (first, copy, other)))
    assert jobs_of({"family": "images/generations", "body": {"prompt": PAPER["prompt"]}})[0].task_id == first


def test_an_id_in_the_parameters_is_the_line_s() -> None:
    """As in `create`: in the body, or beside it."""
    new = {"family": "/text-to-video/kling-3.0", "body": {"prompt": "x", "options": {"external_task_id": "c"}}}
    ids = [{**PAPER, "external_task_id": "a"}, {"family": "videos/effects", "body": {"external_task_id": "b"}}, new]
    assert [each.task_id for each in jobs_of(*ids)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[1]", "is not a JSON object"),
        (b'{"job": "\xff"}', "is not UTF-8 text"),
        ({}, "job: is missing, or family and body"),
        ({"job": "text_to_video", "prompt": "x"}, "Did you mean text-to-video?"),
        ({"job": 5}, "job: '5' is not a typed job"),
        ({"job": "text-to-video", "body": {}, "family": "x"}, "family and body: cannot be combined with job"),
        ({"job": "text-to-video", "id": "a", "prompt": "x"}, "id: is external_task_id here"),
        ({"family": "videos/effects", "prompt": "x"}, "'prompt': parameters of a family belong into body"),
        ({"family": 5}, "family: must be text"),
        ({"family": "effects", "body": {}}, "family: "),
        ({"family": "videos/effects", "body": []}, "body: must be a JSON object"),
        ({**PAPER, "n": 99}, "n: "),
        ({**PAPER, "promt": "x"}, "promt"),
        ({**PAPER, "tags": [""]}, "tags: "),
        ({**PAPER, "tags": 5}, "tags: must be a list"),
        ({**PAPER, "hook": 5}, "hook: "),
        ({**PAPER, "hook_events": ["x"], "hook": "https://app.test"}, "hook_events: "),
        ({**PAPER, "priority": "high"}, "priority: must be a whole number"),
        ({**PAPER, "external_task_id": "a/b"}, "external_task_id: "),
        ({**PAPER, "external_task_id": 5}, "external_task_id: must be text"),
        ('{"family": "videos/effects", "body": {"x": NaN}}', "body: is not valid JSON"),
    ],
)
def test_what_no_line_may_be(line: Any, problem: str) -> None:
    """One message, with the number of the line."""
    problems = problems_of(PAPER, line, {**PAPER, "n": 2})
    assert len(problems) == 1
    assert problems[0].startswith("line 2: ")
    assert problem in problems[0]


def test_all_problems_of_all_lines_are_reported() -> None:
    """In the order of the lines."""
    problems = problems_of("{", PAPER, {**PAPER, "n": 99, "tags": [""], "aspect_ratio": "5:4"})
    assert [each.split()[1] for each in problems] == ["1:", "3:", "3:", "3:"]


@pytest.mark.parametrize(("first", "second"), [("a", "a"), ("Order", "order"), ("a:1", "a_1")])
def test_ids_that_would_share_files_are_refused(first: str, second: str) -> None:
    """The same id twice, or two that a file system without case does not tell apart."""
    problems = problems_of({**PAPER, "external_task_id": first}, {**PAPER, "n": 2, "external_task_id": second})
    assert problems[0].startswith(f"line 2: external_task_id {second!r} is that of line 1")


@pytest.mark.parametrize(
    ("content", "problem"), [(b"", "has no job"), (b"\n \n", "has no job"), ('{"job": 1}'.encode("utf-16"), "UTF-16")]
)
def test_a_file_that_is_no_batch(content: bytes, problem: str) -> None:
    """One message for the whole file."""
    (message,) = problems_of(content)
    assert problem in message


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe"])
def test_a_path_that_is_no_file(kind: str) -> None:
    """A pipe could be read once only, and never to resume the batch."""
    path = Path("jobs")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(ParameterError, match="jobs: is not a file"):
        BatchFile(path).check()


def test_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A long line is not read to its end; after many problems the others are not listed."""
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(lines, "MAX_PROBLEMS", 5)
    (problem,) = problems_of(PAPER, {**PAPER, "image": "x" * 1000}, "{")
    assert problem.startswith("line 2: has more than 1,000 bytes")
    assert problems_of(*["{"] * 20)[5:] == ["The other lines were not checked: fix these first."]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
FIELDS = ("job", "family", "body", "id", "prompt", "image", "n", *lines.COMMON)
LINES = st.dictionaries(
    st.sampled_from(FIELDS), JSON | st.sampled_from(["text-to-image", "videos/effects", {}, "\ud800", "https://x.test"])
)


@given(st.lists(LINES | JSON, min_size=1, max_size=3))
def test_any_json_is_jobs_or_problems(content: list[Any]) -> None:
    """Nothing else is raised, and each problem names its line."""
    file, jobs, problems = written(*map(json.dumps, content)), list[BatchJob](), list[str]()
    try:
        jobs = file.check()
    except ParameterError as error:
        problems = error.problems
    assert bool(jobs) != bool(problems)
    assert all(is_id(job.task_id) and file.read(job).family == job.family for job in jobs)
    assert all(re.match(r"line [1-3]: ", each) for each in problems)


def test_a_line_that_has_changed_is_read_as_it_is_now() -> None:
    """Or is a problem of its own, if it is no job any more."""
    file = written(PAPER, PAPER)
    first, second = file.check()
    file.path.write_text('{"job": "text-to-image", "prompt": "another"}\n{}')
    assert file.read(first).body == {"prompt": "another"}
    with pytest.raises(ParameterError):
        file.read(second)
