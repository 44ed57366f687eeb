"""The command `kling-receiver init`: a `.env` with a new signing secret, and the next three commands.

It imports no other part of the receiver, so that it also works on systems where the receiver does not run.
"""

import io
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import click
from dotenv import dotenv_values

from kling_callback.atomic_file import AtomicFile, fsync_folder, temporary_path
from kling_callback.cli import terminal, usage
from kling_callback.config.sources import exposure
from kling_callback.errors import ParameterError, SettingsError
from kling_callback.settings import ENV_FILE, ClientSettings

FAILED, USAGE_ERROR, INTERRUPTED = 1, 2, 130
SECRET, URL, KEY, BASE = "KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL", "KLING_API_KEY", "KLING_API_BASE"
EXAMPLE_URL = "https://kling.example.com"
QUESTIONS = {
    URL: f"The public address at which Kling reaches this receiver, such as {EXAMPLE_URL} (Enter: later)",
    KEY: "The key of Kling or of the gateway; it is not shown (Enter: later)",
}
STANDS_IN = {KEY: "KLING_ACCESS_KEY"}
"""What may be set instead."""
HEADER = "# Settings of Kling Callback. They include secrets: keep the file private, and out of version control.\n"
PLAIN = re.compile(r"[\w.,:/@+=~-]*", re.ASCII)
"""Values that need no quotation marks in `.env`."""


@click.command(
    cls=usage.Command,
    examples=[
        "kling-receiver init",
        "kling-receiver init --receiver-url https://kling.example.com",
    ],
)
@usage.option("--receiver-url", metavar="URL", help="The public address at which Kling reaches this receiver.")
@usage.option("--api-key", metavar="KEY", help="The key of Kling or of the gateway; - reads a line of stdin.")
@usage.option("--api-base", metavar="URL", help="The address of a gateway, before /v1/...")
def init(receiver_url: str | None, api_key: str | None, api_base: str | None) -> None:
    """Write a .env with a new secret, and print what is next.

    On a terminal it asks for what is missing; in a pipe it asks nothing. A .env that exists keeps all its lines, and
    gets what it lacks. It is written at once and whole, or not at all.
    """
    if api_key == "-":
        api_key = sys.stdin.readline().strip() if sys.stdin else ""
    given = {URL: receiver_url, KEY: api_key, BASE: api_base}
    try:
        _run({name: value.strip() for name, value in given.items() if value and value.strip()})
    except (click.Abort, KeyboardInterrupt):
        terminal.print_message(f"\nInterrupted: {ENV_FILE} is as it was.")
        sys.exit(INTERRUPTED)
    except OSError as error:
        terminal.print_message(f"kling-receiver: {ENV_FILE} cannot be written: {error.strerror or error}.")
        sys.exit(FAILED)


def _run(given: dict[str, str]) -> None:
    path = Path(ENV_FILE)
    problems = usage.problems()
    with problems:
        _check_kind(path)
    with problems:
        _check(given)  # together with what is there already
    before = path.read_bytes() if path.is_file() else b""
    present = _parse(before)
    for name, value in list(given.items()):
        if _is_set(name, present):
            with problems:
                _check_same(name, value, present)
            del given[name]
    _exit_if(problems)
    additions = {} if _is_set(SECRET, present) else {SECRET: secrets.token_urlsafe(32)}
    additions |= _answers(additions | given, present)
    if additions:
        _write(path, before, additions)
        terminal.print_message(f"{path.absolute()} has {_listed(additions)}.")
    else:
        terminal.print_message(f"{path.absolute()} is complete: nothing was changed.")
    _print_next({name for name in (URL, KEY) if name in additions or _is_set(name, present)})


def _check_kind(path: Path) -> None:
    """Raise ParameterError for what must not be replaced by a file."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        kind = "a symbolic link" if path.is_symlink() else "not a file"
        raise ParameterError([f"{ENV_FILE} is {kind}. Run this in another folder, or replace it by a file."])


def _check(additions: Mapping[str, str]) -> None:
    """Check the settings as they would be with these additions to `.env`. Raises SettingsError with all problems."""
    names = {name.removeprefix("KLING_").lower(): value for name, value in additions.items()}
    if problems := ClientSettings.problems_with(names):
        raise SettingsError(problems)


def _is_set(name: str, present: Mapping[str, str]) -> bool:
    """Whether `.env` or the environment sets this, or what stands in for it."""
    names = filter(None, (name, STANDS_IN.get(name)))
    return any(each in present or ClientSettings.origins(each) for each in names)


def _check_same(name: str, value: str, present: Mapping[str, str]) -> None:
    """Raise ParameterError for an option whose setting has another value already: nothing is overwritten."""
    if present.get(name) != value:
        where = f"{ENV_FILE} sets it" if name in present else "it, or what stands in for it, is set"
        raise ParameterError([f"{name}: {where} already. Change it there, or leave the option out."])


def _answers(given: dict[str, str], present: Mapping[str, str]) -> dict[str, str]:
    """What is given and answered, checked together. On a terminal, wrong answers are asked for again; else it exits."""
    asks = bool(sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty())
    open_ = [name for name in QUESTIONS if asks and name not in given and not _is_set(name, present)]
    answers = dict(given)
    while True:
        for name in open_:
            answer = click.prompt(QUESTIONS[name], default="", show_default=False, hide_input=name == KEY, err=True)
            answers |= {name: answer.strip()} if answer.strip() else {}
        try:
            _check(answers)
        except SettingsError as error:
            open_ = [name for name in open_ if any(each.startswith(name) for each in error.problems)]
            if not open_:
                _exit(error.problems)
            for problem in error.problems:
                terminal.print_message(problem)
            answers = {name: value for name, value in answers.items() if name not in open_}
        else:
            return answers


def _write(path: Path, before: bytes, additions: Mapping[str, str]) -> None:
    """Write `.env` with the additions at its end: whole and durable, or not at all. Raises OSError."""
    newline = "\r\n" if b"\r\n" in before else "\n"
    text = "" if before else HEADER
    text += newline if before and not before.endswith(b"\n") else ""
    text += "".join(f"{name}={_quoted(value)}{newline}" for name, value in additions.items())
    content = before + text.encode()
    assert _parse(content) == {**_parse(before), **additions}, "a value is not read as it was written"
    file = AtomicFile(temporary_path(path.absolute()), mode=0o600)
    try:
        file.write(content)
        file.flush()
        if not before and not path.exists():
            _move_to_new(file.path, path.absolute())
            return
        if path.read_bytes() != before:
            raise OSError(0, "it was changed meanwhile. Run the command again")
        _keep_owner(path, file.path)
        file.commit(path.absolute())
    finally:
        file.discard()


def _move_to_new(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another one took the name meanwhile. Raises OSError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise OSError(0, "another program made it meanwhile. Run the command again") from None
    except OSError:  # a file system without links
        temporary.replace(path)
    fsync_folder(path.parent)


def _keep_owner(path: Path, temporary: Path) -> None:
    """Let the new file belong to whom the old one does, with its permissions if those are safe for secrets."""
    if os.name == "nt":
        return
    status = path.stat()
    with suppress(OSError):  # only root may give files away
        os.chown(temporary, status.st_uid, status.st_gid)
    if exposure(path):
        terminal.print_message(f"{ENV_FILE} could be read or changed by other users; it is private now.")
    else:
        temporary.chmod(stat.S_IMODE(status.st_mode))


def _parse(content: bytes) -> dict[str, str]:
    """The settings of `.env` that have a value, by name in capitals."""
    values = dotenv_values(stream=io.StringIO(content.decode("utf-8-sig", "replace")), interpolate=False)
    return {name.upper(): value for name, value in values.items() if value and name.upper().startswith("KLING_")}


def _quoted(value: str) -> str:
    if PLAIN.fullmatch(value):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _listed(additions: Mapping[str, str]) -> str:
    names = ["a new signing secret" if name == SECRET else name for name in additions]
    return ", ".join(names[:-1]) + " and " * (len(names) > 1) + names[-1]


def _print_next(known: set[str]) -> None:
    """Print the next three commands, which may be pasted one after the other."""
    receiver, client = program("kling-receiver"), program("kling")
    image = f'{client} text-to-image "a kangaroo holding a sign" --model-name kling-v3 --output .'
    if known == {URL, KEY}:
        commands = [f"{receiver} serve &", f"sleep 5; {receiver} doctor", image]  # a start takes some seconds
    else:
        option = f" --receiver-url {EXAMPLE_URL}" if URL not in known else ""
        commands = [f"{receiver} init{option}", f"{receiver} serve &", image]
        if URL not in known:
            terminal.print_message(f"Missing: {URL}. Put your own address in the first command, or a tunnel's.")
        if KEY not in known:
            terminal.print_message(f"Missing: {KEY}. The first command asks for it on a terminal.")
            terminal.print_message("Without one, `kling-sandbox` stands in for Kling, and prints its settings.")
    terminal.print_message("Next, in this folder:")
    for command in commands:
        terminal.print_data(command)


def program(name: str) -> str:
    """How a program of this installation is called in a shell: by its name if it is found so, else by its path."""
    own = Path(sys.argv[0]).absolute().parent / name
    found = shutil.which(name)
    if not own.exists() or (found and Path(found).resolve() == own.resolve()):
        return name
    return usage.shell_line([str(own)])


def _exit_if(problems: usage.UsageProblems) -> None:
    try:
        problems.raise_all()
    except (ParameterError, SettingsError) as error:
        _exit([*error.problems, *filter(None, [error.hint])])


def _exit(problems: list[str]) -> NoReturn:
    for problem in problems:
        terminal.print_message(f"kling-receiver: {problem}")
    sys.exit(USAGE_ERROR)
