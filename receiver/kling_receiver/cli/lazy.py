"""A click group that imports a command's module only when the command is invoked."""

import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import click

PACKAGES = (
    "aiohttp",
    "alembic",
    "httpx_aiohttp",
    "jinja2",
    "prometheus_client",
    "sqlalchemy",
    "sqlmodel",
    "starlette",
    "uvicorn",
)
"""Packages of the extra `receiver` that the receiver imports on every system."""
INSTALL_HINT = "kling-receiver needs the extra \"receiver\". Install it with: pip install '.[receiver]'"


@dataclass(frozen=True, slots=True)
class LazyCommand:
    """Where a command is defined, and its line in the group's help, which is shown without importing the module."""

    module: str
    attribute: str
    summary: str


class LazyGroup(click.Group):
    """A group of commands that are imported when invoked."""

    def __init__(
        self, *args: Any, lazy_commands: Mapping[str, LazyCommand], examples: Sequence[str] = (), **kwargs: Any
    ) -> None:
        """`lazy_commands`: by name, in the order of the help. `examples`: lines at its end."""
        super().__init__(*args, **kwargs)
        self.lazy_commands, self.examples = lazy_commands, tuple(examples)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run a command. An output that cannot be written is a message, no traceback."""
        try:
            return super().main(*args, **kwargs)
        except (OSError, UnicodeEncodeError) as error:
            from kling_callback.cli import terminal  # here: the help needs none of it

            sys.exit(terminal.report_bad_stream(error))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(self.lazy_commands)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None if there is none of this name. Exits with 2 if the extra is not installed."""
        if cmd_name not in self.lazy_commands:
            return None
        lazy = self.lazy_commands[cmd_name]
        if not all(map(_is_installed, PACKAGES)):
            click.echo(INSTALL_HINT, err=True)
            ctx.exit(2)
        with _without_collector():
            from kling_callback.cli import terminal
            from kling_callback.environment import certificate_problems

        terminal.use_utf8()
        if problems := certificate_problems():  # some packages use the variables while they are imported
            for problem in problems:
                terminal.print_message(f"{ctx.find_root().info_name}: {problem}")
            ctx.exit(2)
        with _without_collector():
            command: click.Command = getattr(import_module(lazy.module), lazy.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from their summaries."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, lazy.summary) for name, lazy in self.lazy_commands.items()])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, as `usage.Command` does, whose import takes longer than the help."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


@contextmanager
def _without_collector() -> Iterator[None]:
    """For imports: they make many objects and little garbage, and a fifth of their time is the collector's."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ImportError:
        return False
