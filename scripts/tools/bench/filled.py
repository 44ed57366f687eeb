"""A database filled with many tasks as a busy receiver has them: most succeeded, of several families and models.

A tenth of the tasks is of the last day, the others are of the 29 days before it. The values are random, with a seed.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Table, create_engine, text

from kling_callback.protocol.ids import new_id
from kling_receiver.store.database import Database
from kling_receiver.store.sql import driver_cursor, is_sqlite
from kling_receiver.store.tables import ATTEMPT, HOOK, JOB, METADATA, RESULT, TAG, TASK
from kling_receiver.store.transaction import TASK_DEFAULTS

HOURLY_COUNT = METADATA.tables["hourly_count"]
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
DAYS = 30
RECENT_SHARE = 0.1
"""The share of the tasks that is of the last day."""
BATCH = 20_000
"""Tasks that are generated and inserted at once."""

FAMILIES = {
    "images/generations": (45, "image", ("kling-v1-5", "kling-v2-1", "kling-v3")),
    "videos/text2video": (25, "video", ("kling-v1-6", "kling-v2-5-turbo", "kling-v3")),
    "videos/image2video": (20, "video", ("kling-v1-6", "kling-v2-6", "kling-v3")),
    "images/omni-image": (6, "image", ("kling-image-o1",)),
    "videos/effects": (4, "video", ("",)),
}
"""Families: their share in per cent, the kind of their files, their models."""
OLD_FAMILY, RARE_FAMILY, RARE_MODEL, RARE_TAG = "videos/lip-sync", "audio/tts", "kling-v1", "exhibition"
"""A family that is common, but only among the oldest tasks; values of which there are RARE tasks."""
RARE = 20
COMMON_TAG, PROJECTS = "shop", 200
"""The tag of a fifth of the tasks; tags `project-N`, of each of which there are some."""
SUBJECTS = (
    "a kangaroo",
    "a red fox",
    "two dancers",
    "an old lighthouse",
    "一只熊猫",
    "小猫",
    "a paper boat",
    "the moon",
)
ACTIONS = ("holding a sign", "in the rain", "at night", "在雪地里奔跑", "under neon lights", "seen from above")
STYLES = ("photo, 85 mm, soft light", "watercolour", "水墨画风格", "claymation", "film still, 35 mm, grain")
RARE_WORDS = ("axolotl", "鲸鱼")
"""Words in the prompts of RARE tasks each."""


def fill(database: Database, tasks: int, now: int) -> None:
    """Add so many tasks, the newest at `now` (unix ms), to an empty database with its tables."""
    numbers = random.Random(tasks)
    names = [column.name for column in TASK.c]
    times = _times(tasks, now)
    rare = {name: frozenset(numbers.sample(range(tasks), RARE)) for name in (*RARE_WORDS, *RARE_VALUES)}
    rows = (_task(n, next(times), tasks, numbers, rare) for n in range(tasks))
    counts: Counter[tuple[int, str]] = Counter()
    while batch := list(islice(rows, BATCH)):
        with database.write() as connection:
            insert(connection, TASK, names, [tuple(row.values()) for row, _ in batch])
            insert(connection, TAG, ["task_id", "tag", "created_at"], _tags(batch))
            insert(connection, RESULT, RESULT_COLUMNS, _results(batch, numbers))
        _count(counts, batch)
    with database.write() as connection:
        totals = ((hour, name, total) for (hour, name), total in sorted(counts.items()))
        insert(connection, HOURLY_COUNT, ["hour", "name", "total"], totals)
        for name in HOOKS:
            connection.execute(HOOK.insert(), {**HOOK_DEFAULTS, "name": name, "concurrency_key": name})
        columns = [column.name for column in ATTEMPT.c if column.name != "id"]
        insert(connection, ATTEMPT, columns, _attempts(max(tasks // 5, 1), now, numbers))
        insert(connection, JOB, JOB_COLUMNS, _jobs(max(tasks // 1000, 1), now))
    if not database.is_sqlite:  # what its autovacuum does in time
        engine = create_engine(database.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text("VACUUM ANALYZE"))
        engine.dispose()


def kling_id(number: int) -> str:
    """Kling's id of the task with this number, from 0, the oldest."""
    return str(800_000_000_000_000_000 + number * 1_000_003)


def insert(connection: Connection, table: Table, columns: Sequence[str], rows: Iterable[tuple[Any, ...]]) -> None:
    """Insert ready rows by the fastest way of the engine."""
    names = ", ".join(columns)
    if is_sqlite(connection):
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({', '.join('?' * len(columns))})"
        with driver_cursor(connection, statement) as cursor:
            cursor.executemany(statement, rows)
        return
    statement = f"COPY {table.name} ({names}) FROM STDIN"
    with driver_cursor(connection, statement) as cursor, cursor.copy(statement) as copy:
        for row in rows:
            copy.write_row(row)


RARE_VALUES = (RARE_FAMILY, RARE_MODEL, RARE_TAG)
RESULT_COLUMNS = (
    "task_id",
    "position",
    "kind",
    "status",
    "content_type",
    "size",
    "sha256",
    "path",
    "source_url",
    "error",
    "warning",
)

_TaskAndTags = tuple[dict[str, Any], list[str]]


def _times(tasks: int, now: int) -> Iterator[int]:
    """When each task was created, oldest first."""
    recent = max(int(tasks * RECENT_SHARE), 1)
    older = tasks - recent
    yield from (now - DAYS * DAY_MS + n * (DAYS - 1) * DAY_MS // max(older, 1) for n in range(older))
    yield from (now - DAY_MS + (n + 1) * DAY_MS // recent for n in range(recent))


def _task(n: int, at: int, tasks: int, numbers: random.Random, rare: dict[str, frozenset[int]]) -> _TaskAndTags:
    """A task's row, in the order of the columns, and its tags."""
    family = numbers.choices(list(FAMILIES), [share for share, *_ in FAMILIES.values()])[0]
    _, kind, models = FAMILIES[family]
    model = numbers.choice(models)
    if n < tasks // 4 and n % 4 == 0:
        family, kind, model = OLD_FAMILY, "video", ""
    family = RARE_FAMILY if n in rare[RARE_FAMILY] else family
    model = RARE_MODEL if n in rare[RARE_MODEL] else model
    words = [word for word in RARE_WORDS if n in rare[word]]
    prompt = ", ".join([numbers.choice(SUBJECTS), numbers.choice(ACTIONS), *words, numbers.choice(STYLES)])
    status = "processing" if n >= tasks - tasks // 1000 else "failed" if numbers.random() < 0.03 else "succeed"
    is_final = status != "processing"
    took = int(numbers.lognormvariate(3.0 if kind == "image" else 5.0, 0.5) * 1000)
    request = {"model_name": model, "prompt": prompt, "aspect_ratio": "16:9", **(PARAMETERS[kind])}
    tags = [COMMON_TAG] if n % 5 == 0 else []
    tags += [f"project-{numbers.randrange(PROJECTS)}"] if n % 3 == 0 else []
    tags += [RARE_TAG] if n in rare[RARE_TAG] else []
    task_id = new_id(at / 1000, random=numbers.randbytes)
    row = DEFAULTS | {
        "id": task_id,
        "kling_id": kling_id(n),
        "family": family,
        "model": model,
        "request": json.dumps(request, separators=(",", ":")),
        "request_sha256": f"{n:064x}",
        "outcome": "created",
        "create_token": f"{n:032x}",
        "status": status,
        "status_msg": "The prompt was refused by the content check." if status == "failed" else "",
        "origin": "kling" if is_final else None,
        "cost": f'"{numbers.choice(COSTS[kind])}"' if status == "succeed" else "null",
        "request_id": f"{n:032x}",
        "kling_created_at": at,
        "kling_updated_at": at + took if is_final else at,
        "duration_ms": took if status == "succeed" else None,
        "done": is_final,
        "callback_count": 3,
        "kept_callbacks": 3,
        "kept_bytes": 2100,
        "created_at": at,
        "updated_at": at + took,
    }
    return row, tags


DEFAULTS = TASK_DEFAULTS | {"request": "null", "cost": "null", "outputs": "null"}
PARAMETERS: dict[str, dict[str, Any]] = {
    "image": {"n": 1, "resolution": "2k"},
    "video": {"duration": "5", "mode": "pro", "negative_prompt": "blurry, text, watermark"},
}
COSTS = {"image": ("1", "2.5", "8"), "video": ("10", "35", "70")}


HOOKS = ("shop", "archive", "failing")
HOOK_DEFAULTS: dict[str, Any] = {
    "address": "https://hooks.example/kling",
    "source": "added",
    "secrets": [],
    "filter": {"events": ["task.done"], "families": [], "statuses": [], "tags": []},
    "retry_schedule": [5, 300],
    "concurrency": 4,
    "timeout": 15,
    "cursor": 0,
    "format": "event",
    "paused_because": "",
    "created_at": 0,
}
JOB_COLUMNS = (
    "unique_key",
    "kind",
    "pool",
    "task_id",
    "concurrency_key",
    "hook_name",
    "args",
    "state",
    "attempts",
    "due_at",
    "delay_ms",
    "error",
    "created_at",
)


def _count(counts: Counter[tuple[int, str]], batch: Sequence[_TaskAndTags]) -> None:
    for row, _ in batch:
        hour, end = row["created_at"] // HOUR_MS, row["updated_at"] // HOUR_MS
        counts[hour, "task.created"] += 1
        counts[end, "callback.received"] += row["kept_callbacks"]
        if row["done"]:
            counts[end, f"task.{row['status']}"] += 1


def _attempts(attempts: int, now: int, numbers: random.Random) -> Iterable[tuple[Any, ...]]:
    """Attempts at deliveries, oldest first; those of the last hook fail."""
    for n in range(attempts):
        name = HOOKS[n % len(HOOKS)]
        is_delivered = name != HOOKS[-1] and numbers.random() < 0.98
        answer = (200, "ok", "") if is_delivered else (503, "unavailable", "HTTP 503")
        duration = int(numbers.lognormvariate(3.5, 0.8))
        yield (name, n, "", now - (attempts - n) * 500, duration, is_delivered, *answer)


def _jobs(jobs: int, now: int) -> Iterable[tuple[Any, ...]]:
    """Deadlines of open tasks, and deliveries to the failing hook, of which half are dead letters."""
    for n in range(jobs):
        yield (f"overdue/{n}", "overdue", "kling", f"{n}", "overdue", None, "null", "ready", 0, now + n, 0, "", now)
        state = "dead" if n % 2 else "ready"
        key, args = f"delivery/{n}/{HOOKS[-1]}", f'{{"hook":"{HOOKS[-1]}","event":{n}}}'
        hook = (f"hook {HOOKS[-1]}", HOOKS[-1])
        yield (key, "delivery", "hook-retries", f"{n}", *hook, args, state, 3, now + n, 0, "HTTP 503", now)


def _tags(batch: Sequence[_TaskAndTags]) -> Iterable[tuple[Any, ...]]:
    return ((row["id"], tag, row["created_at"]) for row, tags in batch for tag in sorted(tags))


def _results(batch: Sequence[_TaskAndTags], numbers: random.Random) -> Iterable[tuple[Any, ...]]:
    for row, _ in batch:
        if row["status"] == "succeed":
            is_image = row["family"].startswith("images/")
            kind, media_type, suffix = ("image", "image/png", "png") if is_image else ("video", "video/mp4", "mp4")
            path = f"{row['id'][:10]}/{row['id']}/0.{suffix}"
            url = f"https://v16-kling.klingai.com/bs2/upload/{row['id']}.{suffix}"
            size = numbers.randrange(200_000, 20_000_000)
            yield (row["id"], 0, kind, "stored", media_type, size, row["request_sha256"], path, url, "", "")
