"""Calls of endpoints that answer at once. They cost money as creates do: none is sent twice that may have arrived."""

import re
from functools import partial
from typing import Any

from kling_callback.api.kling import KlingApi
from kling_callback.api.retry import RetryPolicy
from kling_callback.creation import resend_rule
from kling_callback.errors import ParameterError, ProblemCollector
from kling_callback.jobs.body import json_problems
from kling_callback.jobs.untyped import encode_files
from kling_callback.protocol import families

LIST_PAGE_SIZE = 30
"""Tasks of one page of Kling's list: Kling's default."""


async def call(kling_api: KlingApi, retry: RetryPolicy, target: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Send one checked call; retry only what was certainly not accepted. Returns the answer's JSON, unchanged.

    Raises NotCreated or CreateUnknown.
    """
    return await retry.retry(lambda: kling_api.call(target, body), resend_rule(retry), retry.create_seconds)


def prepare_call(path: str, body: Any) -> tuple[str, dict[str, Any] | None]:
    """The path and the body to send, with files encoded. Blocks to read files.

    Raises ParameterError with all problems.
    """
    problems, target, content = ProblemCollector(), path, None
    with problems:
        target = call_path(path, body)
    with problems:
        content = None if body is None else encode_files(path, body)
    problems.raise_all()
    return target, content


async def tasks_at_kling(kling_api: KlingApi, retry: RetryPolicy, family: str, limit: int) -> list[dict[str, Any]]:
    """At most `limit` records of Kling's own list of a family, newest first. Raises GatewayError."""
    records: list[dict[str, Any]] = []
    page_number = 0
    while len(records) < limit:
        page_number += 1
        page = await retry.retry(
            partial(kling_api.list_tasks, family, page_number, LIST_PAGE_SIZE),
            lambda error: error.retryable,
            retry.read_seconds,
        )
        new = [record for record in page if record not in records]  # some relays repeat one page for ever
        records += new
        if len(page) < LIST_PAGE_SIZE or not new:
            break
    return records[:limit]


def check_listed(family: str) -> None:
    """Check that Kling may have a list of a family's tasks. Raises ParameterError."""
    if families.is_new_standard(family):
        raise ParameterError([f"family: Kling has no list of the tasks of {family}: the new standard has none."])
    if problems := families.family_problems(family):
        raise ParameterError(problems)


def call_path(path: str, body: Any = None) -> str:
    """The path to send a call to: under `/v1`, or with a leading slash from the root. Raises ParameterError.

    What is checked is what is sent.
    """
    given, mark, query = path.partition("?")
    bare = PREFIXES.sub("", given)
    if problems := [*_path_problems(given, bare, query, body), *_body_problems(bare, body)]:
        raise ParameterError(problems)
    if families.is_synchronous(bare):
        bare = f"{'/' * families.is_account(bare)}{bare.removeprefix('/')}"
    return f"{bare}{mark}{query}"


PREFIXES = re.compile(r"^(/?v1/)+", re.IGNORECASE)
"""`/v1/` and its repetitions, at the beginning of a path."""


def _path_problems(given: str, bare: str, query: str, body: Any) -> list[str]:
    is_path = families.is_family(given) and families.is_job(bare)
    if not is_path or not query.isascii() or not query.isprintable() or set(query) & set(" #"):
        return [f"path: {given!r} must be a path like videos/identify-face, perhaps with a query (?name=value)."]
    if _creates_tasks(bare, body):
        advice = "Use `kling create` (in Python: kling.create). Its tasks at Kling: `kling list --at-kling`."
        return [f"path: {bare} creates a task, which ends with a callback. {advice}"]
    return []


def _creates_tasks(bare: str, body: Any) -> bool:
    """Whether a call may create a task; with a body also behind a prefix, which a gateway may have, in any case."""
    lower = bare.lower()
    parts = lower.removeprefix("/").split("/")
    behind = ["/" + "/".join(parts[start:]) for start in range(len(parts))] if body is not None else []
    return any(map(families.creates_tasks, (lower, *behind)))


def _body_problems(bare: str, body: Any) -> list[str]:
    endpoint = bare.removeprefix("/")
    if body is None:
        missing = endpoint in families.SYNCHRONOUS_POST
        return [f"body: {endpoint} needs one (`{{}}` if it has no parameters)."] if missing else []
    if endpoint in families.SYNCHRONOUS_GET:
        return [f"body: {endpoint} takes none. Put its parameters behind the path: ?name=value."]
    return json_problems(body)
