"""The table of everything that may go wrong on request; what a switch does is done where it belongs.

A switch is on for all (`--misbehave`, `Sandbox.misbehave`), or for one task by a mark in its prompt:
`a kangaroo [sandbox: repeat, reorder]`.
"""

import re
from collections.abc import Callable, Set
from typing import TypeVar

Has = Callable[[str], bool]
Names = TypeVar("Names", bound=Set[str])

SWITCHES = {
    # the task
    "failed": "the task ends failed, with a reason",
    "slow": "the task takes ten times as long",
    # callbacks
    "wrap-once": "one more envelope around callbacks and queries",
    "wrap-twice": "create, query and callback wrapped twice, code and status in other words",
    "outer-failure": "wrapped twice; ends with an outer FAILURE and no record inside",
    "relay-id": "callbacks carry another task id, and no external id",
    "drop-external-id": "external_task_id is ignored: not unique, not queryable, not in answers",
    "early-callback": "the submitted callback is answered before the create is",
    "early-final": "all callbacks are answered before the create is",
    "repeat": "each callback comes twice",
    "reorder": "callbacks come at the end, the last one first",
    "final-only": "only the final callback comes",
    "no-callback": "no callback comes",
    "no-results": "callbacks say succeed without any result",
    "other-spelling": "callbacks are spelled as the other standard does",
    "unreadable": "the final callback is not JSON",
    "oversized": "the final callback is 2 MB long",
    "nul": "the status message holds a NUL character",
    "false-succeed": "a succeed callback with a foreign address comes while the task is processing",
    "contradict": "after succeed comes a failed callback",
    # create
    "drop-after-create": "takes the task, then closes the connection without an answer",
    "drop-before-create": "closes the connection without taking the task",
    "create-5002": "takes the task, answers code 5002",
    "create-504": "takes the task, answers HTTP 504 with HTML",
    "create-garbage": "takes the task, answers 200 with broken JSON",
    "busy-once": "the first create of an external_task_id is too fast (1302)",
    "busy": "every create is too fast (1302)",
    "full": "the pack's concurrency is always used up (1303)",
    "arrears": "the account is in arrears (1101)",
    "not-allowed": "this address is not on the allow-list (1304)",
    "expired-token-once": "the first call of each key or access key is told its token expired (1004)",
    # query
    "query-5xx-once": "the first query of a task answers 5001",
    "query-5xx": "every query answers 5001",
    "query-garbage": "queries answer 200 with broken JSON",
    "query-lag": "the first query after the end still says processing",
    # files
    "cut-once": "the first download of a file is cut in the middle",
    "file-403": "files answer 403",
    "file-html": "files answer 200 with an HTML page",
    "file-500-once": "the first download of a file answers 500",
    "wrong-type": "files come as text/plain",
    "no-length": "files come without Content-Length",
    "redirect-file": "files redirect once to themselves",
    "redirect-private": "files redirect to a private address",
    "gzip-file": "files come with Content-Encoding: gzip",
}

MARK = re.compile(r"\[sandbox:([^\]]*)\]")


def marked(text: str) -> frozenset[str]:
    return known(frozenset(name.strip() for mark in MARK.findall(text) for name in mark.split(",")))


def known(names: Names) -> Names:
    if strangers := names - SWITCHES.keys():
        raise ValueError(f"no such misbehaviour: {', '.join(strangers)}; `scripts/sandbox --help` lists them")
    return names
