"""The list of tasks: which tasks each filter finds, by which index, and how many tasks a search examines."""

import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, event, select

from kling_receiver.store import task_list
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.tables import TAG, TASK
from kling_receiver.store.task_list import Found, TaskFilter, find_page, ids_of_family, prompt_texts
from tests.support.database import NOW, Ledger
from tools.bench import filled

pytestmark = pytest.mark.anyio

TASKS = 400
HOUR = 3_600_000

SINGLE: dict[str, dict[str, Any]] = {
    "all": {},
    "succeed": {"status": "succeed"},
    "failed": {"status": "failed"},
    "created": {"status": "created"},
    "family": {"family": "images/generations"},
    "family that is common, but not lately": {"family": filled.OLD_FAMILY},
    "rare family": {"family": filled.RARE_FAMILY},
    "unknown family": {"family": "videos/nothing"},
    "model": {"model": "kling-v3"},
    "unknown model": {"model": "kling-v0"},
    "tag": {"tag": filled.COMMON_TAG},
    "rare tag": {"tag": filled.RARE_TAG},
    "unknown tag": {"tag": "nothing"},
    "Kling's id": {"kling_id": filled.kling_id(33)},
    "text": {"text": "KangaRoo"},
    "rare text": {"text": "鲸鱼"},
    "unknown text": {"text": "giraffe"},
    "since": {"since": NOW - 20 * HOUR},
    "until": {"until": NOW - 40 * HOUR},
    "no time": {"since": NOW - HOUR, "until": NOW - HOUR},
}
FILTERS: dict[str, dict[str, Any]] = SINGLE | {
    f"{first}, {second}": {**SINGLE[first], **SINGLE[second]}
    for first, second in itertools.combinations(SINGLE, 2)
    if SINGLE[first] and not SINGLE[first].keys() & SINGLE[second].keys()
}


@pytest.fixture
def full(database: Database) -> Database:
    """A database with some hundred tasks of all kinds."""
    filled.fill(database, TASKS, NOW)
    return database


@contextmanager
def plans(database: Database) -> Iterator[list[str]]:
    """The plan of each query of the block: each step of it, with the number of rows that it had on PostgreSQL."""
    seen: list[str] = []

    class Explaining(psycopg.Cursor[Any]):
        def execute(self, query: Any, *rest: Any, **more: Any) -> Any:
            if "FROM" in query:
                super().execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *rest, **more)
                seen.append(json.dumps(self.fetchone()))
            return super().execute(query, *rest, **more)

    def begin(connection: Any, *rest: Any) -> None:
        if database.is_sqlite:
            connection.set_trace_callback(statements.append)
        else:
            connection.cursor_factory = Explaining
            for setting in ("seqscan", "bitmapscan", "sort", "hashjoin", "mergejoin"):  # the tables are small
                connection.execute(f"SET enable_{setting} = off")

    statements: list[str] = []
    event.listen(database._readers, "checkout", begin)
    yield seen
    event.remove(database._readers, "checkout", begin)
    if database.is_sqlite:
        with database.read() as connection:
            connection.connection.driver_connection.set_trace_callback(None)  # type: ignore[union-attr]
            for statement in statements:
                if "FROM" in statement:
                    plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}")
                    seen.append("; ".join(row.detail for row in plan))


def rows(database: Database) -> list[dict[str, Any]]:
    """All tasks with their tags and prompts, newest first."""
    with database.read() as connection:
        tags: dict[str, list[str]] = {}
        for tag in connection.execute(select(TAG)):
            tags.setdefault(tag.task_id, []).append(tag.tag)
        found = [dict(row._mapping) for row in connection.execute(select(TASK))]
    found.sort(key=lambda row: (row["created_at"], row["id"]), reverse=True)
    return [{**row, "tags": tags.get(row["id"], []), "prompt": row["request"]["prompt"]} for row in found]


def matches(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Whether a task meets a filter."""
    values = {**row, "tag": wanted.get("tag") if wanted.get("tag") in row["tags"] else None}
    in_time = wanted.get("since", 0) <= row["created_at"] < wanted.get("until", NOW + 1)
    has_text = wanted.get("text", "").lower() in row["prompt"].lower()
    rest = wanted.keys() - {"since", "until", "text"}
    return in_time and has_text and all(values[name] == wanted[name] for name in rest)


def pages(connection: Connection, wanted: TaskFilter, times: dict[str, int]) -> Iterator[tuple[list[str], Found]]:
    """The pages of a list, each with what was found for it. `times`: when each task was created."""
    while True:
        found = find_page(connection, wanted)
        ids = found.ids[: wanted.limit]
        yield ids, found
        if len(found.ids) > wanted.limit:
            wanted = replace(wanted, before=(times[ids[-1]], ids[-1]))
        elif found.end:
            wanted = replace(wanted, before=found.end)
        else:
            return


def test_each_filter_and_pair_of_filters_finds_its_tasks(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, each once, over as many pages as it takes; the search ends at its bound and goes on."""
    monkeypatch.setattr(task_list, "MAX_EXAMINED", 150)
    monkeypatch.setattr(task_list, "FIRST_STEP", 40)
    monkeypatch.setattr(task_list, "PROBE", 30)
    everything = rows(full)
    assert len(everything) == TASKS
    times = {row["id"]: row["created_at"] for row in everything}
    short = 0
    with full.read() as connection:
        for name, wanted in FILTERS.items():
            expected = [row["id"] for row in everything if matches(row, wanted)]
            found: list[str] = []
            for ids, page in pages(connection, TaskFilter(**wanted, limit=60), times):
                assert page.examined <= 150, name
                short += page.end is not None
                found += ids
            assert found == expected, name
    assert short > 10


def scans(plan: Any) -> Iterator[dict[str, Any]]:
    """The steps of a plan of PostgreSQL that read a table or an index."""
    if isinstance(plan, dict):
        if "Relation Name" in plan:
            yield plan
        plan = list(plan.values())
    if isinstance(plan, list):
        for part in plan:
            yield from scans(part)


def test_each_filter_reads_few_rows_by_an_index(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the first page and on a deep one; no step reads a whole table."""
    monkeypatch.setattr(task_list, "MAX_EXAMINED", 40)
    monkeypatch.setattr(task_list, "FIRST_STEP", 20)
    monkeypatch.setattr(task_list, "PROBE", 20)
    for name, wanted in FILTERS.items():
        with plans(full) as seen, full.read() as connection:
            find_page(connection, TaskFilter(**wanted, limit=5))
            find_page(connection, TaskFilter(**wanted, limit=5, before=(NOW - 30 * HOUR, "x")))
        assert seen, name
        for plan in seen:
            check_plan(plan, on_sqlite=full.is_sqlite)


def check_plan(plan: str, *, on_sqlite: bool) -> None:
    """Each table is read by an index, and few rows of it."""
    if on_sqlite:
        assert "USING" in plan, plan
        assert not re.search(r"SCAN (task|tag)(?! USING| *;| *$)", plan), plan
        return
    read = list(scans(json.loads(plan)))
    assert read
    for step in read:
        assert step["Index Name"], step
        rows_read = (step["Actual Rows"] + step.get("Rows Removed by Filter", 0)) * step["Actual Loops"]
        assert rows_read <= 41, step


def test_a_search_does_not_read_more_in_a_larger_database(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of SQLite, the steps of its virtual machine are counted."""
    if not database.is_sqlite:
        return  # its plans have the numbers of rows
    monkeypatch.setattr(task_list, "MAX_EXAMINED", 40)
    monkeypatch.setattr(task_list, "FIRST_STEP", 20)
    monkeypatch.setattr(task_list, "PROBE", 20)
    filled.fill(database, 3 * TASKS, NOW)
    for name, wanted in FILTERS.items():
        steps: list[int] = []
        with database.read() as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_progress_handler(lambda steps=steps: steps.append(1), 100)
            find_page(connection, TaskFilter(**wanted, limit=5))
            driver.set_progress_handler(None, 0)
        assert len(steps) < 45, name


async def test_a_page_says_how_far_it_has_searched(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its reader goes on from there; the last page says that no more follow."""
    monkeypatch.setattr(task_list, "MAX_EXAMINED", 250)
    monkeypatch.setattr(task_list, "SEARCH_SECONDS", 60.0)  # not the clock of a busy machine
    reader = Reader(full)
    first = await reader.render_page(TaskFilter(text="giraffe"), lambda detail: b"")
    assert (first.items, first.examined, first.is_full) == ([], 250, False)
    assert first.last is not None
    second = await reader.render_page(TaskFilter(text="giraffe", before=first.last), lambda detail: b"")
    assert (second.items, second.last, second.is_full) == ([], None, False)
    usual = await reader.render_page(TaskFilter(limit=5), lambda detail: b"")
    assert (len(usual.items), usual.examined, usual.is_full) == (5, 0, True)
    await reader.close()


def test_a_search_ends_when_its_time_is_spent(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one step at least: large requests, or a slow disk, must not hold a thread for long."""
    monkeypatch.setattr(task_list, "SEARCH_SECONDS", 0.0)
    with full.read() as connection:
        found = find_page(connection, TaskFilter(text="giraffe"))
    assert found.examined == task_list.FIRST_STEP < TASKS
    assert found.end is not None


PROMPTS = {
    "a": 'He said "100 % no_limits" \\ and left\nfor good',
    "b": "Ärger im Café, ÖL",
    "c": "Кот на крыше",
    "d": "一只熊猫在竹林里",
    "e": "a smiling face \U0001f600 and model_name",
}
SEARCHES = [
    ("100 %", "a"),
    ("no_limits", "a"),
    ("nolimits", ""),
    ("noxlimits", ""),
    ('"100', "a"),
    ("\\ AND", "a"),
    ("left\nfor", "a"),
    ("u5e", ""),
    ("CAFÉ", "b"),
    ("ärger", "b"),
    ("öl", "b"),
    ("КОТ", "c"),
    ("крыше", "c"),
    ("熊猫", "d"),
    ("竹", "d"),
    ("猫熊", ""),
    ("\U0001f600", "e"),
    ("model_name", "e"),
    ("kling-v3", ""),
    ("\ud800", ""),
    ("\0", ""),
    ("a%", ""),
    ("a", "abe"),
]


@pytest.mark.parametrize(("searched", "expected"), SEARCHES)
def test_a_part_of_a_prompt_is_found(database: Database, searched: str, expected: str) -> None:
    """Of any language, in upper and lower case, taken literally, and in the prompt alone."""
    ledger = Ledger(database)
    for name, prompt in PROMPTS.items():
        ledger.register(name, request={"model_name": "kling-v3", "prompt": prompt, "callback": "kling-v3 left out"})
    with database.read() as connection:
        assert sorted(find_page(connection, TaskFilter(text=searched)).ids) == sorted(expected)


def test_the_prompts_of_a_create() -> None:
    """Of each shot, and of both standards; what is to be avoided is none."""
    request = {
        "prompt": "one",
        "negative_prompt": "never",
        "multi_prompt": [{"index": 1, "prompt": "two"}, {"prompt": 3}],
        "contents": [{"type": "prompt", "text": "three"}, {"type": "image", "text": "no"}, "no"],
        "input": {"prompt": "four"},
    }
    assert sorted(prompt_texts(request)) == ["four", "one", "three", "two"]
    assert prompt_texts(None) == prompt_texts("prompt") == []


def test_the_newest_tasks_of_a_family(full: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any number on, up to a bound."""
    monkeypatch.setattr(task_list, "MAX_EXAMINED", 50)
    expected = [row["id"] for row in rows(full) if row["family"] == "images/generations"]
    with full.read() as connection:
        for skip, limit in ((0, 5), (7, 20), (45, 20), (50, 5), (60, 5)):
            found = ids_of_family(connection, "images/generations", skip=skip, limit=limit)
            assert found == expected[:50][skip : skip + limit]
