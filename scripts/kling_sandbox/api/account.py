"""The account: its resource packs, and what each task cost."""

import time
from typing import Any

from kling_sandbox.api.auth import authenticate
from kling_sandbox.api.bodies import parse
from kling_sandbox.api.parameters import ANY_LIST, Rule, integer, problems, without_empty
from kling_sandbox.api.replies import ApiError, envelope
from kling_sandbox.state import Call, State
from kling_sandbox.tasks import Task, now
from kling_sandbox.web.http import Request, Response, json_response

MIN_SECONDS = 1.0
"""Seconds between two questions about the packs."""

PACK_UNITS = 1000.0
USUAL_CONCURRENCY = 5
"""Concurrency that the pack's name tells, if the sandbox has no limit."""

YEAR_MS = 365 * 86_400_000
MAX_ROWS = 500
TIME = Rule("a time in unix ms", lambda value: type(value) is int and value >= 0)


class Account:
    """The routes of the account. Each request is in the sandbox's `calls`."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._asked = -MIN_SECONDS

    async def costs(self, request: Request) -> Response:
        """Answer with the resource packs; two envelopes, and one question a second, are Kling's."""
        query = request.query
        self._state.record(self._state.calls, Call("GET", "/account/costs", query, now()))
        authenticate(request, self._state, self._state.switches(), new=False)
        last, self._asked = self._asked, time.monotonic()
        if self._asked - last < MIN_SECONDS:
            raise ApiError(1302, "Too many requests: one a second")
        for name in ("start_time", "end_time"):
            if not query.get(name, "").isdecimal():
                raise ApiError(1201, f"{name} must be {TIME.text}")
        packs = [self._pack()]
        wanted = query.get("resource_pack_name") or packs[0]["resource_pack_name"]
        infos = [pack for pack in packs if pack["resource_pack_name"] == wanted]
        return json_response(envelope({"code": 0, "msg": "success", "resource_pack_subscribe_infos": infos}))

    def _pack(self) -> dict[str, Any]:
        concurrency = self._state.concurrency or USUAL_CONCURRENCY
        used = sum(float(task.cost) for task in self._paid("package"))
        return {
            "resource_pack_name": f"Sandbox-{PACK_UNITS:.0f}-{concurrency}Con",
            "resource_pack_id": "sandbox-pack",
            "resource_pack_type": "decreasing_total",
            "total_quantity": PACK_UNITS,
            "remaining_quantity": PACK_UNITS - used,
            "purchase_time": now() - YEAR_MS // 2,
            "effective_time": now() - YEAR_MS // 2,
            "invalid_time": now() + YEAR_MS // 2,
            "status": "online",
        }

    async def billing(self, request: Request, kind: str) -> Response:
        """Answer with a page of deductions, from the account's balance or from its packs."""
        values = parse(request.body)
        self._state.record(self._state.calls, Call("POST", f"/account/billing/{kind}", values, now()))
        authenticate(request, self._state, self._state.switches(), new=False)
        start, end, limit, first = _window(without_empty(values))
        rows = [_row(task, kind) for task in self._paid(kind) if start <= task.created_at <= end]
        shown, after = rows[first : first + limit], first + limit
        more = after < len(rows)
        cursor = f"{start}-{end}-{limit}-{after}" if more else ""
        result = {"detail": shown, "count": len(shown)}
        return json_response(envelope({"result": result, "next_cursor": cursor, "has_more": more}))

    def _paid(self, kind: str) -> list[Task]:
        by_balance = kind == "balance"
        tasks = [task for task in self._state.tasks.values() if task.status == "succeed"]
        return [task for task in tasks if task.has("pays-by-balance") == by_balance]


def _window(body: dict[str, Any]) -> tuple[int, int, int, int]:
    """The first and last time, the size of a page, and its first row: from the cursor if there is one."""
    if cursor := body.get("cursor"):
        parts = str(cursor).split("-")
        if len(parts) != 4 or not all(map(str.isdecimal, parts)):
            raise ApiError(1201, "cursor must be the next_cursor of the page before")
        start, end, limit, first = map(int, parts)
        return start, end, limit, first
    if missing := [name for name in ("start_time", "end_time") if name not in body]:
        raise ApiError(1201, f"{' and '.join(missing)} is required without cursor")
    rules = {"start_time": TIME, "end_time": TIME, "limit": integer(1, MAX_ROWS), "filters": ANY_LIST}
    if found := problems(rules, body):
        raise ApiError(1201, "; ".join(found))
    return body["start_time"], body["end_time"], body.get("limit", MAX_ROWS), 0


def _resolution(task: Task) -> str:
    if task.family.new:
        return str(task.body.get("settings", {}).get("resolution", "720p"))
    return {"pro": "1080p", "4k": "4k"}.get(str(task.body.get("mode")), "720p")


def _row(task: Task, kind: str) -> dict[str, Any]:
    row = {
        "task_id": task.id,
        "api_key_name": "sandbox",
        "product_function": task.path,
        "model_name": task.model,
        "resolution": _resolution(task),
        "duration": "5.0" if task.family.kind == "videos" else "",
        "deduction_time": str(task.finished_at),
        "deduction_amount": float(task.cost),
    }
    if kind == "balance":
        return row | {"cash_type": "balance", "list_price": float(task.cost), "currency": "USD"}
    return row | {"package_id": "sandbox-pack", "product_type": task.family.kind.removesuffix("s")}
