"""The commands `kling-receiver deliveries ...` and `replay`: list deliveries to hooks, send events again."""

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import click
import httpx

from kling_callback.api.receiver import PAGE_SIZE, ReceiverApi
from kling_callback.cli import options, terminal, usage
from kling_receiver.cli.answers import DeliveryPage, ReplayedEvents, RetriedDeliveries, checked
from kling_receiver.cli.base import report_errors
from kling_receiver.cli.connect import call_receiver

STATES = ("pending", "delivered", "dead")
"""As in `hooks.delivery_list`, which takes long to import."""
MAX_REASON_CHARS = 60
"""Characters of an error in the table; `show` prints all."""


class Delivery(click.ParamType[str]):
    """The name of a delivery, EVENT/HOOK. Its value is the delivery's route."""

    name = "EVENT/HOOK"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        event, slash, hook = str(value).partition("/")
        if not (event.isdecimal() and slash and hook):
            self.fail(f"{value} is not a delivery. Name its event and its hook, such as 123/hook-1.", param, ctx)
        return f"/api/deliveries/{event}/{quote(hook, safe='')}"


path_argument = usage.argument("path", metavar="EVENT/HOOK", type=Delivery())
hook_option = usage.option("--hook", help="Only deliveries to this hook.")


@click.group(
    cls=usage.Group,
    examples=["kling-receiver deliveries list --state dead", "kling-receiver deliveries retry --dead"],
)
def deliveries() -> None:
    """List and retry deliveries to hooks.

    A delivery is one event for one hook.

    The commands call the running receiver; they open its database only when no receiver runs.
    """


@deliveries.command(
    "list",
    examples=[
        "kling-receiver deliveries list --state dead --hook shop",
        "kling-receiver deliveries list --task order-42",
    ],
)
@hook_option
@usage.option("--state", type=click.Choice(STATES), help="dead: given up; `deliveries retry` sends them again.")
@usage.option("--task", help="Only deliveries about this task.")
@usage.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@options.json_option
@report_errors
def list_deliveries(limit: int, as_json: bool, **filters: str | None) -> None:
    """List deliveries, those of the newest events first."""
    rows = call_receiver(lambda receiver: _read_pages(receiver, limit, filters))
    if as_json:
        for row in rows:
            terminal.print_json(row)
        return
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "ID": lambda row: row["id"],
        "STATE": lambda row: row["state"],
        "EVENT": lambda row: row["type"],
        "TASK": lambda row: row["task"],
        "ATTEMPTS": lambda row: str(row["attempts"]),
        "LAST": lambda row: _format_attempt(row["last_attempt"]),
        "NEXT": lambda row: terminal.format_minute(row["next_attempt_at"]),
    }
    table = [(name, [cell(row) for row in rows]) for name, cell in columns.items()]
    terminal.print_table(table, always=("ID", "STATE", "EVENT"), empty="No deliveries.")


async def _read_pages(receiver: ReceiverApi, limit: int, filters: dict[str, str | None]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(rows) < limit:
        parameters = {**filters, "limit": str(min(limit - len(rows), PAGE_SIZE)), "cursor": cursor}
        query = httpx.QueryParams({name: value for name, value in parameters.items() if value})
        page = checked(DeliveryPage, await receiver.call("GET", f"/api/deliveries?{query}"))
        rows += page["deliveries"]
        cursor = page["next"]
        if not cursor:
            break
    return rows


def _format_attempt(attempt: dict[str, Any] | None) -> str:
    if attempt is None:
        return ""
    status = attempt["response_status"]
    outcome = attempt["error"] or ("delivered" if status is None else str(status))
    return f"{outcome[:MAX_REASON_CHARS]}, {attempt['duration_ms']} ms"


@deliveries.command(examples=["kling-receiver deliveries show 123/shop"])
@path_argument
@options.json_option
@report_errors
def show(path: str, as_json: bool) -> None:
    """Print a delivery with all its attempts, as JSON."""
    document = call_receiver(lambda receiver: receiver.call("GET", path))
    terminal.print_json(document, pretty=not as_json)


@deliveries.command(
    examples=["kling-receiver deliveries retry 123/shop 124/shop", "kling-receiver deliveries retry --dead --hook shop"]
)
@usage.argument("chosen", metavar="[EVENT/HOOK]...", nargs=-1, type=Delivery())
@usage.option("--dead", is_flag=True, help="All dead deliveries.")
@hook_option
@report_errors
def retry(chosen: tuple[str, ...], dead: bool, hook: str | None) -> None:
    """Send events to their hooks again, now."""
    problems = usage.problems()
    if bool(chosen or "chosen" in problems.refused) == dead:
        problems.refuse("Name deliveries as EVENT/HOOK, or set --dead.")
    body = {"hook": hook} if dead else None

    async def retry_all(receiver: ReceiverApi) -> int:
        if dead:
            answer = await receiver.call("POST", "/api/deliveries/retry", body)
            return int(checked(RetriedDeliveries, answer)["deliveries"])
        for path in chosen:
            await receiver.call("POST", f"{path}/retry")
        return len(chosen)

    count = call_receiver(retry_all)
    terminal.print_message(f"Deliveries to be sent again: {count}. A paused hook gets them once it is resumed.")


@click.command(
    cls=usage.Command,
    examples=["kling-receiver replay --since 2026-11-21T08:00 --hook shop", "kling-receiver replay --task order-42"],
)
@usage.option("--from", "from_", type=click.IntRange(1), metavar="EVENT_ID", help="All events from this one on.")
@usage.option("--since", metavar="TIME", help="All events since this time (ISO 8601; UTC, unless it has a zone).")
@usage.option("--task", metavar="ID", help="All events of this task.")
@hook_option
@report_errors
def replay(from_: int | None, since: str | None, task: str | None, hook: str | None) -> None:
    """Deliver past events to the hooks again.

    All hooks whose filter matches receive them, or one of them with --hook. Each event keeps its webhook-id: an
    application that drops repeats drops these too.
    """
    problems = usage.problems()
    if sum(value is not None for value in (from_, since, task)) + ("from_" in problems.refused) != 1:
        problems.refuse("Set one of --from, --since and --task.")
    values = {"from": from_, "since": since, "task": task, "hook": hook}
    body = {name: value for name, value in values.items() if value is not None}
    answer = call_receiver(lambda receiver: receiver.call("POST", "/api/deliveries/replay", body))
    checked(ReplayedEvents, answer)
    if answer["hooks"]:
        terminal.print_message(
            f"Of {answer['events']} events, those that match are delivered again to {', '.join(answer['hooks'])}."
        )
    else:
        terminal.print_message("There is no hook. Add one with: kling-receiver hooks add ADDRESS")
