"""The command `kling call`: an endpoint of Kling's that answers at once."""

from typing import Any

import click

from kling_callback.calls import prepare_call
from kling_callback.cli import completion, options, param_types, terminal, usage
from kling_callback.cli.run import with_kling
from kling_callback.errors import CreateUnknown
from kling_callback.settings import TO_CALL


@click.command(
    cls=usage.Command,
    examples=[
        "kling call general/presets-voices",
        'kling call videos/identify-face \\\n  --body \'{"video_url": "https://example.com/face.mp4"}\'',
    ],
)
@usage.argument("path", shell_complete=completion.synchronous_paths)
@usage.option(
    "--body",
    type=param_types.Json(),
    help="The parameters as JSON, sent by POST; @FILE or @- (stdin) reads them. Without it the call is a GET.",
)
@options.json_option
def call(path: str | None, body: Any, as_json: bool) -> None:
    """Call an endpoint that answers at once.

    PATH is under /v1, such as videos/identify-face or general/presets-voices, or of the account, such as
    'account/costs?start_time=1764000000000&end_time=1764600000000'.

    Calls cost money. One that Kling may have accepted is never sent again.
    """
    target = path or ""
    with usage.problems():
        prepare_call(target, body)
    try:
        answer = with_kling(TO_CALL, lambda kling: kling.call(target, body))
    except CreateUnknown as error:
        if error.answer:  # it may be paid for
            terminal.print_data(error.answer)
        raise
    except KeyboardInterrupt:
        terminal.print_message("Interrupted. If the call had been sent, it may have been carried out and paid for.")
        raise
    terminal.print_json(answer, pretty=not as_json)
