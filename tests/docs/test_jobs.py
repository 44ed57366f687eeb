"""The tables of jobs and families in docs/jobs.md are the code's."""

from collections.abc import Callable

import pytest

from kling_callback.jobs.catalog import JOBS
from kling_callback.protocol.families import ASYNCHRONOUS, SYNCHRONOUS_GET, SYNCHRONOUS_POST, is_account
from tests.docs.test_docs import DOCS

PAGE = (DOCS / "jobs.md").read_text(encoding="utf-8")


def table(*rows: tuple[str, ...]) -> str:
    """A table of Markdown; the first row is its heading."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ("---",) * len(rows[0]), *rows[1:]))


def typed_jobs() -> str:
    """Each endpoint of the typed jobs."""
    rows = []
    for job in JOBS:
        for endpoint in job.endpoints:
            names = [f"**{each.name}**" if each.required else each.name for each in endpoint.parameters]
            models = ", ".join(f"`{name}`" for name in endpoint.models)
            path = endpoint.family.removesuffix(f"/{endpoint.models[0]}")
            rows.append((f"`{job.name}`", f"`{path}`", models, ", ".join(n for n in names if n != "model_name")))
    return table(("method", "path", "models", "parameters"), *rows)


def rules() -> str:
    """What Kling's pages rule out, by model."""
    found: dict[str, list[str]] = {}
    for endpoint in (each for job in JOBS for each in job.endpoints):
        for rule in endpoint.rules:
            found.setdefault(rule.problem, []).append(f"`{endpoint.family}`")
    return table(("rule", "at"), *((problem, ", ".join(dict.fromkeys(paths))) for problem, paths in found.items()))


def families() -> str:
    """Each family under /v1."""
    typed = {endpoint.family: job.name for job in reversed(JOBS) for endpoint in job.endpoints}
    methods = {**typed, "images/generations": "text_to_image`, `image_to_image"}
    rows = ((f"`{path}`", makes, f"`{methods.get(path, 'create')}`") for path, makes in ASYNCHRONOUS.items())
    return table(("family", "makes", "method"), *rows)


def calls() -> str:
    """Each endpoint that answers at once."""
    endpoints = [("GET", SYNCHRONOUS_GET), ("POST", SYNCHRONOUS_POST)]
    rows = [
        (f"`{'/' if is_account(path) else '/v1/'}{path}`", method, does)
        for method, paths in endpoints
        for path, does in paths.items()
    ]
    return table(("path", "method", "answers with, or does"), *rows)


@pytest.mark.parametrize("render", [typed_jobs, rules, families, calls])
def test_the_table_is_the_code_s(render: Callable[[], str]) -> None:
    """Row by row; to write it anew, take what this test prints."""
    name = render.__name__.replace("_", "-")
    assert PAGE.partition(f"<!-- {name} -->\n")[2].partition(f"\n<!-- /{name} -->")[0] == render()
