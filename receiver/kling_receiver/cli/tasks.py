"""The commands `kling-receiver tasks ...`: list and show tasks, query Kling, download files again."""

from typing import Any

import click

from kling_callback.api.receiver import task_path
from kling_callback.base import BaseTask
from kling_callback.cli import options, terminal
from kling_receiver.cli.answers import QueriedTask, checked
from kling_receiver.cli.base import report_errors
from kling_receiver.cli.connect import call_receiver


@click.group()
def tasks() -> None:
    """List tasks, query Kling, download files again.

    The commands call the running receiver; they open its database only when no receiver runs.
    """


@tasks.command("list")
@options.list_options
@report_errors
def list_tasks(limit: int, as_json: bool, **filters: Any) -> None:
    """List tasks, newest first."""
    documents = call_receiver(lambda receiver: receiver.tasks(limit, **filters))
    if not as_json:
        return terminal.print_tasks([BaseTask(document) for document in documents])
    for document in documents:
        terminal.print_json(document)
    return None


@tasks.command()
@options.id_argument
@options.json_option
@report_errors
def show(task_id: str, as_json: bool) -> None:
    """Print a task as JSON."""
    terminal.print_json(call_receiver(lambda receiver: receiver.task(task_id)), pretty=not as_json)


@tasks.command()
@options.id_argument
@options.json_option
@report_errors
def ask(task_id: str, as_json: bool) -> None:
    """Query Kling about a task now, whatever its status here."""
    _query_kling(task_id, "ask", as_json=as_json)


@tasks.command()
@options.id_argument
@options.json_option
@report_errors
def fetch(task_id: str, as_json: bool) -> None:
    """Download the files of a task that are not stored.

    Kling is queried for their present addresses first.
    """
    _query_kling(task_id, "fetch", as_json=as_json)


def _query_kling(task_id: str, action: str, *, as_json: bool) -> None:
    answer = call_receiver(lambda receiver: receiver.call("POST", f"{task_path(task_id)}/{action}"))
    checked(QueriedTask, answer)
    if as_json:
        terminal.print_json(answer["task"])
        return
    status = answer["kling"]
    terminal.print_message(f"Kling says {status}." if status else "Kling's status could not be parsed.")
    terminal.print_tasks([BaseTask(answer["task"])])
