"""The commands `kling-receiver hooks ...`: where events go."""

import sys
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import click

from kling_callback.cli import options, terminal
from kling_callback.receiver_api import ReceiverApi as Remote
from kling_receiver.cli.base import FAILED, USAGE_ERROR, exit_with, load_settings, report_errors
from kling_receiver.cli.connect import call_receiver, change_database
from kling_receiver.hooks import records as hook_records
from kling_receiver.hooks.config import EVENT_STATUSES, WEB_SCHEMES, HookConfig, InvalidHook, parse_hook
from kling_receiver.settings import AdminSettings
from kling_receiver.sinks import scheme_of
from kling_receiver.states import STATUSES
from kling_receiver.store.transaction import Transaction

LONGEST_CELL = 60
"""Letters."""
NAME = click.Argument(["name"], metavar="NAME")


@click.group()
def hooks() -> None:
    """Where events go, and how they fare there.

    Talks to the running receiver; opens its database when none runs.
    """


class Steps(click.ParamType[list[float]]):
    """Seconds, separated by commas."""

    name = "SECONDS,..."

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            return [float(each) for each in str(value).split(",") if each.strip()]
        except ValueError:
            self.fail(f"{value!r} is no list of seconds, such as 5,30,120.", param, ctx)


class Secret(click.ParamType[str]):
    """A secret; for `-`, a line of stdin: other users of the machine see what is typed as an argument."""

    name = "SECRET"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value != "-":
            return str(value)
        line = sys.stdin.readline().strip()
        return line or self.fail("no secret came on stdin.", param, ctx)


ADDING: list[click.Parameter] = [
    click.Argument(["address"], metavar="ADDRESS"),
    click.Option(["--name"], default="", help="Small letters, digits, - and _; else one is made."),
    click.Option(
        ["--event", "events"],
        multiple=True,
        type=click.Choice(list(EVENT_STATUSES)),
        help="Only these; repeatable.",
    ),
    click.Option(["--family", "families"], multiple=True, help="Such as videos/text2video; repeatable."),
    click.Option(["--status", "statuses"], multiple=True, type=click.Choice(STATUSES), help="Repeatable."),
    click.Option(["--tag", "tags"], multiple=True, help="Of tasks with any of these; repeatable."),
    click.Option(
        ["--secret"],
        type=Secret(),
        default="",
        help="Signs (whsec_...; -: a line of stdin, so that no list of processes shows it); "
        "else one is made and printed.",
    ),
    click.Option(["--retry-schedule"], type=Steps(), help="Waits between attempts (5,30,120,900,3600,...)."),
    click.Option(["--concurrency"], type=click.IntRange(1, 256), help="Attempts at once."),
    click.Option(["--rate-limit"], type=float, help="Events a second, at most."),
    click.Option(["--timeout"], type=float, help="Seconds for one attempt."),
    options.AS_JSON,
]


@options.command(
    hooks,
    "add",
    ADDING,
    "Send events to an address from now on.\n\n"
    "ADDRESS is https://HOST/PATH, command:PROGRAM ARGUMENT (an argument list, no shell), nats://HOST/SUBJECT, "
    "redis://HOST/STREAM, or that of a sink of your own.",
)
@report_errors
def add(as_json: bool, **given: Any) -> None:
    listed: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
    wanted = {name: value for name, value in listed.items() if value not in (None, "", [])}
    if scheme_of(str(wanted.get("address", ""))) in WEB_SCHEMES:
        answer = call_receiver(lambda receiver: receiver.call("POST", "/api/hooks", wanted))
        name, secret = answer["hook"]["name"], None if "secret" in wanted else answer["secret"]
    else:
        name, secret = _add_here(wanted), None
    if as_json:
        return terminal.print_json({"name": name, "secret": secret})
    terminal.print_message(f"Events go there from now on. Try it with: kling-receiver hooks test {name}")
    if secret:
        terminal.print_message("The secret that signs what is sent, shown this once:")
        terminal.print_data(secret)
    return None


def _add_here(wanted: dict[str, Any]) -> str:
    """Add what must not come over the network."""
    settings = load_settings(AdminSettings)
    try:
        new = parse_hook(wanted, settings.hook_hosts)
    except InvalidHook as error:
        exit_with(error.problems, USAGE_ERROR)
    name, problem = call_receiver(lambda receiver: _added(receiver, settings, new), settings)
    if problem:
        exit_with([problem], FAILED)
    return name


async def _added(receiver: Remote, settings: AdminSettings, new: HookConfig) -> tuple[str, str]:
    """The name of the hook, and what is wrong if it could not be added to this receiver's database."""
    there = await receiver.call("GET", "/api/hooks")
    if there.get("kept_in_file"):
        return "", "The hooks are kept in KLING_HOOKS_FILE. Change the file, and start the receiver anew."

    def change(tx: Transaction) -> tuple[str, str]:
        if tx.database.identity(tx.connection) != there.get("database"):
            return "", ANOTHER
        row = hook_records.add(tx, new)
        return (str(row["name"]), "") if row else ("", f"There is a hook {new.name}. Choose another name.")

    return change_database(settings, change)


ANOTHER = (
    "The receiver that runs has another database than this command. Set KLING_DATA_DIR or KLING_DATABASE_URL "
    "as it has them, and call this on its machine."
)


@options.command(hooks, "list", [options.AS_JSON], "List hooks, and how they fare.")
@report_errors
def list_hooks(as_json: bool) -> None:
    found = call_receiver(lambda receiver: receiver.call("GET", "/api/hooks"))["hooks"]
    if as_json:
        for hook in found:
            terminal.print_json(hook)
        return
    _show(found)


def _show(found: Sequence[dict[str, Any]]) -> None:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "NAME": lambda hook: hook["name"],
        "STATE": _state,
        "ADDRESS": lambda hook: _cut(hook["address"]),
        "WANTS": _wants,
        "BEHIND": lambda hook: str(hook["behind"] or "") if hook["state"] != "active" else "",
        "PENDING": lambda hook: str(hook["pending"] or ""),
        "DEAD": lambda hook: str(hook["dead"] or ""),
        "WHY": lambda hook: _cut(hook["paused_because"] or ""),
    }
    table = [(name, [cell(hook) for hook in found]) for name, cell in columns.items()]
    terminal.print_table(table, always=("NAME", "STATE", "ADDRESS"))


def _cut(text: str) -> str:
    """What a table has room for; `show` has all."""
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 1]}…"


def _wants(hook: dict[str, Any]) -> str:
    kinds = ("events", "families", "statuses", "tags")
    return "; ".join(", ".join(hook[kind]) for kind in kinds if hook[kind]) or "all"


def _state(hook: dict[str, Any]) -> str:
    if hook["state"] == "failing":
        return f"failing since {terminal.format_minute(hook['failing_since'])}"
    return str(hook["state"])


@options.command(hooks, "show", [NAME, options.AS_JSON], "Print all that is known of a hook, as JSON; not its secret.")
@report_errors
def show(name: str, as_json: bool) -> None:
    hook = call_receiver(lambda receiver: receiver.call("GET", _path(name)))
    terminal.print_json(hook, nicely=not as_json)


@options.command(hooks, "test", [NAME, options.AS_JSON], "Send a signed test event, and show the answer.")
@report_errors
def test(name: str, as_json: bool) -> None:
    answer = call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/test"))
    if as_json:
        terminal.print_json(answer)
    else:
        status = "" if answer["response_status"] is None else f" ({answer['response_status']})"
        terminal.print_message(
            f"{'Delivered' if answer['delivered'] else 'Not delivered'}{status} after {answer['duration_ms']} ms."
        )
        for said in filter(None, (answer["error"], answer["response_body"])):
            terminal.print_data(said)
    if not answer["delivered"]:
        sys.exit(FAILED)


def _order(name: str, said: str, summary: str) -> None:
    @options.command(hooks, name, [NAME], summary)
    @report_errors
    def order(**given: str) -> None:
        path = f"{_path(given['name'])}/{name}"
        hook = call_receiver(lambda receiver: receiver.call("POST", path))
        terminal.print_message(said.format(**hook))


_order("pause", "{name} is paused; its events are kept.", "Send nothing to a hook; its events are kept.")
_order("resume", "{name} goes on.", "Go on with a paused or failing hook: all that was kept for it is sent now.")

ROTATING: list[click.Parameter] = [
    NAME,
    click.Option(["--secret"], type=Secret(), default="", help="The new one (-: a line of stdin); else one is made."),
    click.Option(
        ["--overlap"],
        type=click.FloatRange(0, 30 * 86_400),
        default=86_400,
        show_default=True,
        help="Seconds for which the old one signs too.",
    ),
]


@options.command(hooks, "rotate", ROTATING, "Give a hook a new secret, and print it.")
@report_errors
def rotate(name: str, secret: str, overlap: float) -> None:
    body = {"secret": secret, "overlap": overlap}
    answer = call_receiver(lambda receiver: receiver.call("POST", f"{_path(name)}/rotate", body))
    terminal.print_message(f"{name} has a new secret; the old one signs too for {overlap:g} seconds.")
    if not secret:
        terminal.print_data(answer["secret"])


@options.command(hooks, "remove", [NAME], "Forget a hook, and what it is still owed.")
@report_errors
def remove(name: str) -> None:
    call_receiver(lambda receiver: receiver.call("DELETE", _path(name)))
    terminal.print_message(f"{name} is removed.")


def _path(name: str) -> str:
    return f"/api/hooks/{quote(name, safe='')}"
