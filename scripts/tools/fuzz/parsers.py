"""Each parser that meets bytes from outside, and what must hold of whatever it makes of them."""

import json
import re
import time
from collections.abc import Callable
from random import Random
from typing import Any

from starlette.requests import Request

from kling_callback.errors import TokenError
from kling_callback.protocol.reports import Report, parse_answer, parse_callback
from kling_callback.protocol.signing import CallbackSigner, api_token, sign_link, verify_api_token, verify_link
from kling_callback.protocol.webhooks import sign, verify
from kling_receiver.web.api import results, tasks
from kling_receiver.web.api.registration import read_registration
from kling_receiver.web.errors import ApiError
from tools.fuzz.bodies import HOSTILE, TOKENS, broken, mutated, registered

SECRETS = ("a-signing-secret-for-fuzzing-0123456789", "an-older-secret-for-fuzzing-0123456789")
WEBHOOK_SECRET = "whsec_YS13ZWJob29rLXNlY3JldC1mb3ItZnV6emluZw=="
SIGNER = CallbackSigner(SECRETS)
DAY = 86_400


def run(count: int, random: Random) -> None:
    """Give `count` inputs to the parsers. Raises what a parser raised, its seed in a note."""
    for n in range(count):
        state = random.getrandbits(64)
        target = TARGETS[n % len(TARGETS)]
        try:
            target(Random(state))
        except Exception as error:
            error.add_note(f"to see it again: tools.fuzz.parsers.{target.__name__}(Random({state}))")
            raise


def callback(random: Random) -> None:
    """A callback's body is a report that any database holds, or None."""
    if report := parse_callback(mutated(random)):
        assert report.status
        _check_report(report)


def answer(random: Random) -> None:
    """An answer of Kling's is an envelope and such reports, or None."""
    if found := parse_answer(mutated(random)):
        assert isinstance(found.ok, bool)
        _check_text(found.message, str(found.code), found.request_id)
        for report in found.reports:
            _check_report(report)


def client(random: Random) -> None:
    """A registration is one, fit for the database, or a refusal."""
    body = registered(random)
    if _refused(lambda: read_registration(body)):
        return
    known = read_registration(body)
    _check_text(known.family, known.model, known.create_token, known.kling_id, known.reason, *known.tags)
    _check_text(json.dumps(known.request, ensure_ascii=False, allow_nan=False))


def signature(random: Random) -> None:
    """Only what was signed just so is good."""
    body, at = mutated(random), random.choice((1_800_000_000, 0, 10**11 - 1))
    headers = {"webhook-id": "m", "webhook-timestamp": str(at)}
    headers["webhook-signature"] = sign(WEBHOOK_SECRET, "m", at, body)
    said = {name: text(value, random) if random.random() < 0.5 else value for name, value in headers.items()}
    verdict = verify([WEBHOOK_SECRET], said, body, at)
    if said == headers:
        assert verdict == "good"
    # An honest signature among others, or at the end of what is not read, still is one.
    elif headers["webhook-signature"] not in said["webhook-signature"]:
        assert verdict != "good"


def token(random: Random) -> None:
    """A token or a link that was changed is refused; one that was not holds."""
    for made, read in (
        (SIGNER.token("t", "videos/text2video"), lambda it: SIGNER.verify(it, DAY)),
        (api_token(SECRETS, "admin", 300), lambda it: verify_api_token(SECRETS, it)),
        (
            sign_link(SECRETS, "", "t", 0, FAR).rpartition("=")[2],
            lambda it: verify_link(SECRETS, "t", 0, str(FAR), it),
        ),
    ):
        read(made)
        said = text(made, random)
        try:
            read(said)
        except TokenError:
            continue
        # base64 passes over signs that are not its own, the last letter's spare bits, and what follows padding.
        signs = re.sub("[^A-Za-z0-9_-]", "", said.replace("+", "-").replace("/", "_"))
        assert signs.startswith(made[:-1].replace(".", "")), said


FAR = int(time.time()) + DAY


def query(random: Random) -> None:
    """A filter, a cursor, an event id, a file's number and a range are read, or refused."""
    headers = [
        (b"range", text("bytes=0-5", random).encode("utf-8", "replace")),
        (b"if-none-match", text('W/"x", *', random).encode("utf-8", "replace")),
    ]
    pairs = [f"{name}={text(value, random)}" for name, value in PAIRS if random.random() < 0.7]
    query_string = "&".join(pairs).encode("utf-8", "replace")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": query_string}
    request = Request(scope)
    for read in (
        lambda: tasks._filter(request),
        lambda: results._parse_index(text("0", random)),
        lambda: results._check_range(request, '"x"', random.choice((0, 1, 100))),
        lambda: results._not_modified(request, '"x"'),
    ):
        _refused(read)


PAIRS = (
    *(("status", "failed"), ("family", "images/generations"), ("tag", "a"), ("limit", "50")),
    *(("cursor", "WzE3OTAwMDAwMDAwMDAsInQiXQ"), ("after", "latest"), ("expires", "1"), ("signature", "x")),
)
TARGETS: tuple[Callable[[Random], None], ...] = (callback, answer, client, signature, token, query)
TEXTS = [each for each in HOSTILE if isinstance(each, str)]


def text(like: str, random: Random) -> str:
    """A text that was once `like`, or something else altogether."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(TEXTS)
    if kind == 1:
        return random.choice(TOKENS).decode("latin-1")
    return broken(like.encode(), random).decode(random.choice(("latin-1", "utf-8")), "replace")


def _refused(read: Callable[[], Any]) -> bool:
    try:
        read()
    except ApiError as refusal:
        error = refusal
    else:
        return False
    assert 400 <= error.status < 500
    _check_text(error.message)
    return True


def _check_report(report: Report) -> None:
    outputs = [each for output in report.outputs for each in (output.kind, output.url, output.id)]
    _check_text(report.kling_id, report.external_task_id, report.message, *outputs)
    _check_text(json.dumps(report.cost, ensure_ascii=False, allow_nan=False))
    for number in (report.created_at, report.updated_at):
        assert number is None or abs(number) < 1 << 62
    assert all(output.duration is None or 0 <= output.duration < 1e6 for output in report.outputs)


def _check_text(*texts: Any) -> None:
    for each in texts:
        if each is not None:
            assert "\0" not in each
            each.encode()
