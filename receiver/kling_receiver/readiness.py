"""Whether a callback would be answered 200 and processed: the checks of `/readyz`.

The route is public, and a check costs a commit. Requests that arrive meanwhile share the next check, checks have a
pause between them, and one that hangs is not started again.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable

from kling_receiver.results.storage import LocalStorage
from kling_receiver.store.errors import Unavailable, describe
from kling_receiver.store.transaction import Transaction
from kling_receiver.store.writer import Writer
from kling_receiver.tasks.rehearsal import rehearse
from kling_receiver.threads import run_in_daemon_thread

log = logging.getLogger("kling_receiver.readiness")

CHECK_SECONDS = 5.0
"""Seconds after which a check counts as failed. A callback that waits as long for its commit is close to a 503 too."""

PAUSE_SECONDS = 0.25
"""Seconds from the beginning of a check to that of the next: whoever asks all the time delays few callbacks."""


class Readiness:
    """The checks of one receiver. `work_problem`: why jobs are not run; None if they are. `seconds`: for each check."""

    def __init__(
        self,
        writer: Writer,
        storage: LocalStorage,
        work_problem: Callable[[], str | None],
        *,
        seconds: float = CHECK_SECONDS,
    ) -> None:
        self._writer, self._storage, self._work_problem = writer, storage, work_problem
        late = f"did not answer within {seconds:g} s."
        self._database = SharedCheck(self._check_database, f"The database {late}", seconds)
        self._folder = SharedCheck(self._check_folder, f"The folder for result files {late} Check its volume.", seconds)

    async def problem(self) -> str | None:
        """Why a callback would not be stored and processed at the moment; None if it would."""
        found = await asyncio.gather(self._database.problem(), self._folder.problem())
        return " ".join(filter(None, (*found, self._work_problem()))) or None

    async def _check_database(self) -> str | None:
        try:
            await self._writer.run(_rehearse_and_commit)
        except Unavailable as error:
            return str(error)
        except Exception as error:
            log.exception("a callback could not be stored")
            return f"A callback cannot be stored: {describe(error)}."
        return None

    async def _check_folder(self) -> str | None:
        try:
            await run_in_daemon_thread(self._storage.probe)
        except OSError as error:
            return f"The folder for result files cannot be written: {error.strerror}."
        return None


def _rehearse_and_commit(tx: Transaction) -> None:
    rehearse(tx)
    tx.database.probe(tx.connection, tx.now)


class SharedCheck:
    """A check that is run once for all who ask before it ends. `late`: the problem if it takes longer than `seconds`.

    `pause`: seconds from its beginning for which the next one waits.
    """

    def __init__(
        self,
        check: Callable[[], Awaitable[str | None]],
        late: str,
        seconds: float,
        *,
        pause: float = PAUSE_SECONDS,
    ) -> None:
        self._check, self._late, self._seconds, self._pause = check, late, seconds, pause
        self._running: asyncio.Task[str | None] | None = None
        self._begins_at = self._ends_at = -math.inf

    async def problem(self) -> str | None:
        """The result of the check that runs, or of a new one."""
        now = asyncio.get_running_loop().time()
        if self._running is None:
            wait = max(self._begins_at + self._pause - now, 0)
            self._begins_at = now + wait
            self._ends_at = self._begins_at + self._seconds
            self._running = asyncio.create_task(self._run(wait))
        running = self._running
        await asyncio.wait({running}, timeout=max(self._ends_at - now, 0))
        return running.result() if running.done() else self._late

    async def _run(self, wait: float) -> str | None:
        try:
            await asyncio.sleep(wait)
            return await self._check()
        finally:
            self._running = None
