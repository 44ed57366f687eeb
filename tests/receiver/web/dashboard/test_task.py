"""The page of one task: what it shows to which role, its actions, its errors with remedies, its live updates."""

import html
import json
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest

from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import Role
from kling_receiver.results.records import mark_missing
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader, load_details
from kling_receiver.web.dashboard.live import LiveViews
from kling_receiver.web.dashboard.pages import Pages
from kling_receiver.web.dashboard.signin.session import Sessions
from kling_receiver.web.dashboard.task import timeline
from kling_receiver.web.dashboard.task.page import PARTS, TaskPage
from kling_receiver.web.dashboard.task.reading import MAX_BODY_BYTES, MAX_CALLBACKS, load_history, neighbours
from kling_sandbox import Sandbox
from tests.receiver.web.dashboard.test_live import listening, state_of, wait_for
from tests.support.database import NOW, Ledger, callback
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tests.support.web import Visit, host
from tools.harness.submitting import create, finished, post, register, submit

NO_KLING = "http://127.0.0.1:9"
MARKUP = "<script>document.title='owned'</script>"


@pytest.fixture
def signed_in(shared: Running) -> Iterator[Browser]:
    """An administrator at the module's receiver."""
    with Browser(shared) as browser:
        yield browser.sign_in()


@pytest.fixture(scope="module")
def done(shared: Running, shared_gateway: Sandbox) -> str:
    """A finished task with two files and parameters."""
    task_id, _ = submit(shared, shared_gateway, n=2)
    request = {"prompt": "a kangaroo at dusk", "n": 2, "camera_control": {"type": "simple"}}
    register(shared, task_id, request=request, tags=["night"])
    finished(shared, task_id)
    return task_id


def calls(page: httpx.Response) -> set[str]:
    """What the page's buttons call: the last word of the path, or DELETE."""
    found = re.findall(r'data-api="(\w+) ([^"]+)"', page.text)
    return {"DELETE" if method == "DELETE" else path.rpartition("/")[2] for method, path in found}


def test_a_finished_task_shows_its_files_times_and_parameters(signed_in: Browser, done: str) -> None:
    """Each file with its download and checksum, each step with its time, each parameter by Kling's name."""
    page = signed_in.get(f"/dashboard/tasks/{done}")
    assert page.status_code == 200
    files = httpx.get(f"{signed_in.base}/api/tasks/{done}", headers=signed_in.running.headers("read")).json()["results"]
    assert len(files) == 2
    for n, file in enumerate(files):
        assert f'src="../../api/tasks/{done}/results/{n}"' in page.text
        assert f'download="{done}-{n}.png"' in page.text
        assert file["sha256"] in page.text
        assert signed_in.get(f"/api/tasks/{done}/results/{n}").headers["ETag"] == f'"{file["sha256"]}"'
    for text in (
        "Generating",
        "Question to Kling",
        "Download of file 2",
        "Done",
        "a kangaroo at dusk",
        "camera_control",
    ):
        assert text in page.text
    assert f'href="../../dashboard/create?from={done}"' in page.text
    assert calls(page) == {"ask", "fetch", "DELETE"}
    assert "What happens next" not in page.text
    assert "signature=" not in page.text


def test_any_id_leads_to_the_task(signed_in: Browser, done: str) -> None:
    """Kling's id, and the caller's: to the one address of the task."""
    task = httpx.get(f"{signed_in.base}/api/tasks/{done}", headers=signed_in.running.headers("read")).json()
    answer = signed_in.get(f"/dashboard/tasks/{task['task_id']}")
    assert answer.status_code == 303
    assert answer.next_request
    assert answer.next_request.url.path == f"/dashboard/tasks/{done}"


@pytest.mark.parametrize("path", ["", "live/"])
@pytest.mark.parametrize("task_id", ["unknown", "a b", "%00", "..%2f..", "x" * 300])
def test_an_unknown_id_says_what_to_do(signed_in: Browser, task_id: str, path: str) -> None:
    """A page, not JSON."""
    page = signed_in.get(f"/dashboard/{path}tasks/{task_id}")
    assert page.status_code == 404
    assert page.headers["content-type"].startswith("text/html")
    assert 'href="../' in page.text
    if "/" not in task_id and "%2f" not in task_id:
        assert "It may have been removed" in page.text


def test_an_id_of_several_tasks_names_them(running: Running) -> None:
    """To choose from."""
    ledger = Ledger(running.receiver.store.database)
    for task_id in ("one", "two"):
        ledger.put_task(task_id, external_task_id="theirs")
    with Browser(running) as browser:
        page = browser.sign_in().get("/dashboard/tasks/theirs")
    assert page.status_code == 409
    assert "one, two" in page.text


@pytest.mark.parametrize(("role", "runs_again", "bodies"), [("read", False, False), ("client", True, True)])
def test_a_lower_role_sees_no_button_that_it_may_not_use(
    shared: Running, done: str, role: Role, runs_again: bool, bodies: bool
) -> None:
    """Nor the deliveries, whose routes are for admin; and the API refuses it anyway."""
    with Browser(shared) as browser:
        page = browser.sign_in(role).get(f"/dashboard/tasks/{done}")
        assert page.status_code == 200
        assert calls(page) == set()
        assert ("dashboard/create?from=" in page.text) is runs_again
        assert ("task_result" in page.text) is bodies
        assert "delivery-rows" not in page.text
        path = f"/api/tasks/{done}"
        for method, to in (("POST", f"{path}/ask"), ("POST", f"{path}/fetch")):
            assert browser.send(method, to).status_code == 403
        assert browser.send("POST", "/api/deliveries/replay", json={"task": done}).status_code == 403


def test_every_text_from_outside_is_escaped(running: Running, gateway: Sandbox) -> None:
    """Of the client, of Kling, of anyone who calls back, and of a hook."""

    def respond(visit: Visit) -> None:
        visit.answer(500, MARKUP.encode())

    with host(respond) as app, Browser(running) as browser:
        hook = {"name": "app", "address": app.url, "retry_schedule": [60]}
        headers = running.headers("admin")
        assert httpx.post(f"{running.url}/api/hooks", json=hook, headers=headers).status_code == 201
        task_id = new_id()
        register(
            running, task_id, model=MARKUP, request={MARKUP: MARKUP, "prompt": MARKUP, "x": [MARKUP]}, tags=[MARKUP]
        )
        kling_id = create(running, gateway, task_id, "no-callback")
        register(running, task_id, outcome="created", task_id=kling_id)
        post(running, task_id, {"task_id": kling_id, "task_status": "processing", "task_status_msg": MARKUP})
        post(running, task_id, {"task_id": kling_id, "task_status": MARKUP})
        wait_for(lambda: len(app.visits) >= 4)
        browser.sign_in()
        wait_for(lambda: "the hook answered 500" in browser.get(f"/dashboard/tasks/{task_id}").text)
        page = browser.get(f"/dashboard/tasks/{task_id}")
    assert MARKUP not in page.text
    assert page.text.count(html.escape(MARKUP).replace("&#x27;", "&#39;")) >= 6
    assert {"replay", "retry"} <= calls(page)


def test_a_callback_of_brackets_does_not_fill_the_memory(running: Running) -> None:
    """Whoever has the callback address may send any JSON; indented, 16 kB of brackets would be 10 MB."""
    task_id = new_id()
    register(running, task_id)
    nested = json.loads("[" * 700 + "]" * 700)
    for number in range(3):
        document = {"task_id": "1", "task_status": "processing", "x": [number, *[nested] * 10]}
        assert post(running, task_id, document).status_code == 200
    with Browser(running) as browser:
        page = browser.sign_in().get(f"/dashboard/tasks/{task_id}")
    assert page.text.count("[[[[") >= 3
    assert len(page.content) < 100_000


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"origin": "kling", "status_msg": "Failure to pass the risk control"}, "risk control", "run it again"),
        ({"origin": "callback"}, "A callback says that the task failed.", "Ask Kling again"),
        ({"origin": "local", "outcome": "not_created", "status_msg": "refused"}, "refused", "Remove the cause"),
        ({"origin": "local", "outcome": "created"}, "The task did not finish.", "its status replaces this one"),
    ],
)
def test_a_failed_task_says_why_and_what_to_do(
    shared: Running, signed_in: Browser, values: dict[str, Any], message: str, hint: str
) -> None:
    """By who said it."""
    task_id = new_id()
    Ledger(shared.receiver.store.database).put_task(task_id, status="failed", done=True, **values)
    page = signed_in.get(f"/dashboard/tasks/{task_id}")
    problem = html.unescape(page.text.partition('id="task-problem"')[2].partition("</div>")[0])
    assert message in problem
    assert hint in problem
    assert "run again" not in page.text.lower()
    assert "did not send them" in page.text, "no parameters"
    assert ("None: Kling did not accept the create." in page.text) == (values.get("outcome") == "not_created")


def test_a_failed_file_says_why_and_what_to_do(shared: Running, signed_in: Browser) -> None:
    """Fetch again, which only an administrator may."""
    ledger, task_id = Ledger(shared.receiver.store.database), new_id()
    ledger.put_task(task_id, status="succeed", origin="kling", kling_id=f"k-{task_id}")
    ledger.change(lambda tx: mark_missing(tx, tx.require_task(task_id), "the file is <gone>"))
    page = signed_in.get(f"/dashboard/tasks/{task_id}")
    assert 'data-status="failed"' in page.text
    assert "the file is &lt;gone&gt;" in page.text
    assert "Fetch again asks Kling for the files of this task" in page.text
    assert "fetch" in calls(page)
    with Browser(shared) as reader:
        assert "An administrator can do that." in reader.sign_in("read").get(f"/dashboard/tasks/{task_id}").text


def test_a_waiting_task_says_what_happens_next(running: Running) -> None:
    """Who has to act, and when Kling is asked."""
    register(running, task_id := new_id())
    with Browser(running) as browser:
        page = browser.sign_in().get(f"/dashboard/tasks/{task_id}")
        assert "Waits for the client" in page.text
        register(running, task_id, outcome="created", task_id="k-1")
        page = browser.get(f"/dashboard/tasks/{task_id}")
    assert "Waits for Kling" in page.text
    assert "Ask Kling, unless a callback comes before" in page.text


def test_the_page_lives_without_events_too(start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery adds no event to the log, and is shown at once; equal parts are not sent again."""
    monkeypatch.setattr(timeline, "OPEN_GROWTH", 1e7)  # the task is so young that the timeline grows on a slow machine
    running = start(api_base=gateway.url)
    answers: list[int] = [500]
    with host(lambda visit: visit.answer(answers[0])) as app, Browser(running) as browser:
        hook = {"name": "app", "address": app.url, "retry_schedule": [60], "events": ["task.created"]}
        register(running, task_id := new_id(), request={"prompt": "a kangaroo"})
        browser.sign_in()
        page = browser.get(f"/dashboard/tasks/{task_id}")
        with listening(browser, f"/dashboard/live/tasks/{task_id}?state={state_of(page)}") as lines:
            time.sleep(0.7)
            assert not any(line.startswith("data:") for line in lines), "the page has everything"
            headers = running.headers("admin")
            httpx.post(f"{running.url}/api/hooks", json=hook, headers=headers).raise_for_status()
            httpx.post(
                f"{running.url}/api/deliveries/replay", json={"task": task_id}, headers=headers
            ).raise_for_status()
            wait_for(lambda: any("the hook answered 500" in line for line in lines))
            assert not any('id="task-callbacks"' in line for line in lines)
            answers[0] = 200
            httpx.post(f"{running.url}/api/deliveries/1/app/retry", headers=headers).raise_for_status()
            wait_for(lambda: any("1 of 1 delivered" in line for line in lines))


def test_a_task_that_was_removed_meanwhile_says_so() -> None:
    """Nothing else of it stays on an open page."""
    page = TaskPage(Pages(cast(Sessions, None)), cast(LiveViews, None), reader=cast(Reader, None))
    fragment = page._to_fragment("admin", "t", None)
    assert fragment.parts.keys() == {f"task-{name}" for name in PARTS}
    assert "This task was removed" in fragment.parts["task-head"]
    assert 'href="../../"' in fragment.parts["task-head"]
    assert fragment.parts["task-timeline"] == '<div id="task-timeline"></div>'
    assert fragment.rows == {}


def test_one_task_leads_to_the_next(running: Running) -> None:
    """In the order of the list; not past its ends."""
    ledger = Ledger(running.receiver.store.database)
    for n, task_id in enumerate(("oldest", "middle", "newest")):
        ledger.put_task(task_id, created_at=NOW + n)
    with Browser(running) as browser:
        browser.sign_in()
        links = {
            task_id: re.findall(r'href="../../dashboard/tasks/(\w+)"', browser.get(f"/dashboard/tasks/{task_id}").text)
            for task_id in ("oldest", "middle", "newest")
        }
    assert links == {"oldest": ["middle"], "middle": ["newest", "oldest"], "newest": ["middle"]}


def test_the_history_is_limited_and_complete_on_each_engine(database: Database) -> None:
    """The newest callbacks, the first bytes of each; nothing of another task."""
    ledger = Ledger(database)
    ledger.put_task("other", created_at=NOW)
    bodies = [b"%d" % n for n in range(MAX_CALLBACKS)] + [b"\xc3\xa9" * MAX_BODY_BYTES]
    ledger.record(*(callback("t", body=body) for body in bodies))
    ledger.record(callback("other"), callback("t", body=b"repeated"), callback("t", body=b"repeated"))
    with database.read() as connection:
        history = load_history(connection, "t", with_deliveries=True)
        assert history
        assert load_history(connection, "nothing", with_deliveries=True) is None
        details = load_details(connection, ["t", "other"])
        assert neighbours(connection, details["t"].row) == (None, "other")
        assert neighbours(connection, details["other"].row) == ("t", None)
    assert len(history.callbacks) == MAX_CALLBACKS
    last, before = history.callbacks[-1], history.callbacks[-2]
    assert (bytes(last["body"]), last["repeat_count"], last["kept"]) == (b"repeated", 1, 8)
    assert len(bytes(before["body"])) == MAX_BODY_BYTES < before["kept"]
    assert [job["kind"] for job in history.jobs] == ["ask", "overdue"]
    assert {event["task_id"] for event in history.events} == {"t"}
