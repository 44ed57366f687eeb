"""One create: what is registered, sent and reported, and that nothing is paid twice."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from anyio import wait_all_tasks_blocked

from kling_callback.errors import KlingError, NotCreated, ParameterError, ReceiverError
from kling_callback.jobs.catalog import TEXT_TO_VIDEO
from kling_callback.protocol.signing import verify_api_token
from kling_callback.tasks import AsyncTask
from tests.support.kling import QUICK, SECRET, Stage, answer, forever, kling_says, refusal, taken, task_json

pytestmark = pytest.mark.anyio

FAMILY = "images/generations"
PROMPT = "a very private kangaroo"
NO_CONNECTION = httpx.ConnectError("refused")
CUT = httpx.ReadError("cut")


async def create(stage: Stage, **more: Any) -> AsyncTask:
    async with stage.kling() as kling:
        return await kling.create(FAMILY, {"prompt": PROMPT}, external_task_id="mine", **more)


async def refused(stage: Stage, **more: Any) -> KlingError:
    with pytest.raises(KlingError) as error:
        await create(stage, **more)
    return error.value


async def test_register_create_report() -> None:
    """In this order: the receiver has the task before Kling, and Kling's id after it."""
    stage = Stage()
    task = await create(stage, tags=["a", "b", "a"])
    assert stage.order == ["register", "create", "report"]
    registered, reported = stage.bodies("register")[0], stage.bodies("report")[0]
    assert reported == {**registered, "outcome": "created", "task_id": "kling-1"}
    assert registered["tags"] == ["a", "b"]
    assert registered["family"] == FAMILY
    assert registered["base"] == "https://kling.test"
    assert registered["request"] == {"prompt": PROMPT}
    assert (task.id, task.task_id, task.outcome, task.unreported) == ("mine", "kling-1", "created", None)


@pytest.mark.parametrize(
    ("response", "outcome"),
    [
        (answer(200, {"code": 0, "request_id": "r-1", "data": {"task_id": "k"}}), "created"),
        (answer(429, {"code": 1101, "message": "no", "request_id": "r-1"}), "not_created"),
        (answer(500, {"code": 5000, "message": "no", "request_id": "r-1"}), "unknown"),
    ],
)
async def test_the_request_id_of_kling_s_answer_is_reported(response: httpx.Response, outcome: str) -> None:
    """Whatever the answer is: Kling's support asks for it."""
    stage = Stage(create=[response])
    with suppress(NotCreated):
        await create(stage)
    (reported,) = stage.bodies("report")
    assert (reported["outcome"], reported["request_id"]) == (outcome, "r-1")


async def test_our_id_is_sent_and_the_callback_address_is_the_receiver_s() -> None:
    """Kling gets our id as external_task_id, and the address that the receiver signed."""
    stage = Stage()
    await create(stage)
    assert stage.bodies("create") == [
        {
            "prompt": PROMPT,
            "external_task_id": "mine",
            "callback_url": "https://receiver.test/callbacks/mine",
        }
    ]


async def test_an_id_is_made_when_none_is_given() -> None:
    """Each create has an id of its own, and each create call a create token of its own."""
    stage = Stage()
    async with stage.kling() as kling:
        made = [await kling.text_to_image("x") for _ in range(2)]
    assert made[0].id != made[1].id
    assert [body["external_task_id"] for body in stage.bodies("create")] == [task.id for task in made]
    create_tokens = [body["attempt"] for body in stage.bodies("register")]
    assert create_tokens[0] != create_tokens[1]
    fields = {"family", "model", "request", "request_sha256", "base", "key_fingerprint", "tags", "hook"} | {
        "hook_events",
        "hook_format",
        "attempt",
    }
    assert stage.bodies("register")[0].keys() == fields  # the names that the receiver documents, and no others


async def test_kling_gets_the_key_and_the_receiver_a_token() -> None:
    """Kling gets the key, the receiver a new token of the role client, neither the other's."""
    stage = Stage()
    await create(stage)
    assert stage.requests["create"][0].headers["Authorization"] == "Bearer the-kling-key"
    token = stage.requests["register"][0].headers["Authorization"].removeprefix("Bearer ")
    assert verify_api_token([SECRET], token).role == "client"


async def test_a_receiver_token_takes_precedence() -> None:
    """KLING_RECEIVER_TOKEN is used instead of the secrets."""
    stage = Stage()
    async with stage.kling(receiver_token="the-token") as kling:
        await kling.text_to_image("x")
    assert stage.requests["register"][0].headers["Authorization"] == "Bearer the-token"


@pytest.mark.parametrize("status", [401, 403, 404, 409, 422])
async def test_no_registration_no_create(status: int) -> None:
    """If the receiver refuses, nothing is sent to Kling, and the error's outcome is not_created."""
    stage = Stage(register=[refusal(status, "conflict")])
    error = await refused(stage)
    assert isinstance(error, ReceiverError)
    assert (error.outcome, error.http_status, error.code, error.hint) == (
        "not_created",
        status,
        "conflict",
        "Do this.",
    )
    assert stage.order == ["register"]


async def test_an_unreachable_receiver_is_tried_a_few_times_and_nothing_is_paid() -> None:
    """Without a receiver no create is sent."""
    stage = Stage(register=[NO_CONNECTION] * 9)
    error = await refused(stage)
    assert (error.outcome, error.code, error.retryable) == ("not_created", "unreachable", True)
    assert stage.order == ["register"] * 4


CREATES: list[Callable[..., Any]] = [
    lambda kling, deep: kling.create("videos/effects", {"a": deep}),
    lambda kling, deep: kling.create("videos/effects", deep),
    lambda kling, deep: kling.create("videos/effects", {"external_task_id": deep}),
    lambda kling, deep: kling.create("images/generations", {"prompt": "x"}, external_task_id=deep),
    lambda kling, deep: kling.text_to_video("x", camera_control=deep),
    lambda kling, deep: kling.text_to_image("x", new_parameter=deep),
    lambda kling, deep: kling.call("videos/identify-face", {"a": {"b": deep}}),
    lambda kling, deep: kling.call("videos/identify-face", deep),
]


async def test_parameters_of_any_depth_are_refused_before_they_are_walked() -> None:
    """Nothing is sent, not even the registration."""
    deep: Any = {}
    for _ in range(100_000):
        deep = {"a": [deep]}
    stage = Stage()
    async with stage.kling() as kling:
        for create in CREATES:
            with pytest.raises(ParameterError):
                await create(kling, deep)
    assert stage.order == []


@pytest.mark.parametrize(
    "body", [None, [], {}, {"task": {}}, {"task": task_json("other"), "callback_url": "x", "create": True}]
)
async def test_an_unreadable_registration_is_no_registration(body: Any) -> None:
    """An answer that is not a receiver's, or is about another task, stops the create."""
    stage = Stage(register=[answer(200, body)])
    error = await refused(stage)
    assert (error.code, error.outcome) == ("unreadable", "not_created")


async def test_a_registration_is_retried_with_the_same_create_token() -> None:
    """After a lost answer the same call registers again, and creates once."""
    stage = Stage(register=[CUT, refusal(503), httpx.ReadTimeout("late")])
    await create(stage)
    assert stage.order == ["register"] * 4 + ["create", "report"]
    assert len({body["attempt"] for body in stage.bodies("register")}) == 1


@pytest.mark.parametrize(
    "step",
    [
        kling_says(1302, status=429),
        kling_says(1303, status=429),
        kling_says(1302, Retry_After="0"),
        NO_CONNECTION,
    ],
)
async def test_what_kling_surely_did_not_take_is_sent_again(step: Any) -> None:
    """After a rate limit, a concurrency limit or no connection, the same create is sent until it is taken."""
    stage = Stage(create=[step, step])
    task = await create(stage)
    assert task.outcome == "created"
    assert stage.order == ["register", "create", "create", "create", "report"]
    assert len({request.content for request in stage.requests["create"]}) == 1


async def test_a_long_message_of_kling_s_is_reported_in_part() -> None:
    """A reason that is too long for the receiver does not prevent the report."""
    stage = Stage(create=[kling_says(1301, "no " * 10_000)])
    await refused(stage)
    assert len(stage.bodies("report")[0]["reason"]) == 2000


async def test_a_create_is_not_retried_forever() -> None:
    """After the last retry, the refusal is reported and raised."""
    stage = Stage(create=[kling_says(1302, "too fast") for _ in range(9)])
    error = await refused(stage)
    assert isinstance(error, NotCreated)
    assert len(stage.requests["create"]) == 4
    assert stage.bodies("report")[0]["outcome"] == "not_created"
    assert "too fast" in stage.bodies("report")[0]["reason"]


async def test_a_retry_after_beyond_the_limit_ends_the_retries() -> None:
    """A Retry-After that exceeds the total time is neither waited for nor shortened."""
    stage = Stage(create=[kling_says(1303, Retry_After="86400")])
    error = await refused(stage)
    assert error.retry_after == 86400
    assert len(stage.requests["create"]) == 1


@pytest.mark.parametrize("code", [1001, 1101, 1103, 1203, 1301, 1304])
async def test_a_refusal_is_final(code: int) -> None:
    """Arrears, policy and the like: one create, reported as not created."""
    stage = Stage(create=[kling_says(code)])
    error = await refused(stage)
    assert (type(error), error.code, error.request_id) == (NotCreated, code, "r")
    assert stage.order == ["register", "create", "report"]


async def test_a_bare_429_is_not_sent_again() -> None:
    """Without Kling's code it is not known who refused; the caller may retry."""
    stage = Stage(create=[httpx.Response(429, content=b"slow down")])
    error = await refused(stage)
    assert isinstance(error, NotCreated)
    assert error.retryable
    assert len(stage.requests["create"]) == 1


async def test_no_connection_is_given_less_time_than_a_busy_kling() -> None:
    """A wrong address is reported soon."""
    stage = Stage(create=[NO_CONNECTION] * 9)
    async with stage.kling(retry=replace(QUICK, connect_seconds=-1)) as kling:
        with pytest.raises(NotCreated):
            await kling.text_to_image("x")
    assert len(stage.requests["create"]) == 1


UNKNOWN: list[Callable[[], Any]] = [
    lambda: CUT,
    lambda: httpx.ReadTimeout("late"),
    lambda: httpx.WriteError("cut"),
    lambda: httpx.RemoteProtocolError("hung up"),
    lambda: kling_says(5000, status=500),
    lambda: kling_says(5002, status=504),
    lambda: httpx.Response(504, content=b"<html>"),
    lambda: httpx.Response(200, content=b"{"),
]


@pytest.mark.parametrize("step", UNKNOWN)
async def test_an_unknown_outcome_is_queried_and_never_sent_again(step: Callable[[], Any]) -> None:
    """Found by our id at the second query: reported as created."""
    stage = Stage(create=[step()], query=[kling_says(1201), taken("kling-7", task_info={"external_task_id": "mine"})])
    task = await create(stage)
    assert stage.order == ["register", "create", "query", "query", "report"]
    assert stage.bodies("report")[0]["task_id"] == "kling-7"
    assert task.outcome == "created"


@pytest.mark.parametrize("step", UNKNOWN)
async def test_what_is_not_found_stays_unknown(step: Callable[[], Any]) -> None:
    """Not finding the task proves nothing: it is returned, and a callback or the deadline decides."""
    stage = Stage(create=[step()])
    task = await create(stage)
    assert stage.order == ["register", "create", "query", "query", "report"]
    report = stage.bodies("report")[0]
    assert (report["outcome"], "task_id" in report, bool(report["reason"])) == ("unknown", False, True)
    assert (task.id, task.outcome) == ("mine", "unknown")


BAD_GATEWAY = "Kling answered HTTP 502: 502 Bad Gateway."


async def test_the_words_of_an_unknown_outcome_are_reported_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    """What the relay answered is all that anybody will know of this create."""
    stage = Stage(create=[httpx.Response(502, content=b"<html><body>502 Bad Gateway</body></html>")])
    await create(stage)
    assert stage.bodies("report")[0]["reason"] == BAD_GATEWAY
    assert BAD_GATEWAY in caplog.text


async def test_the_words_of_an_unknown_outcome_survive_a_receiver_that_is_gone() -> None:
    """They are on the task, and in the warning that the report failed."""
    gone = [refusal(503) for _ in range(9)]
    stage = Stage(create=[httpx.Response(502, content=b"502 Bad Gateway")], report=gone)
    task = await create(stage)
    assert task.status_msg == BAD_GATEWAY
    assert BAD_GATEWAY in (task.unreported or "")


RELAYED_1303 = {"code": "fail_to_fetch_task", "message": '{"code":1303,"message":"parallel task over limit"}'}


async def test_a_relay_s_1303_is_sent_again_as_kling_s() -> None:
    """The pack is full: nothing was taken, and a place becomes free."""
    stage = Stage(create=[answer(429, RELAYED_1303), answer(429, RELAYED_1303)])
    assert (await create(stage)).outcome == "created"
    assert len(stage.requests["create"]) == 3


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (503, {"error": {"code": "model_not_found", "message": "no channel"}}),
        (403, {"error": {"code": "insufficient_user_quota", "message": "no channel"}}),
        (200, {"code": 401, "message": "no channel"}),
        (400, {"code": "fail_to_fetch_task", "message": '{"code":1102,"message":"no channel"}'}),
    ],
)
async def test_a_relay_s_refusal_is_final_at_once(status: int, body: Any) -> None:
    """One create, reported as not created with the relay's words, which the caller gets with a hint."""
    stage = Stage(create=[answer(status, body)])
    error = await refused(stage)
    assert isinstance(error, NotCreated)
    assert error.hint
    assert stage.order == ["register", "create", "report"]
    assert stage.bodies("report")[0]["outcome"] == "not_created"
    assert "no channel" in stage.bodies("report")[0]["reason"]


async def test_a_query_that_fails_proves_nothing() -> None:
    """Neither Kling's errors nor another task's record change the outcome."""
    stage = Stage(
        create=[CUT], query=[kling_says(5001, status=503), taken("x", task_info={"external_task_id": "other"})]
    )
    assert (await create(stage)).outcome == "unknown"
    assert len(stage.requests["create"]) == 1


async def test_an_id_that_exists_means_created() -> None:
    """After 1201 on a create, the query names Kling's id."""
    stage = Stage(create=[kling_says(1201, "external_task_id already exists")], query=[taken("kling-7")])
    task = await create(stage)
    assert (task.outcome, task.task_id) == ("created", "kling-7")


@pytest.mark.parametrize(("status", "finished"), [("submitted", None), ("processing", None), ("succeed", True)])
async def test_a_finished_task_is_reported_as_such(status: str, finished: bool | None) -> None:
    """As after a restored database: its callback is past, and the receiver need not wait for the deadline."""
    known = taken("kling-7", task_status=status)
    stage = Stage(create=[kling_says(1201, "external_task_id already exists")], query=[known])
    await create(stage)
    assert stage.bodies("report")[0].get("finished") is finished


@pytest.mark.parametrize("message", ["n must be at most 9", "voice_id 17 does not exist"])
async def test_bad_parameters_are_not_taken_for_an_existing_task(message: str) -> None:
    """1201 also means bad parameters: without a task, and without a message about an existing id, it is not created."""
    stage = Stage(create=[kling_says(1201, message)])
    assert isinstance(await refused(stage), NotCreated)
    assert stage.bodies("report")[0]["outcome"] == "not_created"


async def test_an_id_that_exists_but_is_not_found_is_unknown() -> None:
    """If Kling contradicts itself, the outcome is unknown, and nothing is sent again."""
    stage = Stage(create=[kling_says(1201, "external_task_id already exists")])
    assert (await create(stage)).outcome == "unknown"


async def test_a_registered_task_is_continued() -> None:
    """With the same external_task_id again, nothing is sent to Kling, and the task is returned."""
    there = task_json("mine", "processing", task_id="kling-1")
    stage = Stage(register=[answer(200, {"task": there, "callback_url": "https://x", "create": False})])
    task = await create(stage)
    assert (task.status, stage.order) == ("processing", ["register"])


async def test_a_task_of_unknown_outcome_is_queried_once() -> None:
    """A registered task of unknown outcome is queried once, and what was found is reported."""
    there = {"task": task_json(), "callback_url": "https://x", "create": False}
    stage = Stage(register=[answer(200, there)], query=[taken("kling-7")])
    assert (await create(stage)).task_id == "kling-7"
    assert stage.order == ["register", "query", "report"]


async def test_a_task_of_unknown_outcome_that_is_not_found_is_left_alone() -> None:
    """Not finding it proves nothing, so nothing is reported or sent."""
    there = {"task": task_json(), "callback_url": "https://x", "create": False}
    stage = Stage(register=[answer(200, there)])
    assert (await create(stage)).outcome == "unknown"
    assert stage.order == ["register", "query"]


async def test_a_report_that_fails_does_not_lose_the_task() -> None:
    """Kling's id is on the task, and in the log."""
    stage = Stage(report=[refusal(503) for _ in range(9)])
    task = await create(stage)
    assert len(stage.requests["report"]) == 4
    assert task.unreported is not None
    assert "kling-1" in task.unreported
    assert (task.outcome, task.task_id) == ("created", "kling-1")


async def test_a_report_whose_answer_is_unreadable_counts_as_failed() -> None:
    """The receiver's answer must be about the reported task."""
    stage = Stage(report=[answer(200, {"task": task_json("other")})])
    assert (await create(stage)).unreported


async def test_a_found_task_that_cannot_be_reported_is_still_returned() -> None:
    """Continuing a task does not fail because the report fails."""
    there = {"task": task_json(), "callback_url": "https://x", "create": False}
    stage = Stage(register=[answer(200, there)], query=[taken()], report=[refusal(422)])
    assert (await create(stage)).unreported


async def interrupted(stage: Stage, after: str, **retry: Any) -> None:
    """Create, and cancel once a request of the kind `after` was received and all tasks wait."""
    async with stage.kling(retry=replace(QUICK, **retry)) as kling, anyio.create_task_group() as group:
        group.start_soon(kling.create, FAMILY, {"prompt": PROMPT, "external_task_id": "mine"})
        await stage.came[after].wait()
        await wait_all_tasks_blocked()
        group.cancel_scope.cancel()


async def test_a_create_interrupted_while_it_is_sent_is_unknown() -> None:
    """After Ctrl-C while Kling has the request, the outcome is reported once."""
    stage = Stage(create=[forever])
    await interrupted(stage, "create")
    assert stage.order == ["register", "create", "report"]
    assert stage.bodies("report")[0]["outcome"] == "unknown"


async def test_a_create_interrupted_between_two_tries_is_not_created() -> None:
    """Kling refused and no request is in flight: it is surely not created."""
    stage = Stage(create=[kling_says(1302)])
    await interrupted(stage, "create", initial_wait=60, max_wait=60)
    assert stage.bodies("report")[0]["outcome"] == "not_created"


async def test_a_create_interrupted_while_it_is_queried_is_unknown() -> None:
    """The queries end, and the report says unknown."""
    stage = Stage(create=[CUT], query=[forever])
    await interrupted(stage, "query")
    assert stage.bodies("report")[0]["outcome"] == "unknown"


async def test_an_interrupted_report_is_sent_once_more() -> None:
    """Kling's id is known and must not be lost."""
    stage = Stage(report=[forever])
    await interrupted(stage, "report")
    assert [body["task_id"] for body in stage.bodies("report")] == ["kling-1", "kling-1"]


async def test_an_interrupted_registration_sends_nothing() -> None:
    """No create was sent, so there is nothing to report."""
    stage = Stage(register=[forever])
    await interrupted(stage, "register")
    assert stage.order == ["register"]


async def test_the_report_of_an_interruption_is_bounded_and_may_fail() -> None:
    """A receiver that is unreachable, or silent, does not delay the interruption."""
    for step in (NO_CONNECTION, forever):
        stage = Stage(create=[forever], report=[step])
        await interrupted(stage, "create", interrupt_seconds=0.01)
        assert len(stage.requests["report"]) == 1


async def test_asyncio_s_own_cancelling_is_reported_too() -> None:
    """A task cancelled by asyncio, as Ctrl-C under asyncio.run does, is reported as well."""
    stage = Stage(create=[forever])
    running = asyncio.create_task(create(stage))
    await stage.came["create"].wait()
    await wait_all_tasks_blocked()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stage.bodies("report")[0]["outcome"] == "unknown"


async def test_the_new_standard_uses_the_bearer_key() -> None:
    """Its creates and its queries do; a JWT is for legacy calls."""
    stage = Stage(create=[CUT, CUT], query=[taken(), taken()])
    async with stage.kling(access_key="access", secret_key="secret") as kling:
        for family in (FAMILY, "/text-to-video/kling-3.0-turbo"):
            await kling.create(family, {"prompt": PROMPT})
    for kind in ("create", "query"):
        legacy, new = (request.headers["Authorization"] for request in stage.requests[kind])
        assert legacy.count(".") == 2
        assert new == "Bearer the-kling-key"
    assert stage.requests["query"][1].url.path == "/tasks"


async def test_the_new_standard_needs_the_key() -> None:
    """With access key and secret key only, it is refused before the registration; legacy calls work."""
    stage = Stage()
    async with stage.kling(api_key="", access_key="access", secret_key="secret") as kling:
        with pytest.raises(ParameterError, match="Set KLING_API_KEY"):
            await kling.create("/text-to-video/kling-3.0-turbo", {"prompt": PROMPT})
        assert stage.order == []
        await kling.create(FAMILY, {"prompt": PROMPT})


@pytest.mark.parametrize(
    ("family", "body", "more"),
    [
        ("effects", {}, {}),
        (FAMILY, {}, {"tags": ["x" * 101]}),
        (FAMILY, {}, {"tags": [str(number) for number in range(21)]}),
        (FAMILY, {"callback_url": "https://x/?a b"}, {"hook": "https://x"}),
        (FAMILY, {"callback_url": "ftp://x"}, {}),
        (FAMILY, {"callback_url": "https://x"}, {"callback_url": "https://y"}),
        (FAMILY, {}, {"callback_url": "https://x", "hook_events": ["task.done"]}),
        (FAMILY, {}, {"external_task_id": "a/b"}),
        (FAMILY, {}, {"tags": ["a", ""]}),
        (FAMILY, {}, {"tags": "a\nb"}),
    ],
)
async def test_wrong_parameters_are_not_even_registered(family: str, body: Any, more: Any) -> None:
    """They are reported before anything is sent."""
    stage = Stage()
    async with stage.kling() as kling:
        with pytest.raises(ParameterError):
            await kling.create(family, body, **more)
    assert stage.order == []


async def test_tags_have_the_receiver_s_limits() -> None:
    """Repeated tags count once."""
    stage = Stage()
    tags = [f"{number:0100}" for number in range(20)]
    await create(stage, tags=tags * 2)
    assert stage.bodies("register")[0]["tags"] == tags


async def test_one_tag_may_be_a_string() -> None:
    """A string is one tag, not its letters."""
    stage = Stage()
    await create(stage, tags="holiday")
    assert stage.bodies("register")[0]["tags"] == ["holiday"]


async def test_neither_prompt_nor_secret_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever fails, the log has the task's id and no more of it."""
    caplog.set_level(logging.DEBUG, "client")
    for script in (
        {"create": [CUT], "report": [refusal(503) for _ in range(9)]},
        {"create": [kling_says(1302)] * 2},
        {"register": [NO_CONNECTION]},
    ):
        await create(Stage(**script))
    logged = " ".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "mine" in logged
    assert not any(secret in logged for secret in (PROMPT, SECRET, "the-kling-key", "/callbacks/"))


@pytest.mark.parametrize("task_id", [".", "..", "a/b", ".\0"])
async def test_an_invalid_id_is_not_an_answer_to_a_create(task_id: str) -> None:
    """It would query another address: the outcome is unknown, and no create is sent again."""
    stage = Stage(create=[taken(task_id)])
    async with stage.kling() as kling:
        task = await kling.text_to_image("x")
    assert task.outcome == "unknown"
    assert len(stage.requests["create"]) == 1
    assert [report["outcome"] for report in stage.bodies("report")] == ["unknown"]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "x", "seed": float("nan")},
        {"prompt": "\ud800"},
        {"prompt": "x", "seed": {1, 2}},
        {"prompt": "x", "style": b"x"},
        {"prompt": "x", "model_name": "kling-3.0", "options": {"callback_url": "/callbacks"}},
        {"prompt": "x", "callback_url": "/callbacks"},
    ],
)
async def test_what_cannot_be_sent_is_found_before_the_registration(values: dict[str, Any]) -> None:
    """In typed jobs as in `create`: nothing is registered, and the id stays free."""
    stage = Stage()
    async with stage.kling() as kling:
        with pytest.raises(ParameterError):
            await kling.run(TEXT_TO_VIDEO, values, external_task_id="order-1")
    assert stage.order == []


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((None, {}), {}),
        ((5, {}), {}),
        ((FAMILY, 5), {}),
        *(((FAMILY, {}), wrong) for wrong in ({"tags": 5}, {"hook": 5})),
        *(((FAMILY, wrong), wrong) for wrong in ({"callback_url": 5}, {"callback_url": ["https://x"]})),
        ((FAMILY, {}), {"hook": "https://x.example", "hook_events": 5}),
        *(((FAMILY, {}), {"hook_events": events}) for events in ("task.done", ["task.done"])),  # without a hook
    ],
)
async def test_arguments_of_another_type_are_named(arguments: tuple[Any, Any], options: dict[str, Any]) -> None:
    """A ParameterError, not the TypeError of whatever would use them."""
    stage = Stage()
    async with stage.kling() as kling:
        with pytest.raises(ParameterError):
            await kling.create(*arguments, **options)
    assert stage.order == []
