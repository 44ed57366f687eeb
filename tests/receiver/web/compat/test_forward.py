"""Calls that Kling answers at once, and those of the account, are passed on as they are."""

import json

import httpx
import pytest

from kling_receiver.web.compat.forward import METHODS
from kling_sandbox import Sandbox
from tests.support.compat import ACCESS_KEY, KEY, SECRET_KEY, code, data
from tests.support.receiver import Running, Start
from tests.support.web import Visit, host


def test_a_call_is_passed_on(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """With its body and query; once; by whoever may use this API, although a token is no key of Kling's."""
    for headers in ({}, door.headers()):
        before = len(door_gateway.calls)
        speech = api.post("/kling/v1/audio/tts", json={"text": "hello", "voice_id": "v"}, headers=headers)
        assert data(speech)["task_result"]["audios"]
        voices = api.get("/v1/general/presets-voices?pageNum=2&pageSize=5", headers=headers)
        assert [each["task_id"] for each in data(voices)] == ["5", "6", "7", "8", "9"]
        calls = [(call.method, call.path, call.values) for call in door_gateway.calls[before:]]
        assert calls == [
            ("POST", "audio/tts", {"text": "hello", "voice_id": "v"}),
            ("GET", "general/presets-voices", {"pageNum": "2", "pageSize": "5"}),
        ]


def test_the_account(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """Costs by GET, billing by POST."""
    costs = api.get("/account/costs?start_time=1&end_time=2")
    assert data(costs)["resource_pack_subscribe_infos"]
    billing = api.post("/account/billing/package", json={"start_time": 1, "end_time": 2})
    assert data(billing)["has_more"] is False


def test_a_refusal_is_passed_on(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """With Kling's status, code, message and request id; it is not sent again."""
    before = len(door_gateway.calls)
    answer = api.post("/v1/audio/tts", json={"text": "hello [sandbox: arrears]"})
    assert code(answer) == (429, 1101)
    assert answer.json()["message"] == "Account in arrears"
    assert code(api.post("/v1/audio/tts", json={})) == (400, 1201)
    assert len(door_gateway.calls) == before + 2


def test_an_unknown_outcome_is_not_repeated(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """The answer says that the call may have been paid; Kling's own 504 is passed on."""
    before = len(door_gateway.calls)
    lost = api.post("/v1/audio/tts", json={"text": "hello [sandbox: drop-after-create]"})
    assert code(lost) == (504, 5002)
    assert "not sent again" in lost.json()["message"]
    assert code(api.post("/v1/audio/tts", json={"text": "hello [sandbox: create-5002]"})) == (504, 5002)
    assert len(door_gateway.calls) == before + 2


def test_only_known_calls_are_passed_on(door: Running, door_gateway: Sandbox, api: httpx.Client) -> None:
    """Nobody reaches another path of Kling with this account's key, nor one by the wrong method."""
    before = len(door_gateway.calls), len(door_gateway.queries), len(door_gateway.creates)
    for method, path in (
        ("GET", "/account/keys"),
        ("GET", "/account/costs/../keys"),
        ("POST", "/account/costs"),
        ("GET", "/account/billing/package"),
        ("GET", "/v1/audio/tts"),
        ("GET", "/v1/account/costs"),
        ("POST", "/v1/general/presets-voices"),
    ):
        assert code(api.request(method, path)) == (404, 1202), path
    assert (len(door_gateway.calls), len(door_gateway.queries), len(door_gateway.creates)) == before
    assert set(METHODS.values()) == {"GET", "POST"}


def test_kling_cannot_be_reached(start: Start) -> None:
    """Nothing was sent: the program may try again."""
    running = start(api_base="http://127.0.0.1:9", compat_api="on")
    for method in ("GET", "POST"):
        path = "/account/costs" if method == "GET" else "/v1/audio/tts"
        answer = httpx.request(method, f"{running.url}{path}", headers=running.headers(), content=b"{}")
        assert code(answer) == (503, 5001)
        assert "could not be reached" in answer.json()["message"]


def test_a_receiver_without_a_key(start: Start) -> None:
    """It can only verify what Kling signed: the answer says what to set."""
    secret = "whsec_dGVzdHNlY3JldHRlc3RzZWNyZXR0ZXN0c2VjcmV0MTI="
    running = start(api_key="", webhook_secrets=(secret,), compat_api="on")
    answer = httpx.get(f"{running.url}/account/costs", headers=running.headers())
    assert code(answer) == (503, 5001)
    assert "KLING_API_KEY" in answer.json()["message"]


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
def test_the_key_is_in_no_answer(start: Start, content_type: str) -> None:
    """A gateway that quotes it, or a page of a proxy: no browser runs it at the receiver's address."""

    def quote(visit: Visit) -> None:
        quoted = json.dumps({"code": 1002, "message": visit.headers["Authorization"], "request_id": "r1"})
        visit.answer(403, quoted.encode(), Content_Type=content_type, Retry_After="7")

    with host(quote) as gateway:
        running = start(api_base=gateway.url, api_key=KEY, compat_api="on")
        answer = httpx.post(f"{running.url}/v1/audio/tts", headers=running.headers(), json={"text": "x"})
        assert answer.json() == {"code": 1002, "message": "Bearer (key)", "request_id": "r1"}
        assert (answer.status_code, answer.headers["Retry-After"]) == (403, "7")
        assert answer.headers["Content-Type"] == content_type
        assert answer.headers["Content-Security-Policy"].startswith("sandbox")
        assert [visit.headers["Authorization"] for visit in gateway.visits] == [f"Bearer {KEY}"]


def test_a_stale_jwt_is_signed_anew(start: Start) -> None:
    """Kling took nothing: the program need not know of the receiver's JWT."""
    with Sandbox(access_key=ACCESS_KEY, secret_key=SECRET_KEY, misbehave=("expired-token-once",)) as gateway:
        running = start(api_base=gateway.url, api_key="", access_key=ACCESS_KEY, secret_key=SECRET_KEY, compat_api="on")
        answer = httpx.post(f"{running.url}/v1/audio/tts", headers=running.headers(), json={"text": "x"})
        assert code(answer) == (200, 0)
