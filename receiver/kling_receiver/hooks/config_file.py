"""Read the hooks that settings declare: KLING_HOOK_URL, and the TOML file of KLING_HOOKS_FILE.

Both are authoritative: at each start `sync` adds, updates and removes hooks accordingly.
"""

import errno
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kling_receiver.hooks.config import DEFAULT_HOOK, HookConfig, InvalidHook, parse_hook
from kling_receiver.net.guard import Allowlist


def read_tables(path: Path) -> dict[str, Any]:
    """The tables of a hooks file by the names of their hooks, unchecked. Raises InvalidHook."""
    try:
        if path.is_fifo():  # reading it could wait for ever, and it is read twice
            raise OSError(errno.EINVAL, "it is a pipe")
        content = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise InvalidHook([f"{path} cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError:
        raise InvalidHook([f"{path} is not valid TOML: it is not UTF-8 text. Save it as UTF-8."]) from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError; deep nesting
        raise InvalidHook([f"{path} is not valid TOML: {error}."]) from None
    tables = content.get("hooks", {})
    if set(content) - {"hooks"} or not isinstance(tables, dict):
        raise InvalidHook([f"{path} has other keys than hooks. Write a table [hooks.NAME] for each hook."])
    return tables


def load_hooks(path: Path, allowed: Allowlist, variables: Mapping[str, str | None]) -> list[HookConfig]:
    """Read a hooks file: one table `[hooks.NAME]` for each hook. Raises InvalidHook naming every problem.

    `variables`: those of the environment and `.env`, by their names in lower case.
    """
    configs, problems = [], []
    for name, table in read_tables(path).items():
        try:
            configs.append(_parse_table(name, table, allowed, variables))
        except InvalidHook as error:
            problems += [f"{path}: hooks.{name}: {problem}" for problem in error.problems]
    if problems:
        raise InvalidHook(problems)
    return configs


def _parse_table(name: str, table: Any, allowed: Allowlist, variables: Mapping[str, str | None]) -> HookConfig:
    if not isinstance(table, dict):
        raise InvalidHook(["this is not a table. Write [hooks.NAME]."])
    if not name:
        raise InvalidHook(["the hook has no name. Write [hooks.NAME]."])
    document = {**table, "name": name}
    variable = document.pop("secret_env", None)
    if variable is not None:
        document["secret"] = (variables.get(str(variable).lower()) or "").strip()
        if not document["secret"]:
            raise InvalidHook([f"secret_env: {variable} is not set in the environment. Set it."])
    config = parse_hook(document, allowed)
    if config.is_signed and not config.secret:
        raise InvalidHook(["a web address needs a secret. Set secret_env to the name of a variable, or set secret."])
    return config


def default_hook(address: str, secret: str) -> HookConfig:
    """The hook of KLING_HOOK_URL and KLING_HOOK_SECRET."""
    return HookConfig(name=DEFAULT_HOOK, address=address, secret=secret)
