"""The statuses of a task, and the words for them: Kling's in both standards, and those of relays."""

from typing import Any, Literal, get_args

Status = Literal["submitted", "processing", "succeed", "failed"]
"""Kling's statuses of a task."""
TaskStatus = Literal["created", "submitted", "processing", "succeed", "failed"]
"""The statuses of a task at the receiver: `created`, then Kling's."""
TASK_STATUSES: tuple[TaskStatus, ...] = get_args(TaskStatus)

WORDS: dict[Status, str] = {
    "submitted": "submitted not_start not_started created accepted received queued queueing queuing in_queue pending "
    "waiting scheduled preparing",
    "processing": "processing in_progress running started starting generating rendering executing active working",
    "succeed": "succeed succeeded success successful completed complete finished done",
    "failed": "failed failure fail error errored cancelled canceled expired rejected aborted timeout timed_out "
    "terminated blocked",
}
"""In small letters, with `_` for a blank or `-`. A relay that ends a task otherwise (`cancelled`) made no file."""
STATUS_WORDS = {word: status for status, words in WORDS.items() for word in words.split()}
MAX_WORD_CHARS = 100


def parse_status(word: Any) -> Status | None:
    """The status that a word means; None for an unknown word, and for anything else than a word."""
    if not isinstance(word, str) or len(word) > MAX_WORD_CHARS:
        return None
    return STATUS_WORDS.get(word.strip().lower().replace("-", "_").replace(" ", "_"))
