"""The ways in which a paid call is refused, or loses its answer, by switches of Kling and of relays."""

from collections.abc import Callable, Mapping

from kling_sandbox.api.replies import ApiError, broken_json
from kling_sandbox.misbehaviour import Has
from kling_sandbox.state import State
from kling_sandbox.web.http import Hangup, Response, html_response, json_response

KLING: Mapping[str, tuple[int, str]] = {
    "discontinued": (1203, "The model '{model}' has been discontinued and is no longer available."),
    "busy": (1302, "Too many requests"),
    "full": (1303, "Concurrency over the resource pack"),
    "arrears": (1101, "Account in arrears"),
    "used-up": (1102, "Resource pack consumed"),
    "not-allowed": (1304, "This address is not on the allow-list"),
}
"""Kling's refusals by switch: code and message."""


def refuse(state: State, has: Has, model: str, external_id: str = "") -> Response | None:
    """The response of a relay that refuses a paid call by a switch, or None. Raises ApiError where Kling refuses it."""
    for name, respond in RELAYS.items():
        if has(name):
            return respond(model)
    for name, (code, message) in KLING.items():
        if has(name):
            raise ApiError(code, message.format(model=model))
    if has("busy-once") and state.is_first("busy-once", external_id):
        raise ApiError(*KLING["busy"])
    return None


def lose(has: Has) -> Response | None:
    """The response of a switch that hides that a paid call had its effect."""
    return next((respond() for name, respond in LOSSES.items() if has(name)), None)


def error_response(error: ApiError, has: Has) -> Response:
    """An error as Kling sends it, or as text in a relay's message."""
    response = error.response()
    if not has("relay-error-in-message"):
        return response
    body = {"code": "fail_to_fetch_task", "message": response.body.decode(), "data": None}
    return json_response(body, response.status)


def unknown_task() -> Response:
    """A relay's answer to a query about a task that it does not know."""
    return json_response({"code": "task_not_exist", "message": "task_not_exist", "data": None}, 400)


def openai_error(status: int, code: str, message: str) -> Response:
    """An error in the shape of OpenAI's, which relays use for their own."""
    return json_response({"error": {"code": code, "message": message}}, status)


def _bad_gateway() -> Response:
    return html_response("<html><body>502 Bad Gateway</body></html>", 502)


RELAYS: Mapping[str, Callable[[str], Response]] = {
    "drop-before-create": lambda model: Hangup(),
    "relay-no-channel": lambda model: openai_error(
        503, "model_not_found", f"当前分组 default 下对于模型 {model} 无可用渠道"
    ),
    "relay-no-quota": lambda model: openai_error(403, "insufficient_user_quota", "用户额度不足"),
    "relay-401-in-200": lambda model: json_response({"code": 401, "message": "invalid token"}),
    "bad-gateway": lambda model: _bad_gateway(),
}
"""Refusals of whatever is between the client and Kling, by switch, for a model."""

LOSSES: Mapping[str, Callable[[], Response]] = {
    "drop-after-create": Hangup,
    "create-5002": lambda: ApiError(5002, "Service timed out").response(),
    "create-502": _bad_gateway,
    "create-504": lambda: html_response("<h1>504 Gateway Time-out</h1>", 504),
    "create-garbage": broken_json,
}
