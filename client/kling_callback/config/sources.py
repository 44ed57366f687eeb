"""Where each setting comes from: a `.env` in the current folder must not decide where a secret is sent.

The folder may belong to another project, or to somebody else.
"""

import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from dotenv import dotenv_values
from dotenv.parser import parse_stream

Source = Literal["argument", "environment", "file"]
NAMES: dict[Source, str] = {"argument": "an argument of the program", "environment": "the environment"}

EXPANSION = re.compile(r"\$\{[^}]*\}")
"""What inserts another variable, which may be one of the environment, in any quotation marks."""

NAME = re.compile(r"\s*(?:export\s+)?(KLING_\w+)", re.IGNORECASE)
"""The begin of a line of `.env` that is for this program."""


class Sources:
    """The sources of all variables. `environment`, `file`: their variables, with names in small letters."""

    def __init__(
        self,
        arguments: Mapping[str, Any],
        environment: Mapping[str, str | None],
        file: Mapping[str, str | None],
        path: Path,
    ) -> None:
        """`arguments`: settings that the program passes, without the prefix. `path`: of the `.env` file."""
        self._values: dict[Source, dict[str, str]] = {
            "argument": {f"kling_{name}": _text(value) for name, value in arguments.items()},
            "environment": {name: _text(value) for name, value in environment.items()},
            "file": {name: _text(value) for name, value in file.items()},
        }
        self.path = _absolute(path)

    def used(self, variable: str) -> tuple[Source | None, str]:
        """The source that decides on a variable, and its text there; None and "" if none sets it."""
        name = variable.lower()
        source = next((each for each, values in self._values.items() if values.get(name)), None)
        return source, self._values[source][name] if source else ""

    def place(self, source: Source | None) -> str:
        """What people call a source: of a file, its path; of none, the default."""
        return str(self.path) if source == "file" else source or "default"

    def of(self, variable: str) -> set[Source]:
        """The sources that set a variable to its value in use; none if it has none."""
        name = variable.lower()
        values = {source: own[name] for source, own in self._values.items() if name in own}
        used = next(iter(values.values()), "")
        return {source for source, value in values.items() if value == used} if used else set()

    def problems(self, pairs: Mapping[str, Iterable[str]]) -> list[str]:
        """The addresses that one of `.env` and the environment sets, while the other one sets a secret sent there.

        `pairs`: for each variable with an address, those with the secrets. An address that the program passes as an
        argument is its author's decision, and goes with any secret.
        """
        problems = []
        for address, secrets in pairs.items():
            own = self.of(address)
            foreign = {secret: self.of(secret) for secret in secrets if own and _are_apart(own, self.of(secret))}
            if foreign:
                where = self._place(next(iter(foreign.values())))
                problems.append(
                    f"{address} comes from {self._place(own)}, but {' and '.join(foreign)} from {where}. A .env file "
                    "of another project must not decide where a secret is used. Set both in the environment, or both "
                    f"in {self.path}."
                )
        return problems

    def _place(self, sources: set[Source]) -> str:
        return next((text for source, text in NAMES.items() if source in sources), str(self.path))


def _are_apart(address: set[Source], secret: set[Source]) -> bool:
    if not secret or address & secret or address == {"argument"}:
        return False
    return "file" in address | secret


def _absolute(path: Path) -> Path:
    """The absolute path; as it is in a working folder that no longer exists."""
    try:
        return path.absolute()
    except OSError:
        return path


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str("" if value is None else value).strip()


def expansions(path: Path) -> list[str]:
    """The problems of settings in `.env` that insert a variable: they could send any variable of the environment away.

    Raises OSError, UnicodeDecodeError.
    """
    # Parsed as the settings are: a value may have several lines, and a name may be in quotation marks.
    values = dotenv_values(path, interpolate=False, encoding="utf-8-sig") if path.is_file() else {}
    inserting = [name for name, value in values.items() if EXPANSION.search(value or "")]
    names = [name for name in inserting if name.lower().startswith("kling_")]
    return [f"{name}: {path} inserts another variable by ${{...}}. Write the value itself." for name in names]


def unreadable_lines(path: Path) -> list[str]:
    """The problems of lines of `.env` whose settings would be ignored: a quote that does not end, for example.

    Other lines are another program's. Raises OSError.
    """
    bad = [binding.original for binding in parse_stream(io.StringIO(_read(path))) if binding.error]
    return [
        f"{match[1]}: line {original.line} of {path} cannot be read. Write NAME=value; a value that begins with a "
        "quote ends with one."
        for original in bad
        if (match := NAME.match(original.string))
    ]


def _read(path: Path) -> str:
    return path.read_text("utf-8-sig", errors="replace") if path.is_file() else ""


def exposure(path: Path) -> str:
    """Why a file with secrets is not safe: others can read or change it, or it is theirs; "" if it is safe.

    Windows has no such bits.
    """
    if os.name == "nt":
        return ""
    try:
        status = path.stat()
    except OSError:
        return ""
    user = os.getuid()
    if status.st_uid not in (user, 0):
        return f"{_absolute(path)} belongs to another user (uid {status.st_uid}), who may change it and read it."
    # Of root's file, the program's user is one of the group that may read it.
    if status.st_mode & (0o066 if status.st_uid == user else 0o026):
        return f"{_absolute(path)} contains secrets, and other users can read or change it. Run: chmod 600 {path}"
    return ""
