"""The commands `kling-receiver token`, `tokens`, `login-link` and `audit`: who may use the API and the pages."""

import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlencode

import click

from kling_callback.api.receiver import PAGE_SIZE, ReceiverApi
from kling_callback.cli import options, terminal, usage
from kling_callback.protocol.signing import MAX_TOKEN_SECONDS, Grant, Role, api_token, sign_grant
from kling_receiver.cli.answers import AddedToken, AuditPage, TokenList, checked
from kling_receiver.cli.base import load_settings, report_errors
from kling_receiver.cli.connect import call_receiver
from kling_receiver.settings import TO_ADMINISTER, ReceiverSettings

DAY = 86_400
"""Seconds."""
TOKEN_DAYS = 365
LINK_SECONDS = 600
"""Seconds for which a login link is valid: it may end up in the log of a terminal or a service."""
TOKEN_NAME = r"[a-z0-9][a-z0-9_-]{0,62}"
"""As of hooks (`hooks.config.NAME`), which takes long to import."""


@click.command(
    cls=usage.Command,
    examples=["kling-receiver token --role read --days 30", "kling-receiver token --role client --name shop"],
)
@usage.option("--role", type=click.Choice(["admin", "client", "read"]), default="client", show_default=True)
@usage.option("--name", help="Small letters, digits, - and _. A token with a name can be listed and revoked.")
@usage.option(
    "--days",
    type=click.IntRange(1, MAX_TOKEN_SECONDS // DAY),
    show_default=f"{TOKEN_DAYS}",
    help="Days for which the token is valid.",
)
@usage.option(
    "--max-age",
    type=click.IntRange(1, MAX_TOKEN_SECONDS),
    metavar="SECONDS",
    help="Instead of --days: seconds for which the token is valid.",
)
@report_errors
def token(role: Role, name: str | None, days: int | None, max_age: int | None) -> None:
    """Print a bearer token for the receiver's API. The signing secrets sign it.

    A token without a name is valid until it expires or its signing secret is removed. With --name, the receiver knows
    the token and can revoke it (kling-receiver tokens revoke NAME). It is printed only this once.
    """
    problems = usage.problems()
    if name is not None and not re.fullmatch(TOKEN_NAME, name):
        problems.refuse(f"--name: {name!r} must be small letters, digits, - and _, 63 at most.")
    if days and max_age:
        problems.refuse("--days and --max-age cannot be combined. Set one of them.")
    settings = load_settings(TO_ADMINISTER if name else ["signing_secrets"])
    lifetime = max_age or (days or TOKEN_DAYS) * DAY
    if name is None:
        return click.echo(api_token(settings.signing_secrets, role, lifetime))
    text = api_token(settings.signing_secrets, role, lifetime, name=name, token_id=secrets.token_urlsafe(12))
    added = call_receiver(lambda receiver: receiver.call("POST", "/api/tokens", {"token": text}), settings)
    checked(AddedToken, added)
    return click.echo(text)


@click.group(cls=usage.Group, examples=["kling-receiver tokens list", "kling-receiver tokens revoke shop"])
def tokens() -> None:
    """List and revoke bearer tokens that have a name.

    The commands call the running receiver; they open its database only when no receiver runs.
    """


@tokens.command("list", examples=["kling-receiver tokens list"])
@options.json_option
@report_errors
def list_tokens(as_json: bool) -> None:
    """List the named tokens that are not revoked. The tokens themselves are not stored."""
    rows = checked(TokenList, call_receiver(lambda receiver: receiver.call("GET", "/api/tokens")))["tokens"]
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "NAME": lambda row: row["name"],
        "ROLE": lambda row: row["role"],
        "CREATED": lambda row: terminal.format_minute(row["created_at"]),
        "EXPIRES": lambda row: terminal.format_minute(row["expires_at"]),
        "LAST USED": lambda row: terminal.format_minute(row["last_used_at"]),
    }
    empty = "No token has a name. `kling-receiver token --name NAME` makes one; others are not recorded."
    _print_rows(rows, columns, as_json=as_json, empty=empty)


@tokens.command(examples=["kling-receiver tokens revoke shop"])
@usage.argument("name", metavar="NAME")
@report_errors
def revoke(name: str) -> None:
    """Revoke a token.

    It is refused at once, and its open event streams end.
    """
    call_receiver(lambda receiver: receiver.call("DELETE", f"/api/tokens/{quote(name, safe='')}"))
    terminal.print_message(f"{name} revoked.")


@click.command(cls=usage.Command, examples=["kling-receiver login-link", "kling-receiver login-link --role read"])
@usage.option("--role", type=click.Choice(["admin", "client", "read"]), default="admin", show_default=True)
@report_errors
def login_link(role: Role) -> None:
    """Print a link that opens the pages of the receiver in a browser.

    It works once and for ten minutes. The receiver need not run yet. The link begins with KLING_LINKS_URL, else with
    KLING_RECEIVER_URL; what follows works at any address of the receiver.
    """
    click.echo(new_login_link(load_settings(["signing_secrets", "receiver_url"]), role))


def new_login_link(settings: ReceiverSettings, role: Role = "admin") -> str:
    """A new link that signs one browser in."""
    grant = Grant(role, int(time.time()) + LINK_SECONDS, secrets.token_urlsafe(9))
    token = sign_grant(settings.signing_secrets, "login", grant)
    return f"{settings.links_base}/dashboard/login?link={quote(token)}"


@click.command(cls=usage.Command, examples=["kling-receiver audit --limit 20", "kling-receiver audit --json"])
@usage.option("--limit", type=click.IntRange(1), default=50, show_default=True)
@options.json_option
@report_errors
def audit(limit: int, as_json: bool) -> None:
    """List administrative actions.

    The newest first: who did what, when, and with which result. The actions of commands, of the API, and of the
    settings that define hooks.
    """
    rows = call_receiver(lambda receiver: _read_audit(receiver, limit))
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "TIME": lambda row: terminal.format_minute(row["at"]),
        "WHO": lambda row: row["actor"],
        "ACTION": lambda row: row["action"],
        "TARGET": lambda row: row["target"],
        "RESULT": lambda row: "unknown" if row["result"] is None else row["result"],
        "DETAIL": lambda row: row["detail"],
    }
    _print_rows(rows, columns, as_json=as_json, empty="No actions yet.")


async def _read_audit(receiver: ReceiverApi, limit: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(rows) < limit:
        query = urlencode({"limit": min(limit - len(rows), PAGE_SIZE), "cursor": cursor or ""})
        page = checked(AuditPage, await receiver.call("GET", f"/api/audit?{query}"))
        rows += page["entries"]
        cursor = page["next"]
        if not cursor:
            break
    return rows


def _print_rows(
    rows: Sequence[dict[str, Any]], columns: dict[str, Callable[[dict[str, Any]], str]], *, as_json: bool, empty: str
) -> None:
    if not as_json:
        table = [(name, [cell(row) for row in rows]) for name, cell in columns.items()]
        return terminal.print_table(table, always=list(columns)[:2], empty=empty)
    for row in rows:
        terminal.print_json(row)
    return None
