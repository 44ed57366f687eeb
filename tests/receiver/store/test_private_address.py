"""What only KLING_DATABASE_URL says (its user, password and options) is in no message of any command or log."""

import logging
import traceback
from pathlib import Path

import pytest
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError

from kling_callback.protocol.urls import private_parts
from kling_receiver.logs import LineFormatter
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError
from tests.support.commands import run_here
from tools.harness.process import Process, environment

OPTIONS = [
    "password=hidden-1&sslkey=/hidden-2&options=hidden-3",
    "sslmode=hidden-1",
    "hidden-1=on",
    "host=hidden-1.invalid",
    "host=hidden-1:a:b",
    "host=a,b&port=hidden-1",
    "sslrootcert=/hidden-1&sslmode=verify-ca",
    "target_session_attrs=hidden%2D1",
    "plugin=hidden-1",
    "user=hidden-1&passfile=/hidden-2",
]


@pytest.mark.parametrize("options", OPTIONS)
def test_no_message_shows_what_only_the_address_says(
    options: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Errors of commands, the log, tracebacks: nothing of the query, no user, no password."""
    url = f"postgresql://hidden-user:hidden-word@127.0.0.1:1/kling?{options}"
    shown = []
    try:
        database = Database(url)
    except DatabaseError as error:
        shown += [str(error), *traceback.format_exception(error)]
    else:
        for action in (database.migrate, database.acquire_lock):
            with pytest.raises(DatabaseError) as raised:
                action()
            shown.append(str(raised.value))
        with pytest.raises(DBAPIError) as failed, database.read():
            pass
        shown.append(str(database.to_unavailable(failed.value)))
        formatter = LineFormatter(hidden=private_parts(url))
        record = logging.LogRecord("x", logging.ERROR, "x", 1, "failed", (), None)
        record.exc_info = (failed.type, failed.value, failed.tb)
        shown += [formatter.format(record), caplog.text, str(database)]
        database.close()
    env = environment(tmp_path, KLING_DATABASE_URL=url, KLING_RECEIVER_URL="http://127.0.0.1:1")
    done = run_here("migrate", env=env)
    assert done.returncode == 1
    assert "hidden" not in "\n".join([*shown, done.stdout, done.stderr])


@pytest.mark.usefixtures("processes_are_forked")
def test_the_start_line_shows_none(database_url: str, tmp_path: Path) -> None:
    """A receiver that cannot listen has printed it, or an error; one that serves prints its database."""
    options = "?application_name=hidden-1" if database_url.startswith("postgresql") else ""
    url = make_url(database_url).render_as_string(hide_password=False)
    joined = f"{url}{'&' if '?' in url else ''}{options.lstrip('?') if '?' in url else options}"
    with Process(tmp_path / "data", KLING_DATABASE_URL=joined) as receiver:
        log = receiver.log_text()
    assert "database " in log
    assert "hidden-1" not in log
    assert "host=" not in log
