"""nginx, if it is installed: a process of its own, with its files in a folder of the test."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tools.harness import loopback

PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

MAIN = """
daemon off;
master_process off;
pid {folder}/pid;
error_log {folder}/main.log;
events {{ }}
http {{
    {temporary}
    access_log off;
    {http}
}}
"""
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


class Nginx:
    """A running server. `url`: its address; `folder`: its logs."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def logs(self) -> str:
        """The content of all its files."""
        return "\n".join(path.read_text() for path in self.folder.rglob("*") if path.is_file() and path.name != "conf")


@contextmanager
def nginx(folder: Path, http: str, upstream: str, port: int) -> Iterator[Nginx]:
    """Serve the directives `http` on a port until the block ends.

    In them, 127.0.0.1:8000 stands for `upstream` and /var/log/nginx for `folder`, as in the documentation; the comment
    `# listen...` is replaced.
    """
    folder.mkdir()
    directives = http.replace("http://127.0.0.1:8000", upstream).replace("/var/log/nginx", str(folder))
    directives = re.sub(r"# listen.*", f"listen 127.0.0.1:{port};", directives)
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    configuration = folder / "conf"
    configuration.write_text(MAIN.format(folder=folder, temporary=temporary, http=directives))
    assert PROGRAM
    process = subprocess.Popen([PROGRAM, "-p", str(folder), "-c", str(configuration), "-e", f"{folder}/main.log"])
    try:
        url = f"http://127.0.0.1:{port}"
        assert loopback.answers(f"{url}/", alive=lambda: process.poll() is None), (folder / "main.log").read_text()
        yield Nginx(url, folder)
    finally:
        process.terminate()
        process.wait(20)
