"""The kinds of jobs, their unique keys, and the pools whose limits they share. Imports nothing of ours."""

from collections.abc import Iterable
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a job does; the worker has one handler for each."""

    ASK = "ask"
    """Query Kling about a task, because a callback hinted at a final status."""
    DOWNLOAD = "download"
    """Download one result file."""
    CREATE = "create"
    """Send the create of a task that was submitted here."""
    OVERDUE = "overdue"
    """Check a task at its deadline."""
    SWEEP = "sweep"
    """Query Kling about an open task once after a start."""
    REMOVE = "remove"
    """Remove the files of a task that was removed."""
    DISPATCH = "dispatch"
    """Send the events behind a hook's cursor."""
    REPLAY = "replay"
    """Send a range of past events to a hook again."""
    DELIVERY = "delivery"
    """Retry one delivery of one event to one hook."""


ARGS: dict[str, dict[str, type]] = {
    Kind.REMOVE: {"paths": list},
    Kind.DOWNLOAD: {"index": int},
    Kind.REPLAY: {"hook": str, "after": int, "until": int},
    Kind.DELIVERY: {"hook": str, "event": int},
}
"""The args that jobs of a kind need. Further ones, and all args of the other kinds, are optional numbers or text."""


def args_problem(kind: str, args: Any) -> str | None:
    """What is wrong with the args of a job; None if its handler can read them."""
    if args is None:
        args = {}
    if not isinstance(args, dict):
        return "its args are no JSON object"
    for name, type_ in ARGS.get(kind, {}).items():
        if type(args.get(name)) is not type_:
            return f"its args lack {name}"
    for name, value in args.items():
        is_number = type(value) is int and 0 <= value < 1 << 63
        if name in LISTS and isinstance(value, list) and all(isinstance(each, str) for each in value):
            continue
        if not (value is None or isinstance(value, str) or is_number) or (name in NUMBERS and not is_number):
            return f"its args have an unknown form of {name}"
    return None


NUMBERS = frozenset(
    {"index", "event", "after", "until", "storage_failures", "asked_after", "unanswered", "undecided", "queries"}
    | {"opened_at", "paced", "unreachable", "full", "lookup"}
)
"""The args that are numbers."""
LISTS = frozenset({"paths"})
"""The args that are lists of text."""

UNLIMITED_KINDS = frozenset({Kind.DOWNLOAD})
"""Kinds whose attempts may take any time: a slow download goes on, and its handler ends one that is too slow."""


class Pool(StrEnum):
    """Jobs that share one limit on how many run at once."""

    KLING = "kling"
    CREATES = "creates"
    DOWNLOADS = "downloads"
    REMOVALS = "removals"
    HOOK_RUNS = "hook-runs"
    HOOK_REPLAYS = "hook-replays"
    HOOK_RETRIES = "hook-retries"
    TASK_HOOK_RUNS = "task-hook-runs"
    """Of hooks of single tasks. Clients choose these hooks, so that their jobs never take places of the operator's."""
    TASK_HOOK_REPLAYS = "task-hook-replays"
    TASK_HOOK_RETRIES = "task-hook-retries"
    """Retries have a pool of their own: dead hosts must not delay the first deliveries to other hosts."""


MAX_PER_POOL: dict[str, int] = {
    Pool.KLING: 48,
    Pool.CREATES: 64,
    Pool.DOWNLOADS: 48,
    Pool.REMOVALS: 4,
    Pool.HOOK_RUNS: 512,
    Pool.HOOK_REPLAYS: 48,
    Pool.HOOK_RETRIES: 256,
    Pool.TASK_HOOK_RUNS: 48,
    Pool.TASK_HOOK_REPLAYS: 48,
    Pool.TASK_HOOK_RETRIES: 48,
}
"""Jobs that run at once. Slow download hosts leave room for queries and hooks; hook jobs mostly wait for others."""
MAX_PER_UNKNOWN_POOL = 16
"""The limit of a pool that this version does not know: its jobs must not stop the queue."""

HOOK_POOLS = {
    Kind.DISPATCH: Pool.HOOK_RUNS,
    Kind.REPLAY: Pool.HOOK_REPLAYS,
    Kind.DELIVERY: Pool.HOOK_RETRIES,
}

TASK_HOOK_POOLS = {
    Kind.DISPATCH: Pool.TASK_HOOK_RUNS,
    Kind.REPLAY: Pool.TASK_HOOK_REPLAYS,
    Kind.DELIVERY: Pool.TASK_HOOK_RETRIES,
}


def hook_pool(kind: Kind, task_id: str | None) -> Pool:
    """The pool of a hook's job. `task_id`: the only task whose events the hook receives, if there is one."""
    return (HOOK_POOLS if task_id is None else TASK_HOOK_POOLS)[kind]


def ask_key(task_id: str) -> str:
    """The unique key of a task's query job: at most one exists."""
    return f"{Kind.ASK}/{task_id}"


def create_key(task_id: str) -> str:
    """The unique key of the job that sends a task's create."""
    return f"{Kind.CREATE}/{task_id}"


def overdue_key(task_id: str) -> str:
    """The unique key of a task's deadline."""
    return f"{Kind.OVERDUE}/{task_id}"


def sweep_key(task_id: str) -> str:
    """The unique key of the query about an open task after a start."""
    return f"{Kind.SWEEP}/{task_id}"


def download_key(task_id: str, index: int) -> str:
    """The unique key of a result file's download."""
    return f"{Kind.DOWNLOAD}/{task_id}/{index}"


def task_keys(task_id: str, indexes: Iterable[int]) -> list[str]:
    """The unique keys of all jobs that may work on a task whose files have these indexes. Those of hooks are others."""
    keys = [ask_key(task_id), create_key(task_id), overdue_key(task_id), sweep_key(task_id)]
    return [*keys, *(download_key(task_id, index) for index in indexes)]


def remove_key(task_id: str) -> str:
    """The unique key of the removal of a removed task's files."""
    return f"{Kind.REMOVE}/{task_id}"


def dispatch_key(hook_name: str) -> str:
    """The unique key of a hook's dispatch: two at once would send its events twice."""
    return f"{Kind.DISPATCH}/{hook_name}"


def delivery_key(event_id: int, hook_name: str) -> str:
    """The unique key of a delivery's retry."""
    return f"{Kind.DELIVERY}/{event_id}/{hook_name}"


def delivery_of(unique_key: str) -> tuple[int, str] | None:
    """The event's id and the hook's name in the unique key of a delivery's retry; None for any other text."""
    kind, _, rest = unique_key.partition("/")
    event_id, _, hook_name = rest.partition("/")
    is_id = event_id.isdecimal() and len(event_id) < 19  # of 64 bits
    return (int(event_id), hook_name) if kind == Kind.DELIVERY and is_id and hook_name else None


def replay_key(hook_name: str, after: int, until: int, task_id: str | None) -> str:
    """The unique key of a replay: of one hook and one range of events."""
    return f"{Kind.REPLAY}/{hook_name}/{after}/{until}/{task_id or ''}"
