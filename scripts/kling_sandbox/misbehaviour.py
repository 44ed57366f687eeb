"""The table of misbehaviours; each is implemented in the module of what misbehaves.

A switch is on for all tasks (`--misbehave`, `Sandbox.misbehave`), or for one task by a mark in its prompt:
`a kangaroo [sandbox: repeat, reorder]`.
"""

import re
from collections.abc import Callable, Set
from typing import TypeVar

Has = Callable[[str], bool]
"""Whether a switch is on."""

Names = TypeVar("Names", bound=Set[str])

SWITCHES = {
    # the task
    "failed": "the task ends failed, with a reason",
    "slow": "the task takes ten times as long",
    "pays-by-balance": "the cost of a task is money, not units",
    "times-as-text": "times in a task are strings",
    "watermark-only": "images and videos have no address but that of their watermarked copy",
    "no-url": "results have no address; /v1/videos/ID/content sends the file for the bearer key",
    "late-url": "the second file of a result has no address before the second query",
    "lost-url": "the second file of a result never has an address",
    # answers of relays
    "wrap-once": "callbacks and answers to queries have one more envelope",
    "wrap-twice": "create, query and callback are wrapped twice, with other words for code and status",
    "outer-failure": "as wrap-twice; the task ends with an outer FAILURE and no record inside",
    "relay-flat": "queries answer flat: task_id, status completed, url",
    "relay-result-url": "queries answer code success, status SUCCESS, result_url",
    "relay-openai-video": "creates and queries answer OpenAI's video object: metadata.url, error.message",
    "relay-task-not-exist": "queries about unknown tasks answer 400 with the code task_not_exist",
    "relay-error-in-message": "Kling's errors are JSON text in the message of a fail_to_fetch_task",
    # callbacks
    "relay-id": "callbacks have another task id, and no external id",
    "drop-external-id": "external_task_id is ignored: not unique, not queryable, not in answers",
    "early-callback": "the submitted callback is sent before the create is answered",
    "early-final": "all callbacks are sent before the create is answered",
    "repeat": "each callback is sent twice",
    "reorder": "callbacks are sent at the end, the last one first",
    "final-only": "only the final callback is sent",
    "no-callback": "no callback is sent",
    "no-results": "callbacks have the status succeed and no result",
    "other-spelling": "callbacks have the field names of the other standard",
    "unreadable": "the final callback is not JSON",
    "oversized": "the final callback is 2 MB large",
    "nul": "the status message contains a NUL character",
    "false-succeed": "a succeed callback with foreign file URLs is sent while the task is processing",
    "contradict": "a failed callback is sent after succeed",
    # creates, and calls that answer at once
    "drop-after-create": "creates the task, then closes the connection without an answer",
    "drop-before-create": "closes the connection without creating the task",
    "create-5002": "creates the task, answers code 5002",
    "create-502": "creates the task, answers HTTP 502 with HTML",
    "create-504": "creates the task, answers HTTP 504 with HTML",
    "create-garbage": "creates the task, answers 200 with broken JSON",
    "busy-once": "the first create of each external_task_id is refused: too many requests (1302)",
    "busy": "every create is refused: too many requests (1302)",
    "full": "every create is refused: concurrency exceeded (1303)",
    "arrears": "every create is refused: account in arrears (1101)",
    "used-up": "every create is refused: resource pack consumed (1102)",
    "discontinued": "every create is refused: its model has been discontinued (1203)",
    "not-allowed": "every create is refused: address not on the allow-list (1304)",
    "bad-gateway": "every create is refused: HTTP 502 with HTML",
    "relay-no-channel": "every create is refused: HTTP 503, model_not_found",
    "relay-no-quota": "every create is refused: HTTP 403, insufficient_user_quota",
    "relay-401-in-200": "every create is refused: HTTP 200 with the code 401",
    "expired-token-once": "the first call with each key or access key is refused: token expired (1004)",
    # query
    "query-5xx-once": "the first query of each task answers 5001",
    "query-5xx": "every query answers 5001",
    "query-garbage": "queries answer 200 with broken JSON",
    "query-lag": "the first query after the end still answers processing",
    # files
    "cut-once": "the first download of each file ends in the middle",
    "file-403": "files answer 403",
    "file-html": "files answer 200 with an HTML page",
    "file-500-once": "the first download of each file answers 500",
    "wrong-type": "files have the content type text/plain",
    "other-formats": "files are AVIF, QuickTime, M4A and FLAC",
    "no-length": "files have no Content-Length",
    "redirect-file": "files redirect once to themselves",
    "redirect-private": "files redirect to a private address",
    "gzip-file": "files have Content-Encoding: gzip",
}

MARK = re.compile(r"\[sandbox:([^\]]*)\]")


def parse_marks(text: str) -> frozenset[str]:
    """The switches that the marks in a text name. Raises ValueError."""
    return check_names(frozenset(name.strip() for mark in MARK.findall(text) for name in mark.split(",")))


def check_names(names: Names) -> Names:
    """Return `names` if each is a switch. Raises ValueError."""
    if unknown := names - SWITCHES.keys():
        raise ValueError(f"unknown misbehaviour: {', '.join(sorted(unknown))}. `kling-sandbox --help` lists them.")
    return names
