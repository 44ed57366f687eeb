"""Hooks from the operator's own files: KLING_HOOK_URL, and the TOML file of KLING_HOOKS_FILE.

What they say is what there is: at each start hooks are added, changed and removed by it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kling_receiver.hooks.config import DEFAULT, BadHook, NewHook, read_hook
from kling_receiver.net.guard import Allowed


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
