"""The command `kling-sandbox`."""

import math
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import click

from kling_callback.cli import usage
from kling_callback.errors import ParameterError
from kling_sandbox.misbehaviour import SWITCHES
from kling_sandbox.sandbox import Sandbox

WIDTH = max(map(len, SWITCHES))
TABLE = "\n".join(f"{name:{WIDTH}} {meaning}" for name, meaning in SWITCHES.items())
DEFAULT_KEYS = ("sandbox-key", "sandbox-access", "sandbox-secret-sandbox-secret-sandbox")
"""API key, access key and secret key of a sandbox that is started without any."""

SETTINGS = """Settings for client and receiver on this machine:
  export KLING_API_BASE={url} KLING_API_KEY={key}
  export KLING_PRIVATE_RESULT_HOSTS=127.0.0.1 KLING_PRIVATE_HOOK_HOSTS=127.0.0.1
  export KLING_PRIVATE_CLIENT_HOOK_HOSTS=127.0.0.1
  export KLING_RECEIVER_URL=http://127.0.0.1:8000
  export KLING_SIGNING_SECRETS={secret}"""


class Seconds(click.FloatRange):
    """A number of seconds that a program can wait."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        seconds: float = super().convert(value, param, ctx)
        return self.fail(f"{value!r} is not a number.", param, ctx) if math.isnan(seconds) else seconds


SECONDS, BYTES = Seconds(0, 1e9), click.IntRange(0, 1 << 30)


class Command(usage.Command):
    """A command whose help begins with the warning that this is not Kling, and ends with the switches."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command. An output that cannot be written is a message, no traceback."""
        try:
            return super().main(*args, **kwargs)
        except (OSError, UnicodeEncodeError) as error:
            from kling_callback.cli import terminal  # here: the sandbox starts faster without

            sys.exit(terminal.report_bad_stream(error))

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help."""
        formatter.write("This is a sandbox (not Kling): Kling's protocol on loopback, without generating anything.\n\n")
        super().format_help(context, formatter)
        formatter.write("\nMisbehaviours, also for one task by a mark in its prompt: [sandbox: NAME, NAME]\n\n")
        formatter.write("".join(f"  {line}\n" for line in TABLE.splitlines()))


def write_ready_file(path: Path, content: str) -> None:
    """Write a file that never exists half written."""
    draft = path.with_name(path.name + ".part")
    draft.write_text(content)
    draft.replace(path)


def list_switches(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Print the switches if `list` is among the names."""
    if "list" in names:
        click.echo(TABLE)
        context.exit()
    return names


@click.command(cls=Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("kling-callback"), prog_name="kling-sandbox")
@usage.option("--host", default="127.0.0.1", show_default=True)
@usage.option("--port", default=0, type=click.IntRange(0, 65535), help="Default: a free one.")
@usage.option("--base-path", default="", help="Serve Kling's routes below a prefix, as relays do: /kling")
@usage.option("--key", "keys", multiple=True, help=f"An API key. Default, without any key: {DEFAULT_KEYS[0]}")
@usage.option("--access-key", default="", help=f"Default, without any key: {DEFAULT_KEYS[1]}")
@usage.option("--secret-key", default="", help=f"Default, without any key: {DEFAULT_KEYS[2]}")
@usage.option("--seed", type=int, help="Makes ids and the colours of pictures repeatable.")
@usage.option(
    "--image-seconds", default=0.5, type=SECONDS, show_default=True, help="Duration of a task that makes no video."
)
@usage.option(
    "--video-seconds", default=1.5, type=SECONDS, show_default=True, help="Duration of a task that makes a video."
)
@usage.option("--result-seconds", default=30 * 86400.0, type=SECONDS, help="Lifetime of file URLs. Default: 30 days.")
@usage.option("--image-bytes", default=0, type=BYTES, help="Pad images to at least this size.")
@usage.option("--video-bytes", default=0, type=BYTES, help="Pad videos to at least this size.")
@usage.option("--webhook-secret", help="Sign callbacks with this whsec_... secret.")
@usage.option("--concurrency", type=click.IntRange(1), help="Refuse creates above this limit (1303).")
@usage.option(
    "--misbehave",
    type=click.Choice([*SWITCHES, "list"]),
    metavar="NAME",
    multiple=True,
    callback=list_switches,
    is_eager=True,
    help="Repeatable. The names are at the end of this help, or printed by `--misbehave list`.",
)
@usage.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Write the base address there when listening."
)
def main(ready_file: Path | None, **options: Any) -> None:
    """Serve until SIGINT or SIGTERM."""
    try:
        usage.problems().raise_all()
    except ParameterError as error:
        raise click.UsageError("\n".join(error.problems)) from None
    if not options["keys"] and not options["access_key"]:
        options |= {"keys": DEFAULT_KEYS[:1], "access_key": DEFAULT_KEYS[1], "secret_key": DEFAULT_KEYS[2]}
    signals = {signal.SIGINT, signal.SIGTERM}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        options["host"].encode()
        with Sandbox(**options) as sandbox:
            click.echo(f"sandbox gateway (not Kling) on {sandbox.url}")
            key = (*options["keys"], "...")[0]
            click.echo(SETTINGS.format(url=sandbox.url, key=key, secret=token_urlsafe(32)), err=True)
            if ready_file:
                write_ready_file(ready_file, sandbox.url)
            signal.sigwait(signals)
    except (OSError, ValueError) as error:  # ValueError: a host or file name that cannot be one
        raise click.ClickException(str(error)) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


if __name__ == "__main__":
    main(prog_name="kling-sandbox")
