"""The overview: its numbers are those of the rows in the database, computed here in another way."""

import asyncio
import html
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable
from decimal import Decimal
from random import Random
from typing import Any, cast

import httpx
import pytest
from sqlalchemy import Connection, insert

from kling_receiver.events.payloads import iso
from kling_receiver.jobs.kinds import Kind
from kling_receiver.metrics import Metrics
from kling_receiver.policy import Policy, SlotLimits
from kling_receiver.statistics import overview as statistics
from kling_receiver.statistics import queues
from kling_receiver.statistics.queues import JobCounts, PendingJobs
from kling_receiver.store.database import Database
from kling_receiver.store.reader import Reader
from kling_receiver.store.tables import METADATA, SENT_HERE, SUBMISSION, TAG, TASK
from kling_receiver.store.transaction import TASK_DEFAULTS
from kling_receiver.web import shared
from kling_receiver.web.dashboard import overview
from kling_receiver.web.dashboard.display import duration_text
from kling_receiver.web.dashboard.overview import KIND_TITLES, RANGES, STEP_TITLES, OverviewPage
from kling_receiver.web.dashboard.pages import Pages
from kling_receiver.web.dashboard.signin.session import Sessions
from tests.support.database import NOW, Ledger
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tools.harness.submitting import register

NO_KLING = "http://127.0.0.1:9"
HOUR, DAY = 3_600_000, 86_400_000
MARKUP = "<script>alert(1)</script>'\"&"
HOURLY = METADATA.tables["hourly_count"]


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each visit reads the numbers again, except where a test is about that."""
    monkeypatch.setattr(overview, "KEPT_SECONDS", 0.0)
    monkeypatch.setattr(shared, "KEPT_TIMES", 0)


def table(page: str, id_: str) -> list[list[str]]:
    """The rows of a table, each with the texts of its cells."""
    found = re.search(rf'id="{id_}".*?<tbody[^>]*>(.*?)</tbody>', page, re.DOTALL)
    assert found, id_
    rows = re.findall(r"<tr>(.*?)</tr>", found[1], re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def visit(running: Running, name: str = "24h") -> tuple[str, int]:
    """The page of a range, and the moment of which it is: the hour did not end meanwhile."""
    with Browser(running) as browser:
        browser.sign_in("read")
        while True:
            began = int(time.time() * 1000)
            answer = browser.get(f"/dashboard/overview?range={name}")
            assert answer.status_code == 200, answer.text
            if began // HOUR == int(time.time() * 1000) // HOUR:
                return answer.text, began


def add_task(connection: Connection, number: int, at: int, *tags: str, **given: Any) -> None:
    """Insert a task that was created at `at`; one with a duration has succeeded."""
    final = {"status": "succeed", "origin": "kling", "done": True} if given.get("duration_ms") is not None else {}
    row = {**TASK_DEFAULTS, "id": f"task-{number:09d}", "kling_id": f"k{number}", "create_token": "x"}
    row |= {"outcome": "created", "created_at": at, "updated_at": at, "model": "", **final, **given}
    connection.execute(insert(TASK), {name: value for name, value in row.items() if name in TASK.c})
    for tag in tags:
        connection.execute(insert(TAG), {"task_id": row["id"], "tag": tag, "created_at": at})


def change(running: Running, write: Callable[[Connection], object]) -> None:
    """Write to the receiver's database."""
    with running.receiver.store.database.write() as connection:
        write(connection)


def count(connection: Connection, counts: Iterable[tuple[int, str]]) -> None:
    """Insert the counts of these events, each with its time."""
    totals = Counter((at // HOUR, name) for at, name in counts)
    rows = [{"hour": hour, "name": name, "total": total} for (hour, name), total in totals.items()]
    connection.execute(insert(HOURLY), rows)


@pytest.mark.parametrize("name", RANGES)
def test_the_outcomes_of_each_step(start: Start, database_url: str, name: str) -> None:
    """Exactly those of the range, newest first; their sums are in the legend, their steps in the image."""
    running, numbers = start(api_base=NO_KLING, database_url=database_url), Random(name)
    now = int(time.time() * 1000)
    kinds = {"task.created": 1, "task.succeed": 2, "task.failed": 3}
    events = [
        (now - numbers.randrange(40 * DAY // 2 ** numbers.randrange(8)), kind) for kind in kinds for _ in range(900)
    ]
    change(running, lambda connection: count(connection, events))
    page, now = visit(running, name)
    step = {"24h": HOUR, "7d": 6 * HOUR, "30d": DAY}[name]
    midnight = now // DAY * DAY
    first = {"24h": now // HOUR * HOUR - 23 * HOUR, "7d": midnight - 6 * DAY, "30d": midnight - 29 * DAY}[name]
    expected = []
    for begin in range(first, now, step):
        of_step = Counter(kind for at, kind in events if begin <= at // HOUR * HOUR < begin + step)
        expected.append([str(of_step[kind]) for kind in kinds])
    found = table(page, "outcomes-numbers")
    assert [row[1:] for row in reversed(found)] == expected
    sums = {kind: sum(int(row[place]) for row in expected) for place, kind in enumerate(kinds)}
    for title, kind in (("Succeeded", "task.succeed"), ("Failed", "task.failed"), ("Created", "task.created")):
        assert re.search(rf'{title} <strong class="num">{sums[kind]:,}</strong>', page), title
    assert f"Tasks per {STEP_TITLES[step]}" in page
    titles = re.findall(r'<g class="chart-bar"><title>([^<]+): [\d,]+ succeeded', page)
    assert titles == [row[0] for row in reversed(found)]


def test_durations_and_costs(start: Start, database_url: str) -> None:
    """By family, day and tag, of the tasks that were created in the range."""
    running, numbers = start(api_base=NO_KLING, database_url=database_url), Random(5)
    midnight = int(time.time() * 1000) // DAY * DAY
    tasks = []
    for _ in range(300):
        at = midnight - numbers.randrange(9) * DAY + numbers.randrange(100)
        family = numbers.choice(["images/generations", "videos/text2video"])
        amount = numbers.choice(["1", "0.1", "3.50", "1200"])
        duration = numbers.randrange(1, 400_000)
        tags = numbers.sample(["shop", "night", MARKUP], numbers.randrange(3))
        tasks.append((at, family, amount, duration, tags))

    def write(connection: Connection) -> None:
        for number, (at, family, amount, duration, tags) in enumerate(tasks):
            cost = [{"charge_type": "unit", "amount": amount}]
            add_task(connection, number, at, *tags, family=family, cost=cost, duration_ms=duration)

    change(running, write)
    page, now = visit(running, "7d")
    since = now // DAY * DAY - 6 * DAY
    of_range = [task for task in tasks if since <= task[0] <= now]
    assert 0 < len(of_range) < len(tasks)
    expected: dict[str, list[str]] = {}
    for family in ("images/generations", "videos/text2video"):
        durations = sorted(task[3] for task in of_range if task[1] == family)
        half = next(each for each in durations if 2 * sum(other <= each for other in durations) >= len(durations))
        most = next(each for each in durations if 20 * sum(other <= each for other in durations) >= 19 * len(durations))
        expected[family] = [str(len(durations)), duration_text(half), duration_text(most)]
    assert {row[0]: row[1:] for row in table(page, "durations-numbers")} == expected

    def costs(chosen: list[tuple[int, str, str, int, list[str]]]) -> list[str]:
        sums: dict[str, Decimal] = {}
        for _, family, amount, _, _ in chosen:
            unit = f"{family[:5]} units"
            sums[unit] = sums.get(unit, Decimal()) + Decimal(amount)
        return [f"{len(chosen):,}", ", ".join(f"{sums[unit].normalize():,f} {unit}" for unit in sorted(sums))]

    days = sorted({task[0] // DAY for task in of_range}, reverse=True)
    assert [row[1:] for row in table(page, "costs-numbers")] == [
        costs([each for each in of_range if each[0] // DAY == day]) for day in days
    ]
    expected_tags = {tag: costs([each for each in of_range if tag in each[4]]) for tag in ("shop", "night", MARKUP)}
    assert {row[0]: row[1:] for row in table(page, "tags-numbers")} == expected_tags
    assert MARKUP not in page
    assert "<script>alert" not in page


def test_callbacks(start: Start, database_url: str) -> None:
    """Those of the range from the database; those that were refused since the start, by reason."""
    running = start(api_base=NO_KLING, database_url=database_url)
    now = int(time.time() * 1000)
    names = ("callback.received", "callback.repeated", "callback.ignored", "callback.unkept")
    inside = [(now - HOUR, name) for name, times in zip(names, (1200, 3, 20, 1), strict=True) for _ in range(times)]
    outside = [(now - 3 * DAY, name) for name in names]
    change(running, lambda connection: count(connection, inside + outside))
    for _ in range(2):
        assert httpx.post(f"{running.url}/callbacks/nothing").status_code == 401
    page, _ = visit(running)
    shown = re.findall(r"<dt>(\w+)</dt><dd><strong class=\"num\">([\d,]+)</strong>", page)
    assert dict(shown) == {"Accepted": "1,204", "Ignored": "20", "Refused": "2"}
    assert "of which repeats: 3" in page
    assert [row[1] for row in table(page, "refused-numbers")] == ["2"]


def test_slots_queue_and_jobs(database: Database) -> None:
    """What is held and waits, and since when; each kind of job with its numbers. No worker changes them meanwhile."""
    limits = SlotLimits(5, {"kling-v3": 3})
    ledger, long_ago = Ledger(database, rules=Policy(slots=limits)), NOW - 5 * DAY
    ledger.register("a", model="kling-v3", request={"n": 2}, outcome="created", kling_id="k")
    for task in ("b", "c", "d"):
        ledger.register(task)
    for number in range(3):
        ledger.register(f"s{number}", create_token=f"{SENT_HERE}{number}")
        row = {"task_id": f"s{number}", "state": "queued", "rank": 0, "model": "kling-v1", "slots": 1, "body": b"{}"}
        with database.write() as connection:
            more = {"size": 2, "attempt": "", "created_at": long_ago + number}
            connection.execute(insert(SUBMISSION), {**row, **more})
    with database.write() as connection:
        connection.exec_driver_sql("UPDATE job SET state = 'dead' WHERE task_id = 'b'")
        connection.exec_driver_sql("UPDATE job SET state = 'running', claim_id = 'x' WHERE task_id = 'c'")
    expected = Counter((row["kind"], row["state"]) for row in ledger.jobs().values())
    pages = Pages(cast("Sessions", None))  # nobody signs in
    reader = Reader(database)
    shown = OverviewPage(pages, reader=reader, metrics=Metrics(), limits=limits, clock=lambda: NOW / 1000)
    page, _ = asyncio.run(shown._render("24h"))
    asyncio.run(reader.close())
    bars = dict(re.findall(r"<span>([^<]+)</span><span class=\"num\">([^<]+ held[^<]*)</span>", page))
    assert bars == {"All models": "5 of 5 held", "(no model)": "3 held, no limit", "kling-v3": "2 of 3 held"}
    queue = re.search(r'id="queue">(.*?)</p>', page, re.DOTALL)
    assert queue
    assert '<strong class="num">3</strong> submissions wait' in queue[1]
    assert f'datetime="{iso(long_ago)}"' in queue[1]
    found = {row[0]: row[1:] for row in table(page, "jobs")}
    states = ("ready", "running", "dead")
    assert found == {
        KIND_TITLES[kind]: [str(expected[kind, state]) for state in states] for kind in {kind for kind, _ in expected}
    }
    assert sum(expected.values()) == 4


def test_every_kind_of_job_has_a_title() -> None:
    """Else the table of jobs shows the name that the queue has for it."""
    assert KIND_TITLES.keys() == set(Kind)


def test_the_oldest_job(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Since when it is due, of all kinds; a first one that is not due yet is no delay."""
    running = start(api_base=NO_KLING)
    now = int(time.time() * 1000)
    due = [now - 3 * DAY, now - 2 * DAY, None]

    def jobs(connection: Connection) -> JobCounts:
        kinds = zip((Kind.ASK, Kind.DELIVERY, Kind.SWEEP), due, strict=True)
        rows = [PendingJobs(kind=kind, waiting=1, running=2, dead=3, next_due_at=at) for kind, at in kinds]
        return {"kinds": rows, "is_complete": False}

    monkeypatch.setattr(queues, "pending_jobs", jobs)
    page, _ = visit(running)
    assert "The oldest has been due since" in page
    assert f'<time datetime="{iso(due[0])}"' in page
    assert "There are more: the oldest are counted." in page
    assert re.search(r">3</strong> wait, .*>6</strong> run, .*>9</strong> were given up", page)
    due[:2] = [now + DAY, now + 2 * DAY]
    page, _ = visit(running)
    assert "The oldest has been due since" not in page
    assert f'The first is due <time datetime="{iso(due[0])}" data-form="due"' in page


def test_an_empty_database(start: Start) -> None:
    """It says what to do next, and shows what waits all the same."""
    running = start(api_base=NO_KLING)
    for name in RANGES:
        page, _ = visit(running, name)
        assert "Nothing happened in these" in page
        assert "kling text-to-image" in page
        assert "No submission waits for a slot." in page
        assert "KLING_CONCURRENCY is not set" in page
        assert ('range=30d">30 days</a>, or submit' in page) == (name != "30d")


def test_huge_values_and_ugly_texts(start: Start) -> None:
    """Families, tags, units and amounts that others chose: exact, escaped, and within the image."""
    running = start(api_base=NO_KLING)
    now = int(time.time() * 1000)

    def write(connection: Connection) -> None:
        connection.execute(insert(HOURLY), {"hour": now // HOUR, "name": "task.succeed", "total": 10**15})
        cost = [{"charge_type": "balance", "amount": "999999999999.99", "currency": MARKUP[:20]}]
        add_task(connection, 1, now, MARKUP, "x" * 64, family=MARKUP, cost=cost, duration_ms=2**31 - 1)
        add_task(connection, 2, now, MARKUP, family="videos/text2video", cost={"odd": [1]}, duration_ms=0)

    change(running, write)
    page, _ = visit(running)
    assert "1,000,000,000,000,000" in page
    assert "999,999,999,999.99" in page
    assert html.escape(MARKUP).split("&#")[0] in page
    assert "<script>alert" not in page
    boxes = re.findall(r'class="series-\w+"[^>]*? y="([\d.]+)" height="([\d.]+)"', page)
    assert boxes
    assert all(float(y) >= 0 and float(y) + float(height) <= 175 for y, height in boxes)
    assert "nan" not in page
    assert "style=" not in page


def test_a_range_with_very_many_tasks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page says since when its costs are complete."""
    monkeypatch.setattr(statistics, "MAX_TASKS", 2)
    running = start(api_base=NO_KLING)
    now = int(time.time() * 1000)

    def write(connection: Connection) -> None:
        for number in range(4):
            add_task(connection, number, now - number * 60_000, family="images/generations", duration_ms=1000)

    change(running, write)
    page, _ = visit(running)
    assert [row[1] for row in table(page, "durations-numbers")] == ["2"]
    assert "are of those created since" in page


def test_many_visitors_share_one_query(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first load and of the renewals; another range is read for itself."""
    monkeypatch.setattr(overview, "KEPT_SECONDS", 60.0)
    reads = []
    original = statistics.finished_tasks

    def counted(connection: Connection, since: int, until: int) -> Any:
        reads.append(since)
        return original(connection, since, until)

    monkeypatch.setattr(statistics, "finished_tasks", counted)
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        browser.sign_in("read")
        pages = [browser.get("/dashboard/overview") for _ in range(20)]
        refresh = re.search(r'hx-get="\.\./([^"]+)"', pages[0].text)
        assert refresh
        path = html.unescape(f"/{refresh[1]}")
        assert {browser.get(path).status_code for _ in range(20)} == {204}
        other = browser.get(re.sub(r"state=\w+", "state=other", path))
        assert other.status_code == 200
        assert other.text.lstrip().startswith('<div id="overview"')
        assert "<html" not in other.text
        assert len(reads) == 1
        browser.get("/dashboard/overview?range=7d")
        assert len(reads) == 2


def test_the_page_is_renewed_when_something_happens(start: Start) -> None:
    """Its state then differs."""
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        browser.sign_in("read")
        found = re.search(r'hx-get="\.\./([^"]+)"', browser.get("/dashboard/overview").text)
        assert found
        path = html.unescape(f"/{found[1]}")
        assert browser.get(path).status_code == 204
        register(running, "0" * 26)
        answer = browser.get(path)
        assert answer.status_code == 200
        assert re.search(r'Created <strong class="num">1</strong>', answer.text)


def test_who_may_see_it(start: Start) -> None:
    """All roles; without a session it leads to the login. A range that does not exist is refused with a remedy."""
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        assert browser.get("/dashboard/overview").status_code == 303
        assert browser.get("/dashboard/live/overview", headers={"HX-Request": "true"}).status_code == 401
        browser.sign_in("read")
        answer = browser.get("/dashboard/overview?range=1y")
        assert answer.status_code == 422
        assert "Choose one of 24h, 7d, 30d." in answer.text
        assert browser.get("/dashboard/overview?color=red").status_code == 422
