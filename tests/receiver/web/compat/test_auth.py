"""Who may call Kling's API at the receiver: its own tokens, the account's key, a JWT signed with its secret key."""

import time

import httpx
import pytest

from kling_callback.protocol.signing import api_token
from kling_receiver.web.compat import attempts
from kling_receiver.web.compat.attempts import FailedAttempts
from kling_sandbox import Sandbox
from tests.support.compat import ACCESS_KEY, KEY, SECRET_KEY, code, signed
from tests.support.receiver import SECRET, Running, Start

LIST = "/v1/videos/text2video"


def get(door: Running, credential: str | bytes | None, path: str = LIST) -> httpx.Response:
    """A query with this `Authorization`."""
    headers = [] if credential is None else [("Authorization", credential)]
    return httpx.get(f"{door.url}{path}", headers=httpx.Headers(headers))  # type: ignore[arg-type]  # bytes are sent


@pytest.mark.parametrize("path", [LIST, f"/kling{LIST}", "/tasks?task_ids=x"])
def test_who_is_accepted(door: Running, path: str) -> None:
    """A token of role client or higher, the account's key, and a JWT signed with its secret key."""
    for token in (KEY, signed(), api_token([SECRET], "client", 60), api_token([SECRET], "admin", 60)):
        assert code(get(door, f"Bearer {token}", path)) == (200, 0)


now = int(time.time())
REFUSED: dict[str, tuple[str | bytes | None, int]] = {
    "no header": (None, 1001),
    "another scheme": (f"Basic {KEY}", 1002),
    "no key": ("Bearer", 1002),
    "another key": (f"Bearer {KEY}x", 1002),
    "a part of the key": (f"Bearer {KEY[:-1]}", 1002),
    "not ASCII": (b"Bearer \xff\xfe", 1002),
    "of another account": (f"Bearer {signed('another-secret-key-of-another-account')}", 1000),
    "of another access key": (f"Bearer {signed(iss='another')}", 1002),
    "expired": (f"Bearer {signed(exp=now - 600)}", 1004),
    "not yet valid": (f"Bearer {signed(nbf=now + 600)}", 1003),
    "without exp": (f"Bearer {signed(exp=None)}", 1002),
    "without iss": (f"Bearer {signed(iss=None)}", 1002),
    "another algorithm": (f"Bearer {signed('x' * 64, algorithm='HS512')}", 1002),
    "unsigned": ("Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJhIn0.", 1002),
    "no JSON": ("Bearer a.b.c", 1002),
    "expired token": (f"Bearer {api_token([SECRET], 'client', -3600)}", 1004),
    "token of other secrets": (f"Bearer {api_token(['x' * 32], 'client', 60)}", 1002),
}


def test_what_is_refused(start: Start, gateway: Sandbox) -> None:
    """With Kling's codes, under HTTP 401; the key is in no answer."""
    keys = {"api_key": KEY, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    running = start(api_base=gateway.url, compat_api="on", **keys)
    for name, (credential, expected) in REFUSED.items():
        response = get(running, credential)
        assert code(response) == (401, expected), name
        assert KEY not in response.text
        assert SECRET_KEY not in response.text


def test_a_token_of_role_read_is_refused(door: Running) -> None:
    """Reading other people's tasks is no right to create some."""
    assert code(get(door, f"Bearer {api_token([SECRET], 'read', 60)}")) == (403, 1103)


def test_clocks_may_differ_as_at_kling(door: Running) -> None:
    """Kling's samples sign `nbf` five seconds early."""
    moment = int(time.time())
    assert code(get(door, f"Bearer {signed(nbf=moment + 3)}")) == (200, 0)


def test_a_revoked_token_is_refused(door: Running) -> None:
    """At once."""
    token = api_token([SECRET], "client", 300, name="program", token_id="p1")
    admin = door.headers("admin")
    assert code(get(door, f"Bearer {token}")) == (401, 1002)
    assert httpx.post(f"{door.url}/api/tokens", json={"token": token}, headers=admin).status_code == 201
    assert code(get(door, f"Bearer {token}")) == (200, 0)
    assert httpx.delete(f"{door.url}/api/tokens/program", headers=admin).status_code == 200
    assert code(get(door, f"Bearer {token}")) == (401, 1002)


def test_each_key_of_a_rotation_is_accepted(start: Start, gateway: Sandbox) -> None:
    """The old one too; a JWT needs an access key."""
    running = start(api_base=gateway.url, api_key="new-key-of-account,old-key-of-account", compat_api="on")
    for key in ("new-key-of-account", "old-key-of-account"):
        assert code(get(running, f"Bearer {key}")) == (200, 0)
    assert code(get(running, "Bearer new-key-of-account,old-key-of-account")) == (401, 1002)
    assert code(get(running, f"Bearer {signed()}")) == (401, 1002)


def test_failed_attempts_are_limited(start: Start, gateway: Sandbox) -> None:
    """With 429; a program that was accepted before goes on, although it has the same address."""
    running = start(api_base=gateway.url, api_key=KEY, compat_api="on")
    assert code(get(running, f"Bearer {KEY}")) == (200, 0)
    for n in range(attempts.MAX_FAILURES):
        assert code(get(running, f"Bearer guess-{n}")) == (401, 1002)
    limited = get(running, "Bearer another-guess")
    assert code(limited) == (429, 1302)
    assert code(get(running, None)) == (401, 1001)
    assert 1 <= int(limited.headers["Retry-After"]) <= attempts.WINDOW_SECONDS
    assert code(get(running, f"Bearer {KEY}")) == (200, 0)


def test_the_failures_of_others_lock_out_nothing_that_is_signed(start: Start, gateway: Sandbox) -> None:
    """Each JWT is a new text, and behind a proxy, all programs have one address. A wrong signature is limited."""
    keys = {"api_key": KEY, "access_key": ACCESS_KEY, "secret_key": SECRET_KEY}
    running = start(api_base=gateway.url, compat_api="on", **keys)
    for n in range(attempts.MAX_FAILURES):
        assert code(get(running, f"Bearer guess-{n}")) == (401, 1002)
    assert code(get(running, f"Bearer {signed()}")) == (200, 0)
    assert code(get(running, running.headers()["Authorization"])) == (200, 0)
    assert code(get(running, f"Bearer {signed('another-secret-key-of-another-account')}")) == (429, 1302)
    assert code(get(running, f"Bearer {api_token(['x' * 32], 'client', 60)}")) == (429, 1302)
    assert code(get(running, f"Bearer {KEY}")) == (429, 1302), "a bare key may be a guess"


def test_attempts_are_counted_by_network_and_forgotten() -> None:
    """A machine has all addresses of an IPv6 network; after a minute, it may try again."""
    clock = [1000.0]
    failed = FailedAttempts(clock=lambda: clock[0])
    for n in range(attempts.MAX_FAILURES):
        assert not failed.seconds_blocked("2001:db8::1", "x")
        failed.record_failure(f"2001:db8::{n:x}")
    assert failed.seconds_blocked("2001:db8::ffff", "x") == attempts.WINDOW_SECONDS
    assert not failed.seconds_blocked("2001:db8:0:1::1", "x")
    assert not failed.seconds_blocked("192.0.2.1", "x")
    failed.record_success("known")
    assert not failed.seconds_blocked("2001:db8::1", "known")
    clock[0] += attempts.WINDOW_SECONDS
    assert not failed.seconds_blocked("2001:db8::1", "x")
    failed.record_failure("2001:db8::1")
    assert not failed.seconds_blocked("2001:db8::1", "x")


def test_few_addresses_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood from many addresses fills no memory."""
    monkeypatch.setattr(attempts, "MAX_ADDRESSES", 10)
    failed = FailedAttempts()
    for n in range(100):
        failed.record_failure(f"192.0.2.{n}")
    assert len(failed._failures) == 10


def test_kling_itself_agrees(door: Running, door_gateway: Sandbox) -> None:
    """The sandbox, which plays Kling, answers a wrong JWT with the same codes."""
    for token in (signed("x" * 40), signed(exp=now - 600), signed(nbf=now + 600), "a.b.c"):
        headers = {"Authorization": f"Bearer {token}"}
        theirs = httpx.get(f"{door_gateway.url}{LIST}", headers=headers)
        assert code(httpx.get(f"{door.url}{LIST}", headers=headers)) == code(theirs)
    assert ACCESS_KEY not in theirs.text
