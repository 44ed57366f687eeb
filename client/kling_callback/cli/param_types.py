"""The types of command-line parameters: each converts the text of an argument, or refuses it."""

import json
import math
import shlex
import shutil
import sys
from collections.abc import Callable
from typing import Any

import click

from kling_callback.cli.output import Destination
from kling_callback.protocol.events import MAX_ID_DIGITS
from kling_callback.protocol.ids import check_any_id
from kling_callback.protocol.urls import normalize_url

MAX_FILE_BYTES = 32_000_000
"""Bytes of a `--body @FILE`: room for two images of 10 MB in base64."""


class Json(click.ParamType[Any]):
    """JSON as an argument, in a file as @NAME, or on stdin as @-."""

    name = "JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            text = _read(value[1:]) if value.startswith("@") else value
            return json.loads(text.removeprefix("\ufeff"), parse_constant=_reject_constant)
        except OSError as error:
            self.fail(f"{value} cannot be read: {error.strerror}.", param, ctx)
        except (ValueError, RecursionError) as error:
            self.fail(f"not valid JSON: {error}.", param, ctx)


class JsonOrText(Json):
    """JSON, also in a file as @NAME; a value that is not JSON is text."""

    name = "VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str) or value.startswith("@"):
            return super().convert(value, param, ctx)
        try:
            return json.loads(value, parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return value


class JsonAssignment(Json):
    """NAME=JSON; a value that is not JSON is text."""

    name = "NAME=JSON"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=JSON.", param, ctx)
        try:
            return name, json.loads(text, parse_constant=_reject_constant)
        except (ValueError, RecursionError):
            return name, text


class NumberParam(click.ParamType[Any]):
    """A number of this type. Other text is left as it is: the table of jobs reports it beside the other problems."""

    name = "NUMBER"

    def __init__(self, number: Callable[[str], Any]) -> None:
        self._number = number

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._number(value)
        except ValueError:
            return value


class OutputParam(click.ParamType[Destination]):
    """A folder, or a file whose name has a suffix."""

    name = "DIR|FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Destination:
        if not value:
            self.fail("is empty. Name a folder, such as `.`, or a file.", param, ctx)
        return Destination.parse(value)


class Timeout(click.ParamType[float]):
    """Seconds, more than 0."""

    name = "SECONDS"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            seconds = float(value)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            self.fail(f"{value!r} is not a number of seconds above 0.", param, ctx)
        return seconds


class UrlParam(click.ParamType[str]):
    """An http or https URL to POST to."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        path, _, query = value.partition("?")
        try:
            normalize_url(path)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)
        if not query.isprintable():
            self.fail(f"{value!r} contains characters that a URL cannot have.", param, ctx)
        return str(value)


class TaskId(click.ParamType[str]):
    """Any id of a task. It is one part of a URL's path."""

    name = "ID"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            return check_any_id(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class CommandLine(click.ParamType[tuple[str, ...]]):
    """A command with its arguments, split as a shell would split them; no shell runs it."""

    name = "CMD"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:
        try:
            arguments = tuple(_split(value))
        except ValueError as error:
            self.fail(f"{value!r} cannot be split into arguments: {error}.", param, ctx)
        program = shutil.which(arguments[0]) if arguments else None
        if program is None:
            self.fail(f"{arguments[0] if arguments else ''!r} is not a command that can be run here.", param, ctx)
        return (program, *arguments[1:]) if sys.platform == "win32" else arguments  # there, `x` may be x.cmd


class EventPosition(click.ParamType[int]):
    """An event's id; `latest` is 0."""

    name = "ID|latest"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "latest":
            return 0
        if not (text.isascii() and text.isdigit() and len(text) <= MAX_ID_DIGITS and int(text)):
            self.fail(f"{value!r} is not an event's id (from 1), and not `latest`.", param, ctx)
        return int(text)


def _split(line: str) -> list[str]:
    """The arguments of a line. On Windows a backslash is part of a path. Raises ValueError."""
    parser = shlex.shlex(line, posix=True, punctuation_chars=False)
    parser.whitespace_split, parser.commenters = True, ""
    if sys.platform == "win32":
        parser.escape = ""
    return list(parser)


def _read(name: str) -> str:
    """The text of a file, or of stdin if `name` is `-`. Raises OSError, ValueError."""
    if name == "-" and sys.stdin is None:
        raise ValueError("standard input is closed")
    with click.open_file(name, "rb") as file:
        content: bytes = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it has more than {MAX_FILE_BYTES:,} bytes")
    if not content.strip():
        raise ValueError("it is empty")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:4]:
        raise ValueError("it is UTF-16 text. Save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8 text. Save it as UTF-8") from None


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not allowed")
