"""The command `kling config`: the settings in effect, and where each comes from."""

from dataclasses import asdict

import click

from kling_callback.cli import options, terminal, usage
from kling_callback.config.effective import effective_settings
from kling_callback.errors import SettingsError
from kling_callback.settings import ClientSettings


@click.command(cls=usage.Command, examples=["kling config", "kling config --json"])
@options.json_option
def config(as_json: bool) -> None:
    """Show the settings in effect, and where each comes from.

    Of a secret, only that it is set, and of Kling's key its fingerprint. What is wrong with the settings follows, each
    problem with its fix; the exit code is then 2.
    """
    problems, loaded, wrong = usage.problems(), None, list[str]()
    try:
        loaded = ClientSettings.load_for_program()
    except SettingsError as error:
        wrong = error.problems
    if problems.has_refusals:
        with problems:
            raise SettingsError(wrong)
        problems.raise_all()
    settings = effective_settings(ClientSettings, ClientSettings.sources({}), loaded, wrong)
    warnings = [each for each in _warnings() if each not in wrong]
    if as_json:
        document = {"settings": [asdict(each) for each in settings], "problems": wrong, "warnings": warnings}
        terminal.print_json(document)
    else:
        columns = {
            "SETTING": [each.name for each in settings],
            "VALUE": ["not set" if each.value is None else each.value for each in settings],
            "FROM": [each.origin for each in settings],
        }
        terminal.print_records(list(columns.items()))
    for warning in warnings:
        terminal.print_message(warning)
    if wrong:
        raise SettingsError(wrong)


def _warnings() -> list[str]:
    try:
        return ClientSettings.warnings()
    except (OSError, UnicodeDecodeError):  # of a `.env` that cannot be read, which is a problem
        return []
