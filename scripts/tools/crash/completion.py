"""Wait for the end of a run: every task done, no job left, every event delivered."""

import time

from sqlalchemy import text

from tools.crash.scenario import Stage

OPEN = text("""
    SELECT (SELECT count(*) FROM task WHERE NOT done), (SELECT count(*) FROM job WHERE kind <> 'dispatch')
""")
"""A dispatch job stays for a moment after its last event, to wait for more."""
EVENTS = text("SELECT id, type FROM event")
POLL_SECONDS = 0.02


class Unfinished(Exception):
    """The receiver ended, or did not finish in time, with tasks or jobs still open."""


def wait_until_done(stage: Stage, seconds: float) -> None:
    """Wait until all tasks and jobs are done and each hook has its events. Raises Unfinished."""
    end = time.monotonic() + seconds
    with stage.open_database() as database:
        while True:
            with database.read() as connection:
                tasks, jobs = connection.execute(OPEN).one()
                events = [] if tasks or jobs else connection.execute(EVENTS).all()
            if not (tasks or jobs) and all(
                {event.id for event in events if types is None or event.type in types} <= stage.hook.received(name)
                for name, types in stage.wanted.items()
            ):
                return
            if stage.receiver.ended or time.monotonic() > end:
                raise Unfinished(f"{tasks} tasks and {jobs} jobs are open")
            time.sleep(POLL_SECONDS)
