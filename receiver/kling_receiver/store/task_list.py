"""The list of tasks: its filters, and the query of one page."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, select, tuple_
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from kling_receiver.store.sql import Statement
from kling_receiver.store.tables import TAG, TASK

MAX_SCANNED = 10_000
"""Tasks that one page reads for filters that have no index. A page ends there, with or without a task."""
Position = tuple[int, str]
"""The (created_at, id) of a task: its place in a list."""

Columns = ReadOnlyColumnCollection[str, Any]


@dataclass(frozen=True, slots=True)
class TaskFilter:
    """Which tasks a list has. `before`: the (created_at, id) after which the page before ended."""

    status: str | None = None
    family: str | None = None
    model: str | None = None
    tag: str | None = None
    kling_id: str | None = None
    before: Position | None = None
    limit: int = 50


def page_ids(connection: Connection, task_filter: TaskFilter) -> tuple[list[str], Position | None]:
    """The ids of a page, and one more if there is another page.

    One filter is looked up in an index, the others are checked on at most MAX_SCANNED rows: a rare value among many
    tasks must not hold a thread for long. Also returns the place at which the search ended there, else None.
    """
    wanted = [name for name in CONDITIONS if getattr(task_filter, name)]
    by_index = next((name for name in wanted if _is_selective(connection, name, task_filter)), None)
    others = [name for name in wanted if name != by_index]
    rows = select(*(TASK.c[name] for name in FILTERED)).order_by(TASK.c.created_at.desc(), TASK.c.id.desc())
    if by_index:
        rows = rows.where((_tagged if by_index == "tag" else CONDITIONS[by_index])(TASK.c, task_filter))
    if task_filter.before:
        rows = rows.where(tuple_(TASK.c.created_at, TASK.c.id) < task_filter.before)
    if not others:
        rows = rows.with_only_columns(TASK.c.id).limit(task_filter.limit + 1)
        return list(connection.execute(rows).scalars()), None
    scanned = rows.limit(MAX_SCANNED).subquery()
    matching = select(scanned.c.id).where(*(CONDITIONS[name](scanned.c, task_filter) for name in others))
    matching = matching.order_by(scanned.c.created_at.desc(), scanned.c.id.desc()).limit(task_filter.limit + 1)
    ids = list(connection.execute(matching).scalars())
    if len(ids) > task_filter.limit:
        return ids, None
    end = rows.with_only_columns(TASK.c.created_at, TASK.c.id).offset(MAX_SCANNED - 1).limit(1)
    last = connection.execute(end).first()
    return ids, (last.created_at, last.id) if last else None


def ids_of_family(connection: Connection, family: str, *, skip: int, limit: int) -> list[str]:
    """The ids of a family's tasks among the newest MAX_SCANNED of all, newest first, from number `skip` on."""
    newest = select(TASK.c.id, TASK.c.created_at, TASK.c.family)
    newest = newest.order_by(TASK.c.created_at.desc(), TASK.c.id.desc()).limit(MAX_SCANNED)
    scanned = newest.subquery()
    matching = select(scanned.c.id).where(scanned.c.family == family)
    matching = matching.order_by(scanned.c.created_at.desc(), scanned.c.id.desc()).offset(skip).limit(limit)
    return list(connection.execute(matching).scalars())


def _tagged(task: Columns, task_filter: TaskFilter) -> ColumnElement[bool]:
    """The tag's condition for a look-up in its index: that in CONDITIONS is checked row by row."""
    condition: ColumnElement[bool] = task.id.in_(select(TAG.c.task_id).where(TAG.c.tag == task_filter.tag))
    return condition


def _is_selective(connection: Connection, name: str, task_filter: TaskFilter) -> bool:
    """Whether an index finds the tasks of a filter in order, or finds few."""
    if name == "tag":
        return len(SOME_OF_TAG.scalars(connection, tag=task_filter.tag, limit=MAX_SCANNED)) < MAX_SCANNED
    return name in ("kling_id", "status")


CONDITIONS: dict[str, Callable[[Columns, TaskFilter], ColumnElement[bool]]] = {
    "kling_id": lambda task, wanted: task.kling_id == wanted.kling_id,
    "tag": lambda task, wanted: exists().where(TAG.c.tag == wanted.tag, TAG.c.task_id == task.id),
    "status": lambda task, wanted: task.status == wanted.status,
    "family": lambda task, wanted: task.family == wanted.family,
    "model": lambda task, wanted: task.model == wanted.model,
}
"""The filters; those that usually leave the fewest tasks come first."""
SOME_OF_TAG = Statement("SELECT task_id FROM tag WHERE tag = :tag LIMIT :limit")
FILTERED = ("id", "created_at", "kling_id", "status", "family", "model")
"""The columns that the filters and the order of a list need."""
