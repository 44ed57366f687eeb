"""Hooks from the operator's own files: KLING_HOOK_URL, and the TOML file of KLING_HOOKS_FILE.

What they say is what there is: at each start hooks are added, changed and removed by it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from receiver import hook_rows
from receiver.hooks import DEFAULT, BadHook, NewHook, read_hook
from receiver.outbound import Allowed
from receiver.transaction import Transaction

WHOSE = {"file": "KLING_HOOKS_FILE", "settings": "KLING_HOOK_URL"}


def read_hooks(path: Path, allowed: Allowed, variables: Mapping[str, str | None]) -> list[NewHook]:
    """The hooks of a file: a table `[hooks.NAME]` each. Raises BadHook naming every problem.

    `variables`: those of the environment, by their names in small letters.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadHook([f"{path} cannot be read: {error.strerror}."]) from None
    except (ValueError, RecursionError) as error:  # of TOML, and of UTF-8
        raise BadHook([f"{path} is no TOML: {error}."]) from None
    tables = content.get("hooks", {})
    if set(content) - {"hooks"} or not isinstance(tables, dict):
        raise BadHook([f"{path}: write a table [hooks.NAME] for each hook, and nothing else."])
    hooks, problems = [], []
    for name, table in tables.items():
        try:
            hooks.append(_hook(name, table, allowed, variables))
        except BadHook as error:
            problems += [f"{path}: hooks.{name}: {problem}" for problem in error.problems]
    if problems:
        raise BadHook(problems)
    return hooks


def _hook(name: str, table: Any, allowed: Allowed, variables: Mapping[str, str | None]) -> NewHook:
    if not isinstance(table, dict):
        raise BadHook(["this is no table."])
    if not name:
        raise BadHook(["it has no name."])
    given = {**table, "name": name}
    variable = given.pop("secret_env", None)
    if variable is not None:
        given["secret"] = (variables.get(str(variable).lower()) or "").strip()
        if not given["secret"]:
            raise BadHook([f"secret_env: the environment has no {variable}."])
    hook = read_hook(given, allowed)
    if hook.is_signed and not hook.secret:
        raise BadHook(
            ["secret_env, or secret, is needed: what is POSTed is signed. The first names a variable."]
        )
    return hook


def shortest(address: str, secret: str) -> NewHook:
    """The hook that KLING_HOOK_URL and KLING_HOOK_SECRET are."""
    return NewHook(name=DEFAULT, address=address, secret=secret)


def release(tx: Transaction) -> None:
    """Without a file nothing is said of hooks: those that came from one stay, as if commands had added them."""
    for row in hook_rows.hooks(tx.connection):
        if row["source"] == "file":
            name = row["name"]
            hook_rows.change(tx, name, {"source": "added"})
            tx.say(
                f"hook {name} came from KLING_HOOKS_FILE, which is not set now; it stays until it is removed"
            )


def align(tx: Transaction, source: str, wanted: list[NewHook], *, also: str = "") -> None:
    """Let the hooks of this source (and those that came by the source `also`) be the ones that are wanted."""
    there = {row["name"]: row for row in hook_rows.hooks(tx.connection)}
    for new in wanted:
        if known := there.get(new.name):
            secrets = hook_rows.succeeded(known["secrets"], new.secret, now=tx.now, overlap=hook_rows.OVERLAP)
            hook_rows.change(tx, new.name, {**new.values(), "source": source, "secrets": secrets})
        else:
            hook_rows.add(tx, new, source=source)
    for name in there.keys() - {new.name for new in wanted}:
        if there[name]["source"] in (source, also):
            hook_rows.remove(tx, name)
            tx.say(f"hook {name} is removed: {WHOSE[source]} names it no more")
