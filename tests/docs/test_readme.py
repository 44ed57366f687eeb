"""The README, the receiver's map and the code agree."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

import kling_receiver
from kling_callback.settings import ClientSettings
from kling_receiver import states
from kling_receiver.settings import ReceiverSettings
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Start
from tests.test_imports import RECEIVER_ORDER

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAP = kling_receiver.__doc__ or ""
RECEIVER = Path(str(kling_receiver.__file__)).parent


def row(name: str) -> str:
    """A line of the settings table, from the code."""
    fields: dict[str, FieldInfo] = {**ReceiverSettings.model_fields, **ClientSettings.model_fields}
    field = fields[name]
    sides = [side for side, model in SIDES.items() if name in model.model_fields]
    used = "both" if len(sides) == 2 else sides[0]
    return f"| `KLING_{name.upper()}` | {used} | {field.description} | {_default(field.default)} |"


SIDES: dict[str, Any] = {"client": ClientSettings, "receiver": ReceiverSettings}


def _default(value: Any) -> str:
    return "" if value in ("", (), None) else f"`{value}`"


def test_the_settings_table_is_the_code_s() -> None:
    """The table has each setting with its meaning and default, in the code's order, and no other."""
    names = list(dict.fromkeys([*ClientSettings.model_fields, *ReceiverSettings.model_fields]))
    table = ["| name | used by | meaning | default |", "|---|---|---|---|", *map(row, names)]
    section = README.partition("<!-- settings -->\n")[2].partition("\n<!-- /settings -->")[0]
    assert section == "\n".join(table)


def test_a_page_that_a_setting_links_to_describes_it() -> None:
    """The linked page contains the setting's name."""
    links = re.findall(r"^\| `(KLING_\w+)` .*\((docs/\w+\.md)\)", README, re.MULTILINE)
    assert links
    for setting, page in links:
        assert setting in (ROOT / page).read_text()


def test_running_code_stands_before_line_thirty() -> None:
    """The first screen of the README shows what to type."""
    assert "from kling_callback import Kling" in "\n".join(README.splitlines()[:35])
    assert "scripts/demo" in "\n".join(README.splitlines()[:10])


def test_the_python_in_the_readme_is_python() -> None:
    """Its examples parse."""
    for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        ast.parse(code)


def test_the_python_in_the_readme_runs(
    start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As printed: the image is saved, all five jobs are created."""
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET}
    for name, value in {**settings, "RECEIVER_URL": start(api_base=gateway.url).url}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {})
    assert (tmp_path / "kangaroo.png").read_bytes().startswith(b"\x89PNG")
    assert len(gateway.tasks) == 5


def test_the_drawing_is_the_code_s() -> None:
    """The README draws the states as their module does."""
    moves, revival = (states.__doc__ or "").split("\n\n")[1:3]
    assert moves in README
    assert revival in README


def entries() -> tuple[set[str], set[str]]:
    """The folders and modules directly inside the receiver's package."""
    folders = {path.parent.name for path in RECEIVER.glob("*/__init__.py")}
    return folders, {path.stem for path in RECEIVER.glob("*.py") if not path.stem.startswith("__")}


def test_the_map_describes_every_folder_and_module() -> None:
    """The docstring of the receiver has a line for each folder and names each module, and no others."""
    folders, modules = entries()
    described = re.findall(r"^(\w+)/ +\S", MAP, re.MULTILINE)
    assert sorted(described) == sorted(folders)
    assert set(re.findall(r"\b(\w+)\.py\b", MAP)) == modules


def test_the_map_lists_the_import_order_of_every_folder_and_module() -> None:
    """Its list, lowest first, has each folder and module once."""
    folders, modules = entries()
    (order,) = re.findall(r"\bLowest first: (.*?)\.$", MAP, re.DOTALL | re.MULTILINE)
    assert re.split(r",\s+", order) == list(RECEIVER_ORDER)
    assert sorted(RECEIVER_ORDER) == sorted(folders | modules | {"jobs/kinds"})


def test_the_map_follows_a_callback_through_modules_that_exist() -> None:
    """Every `folder/module` of the docstring is a module or folder of the receiver."""
    paths = re.findall(r"\b([a-z]+(?:/[a-z_]+)+)", MAP)
    assert paths
    assert [path for path in paths if not ((RECEIVER / f"{path}.py").is_file() or (RECEIVER / path).is_dir())] == []


def test_the_top_level_stays_short() -> None:
    """The root has the agreed files and folders only."""
    allowed = {"pyproject.toml", "README.md", "README.zh.md", "LICENSE", "CHANGELOG.md"}
    allowed |= {"receiver", "client", "tests", "scripts", "docs", "data", "build", "dist"}
    assert {path.name for path in ROOT.iterdir() if not path.name.startswith(".")} <= allowed


ZH = (ROOT / "README.zh.md").read_text(encoding="utf-8")


def code_of(page: str) -> list[str]:
    """The fenced blocks of a page without their comments."""
    return [re.sub(r" +#.*", "", block) for block in re.findall(r"```.*?```", page, re.DOTALL)]


def test_the_chinese_readme_is_in_step() -> None:
    """It has the same commands, drawings and figures, links, headings in number and depth, and each setting's row."""
    assert code_of(ZH) == code_of(README)
    assert re.findall(r"^#+ ", ZH, re.MULTILINE) == re.findall(r"^#+ ", README, re.MULTILINE)
    for pattern in (
        r"\]\((docs/[^)]*)\)",
        r"^\| `(KLING_\w+)` \|.*\| (.*) \|$",
        r"^\|[^|]*\| (\d+ \| \d+) \|$",
        r"^(\d\. )\*\*",
        r"`(scripts/\w+)`",
    ):
        assert sorted(re.findall(pattern, ZH, re.MULTILINE)) == sorted(re.findall(pattern, README, re.MULTILINE))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_lines_fit_and_pages_are_linked(page: Path) -> None:
    """No line but a table's has over 121 characters; each README links to every page of `docs/`."""
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 121 and not line.startswith("|")] == []
    if page.parent != ROOT:
        assert all(f"(docs/{page.name}" in readme for readme in (README, ZH))
