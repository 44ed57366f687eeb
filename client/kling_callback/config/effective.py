"""The settings in effect, as they are shown to people: each with its origin, and of a secret never the secret."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pydantic_settings import BaseSettings

from kling_callback.config.sources import Sources
from kling_callback.display import MASK
from kling_callback.protocol.signing import key_fingerprint

ARGUMENT = "argument"
"""The origin of a setting that the program passes."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting as it is shown. `value`: of a secret never the secret; `origin`: its source, or the path of a file."""

    name: str
    value: str | None
    origin: str


def effective_settings(
    kind: type[BaseSettings],
    sources: Sources,
    loaded: BaseSettings | None,
    problems: Collection[str] = (),
    *,
    addresses: Mapping[str, str] | None = None,
) -> list[Setting]:
    """All settings of a program. `sources`: where they come from.

    `loaded`: None if they have these problems; then they are shown as they were set.

    `addresses`: what is shown of secrets that are addresses, by field: the host, for example.
    """
    invalid = {problem.partition(":")[0] for problem in problems}
    settings = []
    for field, info in kind.model_fields.items():
        name = f"KLING_{field.upper()}"
        source, text = sources.used(name)
        value = text or _text(info.get_default())
        if loaded:
            value = _text(getattr(loaded, field))
        is_argument = source is None and loaded is not None and field in loaded.model_fields_set
        if not info.repr:
            value = ((addresses or {}).get(field, "") if value else "") or _masked(field, value)
        elif name in invalid:
            value = "invalid"  # not as it is: it may be a secret in the wrong place
        origin = ARGUMENT if is_argument else sources.place(source)
        settings.append(Setting(name, value or None, origin if value else ""))
    return settings


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _masked(field: str, text: str) -> str:
    """What is shown of a secret."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        return ""
    if field in ("api_key", "access_key"):
        return f"{MASK} (fingerprint {', '.join(map(key_fingerprint, parts))})"
    return MASK if len(parts) == 1 else f"{MASK} ({len(parts)})"
