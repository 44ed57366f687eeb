"""Hooks from the operator's own files: KLING_HOOK_URL, and the TOML file of KLING_HOOKS_FILE.

What they say is what there is: at each start hooks are added, changed and removed by it.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kling_receiver.hooks.config import DEFAULT_HOOK, HookConfig, InvalidHook, parse_hook
from kling_receiver.net.guard import Allowlist


def load_hooks(path: Path, allowed: Allowlist, variables: Mapping[str, str | None]) -> list[HookConfig]:
    """The hooks of a file: a table `[hooks.NAME]` each. Raises BadHook naming every problem.

    `variables`: those of the environment, by their names in small letters.
    """
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidHook([f"{path} cannot be read: {error.strerror}."]) from None
    except (ValueError, RecursionError) as error:  # of TOML, and of UTF-8
        raise InvalidHook([f"{path} is no TOML: {error}."]) from None
    tables = content.get("hooks", {})
    if set(content) - {"hooks"} or not isinstance(tables, dict):
        raise InvalidHook([f"{path}: write a table [hooks.NAME] for each hook, and nothing else."])
    hooks, problems = [], []
    for name, table in tables.items():
        try:
            hooks.append(_parse_table(name, table, allowed, variables))
        except InvalidHook as error:
            problems += [f"{path}: hooks.{name}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidHook(problems)
    return hooks


def _parse_table(name: str, table: Any, allowed: Allowlist, variables: Mapping[str, str | None]) -> HookConfig:
    if not isinstance(table, dict):
        raise InvalidHook(["this is no table."])
    if not name:
        raise InvalidHook(["it has no name."])
    given = {**table, "name": name}
    variable = given.pop("secret_env", None)
    if variable is not None:
        given["secret"] = (variables.get(str(variable).lower()) or "").strip()
        if not given["secret"]:
            raise InvalidHook([f"secret_env: the environment has no {variable}."])
    hook = parse_hook(given, allowed)
    if hook.is_signed and not hook.secret:
        raise InvalidHook(["secret_env, or secret, is needed: what is POSTed is signed. The first names a variable."])
    return hook


def default_hook(address: str, secret: str) -> HookConfig:
    """The hook that KLING_HOOK_URL and KLING_HOOK_SECRET are."""
    return HookConfig(name=DEFAULT_HOOK, address=address, secret=secret)
