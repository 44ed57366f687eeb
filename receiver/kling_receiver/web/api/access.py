"""Add, list and revoke named tokens, and read the audit log, for role admin."""

import re
import time
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from typing_extensions import TypedDict

from kling_callback.protocol.signing import LEEWAY_SECONDS, MAX_TOKEN_SECONDS, Role
from kling_callback.protocol.values import sanitize
from kling_receiver.access import audit
from kling_receiver.access.tokens import NotAdded
from kling_receiver.events.payloads import Timestamp, iso
from kling_receiver.hooks.config import NAME
from kling_receiver.store.reader import Reader
from kling_receiver.store.rows import AuditRow, TokenRow
from kling_receiver.web.api.paging import decode_cursor, encode_cursor, parse_limit
from kling_receiver.web.auth import Guard, describe, route
from kling_receiver.web.body import BodyLimiter
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import RequestModel, parse, query_problems, read_json

AUDIT_PARAMETERS = ("limit", "cursor")
"""The query parameters of the audit log."""
CURSOR_NAME = "audit"
"""A cursor is a number and a name: here an entry's id, and this."""
NEWEST = 1 << 62


class TokenJson(TypedDict):
    """A named token that is not revoked."""

    name: str
    role: Role
    created_at: Timestamp
    expires_at: Timestamp
    last_used_at: Annotated[Timestamp | None, Field(description="within an hour; null: never")]


class TokenListJson(TypedDict):
    """All named tokens that are not revoked, by name."""

    tokens: list[TokenJson]


class RevokedJson(TypedDict):
    """The name of a token that was revoked."""

    revoked: str


class AuditEntryJson(TypedDict):
    """One administrative action."""

    id: int
    at: Timestamp
    actor: Annotated[str, Field(description="`token NAME`, `local command`, `unnamed admin token`, or a setting")]
    action: Annotated[str, Field(description="the name of the command")]
    target: str
    detail: str
    result: Annotated[
        Literal["done"] | str | None,
        Field(description="`done`, or the code of the error; null: it has not ended, or the receiver was killed"),
    ]


class AuditPageJson(TypedDict):
    """A page of the audit log, newest first. `next`: the cursor of the next page, null on the last one."""

    entries: list[AuditEntryJson]
    next: str | None


class NewToken(RequestModel):
    """A named token, which `kling-receiver token --name` has signed with the signing secrets."""

    token: Annotated[str, Field(min_length=1, max_length=2000, repr=False)]


class AccessRoutes:
    """The routes of named tokens and of the audit log."""

    def __init__(self, guard: Guard, *, reader: Reader, bodies: BodyLimiter) -> None:
        self._guard, self._reader, self._bodies = guard, reader, bodies

    def routes(self) -> list[Route]:
        """The routes of this module."""
        guard = self._guard
        return [
            route("/api/tokens", GET=guard.require("admin", self._tokens), POST=guard.audited("tokens add", self._add)),
            route("/api/tokens/{name}", DELETE=guard.audited("tokens revoke", self._revoke)),
            route("/api/audit", GET=guard.require("admin", self._audit, query=None)),
        ]

    async def _tokens(self, request: Request) -> Response:
        return JSONResponse(TokenListJson(tokens=[_token(row) for row in await self._guard.tokens.rows()]))

    async def _add(self, request: Request) -> Response:
        """Only holders of the signing secrets can make such a token: a token of role admin makes no other token."""
        document = parse(NewToken, await read_json(request, self._bodies))
        try:
            token = self._guard.verify(document.token)
        except ApiError as error:
            raise ApiError(422, "bad_token", error.message, "Check that this receiver has your secrets.") from None
        if not (token.id and re.fullmatch(NAME, token.name)):
            hint = "Make it with: kling-receiver token --name NAME"
            raise ApiError(422, "bad_token", "The token has no valid name.", hint)
        if token.expires - time.time() > MAX_TOKEN_SECONDS + LEEWAY_SECONDS:
            raise ApiError(422, "bad_token", "The token is valid for more than ten years.", "Set --days or --max-age.")
        describe(request, target=token.name, detail=f"role {token.role}, until {iso(token.expires * 1000)}")
        try:
            row = await self._guard.tokens.add(token)
        except NotAdded as error:
            hint = f"Set another name, or revoke it with: kling-receiver tokens revoke {token.name}"
            raise ApiError(409, "name_taken", str(error), hint) from None
        return JSONResponse(_token(row), 201)

    async def _revoke(self, request: Request) -> Response:
        name = sanitize(request.path_params["name"])
        if not await self._guard.tokens.revoke(name):
            hint = "Check the name with: kling-receiver tokens list"
            raise ApiError(404, "unknown_token", "There is no such token.", hint)
        return JSONResponse(RevokedJson(revoked=name))

    async def _audit(self, request: Request) -> Response:
        problems = query_problems(request, AUDIT_PARAMETERS)
        limit = parse_limit(request.query_params.get("limit", "50"), problems)
        cursor = decode_cursor(request.query_params.get("cursor"), problems)
        if problems:
            raise ApiError(422, "bad_query", " ".join(problems), "Fix the query and send it again.")
        before = cursor[0] if cursor else NEWEST
        rows = await self._reader.read(lambda connection: audit.entries(connection, limit + 1, before))
        page = rows[:limit]
        after = encode_cursor((page[-1]["id"], CURSOR_NAME)) if len(rows) > len(page) else None
        return JSONResponse(AuditPageJson(entries=[_entry(row) for row in page], next=after))


def _token(row: TokenRow) -> TokenJson:
    return {
        "name": row["name"],
        "role": row["role"],
        "created_at": iso(row["created_at"]),
        "expires_at": iso(row["expires_at"]),
        "last_used_at": iso(row["last_used_at"]),
    }


def _entry(row: AuditRow) -> AuditEntryJson:
    return {
        "id": row["id"],
        "at": iso(row["created_at"]),
        "actor": row["actor"],
        "action": row["action"],
        "target": row["target"],
        "detail": row["detail"],
        "result": row["result"],
    }
