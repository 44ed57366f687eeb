"""The file of a batch: one job on each line, as JSON. All lines are checked first, then each is read again to be sent.

A line is never kept: it may contain images, and a file has thousands of lines.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any

from kling_callback.creation import TaskHook, check_call, priority_problems
from kling_callback.errors import ParameterError, ProblemCollector
from kling_callback.jobs.body import options_of
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.prices import Estimate, estimate
from kling_callback.jobs.untyped import prepare, prepare_job
from kling_callback.protocol.redact import digest

MAX_LINE_BYTES = 32_000_000
"""Bytes of a line: room for two images of 10 MB in base64. The name of an image's file is shorter."""

MAX_PROBLEMS = 1000
"""Problems of a file that are reported: one that is no batch at all has one on each line."""

JOB_NAMES = {job.name.replace("_", "-"): job for job in JOBS}
"""The typed jobs, by the names of their commands."""

COMMON = ("external_task_id", "tags", "hook", "hook_events", "callback_url", "priority")
"""Fields of every line, as in `create`; the others are `job` with its parameters, or `family` and `body`."""

FORM = 'Write {"job": "text-to-video", "prompt": "..."}, or {"family": "videos/effects", "body": {...}}.'


@dataclass(frozen=True, slots=True)
class BatchCreate:
    """The create of one line, checked and with its files encoded. `task_id`: "" if the line has none."""

    family: str
    body: dict[str, Any]
    task_id: str
    tags: tuple[str, ...]
    hook: str | None
    hook_events: tuple[str, ...]
    callback_url: str | None
    priority: int | None


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One job of a batch. `line`: its number, from 1; `offset`: where the line begins, in bytes.

    `cost`: by Kling's list prices; None if no price is known.
    """

    line: int
    offset: int
    task_id: str
    family: str
    cost: Estimate | None


class BatchFile:
    """The jobs of a file. `tags` are added to those of each line; `priority` is that of the lines without one."""

    def __init__(self, path: Path, *, tags: Sequence[str] = (), priority: int | None = None) -> None:
        self.path = path
        self._tags, self._priority = tuple(tags), priority

    def check(self) -> list[BatchJob]:
        """Check all lines, and return their jobs. Blocks to read files.

        Raises ParameterError with the problems of all lines, OSError if the file cannot be read.
        """
        if not self.path.is_file():
            raise ParameterError(
                [f"{self.path}: is not a file. A batch is read twice, and again to resume it: save it in a file."]
            )
        jobs, problems = list[BatchJob](), list[str]()
        names, copies = dict[str, int](), Counter[str]()
        for line, offset, content in self._lines(problems):
            try:
                create = self._parse(content)
            except ParameterError as error:
                problems += [f"line {line}: {problem}" for problem in error.problems]
            else:
                task_id = create.task_id or _derived_id(create, copies)
                if (first := names.setdefault(_file_name(task_id), line)) != line:
                    problems.append(
                        f"line {line}: external_task_id {task_id!r} is that of line {first}, or differs from it only "
                        "in what file names cannot show. Choose another."
                    )
                jobs.append(BatchJob(line, offset, task_id, create.family, estimate(create.family, create.body)))
            if len(problems) >= MAX_PROBLEMS:
                problems.append("The other lines were not checked: fix these first.")
                break
        if not jobs and not problems:
            problems.append(f"{self.path}: has no job. {FORM}")
        if problems:
            raise ParameterError(problems)
        return jobs

    def read(self, job: BatchJob) -> BatchCreate:
        """The create of a job, from its line. Blocks to read files.

        Raises ParameterError if the line has changed so that it cannot be sent any more, OSError.
        """
        with self.path.open("rb") as file:
            file.seek(job.offset)
            return self._parse(file.readline(MAX_LINE_BYTES + 1))

    def _lines(self, problems: list[str]) -> Iterator[tuple[int, int, bytes]]:
        """The lines that are not blank: number, offset, content. A problem that ends the reading is added."""
        with self.path.open("rb") as file:
            for line in count(1):
                offset, content = file.tell(), file.readline(MAX_LINE_BYTES + 1)
                if line == 1 and (content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]):
                    problems.append(f"{self.path}: is UTF-16 text, or no text. Save it as UTF-8.")
                    return
                if len(content) > MAX_LINE_BYTES:
                    problems.append(
                        f"line {line}: has more than {MAX_LINE_BYTES:,} bytes. Name the files of its images instead."
                    )
                    return
                if not content:
                    return
                if content.strip():
                    yield line, offset, content

    def _parse(self, content: bytes) -> BatchCreate:
        """The create of a line. Raises ParameterError with all its problems."""
        fields = _json_object(content)
        common = {name: fields.pop(name, None) for name in COMMON}
        problems, family, body = ProblemCollector(), "", dict[str, Any]()
        with problems:
            if "id" in fields:
                raise ParameterError(["id: is external_task_id here. Rename it."])
        with problems:
            family, body = _prepared(fields)
        with problems:
            if wrong := priority_problems(common["priority"]):
                raise ParameterError(wrong)
        task_id, tags, task_hook = "", tuple[str, ...](), TaskHook()
        with problems:
            tags = (common["tags"],) if isinstance(common["tags"], str) else common["tags"] or ()
            task_id, tags, task_hook = check_call(
                family,
                body,
                tags=(*self._tags, *tags) if isinstance(tags, list | tuple) else tags,
                hook=common["hook"],
                hook_events=common["hook_events"] or (),
                callback_url=common["callback_url"],
                external_task_id=common["external_task_id"],
            )
        problems.raise_all()
        has_id = bool(common["external_task_id"] or options_of(family, body).get("external_task_id"))
        priority = self._priority if common["priority"] is None else common["priority"]
        hook, hook_events = common["hook"], task_hook.events
        return BatchCreate(
            family, body, task_id if has_id else "", tags, hook, hook_events, common["callback_url"], priority
        )


def _json_object(content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ParameterError(["is not UTF-8 text. Save the file as UTF-8."]) from None
    except (ValueError, RecursionError) as error:
        raise ParameterError([f"is not valid JSON: {error}."]) from None
    if not isinstance(fields, dict):
        raise ParameterError([f"is not a JSON object. {FORM}"])
    return fields


def _prepared(fields: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The family and the body to send. Raises ParameterError with all problems."""
    if "job" in fields:
        name = fields.pop("job")
        job = JOB_NAMES.get(name) if isinstance(name, str) else None
        if job is None:
            closest = get_close_matches(str(name)[:100], JOB_NAMES, 1)
            suggestion = f"Did you mean {closest[0]}?" if closest else f"Set one of: {', '.join(JOB_NAMES)}."
            raise ParameterError([f"job: {str(name)[:100]!r} is not a typed job. {suggestion}"])
        if mixed := [each for each in ("family", "body") if each in fields]:
            raise ParameterError([f"{' and '.join(mixed)}: cannot be combined with job. {FORM}"])
        return prepare_job(job, fields)
    if "family" not in fields:
        raise ParameterError([f"job: is missing, or family and body. {FORM}"])
    family, body = fields.pop("family"), fields.pop("body", {})
    problems = ProblemCollector()
    with problems:
        if fields:
            raise ParameterError([f"{', '.join(map(repr, fields))}: parameters of a family belong into body."])
    with problems:
        if not isinstance(family, str):
            raise ParameterError(["family: must be text."])
        body = prepare(family, body)
    problems.raise_all()
    return family, body


def _derived_id(create: BatchCreate, copies: Counter[str]) -> str:
    """The id of a line without one: the same in every run, wherever the line is, and another for each of its copies."""
    mark = hashlib.sha256(f"{create.family} {digest(create.body)}".encode()).hexdigest()[:24]
    copies[mark] += 1
    return f"batch-{mark}" + (f"-{copies[mark]}" if copies[mark] > 1 else "")


def _file_name(task_id: str) -> str:
    """What tells the files of tasks apart on every system: macOS and Windows ignore the case."""
    return task_id.replace(":", "_").casefold()
