"""The routes: both of Kling's standards, the result files, and the record of what happened here."""

import re
from collections.abc import Awaitable, Callable

from kling_sandbox.api.account import Account
from kling_sandbox.api.creates import Creates
from kling_sandbox.api.direct import GETS, POSTS, Direct
from kling_sandbox.api.faults import error_response, openai_error
from kling_sandbox.api.files import Files
from kling_sandbox.api.queries import Queries
from kling_sandbox.api.replies import ApiError
from kling_sandbox.lifecycle import Lifecycle
from kling_sandbox.state import State
from kling_sandbox.web.http import Request, Response, json_response

Handler = Callable[..., Awaitable[Response]]
CONTENT = re.compile(r"/v1/videos/(?P<task_id>[^/]+)/content")
"""Where relays serve files that have no address: at their host, or below the prefix of Kling's routes."""


class App:
    """Find the handler of a request; the groups of its path are the handler's arguments.

    Outside the base path are a relay's own routes, and errors in the shape of OpenAI's.
    """

    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        creates, queries, files = Creates(state, lifecycle), Queries(state), Files(state)
        direct, account = Direct(state), Account(state)
        self._routes: list[tuple[str, re.Pattern[str], Handler]] = [
            ("POST", re.compile(rf"/v1/(?P<path>{'|'.join(POSTS)})"), direct.post),
            ("GET", re.compile(rf"/v1/(?P<path>{'|'.join(GETS)})"), direct.get),
            ("GET", re.compile(r"/account/costs"), account.costs),
            ("POST", re.compile(r"/account/billing/(?P<kind>balance|package)"), account.billing),
            ("GET", CONTENT, files.content),
            ("POST", re.compile(r"/v1/(?P<path>.*)"), creates.post),
            ("GET", re.compile(r"/v1/(?P<path>.*)"), queries.one),
            ("GET", re.compile(r"/tasks"), queries.batch),
            ("GET", re.compile(r"/sandbox/account"), self._account),
            ("GET", re.compile(r"/files/(?P<task_id>[^/]+)/(?P<name>[^/]+)"), files.get),
            ("POST", re.compile(r"/(?P<path>[^/]+)/(?P<model>[^/]+)"), creates.post),
        ]
        self._outside: list[tuple[str, re.Pattern[str], Handler]] = [
            ("POST", re.compile(r"/v1/images/generations"), direct.openai_images),
            ("GET", CONTENT, files.content),
        ]

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        try:
            return await self._route(request)
        except ApiError as error:
            return error_response(error, self._state.switches())

    async def _route(self, request: Request) -> Response:
        base_path, method = self._state.base_path, "GET" if request.method == "HEAD" else request.method
        inside = request.path.startswith(base_path)
        path = request.path.removeprefix(base_path)
        for allowed, pattern, handler in self._routes if inside else self._outside:
            if allowed == method and (match := pattern.fullmatch(path)):
                return await handler(request, **match.groupdict())
        if not inside:
            return openai_error(404, "", f"Invalid URL ({request.method} {request.path})")
        raise ApiError(1202, f"{request.method} {request.path} does not exist")

    async def _account(self, request: Request) -> Response:
        return json_response(self._state.account())
