"""The commands `kling-receiver hooks ...`: add, list, test, pause, resume, rotate and remove hooks."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import quote

import click

from kling_callback.api.receiver import ReceiverApi
from kling_callback.cli import options, terminal, usage
from kling_callback.errors import ParameterError
from kling_callback.protocol.signing import task_hook_secrets
from kling_receiver.access import LOCAL_COMMAND
from kling_receiver.cli.answers import AddedHook, HookList, HookName, NewSecret, TestedHook, checked
from kling_receiver.cli.base import FAILED, exit_with, load_settings, report_errors
from kling_receiver.cli.connect import call_receiver, change_database
from kling_receiver.hooks.config import EVENT_STATUSES, HookConfig, HookFormat, InvalidHook, parse_hook
from kling_receiver.net.guard import Allowlist
from kling_receiver.settings import TO_ADMINISTER, ReceiverSettings
from kling_receiver.sinks import scheme_of
from kling_receiver.states import STATUSES

if TYPE_CHECKING:
    from kling_receiver.store.transaction import Transaction

MAX_CELL_CHARS = 60
"""Characters of an address or a reason in the table; `show` prints all."""

ANY_HOST = Allowlist.parse(["0.0.0.0/0", "::/0"])
"""Which private hosts may be reached is left to the receiver, whose settings may differ."""

name_argument = usage.argument("name", metavar="NAME")


@click.group(
    cls=usage.Group,
    examples=["kling-receiver hooks list", "kling-receiver hooks add https://shop.example.com/kling --event task.done"],
)
def hooks() -> None:
    """Add, list, test, pause and remove hooks.

    A hook is an address that events are delivered to.

    The commands call the running receiver; they open its database only when no receiver runs.
    """


class SecondsList(click.ParamType[list[float]]):
    """Seconds, separated by commas."""

    name = "SECONDS,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            seconds = [float(part) for part in str(value).split(",") if part.strip()]
        except ValueError:
            seconds = [math.nan]
        if not all(map(math.isfinite, seconds)):
            self.fail(f"{value!r} is not a list of seconds, such as 5,30,120.", param, ctx)
        return seconds


class FiniteNumber(click.FloatRange):
    """A number, neither infinite nor NaN, in a range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        return number if math.isfinite(number) else self.fail(f"{value!r} is not a number.", param, ctx)


class Secret(click.ParamType[str]):
    """A secret; `-` reads a line of stdin, because other users of the machine can see arguments."""

    name = "SECRET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "-":
            return str(value)
        try:
            line = sys.stdin.readline().strip() if sys.stdin else ""
        except UnicodeDecodeError:
            line = ""
        return line or self.fail("there is no secret on stdin.", param, ctx)


@hooks.command(
    examples=[
        "kling-receiver hooks add https://shop.example.com/kling --event task.done",
        "kling-receiver hooks add 'command:/usr/local/bin/publish --album kling'",
    ]
)
@usage.argument("address", metavar="ADDRESS")
@usage.option("--name", default="", help="Small letters, digits, - and _. Without it, a name is generated.")
@usage.option(
    "--event",
    "events",
    multiple=True,
    type=click.Choice(list(EVENT_STATUSES)),
    help="Only events of this type; repeatable.",
)
@usage.option(
    "--format",
    type=click.Choice(get_args(HookFormat)),
    help="The body: our event, or what Kling itself posts, on each change of the status (without --event).",
)
@usage.option("--family", "families", multiple=True, help="Such as videos/text2video; repeatable.")
@usage.option("--status", "statuses", multiple=True, type=click.Choice(STATUSES), help="Repeatable.")
@usage.option("--tag", "tags", multiple=True, help="Only events of tasks with any of these tags; repeatable.")
@usage.option(
    "--secret",
    type=Secret(),
    default="",
    help="Signs the requests (whsec_...; -: a line of stdin, so that no list of processes shows it). "
    "Without it, a secret is generated and printed.",
)
@usage.option("--retry-schedule", type=SecondsList(), help="Seconds between attempts (5,30,120,900,3600,...).")
@usage.option("--concurrency", type=click.IntRange(1, 256), help="Attempts at once.")
@usage.option("--rate-limit", type=FiniteNumber(0, min_open=True), help="Maximum events per second.")
@usage.option("--timeout", type=FiniteNumber(0, min_open=True), help="Seconds for one attempt.")
@options.json_option
@report_errors
def add(as_json: bool, **values: Any) -> None:
    """Deliver events to an address from now on.

    ADDRESS is https://HOST/PATH, command:PROGRAM ARGUMENT (an argument list, no shell), nats://HOST/SUBJECT,
    redis://HOST/STREAM, or that of a sink plugin.
    """
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    config: dict[str, Any] = {name: value for name, value in lists.items() if value not in (None, "", [])}
    settings, hook = _check(config)
    if hook.is_signed:
        answer = checked(
            AddedHook, call_receiver(lambda receiver: receiver.call("POST", "/api/hooks", config), settings)
        )
        name, secret = answer["hook"]["name"], None if "secret" in config else answer["secret"]
    else:
        name, secret = _add_to_database(settings, hook), None
    if as_json:
        return terminal.print_json({"name": name, "secret": secret})
    terminal.print_message(f"Hook {name} receives events from now on. Test it with: kling-receiver hooks test {name}")
    if secret:
        terminal.print_message("This secret signs the requests. It is shown only once:")
        terminal.print_data(secret)
    return None


def _check(document: dict[str, Any]) -> tuple[ReceiverSettings, HookConfig]:
    """The settings, and the hook. Exits with all problems of both and of the command line."""
    with usage.problems():
        hook = _parse(document)
    return load_settings(TO_ADMINISTER), hook


def _parse(document: dict[str, Any]) -> HookConfig:
    try:
        return parse_hook(document, ANY_HOST)
    except InvalidHook as error:
        raise ParameterError(error.problems) from None


def _add_to_database(settings: ReceiverSettings, config: HookConfig) -> str:
    """Add a hook whose address the API refuses over the network. Returns its name."""
    name, problem = call_receiver(lambda receiver: _add_beside(receiver, settings, config), settings)
    if problem:
        exit_with([problem], FAILED)
    return name


async def _add_beside(receiver: ReceiverApi, settings: ReceiverSettings, config: HookConfig) -> tuple[str, str]:
    """Add a hook to this receiver's database. Returns its name, and the problem if it could not be added."""
    answer = await receiver.call("GET", "/api/hooks")
    if answer.get("kept_in_file"):
        return "", "The hooks are kept in KLING_HOOKS_FILE. Change the file and restart the receiver."

    def change(tx: "Transaction") -> tuple[str, str]:
        from kling_receiver.access import audit
        from kling_receiver.hooks import records as hook_records

        if tx.database.identity(tx.connection) != answer.get("database"):
            return "", OTHER_DATABASE
        row = hook_records.add(tx, config)
        if row:
            audit.record(tx, LOCAL_COMMAND, "hooks add", row["name"], detail=f"a {scheme_of(config.address)} hook")
        return (row["name"], "") if row else ("", f"There is a hook {config.name} already. Set another name.")

    return change_database(settings, change)


OTHER_DATABASE = (
    "The running receiver has another database than this command. Set KLING_DATA_DIR or KLING_DATABASE_URL as for "
    "the receiver, and run this command on its machine."
)


@hooks.command("list", examples=["kling-receiver hooks list"])
@options.json_option
@report_errors
def list_hooks(as_json: bool) -> None:
    """List hooks with their state."""
    rows = checked(HookList, call_receiver(lambda receiver: receiver.call("GET", "/api/hooks")))["hooks"]
    if as_json:
        for row in rows:
            terminal.print_json(row)
        return
    _print_table(rows)


def _print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "NAME": lambda row: row["name"],
        "STATE": _state,
        "ADDRESS": lambda row: _shorten(row["address"]),
        "FORMAT": lambda row: "" if row["format"] == "event" else row["format"],
        "FILTER": _filter,
        "BEHIND": lambda row: str(row["behind"] or "") if row["state"] != "active" else "",
        "PENDING": lambda row: str(row["pending"] or ""),
        "DEAD": lambda row: str(row["dead"] or ""),
        "REASON": lambda row: _shorten(row["paused_because"] or ""),
    }
    table = [(name, [cell(row) for row in rows]) for name, cell in columns.items()]
    empty = "No hooks. Add one: kling-receiver hooks add ADDRESS --event task.done"
    terminal.print_table(table, always=("NAME", "STATE", "ADDRESS"), empty=empty)


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_CELL_CHARS else f"{text[: MAX_CELL_CHARS - 1]}…"


def _filter(row: dict[str, Any]) -> str:
    fields = ("events", "families", "statuses", "tags")
    return "; ".join(", ".join(row[field]) for field in fields if row[field]) or "all"


def _state(row: dict[str, Any]) -> str:
    if row["state"] == "failing":
        return f"failing since {terminal.format_minute(row['failing_since'])}"
    return str(row["state"])


@hooks.command(examples=["kling-receiver hooks show shop"])
@name_argument
@options.json_option
@report_errors
def show(name: str, as_json: bool) -> None:
    """Print a hook as JSON, without its secret."""
    document = call_receiver(lambda receiver: receiver.call("GET", _path(name)))
    terminal.print_json(document, pretty=not as_json)


@hooks.command(examples=["kling-receiver hooks test shop"])
@name_argument
@usage.option(
    "--event",
    type=click.Choice(list(EVENT_STATUSES)),
    help="Send an event of this type, with a complete example of a task; without it, `hook.test`.",
)
@usage.option(
    "--format", "hook_format", type=click.Choice(get_args(HookFormat)), help="The body; by default that of the hook."
)
@options.json_option
@report_errors
def test(name: str, event: str | None, hook_format: str | None, as_json: bool) -> None:
    """Send a signed test event and print the response. Exit code 1 if it is not delivered.

    It is sent once, also to a paused hook, and counts neither as a delivery nor as a failure.
    """
    body = {field: value for field, value in (("event", event), ("format", hook_format)) if value} or None
    answer = checked(TestedHook, call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/test", body)))
    if as_json:
        terminal.print_json(answer)
    else:
        status = "" if answer["response_status"] is None else f" ({answer['response_status']})"
        terminal.print_message(
            f"{'Delivered' if answer['delivered'] else 'Not delivered'}{status} after {answer['duration_ms']} ms."
        )
        for line in filter(None, (answer["error"], answer["response_body"])):
            terminal.print_data(line)
    if not answer["delivered"]:
        sys.exit(FAILED)


@hooks.command(examples=["kling-receiver hooks pause shop"])
@name_argument
@usage.option("--reason", help="Shown with the hook.")
@report_errors
def pause(name: str, reason: str | None) -> None:
    """Stop deliveries to a hook; its events are kept."""
    body = {"reason": reason} if reason else None
    hook = checked(HookName, call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/pause", body)))
    terminal.print_message(f"{hook['name']} paused. Its events are kept.")


@hooks.command(examples=["kling-receiver hooks resume shop"])
@name_argument
@report_errors
def resume(name: str) -> None:
    """Resume a paused or failing hook.

    All events that were kept for it are delivered now.
    """
    hook = checked(HookName, call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/resume")))
    terminal.print_message(f"{hook['name']} resumed.")


@hooks.command(
    examples=[
        "kling-receiver hooks rotate shop",
        "kling-receiver hooks rotate shop --overlap 3600",
    ]
)
@name_argument
@usage.option(
    "--secret",
    type=Secret(),
    default="",
    help="The new secret (-: a line of stdin). Without it, one is generated and printed.",
)
@usage.option(
    "--overlap",
    type=FiniteNumber(0, 30 * 86_400),
    default=86_400,
    show_default=True,
    help="Seconds for which the old secret signs as well.",
)
@report_errors
def rotate(name: str, secret: str, overlap: float) -> None:
    """Replace a hook's secret."""
    body = {"secret": secret, "overlap": overlap}
    answer = call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/rotate", body))
    checked(NewSecret, answer)
    terminal.print_message(f"{name} has a new secret. The old one signs as well for {overlap:g} seconds.")
    if not secret:
        terminal.print_data(answer["secret"])


@hooks.command("task-secret", examples=["kling-receiver hooks task-secret"])
def task_secret() -> None:
    """Print the secret of the hooks of single tasks.

    It signs the deliveries to them, and is derived from the newest of KLING_SIGNING_SECRETS. Those derived from the
    others sign as well: to rotate, give the recipients the new one before the old signing secret is removed.
    """
    settings = load_settings(["signing_secrets"])
    terminal.print_data(task_hook_secrets(settings.signing_secrets)[0])


@hooks.command(examples=["kling-receiver hooks remove shop"])
@name_argument
@report_errors
def remove(name: str) -> None:
    """Remove a hook with its pending and dead deliveries."""
    call_receiver(lambda receiver: receiver.call("DELETE", _path(name)))
    terminal.print_message(f"{name} removed.")


def _path(name: str) -> str:
    return f"/api/hooks/{quote(name, safe='')}"
