"""`kling batch`: the jobs of a file, with a real receiver that sends the creates."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from kling_callback.base import BaseTask
from kling_callback.batch.summary import Failure, Summary
from kling_callback.cli.main import main
from kling_callback.cli.progress import batch_progress, batch_text
from kling_sandbox import Sandbox
from tests.client.cli.test_main import KLING, Ran, Run
from tests.support.commands import leaves_no_trace
from tests.support.receiver import KEY, SECRET, Running, Start
from tests.support.submitting import QUICK_CREATES, show


@pytest.fixture
def receiver(start: Start, gateway: Sandbox) -> Running:
    return start(api_base=gateway.url, delays=QUICK_CREATES)


@pytest.fixture
def settings(receiver: Running, gateway: Sandbox) -> dict[str, str]:
    """With a Kling key, which a batch does not use."""
    return {
        "KLING_API_BASE": gateway.url,
        "KLING_API_KEY": KEY,
        "KLING_SIGNING_SECRETS": SECRET,
        "KLING_RECEIVER_URL": receiver.url,
    }


@pytest.fixture
def run(settings: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str) -> Ran:
        with leaves_no_trace(), pytest.raises(SystemExit) as exited:
            main(list(arguments))
        captured = capsys.readouterr()
        return Ran(int(exited.value.code or 0), captured.out, captured.err)

    return run


def paper(task_id: str, prompt: str = "x", **more: Any) -> dict[str, Any]:
    return {"job": "text-to-image", "prompt": prompt, "external_task_id": task_id, "model_name": "kling-v3", **more}


def write(*lines: Any) -> None:
    Path("jobs.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), encoding="utf-8")


def test_a_batch_ends_with_its_files_and_a_summary(run: Run, gateway: Sandbox, receiver: Running) -> None:
    """Typed and other jobs; all are submitted through the receiver, each with the tags of the command."""
    effect = {
        "family": "videos/effects",
        "body": {"effect_scene": "squish", "input": {"image": "https://x.test/a.png"}},
    }
    write(paper("a", n=2), paper("b"), {**effect, "external_task_id": "c"})
    ran = run("batch", "jobs.jsonl", "--output", "out", "--tag", "spring")
    assert ran.code == 0, ran.err
    assert sorted(ran.out.splitlines()) == ["out/a-0.png", "out/a-1.png", "out/b-0.png", "out/c-0.mp4"]
    assert all(Path(line).stat().st_size for line in ran.out.splitlines())
    summary, kling_cost, list_cost = ran.err.splitlines()
    assert summary == "3 of 3 jobs succeeded, 0 failed, 4 files."
    assert "units" in kling_cost
    assert "(3 tasks)" in kling_cost
    assert list_cost == "Cost by list prices: 24 image units, 0.08 USD (estimate), without 1 job of unknown cost."
    assert len(gateway.creates) == 3
    assert all(show(receiver, each)["tags"] == ["spring"] for each in "abc")


def test_a_second_run_pays_nothing_and_downloads_what_is_missing(run: Run, gateway: Sandbox) -> None:
    """A whole file stays as it is; a lost and a damaged one are downloaded. New lines are created."""
    write(paper("a"), paper("b"), paper("c"))
    assert run("batch", "jobs.jsonl", "--output", "out").code == 0
    kept, lost, damaged = (Path(f"out/{name}-0.png") for name in "abc")
    content = damaged.read_bytes()
    lost.unlink()
    damaged.write_bytes(content[:-1] + b"!")
    before = kept.stat().st_ino
    write(paper("d"), paper("c"), paper("b"), paper("a"))
    ran = run("batch", "jobs.jsonl", "--output", "out")
    assert (ran.code, len(ran.out.splitlines()), len(gateway.creates)) == (0, 4, 4)
    assert "4 of 4 jobs succeeded, 0 failed, 4 files." in ran.err
    assert (kept.stat().st_ino, lost.exists(), damaged.read_bytes()) == (before, True, content)


def test_failed_jobs_are_1_with_their_lines_and_reasons(run: Run, gateway: Sandbox) -> None:
    """What Kling fails or refuses, and what the receiver refuses; the others succeed."""
    write(paper("taken"))
    assert run("batch", "jobs.jsonl").code == 0
    write(
        paper("good"),
        paper("bad", "x [sandbox: failed]"),
        paper("taken", "another"),
        paper("poor", "x [sandbox: 1101]"),
    )
    ran = run("batch", "jobs.jsonl", "--output", "out")
    assert (ran.code, ran.out) == (1, "out/good-0.png\n")
    lines = ran.err.splitlines()
    assert lines[0] == "1 of 4 jobs succeeded, 3 failed, 1 file."
    *failures, hint = lines[lines.index("3 of 4 jobs failed:") + 1 :]
    assert "new external_task_id" in hint
    assert [line.split(":")[0] for line in failures] == ["line 2, bad", "line 3, taken", "line 4, poor"]
    assert "asked to fail" in failures[0]
    assert "other parameters" in failures[1]


def test_links_json_and_outputs_that_are_no_files(run: Run) -> None:
    """Without --output one link per file; with --json one task per line, as it ends."""
    write(paper("a", n=2), paper("b"))
    links = run("batch", "jobs.jsonl").out.splitlines()
    assert len(links) == 3
    assert all("signature=" in link for link in links)
    tasks = [json.loads(line) for line in run("batch", "jobs.jsonl", "--json").out.splitlines()]
    assert {task["id"]: len(task["results"]) for task in tasks} == {"a": 2, "b": 1}
    assert all(task["done"] for task in tasks)
    write({"family": "general/advanced-custom-elements", "body": {"element_name": "x"}, "external_task_id": "e"})
    assert "element" in run("batch", "jobs.jsonl").out


def test_no_wait_prints_the_ids(run: Run) -> None:
    """As they are submitted; a later run without it waits for the same tasks."""
    write(paper("a"), paper("b"))
    assert sorted(run("batch", "jobs.jsonl", "--no-wait").out.split()) == ["a", "b"]
    first, _ = run("batch", "jobs.jsonl", "--no-wait", "--json").out.splitlines()
    assert BaseTask(json.loads(first)).id in ("a", "b")
    assert run("batch", "jobs.jsonl").code == 0


def test_all_problems_are_reported_before_anything_is_sent(
    run: Run, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the lines with their numbers, beside those of the command line and the settings."""
    monkeypatch.setenv("KLING_RECEIVER_URL", "nonsense")
    write(paper("a"), {"job": "text-to-image"}, paper("c", n=99))
    ran = run("batch", "jobs.jsonl", "--output", "x.png", "--priority", "9999999", "--timeout", "0", "--bogus")
    starts = [
        "No such option",
        "Invalid value for '--timeout'",
        "priority: ",
        "output: ",
        "line 2: ",
        "line 3: ",
        "KLING_RECEIVER_URL",
    ]
    found = ran.err.splitlines()
    assert ran.code == 2
    assert all(any(line.startswith(start) for line in found) for start in starts), found
    assert (
        run("batch").code
        == run("batch", "gone.jsonl").code
        == run("batch", "jobs.jsonl", "--output", "o", "--no-wait").code
        == 2
    )
    assert gateway.creates == []


def test_an_estimate_of_each_line_and_the_sum(run: Run, gateway: Sandbox, receiver: Running) -> None:
    """Units and money; it needs no receiver. A line without a known price is 1, after the others."""
    receiver.stop()
    video = {"job": "text-to-video", "prompt": "x", "model_name": "kling-v3", "duration": 10, "external_task_id": "v"}
    write(paper("a", n=2), video)
    ran = run("batch", "jobs.jsonl", "--estimate")
    assert (ran.code, ran.err) == (0, "")
    header, *rows, total = ran.out.splitlines()
    assert header.split() == ["LINE", "ID", "FAMILY", "ESTIMATE"]
    assert [row.split()[:2] for row in rows] == [["1", "a"], ["2", "v"]]
    assert "6 units, 0.84 USD" in rows[1]
    assert total == "Sum: 16 image units, 6 video units, 0.90 USD (estimate)"
    write(video, {"job": "text-to-image", "prompt": "x"})
    ran = run("batch", "jobs.jsonl", "--estimate", "--json")
    documents = [json.loads(line) for line in ran.out.splitlines()]
    assert (ran.code, documents[1]["estimate"], documents[1]["line"]) == (1, None, 2)
    assert documents[2] == {"sum": {"units": {"video units": 6.0}, "usd": 0.84, "unknown": 1}}
    assert gateway.creates == []


def test_a_timeout_is_3_and_says_how_to_continue(run: Run) -> None:
    """With the summary so far, and the same command."""
    write(paper("quick"), paper("slow one", "x [sandbox: no-callback]") | {"external_task_id": "slow"})
    ran = run("batch", "jobs.jsonl", "--output", "a folder", "--timeout", "1.5")
    assert ran.code == 3
    assert "1 of 2 jobs are not done after 1.5 seconds" in ran.err
    assert ran.err.endswith("kling batch jobs.jsonl --output 'a folder' --timeout 1.5\n")


def test_a_receiver_that_cannot_be_reached_is_1(run: Run, receiver: Running) -> None:
    """One message, and the same command to continue."""
    write(paper("a"))
    receiver.stop()
    ran = run("batch", "jobs.jsonl")
    assert ran.code == 1
    assert ran.err.startswith("The receiver cannot be reached")
    assert ran.err.endswith("\nThe batch stopped. Continue with:\nkling batch jobs.jsonl\n")


def test_a_receiver_without_a_key_stops_the_batch(
    run: Run, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At the first line: the others would fail for the same reason."""
    keyless = start(api_base="https://kling.test", api_key="", data_dir=tmp_path / "keyless")
    monkeypatch.setenv("KLING_RECEIVER_URL", keyless.url)
    write(*(paper(str(number)) for number in range(50)))
    ran = run("batch", "jobs.jsonl")
    assert (ran.code, "has no key for Kling" in ran.err, "jobs failed" in ran.err) == (1, True, False)


@pytest.fixture
def slow_gateway() -> Iterator[Sandbox]:
    """A gateway that needs some seconds for a video."""
    with Sandbox(video_seconds=4) as gateway:
        yield gateway


def test_ctrl_c_and_resume(slow_gateway: Sandbox, start: Start) -> None:
    """130 with the same command, which then finds all tasks: each is paid once, and no file is downloaded twice."""
    gateway, receiver = slow_gateway, start(api_base=slow_gateway.url)
    settings = {"KLING_RECEIVER_URL": receiver.url, "KLING_SIGNING_SECRETS": SECRET}
    video = {"job": "text-to-video", "prompt": "x", "external_task_id": "slow"}
    write(video, *(paper(f"quick-{number}") for number in range(4)))
    command = [KLING, "batch", "jobs.jsonl", "--output", "out"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | settings
    )
    assert process.stdout is not None
    first = [process.stdout.readline().strip() for _ in range(2)]
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Continue with:\nkling batch jobs.jsonl --output out\n" in err
    assert not list(Path("out").glob(".*"))
    saved = {path: path.stat().st_ino for path in map(Path, first)}
    again = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=os.environ | settings)
    assert again.returncode == 0, again.stderr
    assert len(again.stdout.splitlines()) == len(gateway.creates) == 5
    assert {path: path.stat().st_ino for path in saved} == saved
    assert "5 of 5 jobs succeeded, 0 failed, 5 files." in again.stderr


def test_the_progress_of_a_batch() -> None:
    """The counts that are not zero, on a terminal; nothing elsewhere. Data is printed beside it, not into it."""
    summary = Summary(10, submitted=7, refused=1, ended=3, files=2, failures=[Failure(1, "a", "x")])
    summary.statuses.update({"queued": 2, "submitted": 1, "processing": 1, "succeed": 1})
    assert batch_text(summary) == "1 failed, 2 files, 2 at Kling, 1 fetched, 2 queued, 2 to submit"
    console = Console(file=StringIO(), force_terminal=True, width=120)
    with batch_progress(console) as display:
        display.update(summary)
        display.say("The receiver \x1b[31mcannot be reached.")
        with display.printing():
            pass
    assert isinstance(console.file, StringIO)
    assert "3/10" in console.file.getvalue()
    assert "\x1b[31mcannot" not in console.file.getvalue()
    quiet = Console(file=StringIO())
    with batch_progress(quiet) as display:
        display.update(summary)
        display.say("x")
    assert isinstance(quiet.file, StringIO)
    assert quiet.file.getvalue() == ""
