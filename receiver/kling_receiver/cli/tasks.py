"""The commands `kling-receiver tasks ...`: list, show, adopt, cancel, remove tasks, query Kling, fetch files again."""

from typing import Any

import click

from kling_callback.api.receiver import ReceiverApi, task_path
from kling_callback.base import BaseTask
from kling_callback.cli import options, param_types, task_table, terminal, usage
from kling_callback.errors import ReceiverError
from kling_receiver.cli.answers import ListedTask, QueriedTask, checked
from kling_receiver.cli.base import report_errors
from kling_receiver.cli.connect import call_receiver


@click.group(
    cls=usage.Group, examples=["kling-receiver tasks list --status processing", "kling-receiver tasks ask order-42"]
)
def tasks() -> None:
    """List, adopt, cancel and remove tasks; download files again.

    ID is ours, Kling's, or the external_task_id that another program sent.

    The commands call the running receiver; they open its database only when no receiver runs.
    """


@tasks.command("list", examples=["kling-receiver tasks list --status failed --limit 20"])
@options.list_options
@report_errors
def list_tasks(limit: int, as_json: bool, **filters: Any) -> None:
    """List tasks, newest first."""
    documents = call_receiver(lambda receiver: receiver.tasks(limit, **filters))
    if not as_json:
        return task_table.print_tasks([BaseTask(document) for document in documents])
    for document in documents:
        terminal.print_json(document)
    return None


@tasks.command(examples=["kling-receiver tasks show order-42"])
@options.id_argument
@options.json_option
@report_errors
def show(task_id: str, as_json: bool) -> None:
    """Print a task as JSON."""
    terminal.print_json(call_receiver(lambda receiver: receiver.task(task_id)), pretty=not as_json)


@tasks.command(examples=["kling-receiver tasks ask order-42"])
@options.id_argument
@options.json_option
@report_errors
def ask(task_id: str, as_json: bool) -> None:
    """Query Kling about a task now, whatever its status here."""
    _query_kling(task_id, "ask", as_json=as_json)


@tasks.command(examples=["kling-receiver tasks fetch order-42"])
@options.id_argument
@options.json_option
@report_errors
def fetch(task_id: str, as_json: bool) -> None:
    """Download the files of a task that are not stored.

    Kling is queried for their present addresses first.
    """
    _query_kling(task_id, "fetch", as_json=as_json)


@tasks.command(examples=["kling-receiver tasks adopt videos/text2video 831902834912345678"])
@usage.argument("family", metavar="FAMILY")
@usage.argument("kling_id", metavar="TASK_ID", type=param_types.TaskId())
@options.json_option
@report_errors
def adopt(family: str, kling_id: str, as_json: bool) -> None:
    """Take over a task that was created elsewhere.

    FAMILY is the path that created it, such as videos/text2video; TASK_ID is Kling's. Kling is queried now, and again
    at the task's deadline. A task that is known already is shown.
    """
    body = {"family": family, "task_id": kling_id}
    answer = call_receiver(lambda receiver: receiver.call("POST", "/api/tasks/adopt", body))
    _print_answer(answer, as_json=as_json)


@tasks.command(examples=["kling-receiver tasks cancel order-42 order-43"])
@usage.argument("task_ids", metavar="ID...", nargs=-1, required=True, type=param_types.TaskId())
@options.json_option
@report_errors
def cancel(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Take tasks out of the queue: their creates are never sent.

    A task that was sent to Kling goes on: Kling has no cancel.
    """

    cancelled, refused = _delete(task_ids, "queued")
    if as_json:
        for document in cancelled:
            terminal.print_json(document)
    elif cancelled:
        task_table.print_tasks([BaseTask(document) for document in cancelled])
    _exit_if(refused)


@tasks.command(examples=["kling-receiver tasks remove order-42 order-43"])
@usage.argument("task_ids", metavar="ID...", nargs=-1, required=True, type=param_types.TaskId())
@options.json_option
@report_errors
def remove(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove tasks that have ended, with their events, deliveries and files.

    There is no way back. Their ids are not used again: a late callback is answered and not stored.
    """
    removed, refused = _delete(task_ids, "finished")
    for document in removed:
        if as_json:
            terminal.print_json(document)
        else:
            terminal.print_message(f"Task {document['id']} is removed.")
    _exit_if(refused)


def _delete(task_ids: tuple[str, ...], only: str) -> tuple[list[dict[str, Any]], list[ReceiverError]]:
    """Cancel queued tasks, or remove finished ones: the answers, and the errors of those that were refused."""

    async def delete_all(receiver: ReceiverApi) -> list[dict[str, Any] | ReceiverError]:
        outcomes: list[dict[str, Any] | ReceiverError] = []
        for task_id in dict.fromkeys(task_ids):
            try:
                outcomes.append(await receiver.call("DELETE", f"{task_path(task_id)}?only={only}"))
            except ReceiverError as error:
                if error.code is None:
                    raise  # it cannot be reached
                outcomes.append(error)
        return outcomes

    outcomes = call_receiver(delete_all)
    deleted = [checked(ListedTask, outcome) for outcome in outcomes if not isinstance(outcome, ReceiverError)]
    return deleted, [outcome for outcome in outcomes if isinstance(outcome, ReceiverError)]


def _exit_if(refused: list[ReceiverError]) -> None:
    """Print the errors, and end with the last of them.

    Raises ReceiverError.
    """
    if refused:
        for error in refused[:-1]:
            terminal.print_message(str(error))
        raise refused[-1]


def _query_kling(task_id: str, action: str, *, as_json: bool) -> None:
    answer = call_receiver(lambda receiver: receiver.call("POST", f"{task_path(task_id)}/{action}"))
    _print_answer(answer, as_json=as_json)


def _print_answer(answer: dict[str, Any], *, as_json: bool) -> None:
    checked(QueriedTask, answer)
    if as_json:
        terminal.print_json(answer["task"])
        return
    if answer.get("queried", True):
        status = answer["kling"]
        terminal.print_message(f"Kling says {status}." if status else "Kling's status could not be parsed.")
    else:
        terminal.print_message("The task is known already; Kling was not queried.")
    task_table.print_tasks([BaseTask(answer["task"])])
