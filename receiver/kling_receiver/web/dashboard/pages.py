"""Render the pages: the Jinja2 environment, the layout's context, headers, who may see a page."""

import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Protocol
from urllib.parse import quote, unquote, urlencode

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from kling_callback.protocol.signing import Role
from kling_receiver import __version__
from kling_receiver.store.errors import Unavailable
from kling_receiver.web.auth import includes
from kling_receiver.web.dashboard import display
from kling_receiver.web.dashboard.signin.session import LOGIN_PATH, PATH, Session, Sessions, prefix_of_page, split
from kling_receiver.web.errors import ApiError
from kling_receiver.web.requests import check_query

log = logging.getLogger("kling_receiver.web")

PageHandler = Callable[["Visit"], Awaitable[Response]]

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "media-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
"""Of every page. The login page's address holds a secret: it is never sent to another origin."""
THEMES = ("light", "dark")
MAX_NEXT_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class NavLink:
    """A page in the navigation. `key`: the second key of its shortcut, after `g`; `role`: the lowest that sees it."""

    name: str
    path: str
    key: str
    role: Role = "read"


@dataclass(frozen=True, slots=True)
class Visit:
    """A request for a page, by a session. `url` makes every address in it."""

    request: Request
    session: Session

    @property
    def role(self) -> Role:
        """The session's role."""
        return self.session.grant.role

    def may(self, role: Role) -> bool:
        """Whether the session may do what this role may."""
        return includes(self.role, role)

    def url(self, path: str, **query: str | int | None) -> str:
        """The address of a path of the receiver, such as `dashboard/hooks`, relative to this page."""
        return url_from(self.request, path, **query)


class Url(Protocol):
    """Makes the address of a path of the receiver, such as `dashboard/hooks`. A query's empty values are left out."""

    def __call__(self, path: str, **query: str | int | None) -> str:
        """The address."""
        ...


def urls_from(page: str) -> Url:
    """Makes addresses for a page, whose own path is given, such as `/` or `/dashboard/tasks/ID`.

    They are relative, because a proxy may have removed a prefix that the receiver does not know of. What a live
    fragment shows is made for the page, not for the stream.
    """
    base = "../" * (page.count("/") - 1) or "./"

    def url(path: str, **query: str | int | None) -> str:
        given = {name: value for name, value in query.items() if value not in (None, "")}
        return base + quote(path.lstrip("/"), safe="/~") + (f"?{urlencode(given)}" if given else "")

    return url


def url_from(request: Request, path: str, **query: str | int | None) -> str:
    """The address of a path of the receiver, relative to a request's own."""
    return urls_from(f"/{_own_path(request)}")(path, **query)


class Pages:
    """Renders templates, and lets only sessions see pages."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self.links: list[NavLink] = []
        """The navigation, in order; each module of a page adds its own."""
        self.static = StaticFiles()
        self._environment = Environment(
            loader=PackageLoader(__package__),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._environment.filters |= display.FILTERS
        self._environment.globals |= {"version": __version__, "static_version": self.static.versions}

    def fragment(self, template: str, **context: Any) -> str:
        """Render a part of a page. May be called in any thread."""
        return self._environment.get_template(template).render(context)

    def macro(self, template: str, name: str) -> Callable[..., Markup]:
        """A macro of a template, for parts that are rendered many times. May be called in any thread."""
        macro: Callable[..., Markup] = getattr(self._environment.get_template(template).module, name)
        return macro

    def render(self, visit: Visit, template: str, *, status: int = 200, **context: Any) -> Response:
        """Render a whole page of a session."""
        links = [link for link in self.links if visit.may(link.role)]
        return self._respond(visit.request, template, status, {"visit": visit, "links": links, **context})

    def render_public(self, request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
        """Render a page for a request without a session."""
        return self._respond(request, template, status, {"visit": None, "links": [], **context})

    def _respond(self, request: Request, template: str, status: int, context: Mapping[str, Any]) -> Response:
        theme = request.cookies.get("kling-theme", "")
        here = _own_path(request)
        url = urls_from(f"/{here}")
        theme = theme if theme in THEMES else ""
        html = self.fragment(template, url=url, base=url(""), theme=theme, here=here, **context)
        return Response(html, status, headers=HEADERS, media_type="text/html")

    def error(self, visit: Visit | None, request: Request, error: ApiError) -> Response:
        """Render an error as a page: what went wrong, and what to do."""
        context = {"title": "Not found" if error.status == 404 else "This did not work", "error": error}
        if visit is None:
            response = self.render_public(request, "error.html", status=error.status, **context)
        else:
            response = self.render(visit, "error.html", status=error.status, **context)
        response.headers.update(error.headers)
        return response

    def page(self, role: Role, endpoint: PageHandler, *, query: Collection[str] | None = ()) -> Any:
        """Wrap the endpoint of a page, so that it is called only with a session of this role or a higher one.

        Without a session the browser is sent to the login page, and from there back. An ApiError becomes a page.
        `query`: the query parameters that the page has; others are refused. None: the endpoint checks them itself.
        """

        async def guarded(request: Request) -> Response:
            visit = None
            try:
                session = await self.sessions.find(request)
                if session is None:
                    return self._to_login(request)
                visit = Visit(request, session)
                if not visit.may(role):
                    message = f"A session of the role {visit.role} may not see this page."
                    raise ApiError(403, "forbidden", message, f"Sign in by: kling-receiver login-link --role {role}")
                if query is not None:
                    check_query(request, query)
                return await endpoint(visit)
            except ApiError as error:
                return self.error(visit, request, error)
            except Unavailable as error:
                hint = "Reload the page in a moment. If it stays, check the receiver's log."
                failed = ApiError(503, "unavailable", str(error), hint, Retry_After="5")
                return self.error(visit, request, failed)
            except Exception:  # else the browser would show an error of the API, as JSON
                log.exception("a page failed")
                hint = "Reload the page. If it fails again, check the receiver's log."
                return self.error(visit, request, ApiError(500, "internal", "The receiver failed.", hint))

        return guarded

    def _to_login(self, request: Request) -> Response:
        if request.headers.get("HX-Request"):  # a part of a page: the page itself has to go to the login
            return Response(status_code=401, headers={"HX-Redirect": _login_of_page(request), **HEADERS})
        if request.headers.get("Accept", "").startswith("text/event-stream"):
            return Response("The session has ended.\n", 401, headers=HEADERS, media_type="text/plain")
        url = url_from(request, LOGIN_PATH, next=next_of(_own_path(request, with_query=True)))
        return RedirectResponse(url, 303, headers=HEADERS)


def next_of(text: str) -> str:
    """The path to go to after the login, without a leading slash; "" for the first page.

    It is appended to the receiver's own address, and is one of its pages: no text leads to another site.
    """
    path, mark, query = text.lstrip("/").partition("?")
    is_page = path == "" or (path.startswith("dashboard/") and PATH.fullmatch(f"/{path.rstrip('/')}"))
    is_login = f"/{path}".startswith((LOGIN_PATH, "/dashboard/logout"))
    if not is_page or is_login or ".." in unquote(path) or len(text) > MAX_NEXT_CHARS or not _is_query(query):
        return ""
    return path + mark + query


def _is_query(text: str) -> bool:
    return text.isascii() and text.isprintable() and not set(text) & set(' "#<>\\')


def _own_path(request: Request, *, with_query: bool = False) -> str:
    """The path of a request, without a leading slash and the prefix."""
    path = str(request.scope["path"]).removeprefix(request.scope.get("root_path", "")).lstrip("/")
    query = request.url.query
    return f"{path}?{query}" if with_query and query else path


def _login_of_page(request: Request) -> str:
    """The login page's path in the browser, for a request that a page at `HX-Current-URL` sent."""
    page = request.headers.get("HX-Current-URL", "")
    prefix = prefix_of_page(page)
    parts = split(page)
    rest = parts.path.removeprefix(prefix) + (f"?{parts.query}" if parts.query else "")
    query = urlencode({"next": wanted}) if (wanted := next_of(rest)) else ""
    return prefix + LOGIN_PATH + (f"?{query}" if query else "")


class StaticFiles:
    """The static files, held in memory. Their addresses name their content, so that browsers keep them for a year."""

    TYPES: Mapping[str, str] = {
        "css": "text/css; charset=utf-8",
        "js": "text/javascript; charset=utf-8",
        "svg": "image/svg+xml",
        "txt": "text/plain; charset=utf-8",
    }

    def __init__(self) -> None:
        folder = files(__package__) / "static"
        found = [*folder.iterdir(), *(folder / "vendor").iterdir()]
        self._contents = {each.name: each.read_bytes() for each in found if each.is_file()}
        self.versions = {name: hashlib.sha256(content).hexdigest()[:12] for name, content in self._contents.items()}

    async def serve(self, request: Request) -> Response:
        """Respond with a file."""
        name = request.path_params["name"]
        if name not in self._contents:
            raise ApiError(404, "not_found", "There is no such file.", "Reload the page.")
        etag = f'"{self.versions[name]}"'
        is_named = request.query_params.get("v") == self.versions[name]
        headers = {
            "ETag": etag,
            "Cache-Control": "public, max-age=31536000, immutable" if is_named else "no-cache",
            "X-Content-Type-Options": "nosniff",
            "Content-Security-Policy": "default-src 'none'",
        }
        if etag in request.headers.get("If-None-Match", ""):
            return Response(status_code=304, headers=headers)
        return Response(
            self._contents[name], headers=headers, media_type=self.TYPES.get(name.rpartition(".")[2], "text/plain")
        )
