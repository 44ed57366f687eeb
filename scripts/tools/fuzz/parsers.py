"""The parsers of untrusted bytes, and the invariants of their results."""

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
from kling_receiver.net.guard import Allowlist
from kling_receiver.web.api import results, stream, tasks
from kling_receiver.web.api.registration import read_registration
from kling_receiver.web.errors import ApiError
from tools.fuzz.bodies import HOSTILE, TOKENS, broken, mutated, registered

SECRETS = ("a-signing-secret-for-fuzzing-0123456789", "an-older-secret-for-fuzzing-0123456789")
WEBHOOK_SECRET = "whsec_YS13ZWJob29rLXNlY3JldC1mb3ItZnV6emluZw=="
SIGNER = CallbackSigner(SECRETS)
DAY = 86_400


def run(count: int, random: Random) -> None:
    """Give `count` inputs to the parsers in turn. A parser's exception is raised with its seed in a note."""
    for n in range(count):
        state = random.getrandbits(64)
        target = TARGETS[n % len(TARGETS)]
        try:
            target(Random(state))
        except Exception as error:
            error.add_note(f"repeat with: tools.fuzz.parsers.{target.__name__}(Random({state}))")
            raise


def callback(random: Random) -> None:
    """Parse a callback: a report that every database can store, or None."""
    if report := parse_callback(mutated(random)):
        assert report.status
        _check_report(report)


def answer(random: Random) -> None:
    """Parse an answer of Kling: an envelope and such reports, or None."""
    if parsed := parse_answer(mutated(random), random.choice((200, 429, 504))):
        assert isinstance(parsed.ok, bool)
        _check_text(parsed.message, str(parsed.code), parsed.request_id)
        for report in parsed.reports:
            _check_report(report)


def registration(random: Random) -> None:
    """Read a registration: texts that every database can store, or a refusal."""
    body = registered(random)
    if _is_refused(lambda: read_registration(body, Allowlist())):
        return
    parsed = read_registration(body, Allowlist())
    _check_text(parsed.family, parsed.model, parsed.create_token, parsed.kling_id, parsed.reason, *parsed.tags)
    _check_text(json.dumps(parsed.request, ensure_ascii=False, allow_nan=False))


def signature(random: Random) -> None:
    """Verify a signature whose headers were changed: good only with the unchanged headers."""
    body, at = mutated(random), random.choice((1_800_000_000, 0, 10**11 - 1))
    headers = {"webhook-id": "m", "webhook-timestamp": str(at)}
    headers["webhook-signature"] = sign(WEBHOOK_SECRET, "m", at, body)
    changed = {name: text(value, random) if random.random() < 0.5 else value for name, value in headers.items()}
    state = verify([WEBHOOK_SECRET], changed, body, at)
    if changed == headers:
        assert state == "good"
    # A valid signature among others, or after ignored bytes, is still valid.
    elif headers["webhook-signature"] not in changed["webhook-signature"]:
        assert state != "good"


def token(random: Random) -> None:
    """Verify tokens and links: unchanged ones are valid, changed ones are refused."""
    for signed, verify_one in (
        (SIGNER.token("t", "videos/text2video"), lambda token: SIGNER.verify(token, DAY)),
        (api_token(SECRETS, "admin", 300), lambda token: verify_api_token(SECRETS, token)),
        (
            sign_link(SECRETS, "", "t", 0, EXPIRES).rpartition("=")[2],
            lambda signature: verify_link(SECRETS, "t", 0, str(EXPIRES), signature),
        ),
    ):
        verify_one(signed)
        changed = text(signed, random)
        try:
            verify_one(changed)
        except TokenError:
            continue
        # A base64 decoder ignores foreign characters, the last character's spare bits, and bytes after the padding.
        characters = re.sub("[^A-Za-z0-9_-]", "", changed.replace("+", "-").replace("/", "_"))
        assert characters.startswith(signed[:-1].replace(".", "")), changed


EXPIRES = int(time.time()) + DAY


def query(random: Random) -> None:
    """Parse a filter, a cursor, an event id, a file's index and a range: accepted, or refused."""
    headers = [
        (b"range", text("bytes=0-5", random).encode("utf-8", "replace")),
        (b"if-none-match", text('W/"x", *', random).encode("utf-8", "replace")),
    ]
    pairs = [f"{name}={text(value, random)}" for name, value in PAIRS if random.random() < 0.7]
    query_string = "&".join(pairs).encode("utf-8", "replace")
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "query_string": query_string}
    request = Request(scope)
    for parse in (
        lambda: tasks.parse_filter(request),
        lambda: stream._parse_cursor(text("8c1f-17-1800000000123", random)),
        lambda: results.parse_index(text("0", random)),
        lambda: results._check_range(request, '"x"', random.choice((0, 1, 100))),
        lambda: results.not_modified(request, '"x"'),
    ):
        _is_refused(parse)


PAIRS = (
    *(("status", "failed"), ("family", "images/generations"), ("tag", "a"), ("limit", "50")),
    *(("cursor", "WzE3OTAwMDAwMDAwMDAsInQiXQ"), ("after", "latest"), ("expires", "1"), ("signature", "x")),
)
TARGETS: tuple[Callable[[Random], None], ...] = (callback, answer, registration, signature, token, query)
TEXTS = [each for each in HOSTILE if isinstance(each, str)]


def text(like: str, random: Random) -> str:
    """A hostile text: `like` with some bytes changed, or an unrelated text."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(TEXTS)
    if kind == 1:
        return random.choice(TOKENS).decode("latin-1")
    return broken(like.encode(), random).decode(random.choice(("latin-1", "utf-8")), "replace")


def _is_refused(parse: Callable[[], Any]) -> bool:
    """Whether the parser raises ApiError, with a 4xx status and a valid message."""
    try:
        parse()
    except ApiError as caught:
        error = caught
    else:
        return False
    assert 400 <= error.status < 500
    _check_text(error.message)
    return True


def _check_report(report: Report) -> None:
    """Every text and number of a report can be stored."""
    outputs = [each for output in report.outputs for each in (output.kind, output.url, output.id)]
    _check_text(report.kling_id, report.external_task_id, report.message, report.request_id, *outputs)
    _check_text(json.dumps([report.cost, *report.objects], ensure_ascii=False, allow_nan=False))
    for number in (report.created_at, report.updated_at):
        assert number is None or abs(number) < 1 << 62
    assert all(output.duration is None or 0 <= output.duration < 1e6 for output in report.outputs)


def _check_text(*texts: Any) -> None:
    """No NUL, no lone surrogate."""
    for each in texts:
        if each is not None:
            assert "\0" not in each
            each.encode()
