"""The lowest versions, with which scripts/check runs the tests, are those that pyproject.toml allows."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
HIGHER = {
    "anyio": "the extra receiver needs a newer one than the client",
    "hatchling": "the group build needs a newer one than the build",
    "typing-extensions": "other packages need a newer one",
}
"""Direct dependencies of which the tests use a higher version than the lowest allowed one."""


def direct() -> list[Requirement]:
    """The direct dependencies of the packages and of their tests."""
    groups = PROJECT["dependency-groups"]
    lists = [
        PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"].values(),
        groups["test"],
        groups["build"],
        PROJECT["build-system"]["requires"],
    ]
    requirements = [Requirement(line) for each in lists for line in each]
    return [each for each in requirements if each.specifier]


def lowest() -> dict[str, Version]:
    """The versions of the file; one for each package is enough."""
    lines = (ROOT / "scripts/requirements/lowest.txt").read_text().splitlines()
    pairs = (line.split(" ")[0].split("==") for line in lines if "==" in line.split(" ")[0])
    return {name: Version(version) for name, version in pairs}


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_the_tests_use_the_lowest_version(requirement: Requirement) -> None:
    """Run scripts/lock after a change of pyproject.toml."""
    (bound,) = requirement.specifier
    assert bound.operator == ">="
    version = lowest()[requirement.name]
    assert version in requirement.specifier
    assert version == Version(bound.version) or requirement.name in HIGHER


def test_no_file_names_a_registry() -> None:
    """Packages are found where the machine's own settings say."""
    for path in (ROOT / "scripts/requirements").glob("*.txt"):
        assert "://" not in path.read_text(), path
