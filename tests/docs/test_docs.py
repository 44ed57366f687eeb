"""The examples of the guides run as printed, on the sandbox and a real receiver."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback import Kling, RetryPolicy, errors
from kling_callback.protocol.signing import key_fingerprint
from kling_sandbox import Sandbox
from tests.support.receiver import KEY, Start

DOCS = Path(__file__).parents[2] / "docs"
README = DOCS.parent / "README.md"
GUIDE = (DOCS / "python.md").read_text(encoding="utf-8")
HTTP = (DOCS / "http.md").read_text(encoding="utf-8")
SIGNING = (DOCS / "signing.md").read_text(encoding="utf-8")
OPENED = "From here on `kling` is an open `Kling`."


def blocks(page: str, language: str = "python") -> list[str]:
    """The examples of a page, each at its own line number, so that a traceback names the page's line."""
    matches = re.finditer(rf"```{language}\n(.*?)```", page, re.DOTALL)
    return ["\n" * (page.count("\n", 0, each.start()) + 1) + each[1] for each in matches]


def section(title: str) -> str:
    """One section of the guide."""
    return GUIDE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def run(examples: list[str], names: dict[str, Any]) -> None:
    """Run examples one after the other, in one namespace."""
    for code in examples:
        exec(compile(code, "docs", "exec"), names)


@pytest.fixture
def kling(settings: None) -> Iterator[Kling]:
    with Kling(retry=RetryPolicy(initial_wait=0.05, lookup_waits=(0.05, 0.05))) as kling:
        yield kling


def sh(code: str, options: str = "-eu") -> subprocess.CompletedProcess[str]:
    """Run a shell script with the real `kling`."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["sh", options, "-c", code],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_guide_runs_from_its_first_line_to_its_last(settings: None, gateway: Sandbox, tmp_path: Path) -> None:
    """All its Python, in order: the images are saved, and no task is created twice."""
    names: dict[str, Any] = {}
    opened = GUIDE.index(OPENED)
    first = blocks(GUIDE[:opened])
    run(first, names)
    assert (tmp_path / "kangaroo.png").read_bytes().startswith(b"\x89PNG")
    with Kling() as names["kling"]:
        run(blocks(GUIDE)[len(first) :], names)
    assert all((tmp_path / f"{place}.png").exists() for place in ("Paris", "Rome", "Kyoto"))
    assert len(names["marked"]) == 0
    assert names["content"].startswith(b"\x89PNG")
    assert httpx.get(names["link"]).content == names["content"]
    assert [create.get("prompt") for create in gateway.creates].count("a kangaroo for order 42") == 1
    assert len(gateway.creates) == len(gateway.tasks)


def test_the_guide_s_wait_may_time_out(kling: Kling, gateway: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """The example prints that the task is still running, and the next one gets its result."""
    gateway.hold()
    names: dict[str, Any] = {"kling": kling}
    first, second = blocks(section("Waiting"))
    run([first], names)
    assert "still running: " in capsys.readouterr().out
    gateway.release()
    run([second], names)
    assert names["task"].status == "succeed"


def test_the_guide_reports_a_lost_file(kling: Kling, gateway: Sandbox, capsys: pytest.CaptureFixture[str]) -> None:
    """With the reason and Kling's address of each file."""
    gateway.misbehave.add("redirect-private")
    _, example = blocks(section("Results"))
    run([example], {"kling": kling})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["lost:", "0"], ["lost:", "1"]]
    assert all(gateway.url in line for line in lines)


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ({"arrears"}, "not paid: 1101 429 "),
        ({"failed"}, "failed: "),
        ({"redirect-private"}, "incomplete: "),
        ({"create-504", "drop-external-id", "final-only"}, "perhaps created"),
    ],
)
def test_the_guide_s_errors_are_raised(
    kling: Kling, gateway: Sandbox, capsys: pytest.CaptureFixture[str], switches: set[str], message: str
) -> None:
    """Each failure reaches its own branch."""
    gateway.misbehave.update(switches)
    run(blocks(section("Errors")), {"kling": kling})
    assert capsys.readouterr().out.startswith(message)


def test_the_guide_s_tree_is_the_code_s() -> None:
    """The guide draws the errors as their module does."""
    assert (errors.__doc__ or "").split("\n\n")[1].strip() in section("Errors")


@pytest.mark.parametrize("code", blocks(GUIDE, "sh"))
def test_the_guide_s_shell_runs(settings: None, tmp_path: Path, code: str) -> None:
    """By the real command: files are written; stderr has nothing but that a list of Kling's is empty."""
    ran = sh(code)
    assert (ran.returncode, ran.stderr.removesuffix("No tasks.\n")) == (0, "")
    assert ran.stdout
    assert list((tmp_path / "out").glob("*-0.*"))


def test_the_guide_s_script_may_be_run_again(settings: None, gateway: Sandbox) -> None:
    """The second run finds the same file; one task is created."""
    script = blocks(GUIDE, "sh")[1]
    assert sh(script).stdout == sh(script).stdout == "have out/order-44-0.mp4\n"
    assert len(gateway.creates) == 1


def test_the_guide_s_script_reports_a_failure(settings: None, gateway: Sandbox) -> None:
    """By its output; Kling's reason is on stderr."""
    gateway.misbehave.add("failed")
    ran = sh(blocks(GUIDE, "sh")[1], "-u")
    assert (ran.stdout, "asked to fail" in ran.stderr) == ("failed\n", True)


def test_a_create_of_one_s_own_is_called_back(start: Start, gateway: Sandbox) -> None:
    """docs/signing.md: its body, sent to Kling by any client, creates a task that the receiver stores."""
    names: dict[str, Any] = {}
    run(blocks(SIGNING), names)
    (secret,) = re.findall(r'CallbackSigner\(\["(.*?)"\]\)', SIGNING)
    receiver = start(api_base=gateway.url, signing_secrets=(secret,))
    body = names["body"]
    body["callback_url"] = body["callback_url"].replace("https://kling.example.com", receiver.url)
    headers = {"Authorization": f"Bearer {KEY}"}
    httpx.post(f"{gateway.url}/v1/videos/text2video", json=body, headers=headers).raise_for_status()
    gateway.wait_for(lambda: gateway.callbacks)  # before the first, the receiver says 404
    with Kling(api_base=gateway.url, api_key=KEY, receiver_url=receiver.url, signing_secrets=[secret]) as kling:
        assert kling.task(names["task_id"]).wait(60).videos


def test_the_fingerprint_in_the_docs_is_the_code_s() -> None:
    """The example lets other clients check their own fingerprint."""
    (key, fingerprint) = re.findall(r"the key\s+`(.*?)`\s+it\s+is\s+`(.*?)`", HTTP)[0]
    assert fingerprint == key_fingerprint(key)


def test_the_tests_that_a_page_names_exist() -> None:
    """docs/reliability.md: each test file, and each `test_file`: `part of a name`, is in tests/."""
    page = (DOCS / "reliability.md").read_text(encoding="utf-8")
    tests = [(path.stem, path.read_text(encoding="utf-8")) for path in DOCS.parent.glob("tests/**/test_*.py")]
    assert {Path(name).stem for name in re.findall(r"`(?:[\w/]+/)?(test_\w+\.py)`", page)} <= {
        stem for stem, _ in tests
    }
    cells = re.findall(r"`(test_\w+)`: ((?:`\w+`(?:, )?)+)", page)
    named = [(file, name) for file, names in cells for name in re.findall(r"`(\w+)`", names)]
    assert len(named) > 30
    missing = [
        (file, name)
        for file, name in named
        if not any(stem == file and re.search(rf"def test_\w*{name}", text) for stem, text in tests)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("page", "link"),
    [
        (f"{page.relative_to(DOCS.parent)}", link)
        for page in [*sorted(DOCS.glob("*.md")), README]
        for link in re.findall(r"\]\(((?!https?:)[^)]+)\)", page.read_text(encoding="utf-8"))
    ],
)
def test_what_a_page_points_to_exists(page: str, link: str) -> None:
    """Every link leads to a file, and to a heading of it."""
    name, _, anchor = link.partition("#")
    target = DOCS.parent / page
    target = target.parent / name if name else target
    assert target.exists()
    text = target.read_text(encoding="utf-8") if anchor else ""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert not anchor or anchor in slugs
