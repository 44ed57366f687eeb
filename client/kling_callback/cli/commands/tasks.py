"""The commands `kling show`, `cancel` and `list`: tasks at the receiver, or in Kling's own list."""

from datetime import UTC, datetime
from typing import Any

import click

from kling_callback.api.refusals import NO_SUCH_PATH
from kling_callback.calls import check_listed
from kling_callback.cli import completion, options, task_table, terminal, usage
from kling_callback.cli.param_types import TaskId
from kling_callback.cli.run import with_kling
from kling_callback.errors import GatewayError, ReceiverError
from kling_callback.kling import AsyncKling
from kling_callback.protocol.families import ASYNCHRONOUS
from kling_callback.protocol.reports import UNKNOWN_TASK
from kling_callback.settings import TO_CALL, TO_WAIT

Record = dict[str, Any]
"""A task as Kling has it."""

NO_SUCH_LIST = UNKNOWN_TASK | {1202, 1203}
"""Kling's codes for a path or a method that it does not have, and for the path of a task that it does not know."""


@click.command(cls=usage.Command, examples=["kling cancel order-42 order-43"])
@usage.argument("task_ids", metavar="ID...", nargs=-1, required=True, type=TaskId())
@options.json_option
def cancel(task_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove tasks from the receiver's queue.

    They are never sent to Kling, cost nothing, and end as failed. A task that was sent continues: Kling has no cancel.
    """

    async def call(kling: AsyncKling) -> list[ReceiverError]:
        refused = []
        for task_id in task_ids:
            try:
                task = await kling.cancel(task_id)
            except ReceiverError as error:
                if error.http_status is None:
                    raise
                if task_id not in error.message:
                    error.message = f"{task_id}: {error.message}"
                refused.append(error)
            else:
                terminal.print_json(task.data) if as_json else terminal.print_data(task.id)
        return refused

    if refused := with_kling(TO_WAIT, call):
        for error in refused[:-1]:
            terminal.print_message(terminal.format_error(error))
        raise refused[-1]


@click.command(cls=usage.Command, examples=["kling show order-42", "kling show order-42 --open"])
@options.id_argument
@usage.option("--open", "open_page", is_flag=True, help="Open the task's page in the browser, and print its address.")
@options.json_option
def show(task_id: str, open_page: bool, as_json: bool) -> None:
    """Print a task with its files and other outputs.

    ID is ours, Kling's, or the external_task_id that another program sent.
    """
    if open_page:
        if as_json:
            usage.problems().refuse("--open and --json cannot be combined.")
        return _open(with_kling(TO_WAIT, lambda kling: kling.attach(task_id).page_url()))
    task = with_kling(TO_WAIT, lambda kling: kling.task(task_id))
    return terminal.print_json(task.data) if as_json else terminal.print_task(task)


def _open(address: str) -> None:
    """Open a page in the browser, if there is one, and print its address."""
    import webbrowser  # here: the other commands start faster without

    terminal.print_data(address)
    if not webbrowser.open(address):
        terminal.print_message("No browser can be started here. Open the address in one.")


@click.command(
    "list",
    cls=usage.Command,
    examples=[
        "kling list --status processing --tag spring",
        "kling list --at-kling videos/text2video --limit 10",
    ],
)
@usage.argument("families", metavar="[FAMILY]...", nargs=-1, shell_complete=completion.families)
@usage.option("--at-kling", is_flag=True, help="Kling's own list, of these families or of all that have one.")
@options.list_options
def list_tasks(families: tuple[str, ...], at_kling: bool, as_json: bool, limit: int, **filters: Any) -> None:
    """List tasks, newest first.

    With --at-kling, list those of the account at Kling, whoever created them; each FAMILY is a path under /v1, such as
    videos/text2video. --json then prints Kling's records, each with its family.
    """
    problems = usage.problems()
    if at_kling:
        given = {name for name, value in filters.items() if value is not None or name in problems.refused} - {"family"}
        if given:
            names = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in given))
            problems.refuse(f"--at-kling cannot be combined with {names}: Kling has no such filter.")
        families += (filters["family"],) if filters["family"] else ()
        for family in families:
            with problems:
                check_listed(family)
        return _print_records(with_kling(TO_CALL, lambda kling: _records(kling, families, limit)), as_json)
    if families:
        problems.refuse(f"Set --family {families[0]}, or --at-kling for Kling's own list.")
    tasks = with_kling(TO_WAIT, lambda kling: kling.tasks(limit=limit, **filters))
    if not as_json:
        return task_table.print_tasks(tasks)
    for task in tasks:
        terminal.print_json(task.data)
    return None


async def _records(kling: AsyncKling, families: tuple[str, ...], limit: int) -> list[tuple[str, Record]]:
    """Kling's newest records of these families, each with its family; without families, of all that the base has."""
    found: list[tuple[str, Record]] = []
    missing: dict[str, GatewayError] = {}
    for family in families or ASYNCHRONOUS:
        try:
            records = await kling.tasks_at_kling(family, limit=limit)
        except GatewayError as error:
            if families or not _is_missing(error):
                raise
            missing[family] = error
        else:
            found += [(family, record) for record in records]
    if len(missing) == len(ASYNCHRONOUS):
        raise next(iter(missing.values()))
    if missing:
        terminal.print_message(f"No list at this API base: {', '.join(missing)}.")
    return sorted(found, key=lambda each: _created_at(each[1]), reverse=True)[:limit]


def _is_missing(error: GatewayError) -> bool:
    """Whether the gateway does not have the family: a relay has few of them."""
    return error.code in NO_SUCH_LIST or (not isinstance(error.code, int) and error.http_status in NO_SUCH_PATH)


def _created_at(record: Record) -> int:
    """Unix ms; 0 without a time."""
    created_at = record.get("created_at")
    return created_at if isinstance(created_at, int) else 0


def _print_records(records: list[tuple[str, Record]], as_json: bool) -> None:
    if as_json:
        for family, record in records:
            terminal.print_json({"family": family, **record})
        return
    columns = {
        "KLING'S ID": [_text(record.get("task_id")) for _, record in records],
        "STATUS": [_text(record.get("task_status")) for _, record in records],
        "CREATED": [_minute(record) for _, record in records],
        "FAMILY": [family for family, _ in records],
        "EXTERNAL ID": [_external_id(record) for _, record in records],
        "REASON": [_text(record.get("task_status_msg")) for _, record in records],
    }
    below = ("REASON", "EXTERNAL ID", "FAMILY")
    terminal.print_table(list(columns.items()), always=("KLING'S ID", "STATUS"), below=below, empty="No tasks.")


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _external_id(record: Record) -> str:
    info = record.get("task_info")
    return _text(info.get("external_task_id")) if isinstance(info, dict) else ""


def _minute(record: Record) -> str:
    """The time of the create; "" without one, or for a number that is none."""
    try:
        moment = datetime.fromtimestamp(_created_at(record) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return ""
    return terminal.format_minute(moment.isoformat()) if _created_at(record) else ""
