"""Commands and parameters of click that report all problems of a command line at once, with those of other checks.

click ends a command at the first problem. These collect what click refuses in `problems()`; the command adds its own
checks, and raises them all before it begins. A parameter that is refused or missing is None, or without its values.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from kling_callback.errors import ParameterError, ProblemCollector, SettingsError

ARGUMENTS = f"{__name__}.arguments"
"""The key of a command's arguments in the context's `meta`."""

Function = TypeVar("Function", bound=Callable[..., Any])


class UsageProblems(ProblemCollector):
    """The problems of one command line. `refused`: names of the parameters whose values click refused or missed.

    `has_refusals`: whether click, or `refuse`, refused anything.

    `uncertain`: names of the arguments, if any may be the value of an unknown option. What is said of these parameters
    elsewhere is dropped: it is not about the value that was meant.
    """

    def __init__(self, hint: str | None = None) -> None:
        """`hint`: how to get help, printed after what click refuses."""
        super().__init__()
        self.refused, self.uncertain = set[str](), set[str]()
        self._hint, self.has_refusals = hint, False

    def refuse(self, message: str, *names: str) -> None:
        """Add what click refuses. `names`: of the parameters that have no valid value because of it."""
        self.has_refusals = True
        with self:
            raise ParameterError([message])
        self.refused.update(names)

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if isinstance(error, ParameterError):
            unseen = self.refused | self.uncertain
            error = ParameterError([each for each in error.problems if each.partition(":")[0] not in unseen])
        return super().__exit__(kind, error, traceback)

    def raise_all(self) -> None:
        """Raise all problems as one error: a ParameterError, or a SettingsError if all are about settings."""
        try:
            super().raise_all()
        except (ParameterError, SettingsError) as error:
            error.hint = self._hint if self.has_refusals else None
            raise


def problems() -> UsageProblems:
    """The problems of the command that runs, those of its parameters included. A command must raise them."""
    context = click.get_current_context(silent=True)
    return context.obj if context and isinstance(context.obj, UsageProblems) else UsageProblems()


def command_line() -> str:
    """The command that runs, as a shell takes it: to run it again."""
    context = click.get_current_context()
    return shell_line([*context.command_path.split(), *context.meta.get(ARGUMENTS, ())])


def shell_line(arguments: Sequence[str]) -> str:
    """Arguments as one line for the shell of this system."""
    return subprocess.list2cmdline(arguments) if sys.platform == "win32" else shlex.join(arguments)


class _WithExamples(click.Command):
    """A command whose help ends with examples: lines for a shell, which are not wrapped."""

    def __init__(self, *args: Any, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.examples = tuple(examples)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the epilog, then the examples."""
        super().format_epilog(ctx, formatter)
        if self.examples:
            with formatter.section("Examples"):
                for line in "\n".join(self.examples).splitlines():
                    formatter.write(f"{'':>{formatter.current_indent}}{line}\n")


class Command(_WithExamples):
    """A command whose problems of usage are in `problems()`. `examples`: of its help."""

    allow_extra_args = True  # they are reported here

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments. What click does not know is collected and left out."""
        ctx.meta[ARGUMENTS] = tuple(args)
        found = ctx.obj = UsageProblems(f"Try '{ctx.command_path} --help' for help.")
        known, is_certain = list(args), True
        while True:
            try:
                rest = super().parse_args(ctx, list(known))
                break
            except (click.NoSuchOption, click.BadOptionUsage) as error:  # before any value is converted
                if (place := _place(known, error.option_name)) is None:
                    raise
                found.refuse(error.format_message())
                if _may_have_value(known.pop(place), known[place:]):
                    is_certain = False
                    found.uncertain.update(each.name for each in self.params if isinstance(each, click.Argument))
        if rest and is_certain:
            found.refuse(f"Got unexpected extra argument{'s' * (len(rest) > 1)} ({' '.join(rest)}).")
        return rest


class Group(_WithExamples, click.Group):
    """A group whose commands have their problems of usage in `problems()`. `examples`: of its help."""

    command_class = Command


class _Parameter(click.Parameter):
    """A parameter whose problem is collected."""

    def type_cast_value(self, ctx: click.Context, value: Any) -> Any:
        """Convert the value, or each of several; a refused one becomes None, or is left out."""
        if (self.multiple or self.nargs == -1) and value:
            return tuple(item for each in value for item in self._cast(ctx, (each,)) or ())
        return self._cast(ctx, value)

    def _cast(self, ctx: click.Context, value: Any) -> Any:
        try:
            return super().type_cast_value(ctx, value)
        except click.UsageError as error:
            self._refuse(ctx, error)
            return None

    def handle_parse_result(
        self, ctx: click.Context, opts: Mapping[str, Any], args: list[str]
    ) -> tuple[Any, list[str]]:
        """Take the value from the parsed options; a missing one is None."""
        try:
            return super().handle_parse_result(ctx, opts, args)
        except click.UsageError as error:
            self._refuse(ctx, error)
            ctx.params[str(self.name)] = None
            return None, args

    def _refuse(self, ctx: click.Context, error: click.UsageError) -> None:
        found = ctx.obj
        if not isinstance(found, UsageProblems):  # another command of click, which would not raise it
            raise error
        if self.name not in found.uncertain:
            found.refuse(error.format_message(), str(self.name))


class Option(_Parameter, click.Option):
    """An option whose problem is collected."""


class Argument(_Parameter, click.Argument):
    """A positional argument whose problem is collected."""


def option(*names: str, **attributes: Any) -> Callable[[Function], Function]:
    """As `click.option`, for an `Option`."""
    return click.option(*names, cls=Option, **attributes)


def argument(*names: str, **attributes: Any) -> Callable[[Function], Function]:
    """As `click.argument`, for an `Argument`."""
    return click.argument(*names, cls=Argument, **attributes)


def _place(arguments: list[str], name: str) -> int | None:
    """Where the option is that click refuses: the last of this name, a letter also among others; None if nowhere."""
    for place, given in reversed(list(enumerate(arguments))):
        letters = [f"-{letter}" for letter in given[1:]] if re.match("-[^-]", given) else []
        if name in (given.partition("=")[0], *letters):
            return place
    return None


def _may_have_value(unknown: str, following: list[str]) -> bool:
    """Whether the argument after an unknown option may be its value, so that no argument is certain."""
    return "=" not in unknown and bool(following) and not following[0].startswith("-")
