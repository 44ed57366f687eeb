"""The dashboard: server-rendered pages, updated live. Pages read as the API does, and act through its routes.

routes.py    collects the pages; their order is that of the navigation
pages.py     renders templates; `Pages.page` lets only sessions in; `urls_from` makes every address; static files
live.py      streams of what changed: pages that show the same share one renderer
display.py   how values are shown: the filters of the templates
tasks.py, hooks.py, overview.py, health.py  one page each, or those of one thing; charts.py: the geometry of the charts
thumbnails.py  the small images of tasks, made by results/thumbnails
task/        the page of one task: its history, the timeline, what to do about a failure
create/      the form that creates tasks, from the client's table of jobs
signin/      login links, the password, the session's cookie
templates/   layout.html is the frame of each page, macros.html has the building blocks
static/      one stylesheet, one script; vendor/ has htmx and its SSE extension, unchanged, with version and licence

A new page is a class with `routes()`, added to `groups` in routes.py:

    class HooksPage:
        def __init__(self, pages: Pages, live: LiveViews, *, reader: Reader) -> None:
            self._pages, self._live, self._reader = pages, live, reader
            pages.links.append(NavLink("Hooks", "dashboard/hooks", "h", role="admin"))

        def routes(self) -> list[Route]:
            page = self._pages.page  # without a session: to the login page; ApiError: a page that says what to do
            return [
                Route("/dashboard/hooks", page("admin", self._show), methods=["GET"]),
                Route("/dashboard/live/hooks", page("admin", self._follow, query=("state",)), methods=["GET"]),
            ]

        async def _show(self, visit: Visit) -> Response:
            fragment = await self._render()
            live_url = visit.url("dashboard/live/hooks", state=fragment.state)
            return self._pages.render(visit, "hooks.html", title="Hooks", fragment=fragment, live_url=live_url)

        async def _follow(self, visit: Visit) -> Response:
            return self._live.respond(visit, ("hooks", visit.role), self._render)  # task_id=..., hooks=True

The template extends layout.html, imports macros.html as `ui`, writes `{{ ui.live(live_url) }}` once, and the elements
of the fragment with `|safe`. In templates, `url("dashboard/hooks", name=...)` makes each address, `visit.may("admin")`
says whether a button is shown, and buttons and forms with `data-api="POST /api/..."` call the API (app.js). A script or
style in the page itself is refused by the Content-Security-Policy, also `style="..."`.
"""
