"""Hooks of single tasks, which clients name: their secret, their events, one for each task, the hosts they reach."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from kling_callback import HookError, verify_hook
from kling_callback.protocol.ids import new_id
from kling_callback.protocol.signing import task_hook_secrets
from kling_sandbox import Sandbox
from tests.support.receiver import SECRET, Start
from tests.support.web import Host, Visit, host
from tools.harness.submitting import create, events, register, show, submit

HOOK_SECRET = "whsec_" + base64.b64encode(b"a-hook-secret-for-these-tests...").decode()
NEXT = "the-next-signing-secret-that-is-32-characters"
NO_KLING = "http://127.0.0.1:9"


@pytest.fixture
def endpoint() -> Iterator[Host]:
    """A hook that accepts every event."""
    with host(lambda visit: visit.answer(204)) as server:
        yield server


def verifies(secret: str, visit: Visit) -> bool:
    """Whether the package of Standard Webhooks accepts a request with this secret."""
    try:
        Webhook(secret).verify(visit.body, dict(visit.headers))
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.parametrize("hook_secret", [HOOK_SECRET, ""])
def test_it_receives_the_events_of_its_task_signed_with_the_derived_secret(
    start: Start, gateway: Sandbox, endpoint: Host, hook_secret: str
) -> None:
    """Never with KLING_HOOK_SECRET: whoever has a client's token could then post events to the operator's hooks."""
    running = start(api_base=gateway.url, hook_secret=hook_secret)
    task, _ = submit(running, gateway, hook=endpoint.url)
    assert register(running, task, hook=endpoint.url).status_code == 200
    other, _ = submit(running, gateway)
    events(running, other)
    logged = events(running, task)
    visits = endpoint.wait_for(len(logged))
    [secret] = task_hook_secrets([SECRET])
    received = [verify_hook(visit.body, visit.headers, secret) for visit in visits]
    assert sorted(event.id for event in received) == [each["id"] for each in logged]
    assert all(verifies(secret, visit) and not verifies(HOOK_SECRET, visit) for visit in visits)
    with pytest.raises(HookError, match="signature"):
        verify_hook(visits[0].body, visits[0].headers, HOOK_SECRET)


def test_the_secrets_are_derived_one_from_each_signing_secret() -> None:
    """Newest first, in the form of Standard Webhooks, equal for equal secrets only; none tells a signing secret."""
    newest, old = task_hook_secrets([NEXT, SECRET])
    assert [newest] == task_hook_secrets([NEXT])
    assert [old] == task_hook_secrets([SECRET])
    assert len({newest, old, HOOK_SECRET}) == 3
    assert len(base64.b64decode(newest.removeprefix("whsec_"))) == 32
    assert len(task_hook_secrets([f"{NEXT}{n}" for n in range(20)])) == 8  # a header has its limits


def test_during_a_rotation_each_signing_secret_signs(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """A recipient changes to the new secret at any time while both are set; then the old one signs no more."""
    old, newest = task_hook_secrets([SECRET, NEXT])
    signed: list[tuple[bool, bool]] = []
    for secrets in ((SECRET,), (NEXT, SECRET), (NEXT,)):
        running = start(api_base=gateway.url, signing_secrets=secrets)
        submit(running, gateway, hook=endpoint.url)
        visit = endpoint.wait_for(len(endpoint.visits) + 1)[-1]
        signed.append((verifies(old, visit), verifies(newest, visit)))
        running.stop()
    assert signed == [(True, False), (True, True), (False, True)]


def test_it_receives_only_the_events_that_it_names(start: Start, gateway: Sandbox, endpoint: Host) -> None:
    """`hook_events` is a filter, as of any hook."""
    running = start(api_base=gateway.url)
    task = new_id()
    fields: dict[str, Any] = {"hook": endpoint.url, "hook_events": ["task.done", "task.created"]}
    assert register(running, task, **fields).json()["create"]
    create(running, gateway, task)
    logged = events(running, task)
    visits = endpoint.wait_for(2)
    named = [each["id"] for each in logged if each["type"] in ("task.created", "task.done")]
    assert sorted(json.loads(visit.body)["id"] for visit in visits) == named
    shown = httpx.get(f"{running.url}/api/hooks/task:{task}", headers=running.headers("admin")).json()
    assert shown["events"] == ["task.created", "task.done"]


OTHERS: dict[str, dict[str, Any]] = {
    "another address": {"hook": "https://other.example/?token=hidden"},
    "other events": {"hook": "https://first.example/", "hook_events": ["task.done"]},
    "fewer events": {"hook": "https://first.example/", "hook_events": ["task.failed"]},
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_second_hook_is_refused(start: Start, other: dict[str, Any]) -> None:
    """With 409, and nothing changes: silence would leave a client without the events that it waits for."""
    running = start(api_base=NO_KLING)
    first: dict[str, Any] = {
        "hook": "https://first.example/",
        "hook_events": ["task.failed", "task.done"] if "hook_events" in other else [],
    }
    assert register(running, "t", **first).status_code == 201
    before = show(running, "t")
    answer = register(running, "t", tags=["new"], **other)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert "has a hook already" in answer.json()["error"]["message"]
    assert "first.example" not in answer.text  # its query may be another client's secret
    assert show(running, "t") == before
    assert register(running, "t", **first).status_code == 200  # the same one again is no second one
    assert register(running, "t", hook=f" {first['hook']} ", hook_events=first["hook_events"]).status_code == 200
    assert register(running, "t").status_code == 200


def test_the_outcome_of_a_create_is_recorded_whatever_its_hook(start: Start) -> None:
    """It may be the only report of a task that is paid for; the answer still says that the hook was not added."""
    running = start(api_base=NO_KLING)
    register(running, "t", hook="https://first.example/")
    answer = register(running, "t", hook="https://other.example/", outcome="created", task_id="kling-1")
    assert answer.status_code == 409
    assert answer.json()["error"]["message"].startswith("The outcome is recorded. ")
    assert show(running, "t")["task_id"] == "kling-1"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hook": "http://10.0.0.1/"}, "allow it with KLING_PRIVATE_CLIENT_HOOK_HOSTS"),
        ({"hook": "command:ls"}, "only http and https"),
        ({"hook": "x" * 2001}, "hook: "),
        ({"hook": "https://x.example/", "hook_events": ["task.dome"]}, "no event is called task.dome"),
        ({"hook_events": ["task.done"]}, "Set `hook`"),
    ],
)
def test_a_wrong_hook_is_refused(start: Start, fields: dict[str, Any], message: str) -> None:
    """When the task is registered, with the reason; the task is not registered."""
    running = start(api_base=NO_KLING)
    answer = register(running, "t", **fields)
    assert answer.status_code == 422
    assert message in answer.json()["error"]["message"]
    assert register(running, "t").status_code == 201


def test_clients_name_no_private_host_that_only_the_operator_s_hooks_may_reach(start: Start, endpoint: Host) -> None:
    """Each purpose has a setting of its own; that of clients is empty unless it is set."""
    running = start(api_base=NO_KLING, private_hook_hosts=("127.0.0.1",), private_client_hook_hosts=())
    assert register(running, "t", hook=endpoint.url).status_code == 422
    add = {"address": endpoint.url}
    admin = running.headers("admin")
    assert httpx.post(f"{running.url}/api/hooks", headers=admin, json=add).status_code == 201
    running.stop()
    running = start(api_base=NO_KLING, private_hook_hosts=(), private_client_hook_hosts=("127.0.0.1",))
    assert register(running, "t", hook=endpoint.url).status_code == 201
    assert httpx.post(f"{running.url}/api/hooks", headers=admin, json=add).status_code == 422


def test_a_private_host_that_is_no_longer_allowed_gets_nothing(start: Start) -> None:
    """The setting is checked at each delivery too: what was named before is refused from the next start on."""
    with host(lambda visit: visit.answer(503)) as server:
        running = start(api_base=NO_KLING)
        register(running, "t", hook=server.url)
        count = len(server.wait_for(1))
        running.stop()
        running = start(api_base=NO_KLING, private_client_hook_hosts=())
        admin = running.headers("admin")
        answer = httpx.post(f"{running.url}/api/deliveries/1/task:t/retry", headers=admin)
        assert answer.status_code == 200, answer.text
        tested = httpx.post(f"{running.url}/api/hooks/task:t/test", headers=admin).json()
        assert not tested["delivered"]
        assert "is not a public address" in tested["error"]
        assert len(server.visits) == count
