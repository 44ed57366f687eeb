"""Hooks over the API: which may be added, and their states, secrets and tests."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import TypeAdapter
from standardwebhooks.webhooks import Webhook

from kling_callback import verify_hook
from kling_callback.protocol.events import TYPES
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.reports import parse_callback
from kling_receiver.events.payloads import TaskJson
from kling_receiver.hooks.config import InvalidHook, parse_hook
from kling_receiver.hooks.examples import example
from kling_receiver.net.guard import Allowlist
from kling_receiver.states import FINAL, STATUSES
from kling_receiver.web.api.hook_payloads import masked_address
from kling_sandbox import Sandbox
from tests.support.receiver import Running, Start
from tests.support.web import Host, host
from tools.harness.submitting import Json, events, finished, metric, poll_until, register, rows, submit

SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
SHORT = "whsec_" + base64.b64encode(b"short").decode()
GOOD = "https://hooks.example/in"


@pytest.fixture
def running(start: Start, database_url: str) -> Running:
    """A receiver on each engine; no Kling answers its queries."""
    return start(api_base="http://127.0.0.1:9", database_url=database_url)


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook that accepts everything."""
    with host(lambda visit: visit.answer(200, b"thank you")) as endpoint:
        yield endpoint


def call(running: Running, method: str, path: str, body: Any = None, *, status: int = 200) -> Json:
    """One request with role admin."""
    content: dict[str, Any] = {} if body is None else {"json": body}
    headers = running.headers("admin")
    response = httpx.request(method, f"{running.url}/api/{path}", headers=headers, timeout=40, **content)
    assert response.status_code == status, response.text
    document: Json = response.json()
    return document


def refused(running: Running, path: str, body: Any, status: int = 422) -> str:
    """The message of a request that is refused."""
    return str(call(running, "POST", path, body, status=status)["error"]["message"])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no address": ({"address": ""}, "address: "),
    "loopback": ({"address": "https://127.0.0.1/"}, "127.0.0.1 is not a public address"),
    "loopback as a number": ({"address": "http://2130706433/"}, "is not a public address (127.0.0.1)"),
    "loopback in hex": ({"address": "http://0x7f.1/"}, "is not a public address (127.0.0.1)"),
    "loopback of IPv6": ({"address": "http://[::1]/"}, "is not a public address"),
    "loopback of both": ({"address": "http://[::ffff:127.0.0.1]/"}, "is not a public address"),
    "a private network": ({"address": "https://10.1.2.3/"}, "allow it with KLING_PRIVATE_HOOK_HOSTS"),
    "the cloud's own": ({"address": "http://169.254.169.254/latest"}, "is not a public address"),
    "a password": ({"address": "https://user:word@hooks.example/"}, "user or password"),
    "no host": ({"address": "https:///path"}, "its host or port is not valid"),
    "an unknown scheme": (
        {"address": "kafka://host/topic"},
        "no sink delivers to kafka: addresses. Use",
    ),
    "no scheme": ({"address": "hooks.example/in"}, "no sink delivers to"),
    "a file": ({"address": "file:///etc/passwd"}, "no sink delivers to file:"),
    "an unknown command": (
        {"address": "command:no-such-command-here"},
        "the command no-such",
    ),
    "a short secret": ({"address": GOOD, "secret": SHORT}, "secret: is too short"),
    "no secret": ({"address": GOOD, "secret": "hush!"}, "whsec_<base64>"),
    "a command's secret": (
        {"address": "command:true", "secret": SECRET},
        "secret is for web addresses only",
    ),
    "another's event": ({"address": GOOD, "events": ["task.exploded"]}, "no event is called task.exploded"),
    "no family": ({"address": GOOD, "families": ["../x"]}, "a family must be"),
    "no status": ({"address": GOOD, "statuses": ["happy"]}, "statuses.0: "),
    "a filter of nothing": (
        {"address": GOOD, "events": ["task.failed"], "statuses": ["succeed"]},
        "The filter matches nothing: at task.failed a task is never succeed",
    ),
    "an empty tag": ({"address": GOOD, "tags": [""]}, "tags.0: "),
    "a bad name": ({"address": GOOD, "name": "My Hook"}, "name: must be small letters, digits"),
    "a name like a task's": ({"address": GOOD, "name": "task:1"}, "name: must be small letters, digits"),
    "no schedule": ({"address": GOOD, "retry_schedule": [0]}, "retry_schedule.0: "),
    "an endless schedule": ({"address": GOOD, "retry_schedule": [1.0] * 31}, "retry_schedule: "),
    "no concurrency": ({"address": GOOD, "concurrency": 0}, "concurrency: "),
    "no rate": ({"address": GOOD, "rate_limit": 0}, "rate_limit: "),
    "too much time": ({"address": GOOD, "timeout": 601}, "timeout: "),
    "an unknown field": ({"address": GOOD, "colour": "blue"}, "colour: unknown field"),
}
"""Hooks that are not valid, and a part of the message of each."""


@pytest.mark.parametrize("kind", REFUSED)
def test_an_invalid_hook_is_refused(kind: str) -> None:
    """With the reason, which contains no secret."""
    document, message = REFUSED[kind]
    with pytest.raises(InvalidHook) as raised:
        parse_hook(document, Allowlist.parse((), "KLING_PRIVATE_HOOK_HOSTS"))
    assert message in str(raised.value)
    assert not any(secret in str(raised.value) for secret in (SECRET, SHORT, "hush"))


def test_the_api_refuses_the_same(start: Start) -> None:
    """With 422 and the same reasons; an address that is not on the web is refused before it is looked at."""
    running = start(api_base="http://127.0.0.1:9", private_hook_hosts=())
    for kind, (document, message) in REFUSED.items():
        web = document["address"].startswith("http")
        assert (message if web else "Only https addresses") in refused(running, "hooks", document), kind
    documents: list[Any] = [None, [], "x", 1, {}, {"address": 1}, {"address": None}]
    for wrong in documents:
        refused(running, "hooks", wrong)
    assert call(running, "GET", "hooks")["hooks"] == []


def test_all_problems_are_reported_at_once() -> None:
    """One error names every field that must be fixed."""
    document = {
        "address": "http://10.0.0.1/",
        "secret": SHORT,
        "name": "A",
        "rate_limit": -1,
        "colour": 1,
        "tags": [""],
    }
    with pytest.raises(InvalidHook) as raised:
        parse_hook(document, Allowlist())
    assert [problem.partition(":")[0] for problem in raised.value.problems] == [
        "tags.0",
        "name",
        "address",
        "secret",
        "rate_limit",
        "colour",
    ]


@pytest.mark.parametrize("address", ["command:true", "COMMAND:true", "nats://127.0.0.1/x", "redis://h/x", "lines:/x"])
def test_commands_and_brokers_cannot_be_added_over_the_network(shared: Running, address: str) -> None:
    """In any spelling of the scheme."""
    error = call(shared, "POST", "hooks", {"address": address}, status=422)["error"]
    assert (error["code"], "kling-receiver hooks add" in error["hint"]) == ("bad_hook", True)


def test_the_life_of_a_hook(running: Running, endpoint: Host) -> None:
    """A hook is added, listed, shown, tested, receives an event, and is paused, resumed and removed."""
    made = call(running, "POST", "hooks", {"address": endpoint.url, "events": ["task.created"]}, status=201)
    assert made["hook"]["name"] == "hook-1"
    [listed] = call(running, "GET", "hooks")["hooks"]
    shown = call(running, "GET", "hooks/hook-1")
    assert shown == listed == made["hook"]
    assert (shown["state"], shown["events"], shown["behind"], shown["source"]) == (
        "active",
        ["task.created"],
        0,
        "added",
    )
    tested = call(running, "POST", "hooks/hook-1/test")
    assert (tested["delivered"], tested["response_status"], tested["response_body"], tested["error"]) == (
        True,
        200,
        "thank you",
        None,
    )
    [visit] = endpoint.wait_for(1)
    event = Webhook(made["secret"]).verify(visit.body, dict(visit.headers))
    assert (event["type"], event["task"]["id"]) == ("hook.test", "test")
    register(running, new_id())
    endpoint.wait_for(2)
    assert call(running, "POST", "hooks/hook-1/pause")["state"] == "paused"
    register(running, new_id())
    paused = call(running, "GET", "hooks/hook-1")
    assert (paused["state"], paused["paused_because"]) == ("paused", "an operator paused it")
    assert paused["behind"] in (1, 2)  # a run that waits for more events saves its cursor when it ends
    assert call(running, "POST", "hooks/hook-1/resume")["state"] == "active"
    endpoint.wait_for(3)
    assert call(running, "DELETE", "hooks/hook-1") == {"removed": "hook-1"}
    assert call(running, "GET", "hooks")["hooks"] == []


def test_no_secret_is_shown_again(running: Running) -> None:
    """It is in the response that adds or rotates it, and in no list and no other response."""
    made = call(running, "POST", "hooks", {"name": "one", "address": GOOD, "secret": SECRET}, status=201)
    assert made["secret"] == SECRET
    rotated = call(running, "POST", "hooks/one/rotate", {})["secret"]
    assert rotated.startswith("whsec_")
    assert rotated != SECRET
    everything = json.dumps([call(running, "GET", path) for path in ("hooks", "hooks/one")])
    assert SECRET not in everything + json.dumps(made["hook"])
    assert rotated not in everything


def test_both_secrets_sign_during_the_overlap(running: Running, endpoint: Host) -> None:
    """With an overlap of 0, only the new secret signs."""
    old = call(running, "POST", "hooks", {"name": "one", "address": endpoint.url}, status=201)["secret"]
    call(running, "POST", "hooks/one/rotate", {"secret": SECRET})
    call(running, "POST", "hooks/one/test")
    new = call(running, "POST", "hooks/one/rotate", {"overlap": 0})["secret"]
    call(running, "POST", "hooks/one/test")
    both, alone = endpoint.wait_for(2)
    for secret in (old, SECRET):
        Webhook(secret).verify(both.body, dict(both.headers))
    Webhook(new).verify(alone.body, dict(alone.headers))
    assert alone.headers["webhook-signature"].count(",") == 1


@pytest.fixture(scope="module")
def with_hook(shared: Running) -> Running:
    """The module's receiver, with a hook `one`."""
    call(shared, "POST", "hooks", {"name": "one", "address": GOOD, "secret": SECRET}, status=201)
    return shared


@pytest.mark.parametrize(
    "body",
    [{"secret": "x"}, {"secret": SHORT}, {"overlap": -1}, {"overlap": 1e9}, {"overlap": "x"}, {"more": 1}, []],
)
def test_an_invalid_rotation_is_refused(with_hook: Running, body: Any) -> None:
    """The secret stays."""
    assert SHORT not in refused(with_hook, "hooks/one/rotate", body)
    [hook] = rows(with_hook, "SELECT secrets FROM hook")
    assert SECRET in hook["secrets"]


def test_names(running: Running) -> None:
    """A name is used once, a missing name is chosen, and any other name is unknown."""
    for name in ("one", "hook-1"):
        call(running, "POST", "hooks", {"name": name, "address": GOOD}, status=201)
    assert call(running, "POST", "hooks", {"address": GOOD}, status=201)["hook"]["name"] == "hook-2"
    assert "There is a hook one" in refused(running, "hooks", {"name": "one", "address": GOOD}, 409)
    for name in ("nobody", "One", "%00", "%ff", "task:1", "%F0%9F%98%80", "x" * 300):
        call(running, "GET", f"hooks/{name}", status=404)
        call(running, "DELETE", f"hooks/{name}", status=404)
        for action in ("test", "pause", "resume", "rotate"):
            call(running, "POST", f"hooks/{name}/{action}", status=404)


@pytest.mark.parametrize("odd", ["\0", "\ud800", "\U0001f600"])
def test_unusual_characters_never_cause_a_failure(running: Running, odd: str) -> None:
    """In any part of a document they are stored or refused."""
    filtered = {"name": "one", "address": GOOD, "tags": [f"a{odd}b"]}
    headers = running.headers("admin") | {"Content-Type": "application/json"}
    for path, body in (
        ("hooks", filtered),
        ("hooks", {"address": f"{GOOD}{odd}"}),
        ("hooks", {"address": GOOD, "name": odd}),
        ("hooks", {"address": GOOD, "secret": odd}),
        ("hooks", {"address": GOOD, "events": [odd], "families": [odd], "statuses": [odd], odd: 1}),
        ("hooks/one/rotate", {"secret": odd}),
        ("deliveries/retry", {"hook": odd}),
        ("deliveries/replay", {"from": 1, "hook": odd}),
        ("deliveries/replay", {"task": odd}),
        ("deliveries/replay", {"since": odd}),
    ):
        response = httpx.post(f"{running.url}/api/{path}", headers=headers, content=json.dumps(body), timeout=40)
        assert response.status_code < 500, (path, body, response.text)
    assert httpx.get(f"{running.url}/api/hooks", headers=headers).status_code == 200


def test_hooks_of_the_settings_are_changed_there(start: Start, endpoint: Host) -> None:
    """Over the API they can only be paused and tested; removed from the settings, they are removed."""
    running = start(api_base="http://127.0.0.1:9", hook_url=endpoint.url, hook_secret=SECRET)
    for method, path in (("DELETE", "hooks/default"), ("POST", "hooks/default/rotate")):
        assert call(running, method, path, status=409)["error"]["code"] == "kept_elsewhere"
    assert call(running, "POST", "hooks/default/pause")["source"] == "settings"
    assert call(running, "POST", "hooks/default/test")["delivered"]
    running.stop()
    again = start(api_base="http://127.0.0.1:9", hook_url=endpoint.url, hook_secret=SECRET)
    assert call(again, "GET", "hooks/default")["state"] == "paused"
    again.stop()
    without = start(api_base="http://127.0.0.1:9")
    assert call(without, "GET", "hooks")["hooks"] == []


def test_a_failing_test_reports_why(running: Running) -> None:
    """It has the response, or the reason why there is none; no delivery is recorded."""
    with host(lambda visit: visit.answer(403, b"who are you?")) as endpoint:
        call(running, "POST", "hooks", {"name": "one", "address": endpoint.url}, status=201)
        outcome = call(running, "POST", "hooks/one/test")
    assert (outcome["delivered"], outcome["response_status"], outcome["response_body"]) == (False, 403, "who are you?")
    unreachable = call(running, "POST", "hooks/one/test")
    assert (unreachable["delivered"], unreachable["response_status"]) == (False, None)
    assert unreachable["error"]
    assert call(running, "GET", "deliveries")["deliveries"] == []


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("nats://token@host:4222/x", "nats://***@host:4222/x"),
        ("nats://token:@host/x", "nats://***@host/x"),
        ("nats://user:word@host/x", "nats://user:***@host/x"),
        ("redis://:word@host/x?db=1", "redis://:***@host/x?db=1"),
        ("kafka://user:a@b:c@one:1,two:2/x", "kafka://user:***@one:1,two:2/x"),
        ("nats://host/a@b", "nats://host/a@b"),
        ('command:["/bin/mail", "a://b@c"]', 'command:["/bin/mail", "a://b@c"]'),
        ("https://host/in?key=word", "https://host/in?***"),
    ],
)
def test_an_address_is_masked(address: str, masked: str) -> None:
    """A user name before a password is shown, a password or token is not."""
    assert masked_address(address) == masked


def test_an_address_hides_its_password(start: Start, tmp_path: Path) -> None:
    """Also the address of a broker, and the outcome of a test."""
    file = tmp_path / "hooks.toml"
    file.write_text('[hooks.stream]\naddress = "redis://user:hidden@127.0.0.1:1/events"\n')
    running = start(api_base="http://127.0.0.1:9", hooks_file=str(file))
    shown = call(running, "GET", "hooks/stream")
    assert shown["address"] == "redis://user:***@127.0.0.1:1/events"
    tested = call(running, "POST", "hooks/stream/test")
    assert not tested["delivered"]
    assert "hidden" not in json.dumps(tested)


def fields_of(document: Json, *, prefix: str = "") -> set[str]:
    """The names of all fields of an event, those of its task and its results included."""
    names: set[str] = set()
    for name, value in document.items():
        inner = value[0] if name == "results" and value else value
        names |= {f"{prefix}{name}"} | (
            fields_of(inner, prefix=f"{prefix}{name}.") if isinstance(inner, dict) else set()
        )
    return names


@pytest.mark.parametrize("type_", TYPES)
def test_a_test_event_of_any_type_is_like_a_real_one(shared: Running, type_: str) -> None:
    """Signed, with the fields of a real task and of real data; its marks say that it is a test."""
    with host(lambda visit: visit.answer(200, b"thank you")) as endpoint:
        name = f"of-{type_.replace('.', '-')}"
        made = call(
            shared, "POST", "hooks", {"address": endpoint.url, "name": name, "events": ["task.created"]}, status=201
        )
        tested = call(shared, "POST", f"hooks/{name}/test", {"event": type_})
        assert (tested["delivered"], tested["response_status"], tested["response_body"]) == (True, 200, "thank you")
        assert 0 <= tested["duration_ms"] < 25_000
        [visit] = endpoint.wait_for(1)
    event = verify_hook(visit.body, visit.headers, made["secret"])
    task = event.task
    assert (event.type, event.id, task["tags"], task["id"][:5]) == (type_, 0, ["test"], "test-")
    status = type_.removeprefix("task.")
    if status in STATUSES:
        assert task["status"] == status
    assert task["done"] == (type_ == "task.done")
    assert (task["origin"] is not None) == (task["status"] in FINAL)
    assert (task["queue_position"] is not None) == (type_ == "task.queued")
    assert bool(task["results"]) == (task["status"] == "succeed")
    assert (task["status"] != "failed") or task["status_msg"]
    TypeAdapter(TaskJson).validate_python(task)
    assert rows(shared, "SELECT 1 FROM delivery_attempt WHERE hook_name = :name", name=name) == []


def test_the_data_of_a_test_event_is_that_of_a_real_one(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """For the types that one task has; so are the fields of its task."""
    running = start(api_base=gateway.url)
    call(running, "POST", "hooks", {"address": endpoint.url, "name": "real"}, status=201)
    task, _ = submit(running, gateway, family="videos/text2video")
    finished(running, task)
    real = {event["type"]: event for event in events(running, task)}
    assert {"task.created", "task.submitted", "result.stored", "task.done", "callback.received"} <= real.keys()
    log_id = next(iter(real.values()))["log_id"]
    payloads = running.receiver.store.payloads
    for type_, event in real.items():
        made = payloads.event(*example(type_, log_id, now=1_800_000_000_000))
        assert made["data"].keys() == event["data"].keys(), type_
        assert made["task"].keys() == event["task"].keys()
    made = payloads.event(*example("task.done", log_id, now=1_800_000_000_000))
    assert fields_of(dict(made)) - fields_of(made["task"]["request"]) >= fields_of(real["task.done"]) - {
        field for field in fields_of(real["task.done"]) if ".request." in field
    }


@pytest.mark.parametrize(
    ("type_", "status"), [("task.submitted", "submitted"), ("task.processing", "processing"), ("task.done", "succeed")]
)
def test_a_test_in_kling_s_format(shared: Running, type_: str, status: str) -> None:
    """Kling's own body; a type that such a hook never receives is refused."""
    with host(lambda visit: visit.answer(200, b"thank you")) as endpoint:
        name = f"kling-{status}"
        made = call(shared, "POST", "hooks", {"address": endpoint.url, "name": name, "format": "kling"}, status=201)
        assert call(shared, "POST", f"hooks/{name}/test", {"event": type_})["delivered"]
        [visit] = endpoint.wait_for(1)
    body = Webhook(made["secret"]).verify(visit.body, dict(visit.headers))
    assert (body["task_status"], body["task_info"]["external_task_id"][:5]) == (status, "test-")
    assert bool(body["task_result"]) == (status == "succeed")
    assert parse_callback(visit.body)
    assert "task.done only" in refused(shared, f"hooks/{name}/test", {"event": "task.failed"})


def test_an_unknown_type_is_refused(shared: Running) -> None:
    """With the types there are; so is any other field."""
    call(shared, "POST", "hooks", {"address": GOOD, "name": "never-reached"}, status=201)
    path = "hooks/never-reached/test"
    assert "task.overdue" in refused(shared, path, {"event": "task.over"})
    assert "unknown field" in refused(shared, path, {"events": "task.done"})
    for odd in (None, ["task.done"], 7, ""):
        refused(shared, path, {"event": odd})


def test_tests_count_for_nothing(running: Running) -> None:
    """Neither failures nor a Retry-After of a test open the circuit or pause the hook; no success closes it."""
    answers = iter([500] * 8 + [410, 429])
    with host(lambda visit: visit.answer(next(answers, 200), Retry_After="3600")) as endpoint:
        call(running, "POST", "hooks", {"address": endpoint.url, "name": "one"}, status=201)
        for _ in range(10):
            assert not call(running, "POST", "hooks/one/test", {"event": "task.done"})["delivered"]
        shown = call(running, "GET", "hooks/one")
        assert (shown["state"], shown["pending"], shown["dead"], shown["failing_since"]) == ("active", 0, 0, None)
        assert metric(running, 'kling_deliveries_total{outcome="failed"}') == 0
        register(running, new_id())
        assert len(endpoint.wait_for(11)) == 11  # at once: no circuit is open, no Retry-After holds
    poll_until(lambda: len(rows(running, "SELECT event_id FROM delivery_attempt")) == 1)  # recorded a moment later


def test_a_hook_is_changed(running: Running, endpoint: Host) -> None:
    """What is sent, and nothing else; null is the default again. The next event already goes by the change."""
    fields: Json = {"address": f"{endpoint.url}/one?key=x", "events": ["task.done"], "tags": ["a"], "rate_limit": 5}
    made = call(running, "POST", "hooks", {"name": "one", "concurrency": 3, **fields}, status=201)["hook"]
    changed = call(running, "PATCH", "hooks/one", {"events": [], "rate_limit": None, "concurrency": None, "tags": []})
    assert changed == {**made, "events": [], "rate_limit": None, "concurrency": 8, "tags": []}
    register(running, new_id())
    assert endpoint.wait_for(1)[0].path == "/one?key=x", "the part of the address that is not shown stays"
    call(running, "PATCH", "hooks/one", {"address": f"{endpoint.url}/two", "format": "kling", "retry_schedule": [1, 2]})
    register(running, new_id(), outcome="created", task_id="7")
    assert endpoint.wait_for(2)[1].path == "/two"
    assert call(running, "PATCH", "hooks/one", {}) == call(running, "GET", "hooks/one")
    call(running, "PATCH", "hooks/one", {"address": "https://hooks.example/a-secret-path"})
    details = [each["detail"] for each in call(running, "GET", "audit")["entries"] if each["action"] == "hooks change"]
    assert details[0] == "address: to hooks.example", "who reads the log sees where events go, and no secret"


CHANGES: dict[str, tuple[Json, str]] = {
    "unknown": ({"colour": "red"}, "colour: unknown field."),
    "the name": ({"name": "two"}, "name: unknown field."),
    "the secret": ({"secret": SECRET}, "secret: unknown field."),
    "no address": ({"address": None}, "address: Field required."),
    "an empty address": ({"address": ""}, "address: "),
    "what is hidden": ({"address": f"{GOOD}?***"}, "*** stands for a part that is not shown"),
    "a command": ({"address": "command:true"}, "Only an https address can be changed"),
    "loopback": ({"address": "https://169.254.169.254/"}, "is not a public address"),
    "an unknown event": ({"events": ["task.lost"]}, "events: no event is called task.lost"),
    "impossible with what stays": ({"statuses": ["failed"]}, "The filter matches nothing"),
    "a format with events": ({"format": "kling"}, "Remove its events"),
    "too many at once": ({"concurrency": 257}, "concurrency: "),
    "several": ({"timeout": 0, "rate_limit": "x"}, "timeout: "),
}


def test_a_change_that_is_not_possible_changes_nothing(shared: Running) -> None:
    """It is checked as a new hook is, with what stays; each problem names its field."""
    made = call(shared, "POST", "hooks", {"address": GOOD, "events": ["task.created"]}, status=201)["hook"]
    for name, (changes, message) in CHANGES.items():
        assert message in refused_change(shared, made["name"], changes), name
    assert call(shared, "GET", f"hooks/{made['name']}") == {**made, "behind": made["behind"]}
    call(shared, "PATCH", "hooks/nothing", {}, status=404)
    call(shared, "DELETE", f"hooks/{made['name']}")


def refused_change(running: Running, name: str, changes: Json) -> str:
    """The message of a change that is refused."""
    return str(call(running, "PATCH", f"hooks/{name}", changes, status=422)["error"]["message"])


def test_a_hook_of_a_task_or_of_the_settings_is_not_changed(start: Start, endpoint: Host) -> None:
    """The answer says where it is kept."""
    running = start(api_base="http://127.0.0.1:9", hook_url=endpoint.url, hook_secret=SECRET)
    task_id = new_id()
    register(running, task_id, hook=endpoint.url)
    for name, code in (("default", "kept_elsewhere"), (f"task:{task_id}", "hook_of_task")):
        error = call(running, "PATCH", f"hooks/{name}", {"timeout": 3}, status=409)["error"]
        assert error["code"] == code
        assert error["hint"]


def test_a_pause_has_a_reason(running: Running) -> None:
    """It is shown with the hook, within its limit."""
    call(running, "POST", "hooks", {"name": "one", "address": GOOD}, status=201)
    assert call(running, "POST", "hooks/one/pause", {"reason": " maintenance "})["paused_because"] == "maintenance"
    assert call(running, "POST", "hooks/one/resume")["paused_because"] is None
    assert call(running, "POST", "hooks/one/pause", {"reason": ""})["paused_because"] == "an operator paused it"
    assert "reason: " in refused(running, "hooks/one/pause", {"reason": "x" * 501})
    assert "because: unknown field" in refused(running, "hooks/one/pause", {"because": "x"})


def test_an_open_circuit_says_when_it_is_tried(running: Running) -> None:
    """While it is open; resumed, the hook is tried at once."""
    answers = [500]
    with host(lambda visit: visit.answer(answers[0])) as endpoint:
        call(running, "POST", "hooks", {"name": "one", "address": endpoint.url, "retry_schedule": [3600]}, status=201)
        before = call(running, "GET", "hooks/one")
        assert (before["circuit"], before["next_attempt_at"]) == ("closed", None)
        for _ in range(6):
            register(running, new_id())
        hook = poll_until(
            lambda: (
                (found := call(running, "GET", "hooks/one"))["circuit"] == "open" and found["next_attempt_at"] and found
            )
        )
        assert hook["state"] == "failing"
        assert call(running, "GET", "hooks")["hooks"][0]["circuit"] == "open"
        answers[0] = 200
        call(running, "POST", "hooks/one/resume")
        poll_until(
            lambda: (found := call(running, "GET", "hooks/one"))["circuit"] == "closed" and not found["next_attempt_at"]
        )


def test_a_test_in_another_format(running: Running, endpoint: Host) -> None:
    """What the hook would receive in it; the hook keeps its own."""
    call(running, "POST", "hooks", {"name": "one", "address": endpoint.url}, status=201)
    assert call(running, "POST", "hooks/one/test", {"event": "task.done", "format": "kling"})["delivered"]
    assert call(running, "POST", "hooks/one/test", {"event": "task.done"})["delivered"]
    kling, event = (json.loads(visit.body) for visit in endpoint.wait_for(2))
    assert "task_status" in json.dumps(kling)
    assert event["type"] == "task.done"
    assert call(running, "GET", "hooks/one")["format"] == "event"
    assert "receives" in refused(running, "hooks/one/test", {"event": "task.failed", "format": "kling"})
    assert "format: " in refused(running, "hooks/one/test", {"format": "xml"})
