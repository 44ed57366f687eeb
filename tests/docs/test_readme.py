"""The README and the code say the same."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from kling_callback.settings import ClientSettings
from kling_receiver import states
from kling_receiver.settings import ReceiverSettings
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Start

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def row(name: str) -> str:
    """A line of the settings table, made from the code."""
    fields: dict[str, FieldInfo] = {**ReceiverSettings.model_fields, **ClientSettings.model_fields}
    field = fields[name]
    sides = [side for side, model in SIDES.items() if name in model.model_fields]
    used = "both" if len(sides) == 2 else sides[0]
    return f"| `KLING_{name.upper()}` | {used} | {field.description} | {_default(field.default)} |"


SIDES: dict[str, Any] = {"client": ClientSettings, "receiver": ReceiverSettings}


def _default(value: Any) -> str:
    return "" if value in ("", (), None) else f"`{value}`"


def test_the_settings_table_is_the_code_s() -> None:
    """Each setting stands there with its meaning and default, in the code's order, and none besides."""
    names = list(dict.fromkeys([*ClientSettings.model_fields, *ReceiverSettings.model_fields]))
    table = ["| name | used by | meaning | default |", "|---|---|---|---|", *map(row, names)]
    written = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert written == "\n".join(table)


def test_a_page_that_a_setting_names_tells_of_it() -> None:
    """Who follows the table finds the setting there."""
    named = re.findall(r"^\| `(KLING_\w+)` .*\((docs/\w+\.md)\)", README, re.MULTILINE)
    assert named
    for setting, page in named:
        assert setting in (ROOT / page).read_text()


def test_running_code_stands_before_line_thirty() -> None:
    """Whoever opens the README sees at once what to type."""
    assert "from kling_callback import Kling" in "\n".join(README.splitlines()[:35])
    assert "scripts/demo" in "\n".join(README.splitlines()[:10])


def test_the_python_in_the_readme_is_python() -> None:
    """Its examples parse, and name what the package has."""
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        ast.parse(code)


def test_the_python_in_the_readme_runs(
    start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As it stands there: the picture is saved, all four jobs are taken."""
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET}
    for name, value in {**settings, "RECEIVER_URL": start(api_base=gateway.url).url}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert (tmp_path / "kangaroo.png").read_bytes().startswith(b"\x89PNG")
    assert len(gateway.tasks) == 4


def test_the_drawing_is_the_code_s() -> None:
    """The states are drawn in the README as in their module."""
    moves, revival = (states.__doc__ or "").split("\n\n")[1:3]
    assert moves in README
    assert revival in README


@pytest.mark.parametrize("package", ["client", "receiver"])
def test_the_map_names_modules_that_exist(package: str) -> None:
    """What the map lists by commas and arrows is there."""
    described = re.search(rf"^{package}/ +(.*?)^\w", README, re.DOTALL | re.MULTILINE)
    assert described is not None
    modules = {path.stem for path in (ROOT / package).iterdir()}
    plain = re.sub(r"\([^)]*\)", "", described[1]).partition(":")[2]
    named = [word for word in re.split(r"[\s,;→]+", plain) if word and word not in ("jobs", "and", "their")]
    assert set(named) - modules - {"parameters"} == set()


def test_the_top_level_stays_short() -> None:
    """Only what was agreed lies at the root."""
    allowed = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md"}
    allowed |= {"receiver", "client", "tests", "scripts", "docs", "data", "build", "dist"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} <= allowed
