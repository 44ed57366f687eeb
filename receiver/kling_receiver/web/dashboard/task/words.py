"""What the page of a task says about it: why it failed and what to do, and what happens next."""

from dataclasses import dataclass

from kling_callback.protocol.redact import LEFT_OUT
from kling_receiver.jobs.kinds import Kind
from kling_receiver.jobs.queue import NEVER
from kling_receiver.states import FINAL
from kling_receiver.store.rows import JobRow, ResultRow, TaskRow
from kling_receiver.tasks import slots
from kling_receiver.web.dashboard.task.reading import TaskHistory

ORIGINS = {
    "kling": "Kling",
    "callback": "a callback; Kling could not be asked",
    "local": "this receiver; Kling's status replaces it whenever it arrives",
}
"""Who said the final status."""
CREATES = {
    "none": "not registered by a client",
    "pending": "not answered yet",
    "created": "accepted by Kling",
    "not_created": "not accepted by Kling: nothing is generated",
    "unknown": "outcome unknown: it is never sent again",
}
"""What is known about the create."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that went wrong, and its remedy."""

    message: str
    hint: str


@dataclass(frozen=True, slots=True)
class Next:
    """What the receiver does next. `at`: unix ms; None for now, or when something else happens first."""

    text: str
    at: int | None = None
    error: str = ""
    is_dead: bool = False


def problem_of(task: TaskRow) -> Problem | None:
    """Why a task failed, and what to do."""
    if task["status"] != "failed":
        return None
    said = task["status_msg"].strip()
    if task["origin"] == "callback":
        hint = "This is a callback's word, because Kling could not be asked. Ask Kling again to be certain."
        return Problem(said or "A callback says that the task failed.", hint)
    if task["origin"] == "kling":
        hint = "Kling's status is final. Change what the message names (prompt, image or parameters), and run it again."
        return Problem(said or "Kling failed the task without a reason.", hint)
    if task["outcome"] == "not_created":
        hint = "Kling did not accept the create, and nothing is generated. Remove the cause, and run it again."
        return Problem(said or "The create was not accepted.", hint)
    hint = "The receiver ended it by itself. Ask Kling: if the task exists there, its status replaces this one."
    return Problem(said or "The task did not finish.", hint)


def problem_of_result(task: TaskRow, result: ResultRow, now: int) -> Problem | None:
    """Why a file is not stored, and what to do. `now`: unix ms."""
    if result["status"] != "failed":
        return None
    expired = result["expires_at"] is not None and result["expires_at"] < now
    hint = "Fetch again asks Kling for the files of this task, and downloads those that are missing."
    if expired:
        hint = "Its address has expired. Fetch again asks Kling for a new one, while Kling keeps the file (30 days)."
    if task["origin"] == "callback":
        hint = "Ask Kling first: file addresses are accepted from Kling only. Then fetch again."
    return Problem(result["error"] or "The file could not be stored.", hint)


def next_of(history: TaskHistory) -> list[Next]:
    """What the receiver waits for, or does next, about a task."""
    task, is_queued = history.task, history.detail.queue_position is not None
    jobs = [job for job in history.jobs if not (is_queued and job["kind"] == Kind.CREATE)]
    steps = [_next_of_job(job) for job in jobs]
    if history.detail.queue_position:
        steps.insert(0, Next(f"Waits for a free slot, in place {history.detail.queue_position} of the queue"))
    elif task["status"] == "created" and task["outcome"] == "pending" and not slots.is_sent_here(task):
        steps.insert(0, Next("Waits for the client, which sends the create and reports it"))
    elif task["status"] not in FINAL and not any(job["kind"] == Kind.ASK for job in history.jobs):
        steps.insert(0, Next("Waits for Kling's callback"))
    return steps


def _next_of_job(job: JobRow) -> Next:
    text = TEXTS.get(job["kind"]) or f"Download file {_number(job['unique_key'])}"
    if job["state"] == "dead":
        return Next(f"Given up: {text[0].lower()}{text[1:]}", error=job["error"], is_dead=True)
    if job["state"] == "running":
        return Next(f"{text}: now", error=job["error"])
    return Next(text, job["due_at"] if job["due_at"] < NEVER else None, job["error"])


TEXTS: dict[str, str] = {
    Kind.ASK: "Ask Kling for the status",
    Kind.CREATE: "Send the create to Kling",
    Kind.OVERDUE: "Ask Kling, unless a callback comes before",
    Kind.SWEEP: "Ask Kling once after the start",
}
"""What each kind of job does, of those about a whole task."""


def _number(unique_key: str) -> str:
    last = unique_key.rpartition("/")[2]
    return str(int(last) + 1) if last.isdecimal() else ""


def may_run_again(task: TaskRow) -> bool:
    """Whether the task's parameters are stored, so that a form can be filled in with them."""
    return isinstance(task["request"], dict) and bool(task["request"]) and task["request"] != LEFT_OUT
