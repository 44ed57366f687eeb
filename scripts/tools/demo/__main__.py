"""The command `scripts/demo`: a sandbox, a receiver, and three jobs by the real `kling` command."""

import json
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any, NoReturn

import httpx

from kling_callback.atomic_file import AtomicFile, temporary_path
from kling_callback.protocol.signing import api_token
from kling_sandbox.receiver import API_KEY
from tools.harness.loopback import answers, environment, reserved_port

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent
OUTPUT = Path(sys.argv[1]).absolute() if sys.argv[1:] else ROOT / "data" / "demo"


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[None]:
    """Run a server until the block ends. Ctrl-C reaches this process alone, which then stops the server."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,  # a folder without a `.env` file of the user
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(url: str, log: Path) -> None:
    """Wait until a server answers; exits with its log if it does not."""
    if not answers(url):
        sys.exit(f"demo: {url} does not answer. Check its log:\n{log.read_text()}")


def show_events(receiver: str, token: str) -> None:
    """Print the receiver's events as they arrive."""
    try:
        with httpx.stream(
            "GET", f"{receiver}/api/events", headers={"Authorization": f"Bearer {token}"}, timeout=None
        ) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    show(json.loads(line.removeprefix("data: ")))
    except httpx.TransportError:
        return  # the receiver has ended


def show(event: dict[str, Any]) -> None:
    """Print one line for a new status or a stored file."""
    if event["type"].startswith("callback."):
        return
    at = datetime.fromisoformat(event["at"]).strftime("%H:%M:%S.%f")[:-3]
    data = event["data"] or {}
    details = f"{data['size']:,} bytes, {data['content_type']}" if "size" in data else ""
    print(f"    {at}  {event['type']:16} {details}".rstrip(), flush=True)


def kling(*arguments: str, environment: dict[str, str], folder: Path) -> str:
    """Run the real command. Returns the path of its first file."""
    print(f"\n$ {shlex.join(['kling', *arguments])}", flush=True)
    command = [str(BIN / "kling"), *arguments, "--output", str(OUTPUT)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.stderr.write(done.stderr)
        sys.exit(done.returncode)
    paths = done.stdout.split("\n")[:-1]
    for path in paths:
        print(f"    {path}", flush=True)
    return paths[0]


def account(gateway: str, receiver: str, token: str) -> str:
    """A line with the callbacks, the queries, and the seconds from finished to stored."""
    sandbox_account = httpx.get(f"{gateway}/sandbox/account").json()
    finished = {task["external_task_id"]: task["finished_at"] for task in sandbox_account["tasks"]}
    headers = {"Authorization": f"Bearer {token}"}
    delays = []
    for task in httpx.get(f"{receiver}/api/tasks", headers=headers).json()["tasks"]:
        stored = datetime.fromisoformat(task["updated_at"]).timestamp()
        delays.append(stored - finished[task["id"]] / 1000)
    totals = sandbox_account["totals"]
    return (
        f"callbacks received: {totals['callbacks']}, queries to the gateway: {totals['queries']}, "
        f'from "gateway finished" to "file on disk": {median(delays):.3f} s'
    )


def print_next(gateway: str, receiver: str) -> None:
    """Print three commands that do the same by hand, in a folder with the settings for it."""
    folder = OUTPUT / "by-hand"
    folder.mkdir(mode=0o700, exist_ok=True)
    settings = {
        "KLING_API_BASE": gateway,
        "KLING_API_KEY": API_KEY,
        "KLING_PRIVATE_RESULT_HOSTS": "127.0.0.1",
        "KLING_RECEIVER_URL": receiver,
        "KLING_SIGNING_SECRETS": secrets.token_urlsafe(32),
    }
    lines = "".join(f"{name}={value}\n" for name, value in settings.items())
    file = AtomicFile(temporary_path(folder / ".env"), mode=0o600)
    try:
        file.write(f"# Settings for a sandbox on this machine, made by scripts/demo.\n{lines}".encode())
        file.commit(folder / ".env")
    finally:
        file.discard()
    ports = {name: url.rpartition(":")[2] for name, url in (("sandbox", gateway), ("receiver", receiver))}
    print(
        "\nThe same by hand: paste these three lines into a shell. The sandbox and the receiver then run in the\n"
        "background (`kill %1 %2` ends them), and `kling-receiver login-link` prints a link to the receiver's pages.\n"
        "With a key from Kling, begin in a folder of your own with `kling-receiver init`.\n"
    )
    print(f"cd {shlex.quote(str(folder))} && export PATH={shlex.quote(str(BIN))}:$PATH")
    print(
        f"kling-sandbox --port {ports['sandbox']} > sandbox.log 2>&1 & "
        f"kling-receiver serve --port {ports['receiver']} > receiver.log 2>&1 &"
    )
    print('kling text-to-image "a kangaroo holding a sign" --output .', flush=True)


def on_sigterm(number: int, frame: FrameType | None) -> NoReturn:
    """Stop in order on SIGTERM, as on Ctrl-C."""
    raise KeyboardInterrupt


def main() -> None:
    """Run the demo."""
    signal.signal(signal.SIGTERM, on_sigterm)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kling-demo-")))
        gateway, receiver = (f"http://127.0.0.1:{stack.enter_context(reserved_port())}" for _ in range(2))
        secret = secrets.token_urlsafe(32)
        settings = environment(
            KLING_API_BASE=gateway,
            KLING_API_KEY=API_KEY,
            KLING_SIGNING_SECRETS=secret,
            KLING_RECEIVER_URL=receiver,
            KLING_DATA_DIR=str(folder),
            KLING_PRIVATE_RESULT_HOSTS="127.0.0.1",
        )
        sandbox = [str(BIN / "kling-sandbox"), "--port", gateway.rpartition(":")[2]]
        durations = ["--image-seconds", "1", "--video-seconds", "3"]
        stack.enter_context(running([*sandbox, *durations], environment(), folder / "sandbox.log"))
        serve = [str(BIN / "kling-receiver"), "serve", "--port", receiver.rpartition(":")[2]]
        stack.enter_context(running(serve, settings, folder / "receiver.log"))
        wait_for(f"{gateway}/sandbox/account", folder / "sandbox.log")
        wait_for(f"{receiver}/readyz", folder / "receiver.log")
        print(f"sandbox gateway (not Kling) on {gateway}, receiver on {receiver}")

        token = api_token([secret], "read", 3600)
        threading.Thread(target=show_events, args=(receiver, token), daemon=True).start()
        run = partial(kling, environment=settings, folder=folder)
        image = run("text-to-image", "a kangaroo holding a sign", "--model-name", "kling-v3")
        run("image-to-image", "the same at night", "--image", image, "--output-format", "jpg")
        run("image-to-video", "the kangaroo waves", "--image", image, "--model-name", "kling-3.0-turbo")
        print(f"\n{account(gateway, receiver, token)}")
    print_next(gateway, receiver)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
