"""The command `kling config`: the settings in effect, and where each comes from."""

from dataclasses import asdict, dataclass

import click

from kling_callback.cli import options, terminal, usage
from kling_callback.errors import SettingsError
from kling_callback.protocol.signing import key_fingerprint
from kling_callback.settings import ClientSettings, split

MASK = "***"


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it is shown. `value`: of a secret never the secret; `origin`: its source, or the path of a file."""

    name: str
    value: str | None
    origin: str


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
    settings = effective_settings(loaded, wrong)
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


def effective_settings(loaded: ClientSettings | None, problems: list[str]) -> list[Setting]:
    """All settings of the client. `loaded`: None if they have these problems; then they are shown as they were set."""
    sources, invalid = ClientSettings.sources({}), {problem.partition(":")[0] for problem in problems}
    settings = []
    for field, info in ClientSettings.model_fields.items():
        name = f"KLING_{field.upper()}"
        source, text = sources.used(name)
        value = text or str(info.get_default() or "")
        if not info.repr:
            value = _masked(field, text)
        elif name in invalid:
            value = "invalid"  # not as it is: it may be a secret in the wrong place
        elif loaded:
            value = str(getattr(loaded, field))
        settings.append(Setting(name, value or None, sources.place(source) if value else ""))
    return settings


def _masked(field: str, text: str) -> str:
    """What is shown of a secret."""
    parts = split(text)
    if not parts:
        return ""
    if field in ("api_key", "access_key"):
        return f"{MASK} (fingerprint {', '.join(map(key_fingerprint, parts))})"
    return MASK if len(parts) == 1 else f"{MASK} ({len(parts)})"


def _warnings() -> list[str]:
    try:
        return ClientSettings.warnings()
    except (OSError, UnicodeDecodeError):  # of a `.env` that cannot be read, which is a problem
        return []
