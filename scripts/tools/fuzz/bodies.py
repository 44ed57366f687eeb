"""Mutated bodies of Kling and of its relays: first as JSON documents, then as bytes.

The same `Random` state gives the same body.
"""

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

LEGACY = {
    "task_id": "822953089408827433",
    "task_status": "succeed",
    "task_status_msg": "",
    "created_at": 1764235825029,
    "updated_at": 1764236054436,
    "final_unit_deduction": "3.5",
    "task_info": {"external_task_id": "order-42", "parent_video": {"id": "p", "duration": "5.1"}},
    "task_result": {
        "videos": [
            {
                "id": "822953089593376815",
                "url": "https://files.invalid/x.mp4?ksTime=694fa816",
                "duration": "5.1",
            }
        ],
        "images": [
            {"index": 0, "url": "https://files.invalid/0.png"},
            {"index": 1, "url": "https://files.invalid/1"},
        ],
        "audios": [{"id": "a", "url_mp3": "https://files.invalid/a.mp3", "url_wav": "https://files.invalid/a.wav"}],
    },
}
NEW = {
    "id": "1234567890",
    "status": "succeeded",
    "message": "",
    "create_time": 1781080778802,
    "update_time": 1781080794151,
    "external_id": "order-42",
    "outputs": [
        {
            "type": "video",
            "id": "v",
            "url": "https://files.invalid/v.mp4",
            "watermark_url": "https://files.invalid/w",
        },
        {"type": "image", "url": "https://files.invalid/i.png", "group_id": "g"},
        {"type": "audio", "mp3_url": "https://files.invalid/a.mp3", "wav_url": "https://files.invalid/a.wav"},
    ],
    "billing": [{"unit": "credit", "amount": 3.5}],
}
REGISTRATION = {
    "family": "videos/text2video",
    "model": "kling-v1-6",
    "request": {
        "prompt": "a kangaroo",
        "n": 2,
        "duration": "5",
        "image": "iVBORw0KGgo",
        "options": {"a": [1, None]},
    },
    "base": "",
    "key_fingerprint": "",
    "tags": ["a", "b"],
    "attempt": "one",
    "outcome": "created",
    "task_id": "822953089408827433",
    "reason": "no credit",
}
"""The body of a registration, from a client; the two above are callbacks, from Kling."""

WRAPS: tuple[Callable[[Any], Any], ...] = (
    lambda report: report,
    lambda report: [report],
    lambda report: {"code": 0, "message": "SUCCEED", "request_id": "r", "data": report},
    lambda report: {"code": 0, "data": [report, report]},
    lambda report: {
        "code": "success",
        "data": {"task_id": "t", "status": "SUCCESS", "progress": "100%", "data": report},
    },
    lambda report: {"code": "1302", "msg": "too fast", "error": {"message": "m"}, "data": report},
)
STATUS_WORDS = (
    "submitted",
    "processing",
    "succeed",
    "succeeded",
    "failed",
    "SUCCESS",
    "FAILURE",
    "NOT_START",
    "cancelled",
)
NAMES = (
    *(
        "task_id",
        "id",
        "task_status",
        "status",
        "data",
        "task_result",
        "task_info",
        "outputs",
        "type",
        "url",
        "index",
    ),
    *(
        "external_task_id",
        "external_id",
        "videos",
        "images",
        "duration",
        "billing",
        "code",
        "message",
        "error",
        "",
    ),
    *(
        "family",
        "request",
        "tags",
        "attempt",
        "outcome",
        "base",
        "reason",
        "token",
        "callback_url",
        "__proto__",
    ),
)
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**53, 2**63, 2**64, -(2**63) - 1, 10**30, 10**400, 1e308, -0.0),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        " ",
        "\0",
        "a\0b",
        "\ud800",
        "\udfff\ud800",
        "\u202e",
        "\ufeff",
    ),
    *(
        "x" * 257,
        "x" * 4001,
        "x" * 8001,
        "é" * 300,
        "🦘" * 70,
        "..",
        ".",
        "/",
        "a/b",
        "%00",
        "%2e%2e",
        "\n",
        "a,b",
    ),
    *(
        "nan",
        "1e999",
        "-1",
        "5.1s",
        "٣",
        "²",
        "True",
        "null",
        "https://files.invalid/\0",
        "http://[",
        "//x",
        "file:///x",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        [{}],
        {"": None},
        {"data": {}},
        [1, "a", {}],
        [{"url": "https://files.invalid/"}] * 300,
    ),
)


def mutated(random: Random) -> bytes:
    """A valid callback body with some parts changed."""
    document = random.choice(WRAPS)(copy.deepcopy(random.choice((LEGACY, NEW))))
    return _encoded(_mutated_document(document, random), random)


def registered(random: Random) -> bytes:
    """A valid registration with some parts changed."""
    return _encoded(_mutated_document(copy.deepcopy(REGISTRATION), random), random)


def broken(raw: bytes, random: Random) -> bytes:
    """`raw` with some bytes changed."""
    for _ in range(random.choice((1, 1, 2, 5))):
        at = random.randrange(len(raw) + 1)
        to = min(len(raw), at + random.choice((0, 1, 1, 2, 8, 64)))
        new = random.choice((b"", random.randbytes(1), random.randbytes(4), random.choice(TOKENS), raw[at:to] * 2))
        raw = raw[:at] + new + raw[to:]
    return raw


TOKENS = (
    *(
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b",",
        b":",
        b"\0",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\\u0000",
        b"\\ud800",
    ),
    *(
        b"[" * 5000,
        b'{"data":' * 5000,
        b"9" * 5000,
        b"1e999",
        b"NaN",
        b"-",
        b"\r\n",
        b"\x80",
        b"\xed\xa0\x80",
        b"%00",
    ),
)


def _mutated_document(document: Any, random: Random) -> Any:
    for _ in range(random.choice((0, 1, 1, 2, 3, 6))):
        places = list(_places(document))
        if not places:
            return copy.deepcopy(random.choice(HOSTILE))
        container, key = random.choice(places)
        random.choice(CHANGES)(container, key, random)
    return document


def _places(part: Any) -> Any:
    """Every value of a document, as its container and its key."""
    for key, value in list(part.items() if isinstance(part, dict) else enumerate(part)):
        yield part, key
        if isinstance(value, dict | list) and value and len(value) < 50:
            yield from _places(value)


def _replace(container: Any, key: Any, random: Random) -> None:
    container[key] = copy.deepcopy(random.choice(HOSTILE)) if random.random() < 0.8 else random.choice(STATUS_WORDS)


def _remove(container: Any, key: Any, random: Random) -> None:
    del container[key]


def _rename(container: Any, key: Any, random: Random) -> None:
    if isinstance(container, dict):
        container[random.choice(NAMES)] = container.pop(key)


def _wrap(container: Any, key: Any, random: Random) -> None:
    container[key] = random.choice(([container[key]], {random.choice(NAMES): container[key]}, [container[key]] * 2))


def _graft(container: Any, key: Any, random: Random) -> None:
    container[key] = copy.deepcopy(random.choice((LEGACY, NEW, REGISTRATION)))


CHANGES = (_replace, _replace, _replace, _remove, _rename, _wrap, _graft)


def _encoded(document: Any, random: Random) -> bytes:
    text = json.dumps(document, ensure_ascii=random.random() < 0.7)
    coding = random.choice(("utf-8", "utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig", "utf-32"))
    raw = text.encode(coding, "surrogatepass")
    return broken(raw, random) if random.random() < 0.4 else raw
