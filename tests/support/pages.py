"""The pages of a receiver over HTTP, as a browser asks for them."""

from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import httpx

from kling_callback.protocol.signing import Role
from kling_receiver.cli.access import new_login_link
from kling_receiver.web.dashboard.signin.session import origin_of
from tests.support.receiver import Running


def link_token(link: str) -> str:
    """The signed part of a login link."""
    return parse_qs(urlsplit(link).query)["link"][0]


class Browser:
    """A browser profile: it keeps cookies, and adds `Origin` and `Referer` to what its pages send.

    `base`: the receiver's address as the browser sees it; by default the receiver's own.
    """

    def __init__(self, running: Running, *, base: str | None = None, **options: Any) -> None:
        """`options`: of httpx's client."""
        self.running, self.base = running, running.url if base is None else base
        self.http = httpx.Client(timeout=20, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.http.close()

    def get(self, path: str = "/", **options: Any) -> httpx.Response:
        """Ask for a page."""
        return self.http.get(f"{self.base}{path}", **options)

    def send(self, method: str, path: str, *, page: str = "/", **options: Any) -> httpx.Response:
        """Send what a button or a form of a page sends. `headers`: added, or those of None left out."""
        headers = {
            "Origin": origin_of(self.base),
            "Referer": f"{self.base}{page}",
            "Sec-Fetch-Site": "same-origin",
            **options.pop("headers", {}),
        }
        given = {name: value for name, value in headers.items() if value is not None}
        return self.http.request(method, f"{self.base}{path}", headers=given, **options)

    def login(self, link: str, next_path: str = "", **options: Any) -> httpx.Response:
        """Press the button of a login link's page."""
        form = {"link": link_token(link), "next": next_path}
        return self.send("POST", "/dashboard/login", page="/dashboard/login", data=form, **options)

    def sign_in(self, role: Role = "admin") -> Self:
        """Sign in by a new link."""
        answer = self.login(new_login_link(self.running.settings, role))
        assert answer.status_code == 303, answer.text
        return self

    def password(self, text: str, **options: Any) -> httpx.Response:
        """Send the password's form."""
        return self.send("POST", "/dashboard/login", page="/dashboard/login", data={"password": text}, **options)

    @property
    def cookie(self) -> str:
        """The session's cookie, as a header."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self.http.cookies.jar)
