"""Waiting for the end of a run: every task done, and nothing owed any more."""

import time

from sqlalchemy import text

from tools.crash.script import Stage

OPEN = text("""
    SELECT (SELECT count(*) FROM task WHERE NOT done), (SELECT count(*) FROM job WHERE kind <> 'dispatch')
""")
EVENTS = text("SELECT id FROM event")
LOOK_SECONDS = 0.02


class Unfinished(Exception):
    """The receiver ended, or did not come to an end, with work still open."""


def all_done(stage: Stage, seconds: float) -> None:
    """Wait until all is done, and the hook has every event; a look at the log lingers. Raises Unfinished."""
    end = time.monotonic() + seconds
    with stage.opened() as database:
        while True:
            with database.read() as connection:
                tasks, jobs = connection.execute(OPEN).one()
                if not (tasks or jobs) and set(connection.execute(EVENTS).scalars()) <= set(stage.hook.taken):
                    return
            if stage.receiver.ended or time.monotonic() > end:
                raise Unfinished(f"{tasks} tasks and {jobs} jobs are open")
            time.sleep(LOOK_SECONDS)
