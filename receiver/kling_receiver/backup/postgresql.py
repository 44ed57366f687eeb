"""Copy a PostgreSQL database with pg_dump, from a snapshot that the files are read from, too."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from kling_callback.atomic_file import fsync_file
from kling_receiver.backup.snapshot import LOST, CopyFiles, Snapshot, read_snapshot
from kling_receiver.events.log import CLEAR_LOG_ID
from kling_receiver.store.database import Database
from kling_receiver.store.errors import DatabaseError
from kling_receiver.store.sql import Statement

NAME = "kling.sql"
MISSING = (
    "pg_dump is not installed here. Install PostgreSQL's client programs, of the server's version or a later one, "
    "or back up by the procedure in docs/operating.md"
)
EXPORT_SNAPSHOT = Statement("SELECT pg_export_snapshot() AS id, quote_ident(current_schema()) AS schema")
RENDER_LOST = Statement("""
    SELECT format('UPDATE result SET status = ''failed'', sha256 = NULL, error = %L WHERE task_id = %L
        AND position = %s;', CAST(:error AS text), CAST(:task_id AS text), CAST(:position AS integer))
""")


def copy_database(database: Database, folder: Path, copy_files: CopyFiles) -> tuple[str, Snapshot]:
    """Dump the database into `folder` as SQL, with the files of its stored results. Returns its name, the snapshot.

    Raises DatabaseError, OSError.
    """
    program = shutil.which("pg_dump")
    if program is None:
        raise DatabaseError(MISSING)
    path = folder / NAME
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    with database.operator_errors(), database.read() as connection:
        snapshot, exported = read_snapshot(connection), EXPORT_SNAPSHOT.all(connection)[0]
        _dump(program, connection.connection.driver_connection, exported["id"], path)
        changes = [
            RENDER_LOST.scalar(connection, error=LOST, task_id=each.task_id, position=each.position)
            for each in copy_files(snapshot)
        ]
    statements = [f"SET search_path TO {exported['schema']};", *changes, f"{CLEAR_LOG_ID};"]
    with path.open("a", encoding="utf-8") as file:
        file.write("\n".join(("", *statements, "")))
        file.flush()
        fsync_file(file.fileno())
    return NAME, snapshot


def _dump(program: str, connection: Any, exported: str, path: Path) -> None:
    """Run pg_dump on the server of a connection. Raises DatabaseError with its own message."""
    parameters: dict[str, str] = connection.info.get_parameters()
    if connection.info.password:
        parameters["password"] = connection.info.password
    arguments = [
        "--no-password",
        "--no-owner",
        "--no-privileges",
        "--encoding=UTF8",
        f"--snapshot={exported}",
        f"--file={path}",
    ]
    with tempfile.TemporaryDirectory() as private:  # of mode 0700: arguments and variables are visible to others
        service = Path(private, "service.conf")
        service.write_text("\n".join(["[kling]", *(f"{name}={value}" for name, value in parameters.items()), ""]))
        ours = {name: value for name, value in os.environ.items() if not name.upper().startswith("KLING_")}
        ran = subprocess.run(  # noqa: S603  # our own arguments
            [program, *arguments],
            env={**ours, "PGSERVICE": "kling", "PGSERVICEFILE": str(service)},
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    if ran.returncode:
        reason = " ".join(ran.stderr.split())[:500] or f"exit code {ran.returncode}"
        raise DatabaseError(f"pg_dump failed: {reason}. It must be of the server's version or a later one.")
