"""Waiting for the end of a run: every task done, and nothing owed any more."""

import time

from sqlalchemy import text

from crashes.script import Stage

OPEN = text("SELECT (SELECT count(*) FROM task WHERE NOT done), (SELECT count(*) FROM job)")
LOOK_SECONDS = 0.02


class Unfinished(Exception):
    """The receiver ended, or did not come to an end, with work still open."""


def all_done(stage: Stage, seconds: float) -> None:
    """Wait until all is done. Raises Unfinished."""
    end = time.monotonic() + seconds
    with stage.opened() as database:
        while True:
            with database.read() as connection:
                tasks, jobs = connection.execute(OPEN).one()
            if not (tasks or jobs):
                return
            if stage.receiver.ended or time.monotonic() > end:
                raise Unfinished(f"{tasks} tasks and {jobs} jobs are open")
            time.sleep(LOOK_SECONDS)
