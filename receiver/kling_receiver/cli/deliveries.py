"""The commands `kling-receiver deliveries ...` and `replay`: what became of events, and sending them again."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click
import httpx

from kling_callback.cli import options, terminal
from kling_callback.receiver_api import PAGE_SIZE
from kling_callback.receiver_api import ReceiverApi as Remote
from kling_receiver.cli.base import USAGE_ERROR, exit_with, report_errors
from kling_receiver.cli.connect import call_receiver
from kling_receiver.hooks.delivery_list import STATES

LONGEST_SAID = 60
"""Characters of an error in the list; `show` has all."""
ID = click.Argument(["delivery"], metavar="EVENT/HOOK")
HOOK = click.Option(["--hook"], help="Of this hook alone.")


@click.group()
def deliveries() -> None:
    """What became of events on their way to hooks.

    Talks to the running receiver; opens its database when none runs.
    """


LISTING: list[click.Parameter] = [
    HOOK,
    click.Option(["--state"], type=click.Choice(STATES), help="Dead ones are given up, and can be sent again."),
    click.Option(["--task"], help="Of this task alone."),
    click.Option(["--limit"], type=click.IntRange(1), default=50, show_default=True),
    options.AS_JSON,
]


@options.command(deliveries, "list", LISTING, "List deliveries, those of the newest events first.")
@report_errors
def list_deliveries(limit: int, as_json: bool, **filters: str | None) -> None:
    found = call_receiver(lambda receiver: _pages(receiver, limit, filters))
    if as_json:
        for each in found:
            terminal.print_json(each)
        return
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ID": lambda each: each["id"],
        "STATE": lambda each: each["state"],
        "EVENT": lambda each: each["type"],
        "TASK": lambda each: each["task"],
        "ATTEMPTS": lambda each: str(each["attempts"]),
        "LAST": lambda each: _last(each["last_attempt"]),
        "NEXT": lambda each: terminal.format_minute(each["next_attempt_at"]),
    }
    table = [(name, [cell(each) for each in found]) for name, cell in columns.items()]
    terminal.print_table(table, always=("ID", "STATE", "EVENT"))


async def _pages(receiver: Remote, limit: int, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        asked = {**filters, "limit": str(min(limit - len(found), PAGE_SIZE)), "cursor": cursor}
        given = httpx.QueryParams({name: value for name, value in asked.items() if value})
        answer = await receiver.call("GET", f"/api/deliveries?{given}")
        found += answer["deliveries"]
        cursor = answer["next"]
        if not cursor:
            break
    return found


def _path(delivery: str) -> str:
    """The route of a delivery, or the end with what is wrong."""
    event, slash, hook = delivery.partition("/")
    if not (event.isdecimal() and slash and hook):
        exit_with([f"{delivery} is no delivery: name its event and hook, such as 123/hook-1."], USAGE_ERROR)
    return f"/api/deliveries/{event}/{quote(hook, safe='')}"


def _last(attempt: dict[str, Any] | None) -> str:
    if attempt is None:
        return ""
    said = attempt["error"] or ("delivered" if attempt["response_status"] is None else str(attempt["response_status"]))
    return f"{said[:LONGEST_SAID]}, {attempt['duration_ms']} ms"


@options.command(deliveries, "show", [ID, options.AS_JSON], "Print a delivery with all its attempts, as JSON.")
@report_errors
def show(delivery: str, as_json: bool) -> None:
    path = _path(delivery)
    found = call_receiver(lambda receiver: receiver.call("GET", path))
    terminal.print_json(found, nicely=not as_json)


RETRYING: list[click.Parameter] = [
    click.Argument(["chosen"], metavar="[EVENT/HOOK]...", nargs=-1),
    click.Option(["--dead"], is_flag=True, help="All that are dead."),
    HOOK,
]


@options.command(deliveries, "retry", RETRYING, "Send events to their hooks again, now.")
@report_errors
def retry(chosen: tuple[str, ...], dead: bool, hook: str | None) -> None:
    if bool(chosen) == dead:
        exit_with(["Name deliveries as EVENT/HOOK, or give --dead."], USAGE_ERROR)
    paths = [f"{_path(each)}/retry" for each in chosen]
    body = {"hook": hook} if dead else None

    async def order(receiver: Remote) -> int:
        if dead:
            return int((await receiver.call("POST", "/api/deliveries/retry", body))["deliveries"])
        for path in paths:
            await receiver.call("POST", path)
        return len(paths)

    terminal.print_message(f"To be sent again: {call_receiver(order)}; to a paused hook once it is resumed.")


REPLAY = """Send events again to all hooks that want them, or to one.

Each has the webhook-id that it had: an application that drops what it has had drops these too.
"""

REPLAYING: list[click.Parameter] = [
    click.Option(["--from", "from_"], type=click.IntRange(1), metavar="EVENT_ID", help="From this event on."),
    click.Option(["--since"], metavar="TIME", help="Since then (ISO 8601; UTC, unless it says otherwise)."),
    click.Option(["--task"], metavar="ID", help="All that happened to this task."),
    HOOK,
]


@click.command(params=REPLAYING, help=REPLAY)
@report_errors
def replay(from_: int | None, since: str | None, task: str | None, hook: str | None) -> None:
    if sum(each is not None for each in (from_, since, task)) != 1:
        exit_with(["Give one of --from, --since and --task."], USAGE_ERROR)
    given = {"from": from_, "since": since, "task": task, "hook": hook}
    body = {name: value for name, value in given.items() if value is not None}
    answer = call_receiver(lambda receiver: receiver.call("POST", "/api/deliveries/replay", body))
    if answer["hooks"]:
        terminal.print_message(
            f"Of {answer['events']} events, those that are wanted go again to {', '.join(answer['hooks'])}."
        )
    else:
        terminal.print_message("There is no hook.")
