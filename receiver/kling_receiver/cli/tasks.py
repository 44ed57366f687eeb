"""The commands `kling-receiver tasks ...`: looking at tasks, and orders about them."""

from typing import Any

import click

from kling_callback.base import BaseTask
from kling_callback.cli import options, terminal
from kling_callback.receiver_api import task_path
from kling_receiver.cli.base import report_errors
from kling_receiver.cli.connect import call_receiver


@click.group()
def tasks() -> None:
    """Look at tasks, and give orders about them.

    Talks to the running receiver; opens its database when none runs.
    """


@options.command(tasks, "list", options.LIST_OPTIONS, "List tasks, newest first.")
@report_errors
def list_tasks(limit: int, as_json: bool, **filters: Any) -> None:
    found = call_receiver(lambda receiver: receiver.tasks(limit, **filters))
    if not as_json:
        return terminal.print_tasks([BaseTask(task) for task in found])
    for task in found:
        terminal.print_json(task)
    return None


@options.command(tasks, "show", [options.ID, options.AS_JSON], "Print all that is known of a task, as JSON.")
@report_errors
def show(task_id: str, as_json: bool) -> None:
    terminal.print_json(call_receiver(lambda receiver: receiver.task(task_id)), nicely=not as_json)


def _order(name: str, summary: str) -> None:
    @options.command(tasks, name, [options.ID, options.AS_JSON], summary)
    @report_errors
    def order(task_id: str, as_json: bool) -> None:
        answer = call_receiver(lambda receiver: receiver.call("POST", f"{task_path(task_id)}/{name}"))
        task = BaseTask(answer["task"])
        if as_json:
            return terminal.print_json(task.data)
        terminal.print_message(f"Kling says {answer['kling'] or 'what nobody understands'}.")
        return terminal.print_tasks([task])


_order("ask", "Ask Kling now how a task stands, whatever it is believed to be.")
_order("fetch", "Ask Kling where a task's files lie now, and fetch those that are not stored.")
