"""`kling-receiver init`: what it writes, what it never changes, its questions on a terminal, and what is next."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from kling_callback.atomic_file import temporary_path
from kling_receiver.settings import TO_SERVE, ReceiverSettings
from tests.client.test_windows import WINDOWS
from tests.support.commands import run_here

URL, KEY = "https://kling.example.com", "sk-a'b\\#c\"d"
ENV = Path(".env")


def init(*arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> CompletedProcess[str]:
    """Run the command in this folder, in a pipe."""
    return run_here("init", *arguments, env=env or {}, stdin=stdin)


def settings() -> dict[str, str]:
    """The lines of `.env`."""
    return dict(re.findall(r"^(\w+)=(.*)$", ENV.read_text(), re.MULTILINE))


def only_env() -> bool:
    """Whether nothing else is in this folder: no temporary file."""
    return os.listdir() in ([], [".env"])  # noqa: PTH208


def test_a_new_file_has_a_secret_and_what_is_given() -> None:
    """Only the user may read it, no secret is printed, and the receiver's settings are read from it."""
    done = init("--receiver-url", URL, "--api-key", "-", "--api-base", "https://gateway.example", stdin=f"{KEY}\n")
    assert (done.returncode, ENV.stat().st_mode & 0o777, only_env()) == (0, 0o600, True)
    loaded = ReceiverSettings.load(require=TO_SERVE)
    assert (loaded.receiver_url, loaded.api_key, loaded.api_base) == (URL, KEY, "https://gateway.example")
    [secret] = loaded.signing_secrets
    assert len(secret) >= 32
    assert secret not in done.stdout + done.stderr
    assert KEY not in done.stdout + done.stderr
    assert (
        f"{ENV.absolute()} has a new signing secret, KLING_RECEIVER_URL, KLING_API_KEY and KLING_API_BASE."
        in done.stderr
    )
    ENV.unlink()
    init()
    assert settings().keys() == {"KLING_SIGNING_SECRETS"}
    assert settings()["KLING_SIGNING_SECRETS"] != secret


def test_the_next_commands_fit_what_is_set() -> None:
    """Three, on stdout; the first one gets what is missing."""
    image = 'kling text-to-image "a kangaroo holding a sign" --model-name kling-v3 --output .'
    done = init()
    assert done.stdout.splitlines() == [f"kling-receiver init --receiver-url {URL}", "kling-receiver serve &", image]
    assert "KLING_RECEIVER_URL" in done.stderr
    assert "KLING_API_KEY" in done.stderr
    done = init("--receiver-url", URL)
    assert done.stdout.splitlines() == ["kling-receiver init", "kling-receiver serve &", image]
    done = init("--api-key", "sk-1")
    assert done.stdout.splitlines() == ["kling-receiver serve &", "sleep 5; kling-receiver doctor", image]
    assert init().stdout == done.stdout


def test_all_problems_are_reported_at_once() -> None:
    """In the words of the settings, with those of what is there already; nothing is written."""
    ENV.write_text("KLING_API_BASE=nonsense\n")
    done = init("--receiver-url", "http://kling.example.com", "--api-key", "a b", "--nonsense")
    assert (done.returncode, done.stdout, ENV.read_text()) == (2, "", "KLING_API_BASE=nonsense\n")
    for problem in ("KLING_API_BASE: ", "KLING_RECEIVER_URL: ", "KLING_API_KEY: ", "--nonsense"):
        assert problem in done.stderr
    assert only_env()


EXISTING = {
    "lines of others": b"# mine\nOTHER=1\nKLING_API_KEY=sk-1\n",
    "no line end": b"KLING_API_KEY=sk-1",
    "a mark, and Windows' line ends": b"\xef\xbb\xbfKLING_API_KEY=sk-1\r\nOTHER='a\r\nb'\r\n",
    "empty": b"",
}


@pytest.mark.parametrize("content", EXISTING.values(), ids=EXISTING)
def test_an_existing_file_keeps_every_byte(content: bytes) -> None:
    """What it lacks is added at its end; a second time, nothing."""
    ENV.write_bytes(content)
    ENV.chmod(0o640)
    assert init("--receiver-url", URL).returncode == 0
    after = ENV.read_bytes()
    assert after.startswith(content)
    assert ReceiverSettings.load().receiver_url == URL
    assert ReceiverSettings.load().api_key == ("sk-1" if content else "")
    assert after.count(b"\r\n") == (after.count(b"\n") if b"\r\n" in content else 0)
    assert ENV.stat().st_mode & 0o777 == 0o640 & ~0o040  # of a group that is not root's: see `exposure`
    again = init("--receiver-url", URL)
    assert (again.returncode, "nothing was changed" in again.stderr, ENV.read_bytes()) == (0, True, after)


def test_what_is_set_is_never_overwritten() -> None:
    """Neither a secret nor, by an option, anything else; also an access key stands for the key."""
    ENV.write_text(
        f"KLING_SIGNING_SECRETS={'s' * 40}\nKLING_RECEIVER_URL={URL}\nKLING_ACCESS_KEY=a\nKLING_SECRET_KEY=b\n"
    )
    before = ENV.read_bytes()
    done = init("--receiver-url", "https://other.example.com", "--api-key", "sk-2")
    assert done.returncode == 2
    assert "KLING_RECEIVER_URL: .env sets it already" in done.stderr
    assert "KLING_API_KEY: it, or what stands in for it, is set already" in done.stderr
    assert init().returncode == 0
    assert ENV.read_bytes() == before


def test_what_the_environment_sets_is_not_written() -> None:
    """A secret there and an address in `.env` would be refused by every command: so it is here."""
    done = init(env={"KLING_API_KEY": "sk-1"})
    assert settings().keys() == {"KLING_SIGNING_SECRETS"}
    assert "KLING_API_KEY" not in done.stderr
    ENV.unlink()
    apart = init("--receiver-url", URL, env={"KLING_SIGNING_SECRETS": "s" * 40})
    assert (apart.returncode, ENV.exists()) == (2, False)
    assert "KLING_RECEIVER_URL comes from" in apart.stderr


def make_link() -> None:
    Path("target").write_text("")
    ENV.symlink_to("target")


UNUSABLE: dict[str, Any] = {
    "a folder": (ENV.mkdir, "is not a file"),
    "a link": (make_link, "is a symbolic link"),
    "a pipe": (lambda: os.mkfifo(ENV), "is not a file"),
    "UTF-16": (lambda: ENV.write_bytes("KLING_API_KEY=sk-1\n".encode("utf-16")), "UTF-16"),
    "no UTF-8": (lambda: ENV.write_bytes(b"KLING_API_KEY=\xff\n"), "UTF-8"),
    "a line that cannot be read": (lambda: ENV.write_text("KLING_API_KEY='sk-1\n"), "cannot be read"),
}


@pytest.mark.parametrize(("make", "reason"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_file_that_cannot_be_completed_is_left(make: Any, reason: str) -> None:
    """With the reason."""
    make()
    before = ENV.lstat()
    done = init()
    assert (done.returncode, reason in done.stderr, done.stdout) == (2, True, ""), done.stderr
    assert (ENV.lstat().st_ino, ENV.lstat().st_size) == (before.st_ino, before.st_size)


def test_a_file_that_is_changed_meanwhile_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another program, between reading and writing."""

    def change(path: Path) -> Path:
        ENV.write_text("OTHER=1\n")
        return temporary_path(path)

    monkeypatch.setattr("kling_receiver.cli.init.temporary_path", change)
    for _ in range(2):
        done = init()
        assert (done.returncode, "Run the command again" in done.stderr) == (1, True)
        assert (ENV.read_text(), only_env()) == ("OTHER=1\n", True)
        ENV.write_text("ANOTHER=1\n")


def test_on_windows(tmp_path: Path) -> None:
    """Without the modules that Windows lacks: the receiver does not run there, but a `.env` may be made there."""
    program = "from kling_receiver.cli.init import init\ninit(['--receiver-url', 'https://a.example'])"
    done = subprocess.run(
        [sys.executable, "-c", f"{WINDOWS}{program}"], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.returncode, "a new signing secret" in done.stderr) == (0, True), done.stderr
    assert settings().keys() == {"KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL"}


class Terminal:
    """The command on a terminal of its own."""

    def __init__(self) -> None:
        self.pid, self.master = pty.fork()
        if not self.pid:
            os.execv(sys.executable, [sys.executable, "-m", "kling_receiver", "init"])
        self.output = ""
        self.seen = 0

    def read_until(self, text: str) -> None:
        """Read what it prints, up to the next time that it prints this."""
        end = time.monotonic() + 20
        while (place := self.output.find(text, self.seen)) < 0:
            assert time.monotonic() < end, self.output
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.output += os.read(self.master, 4096).decode()
                except OSError:
                    raise AssertionError(self.output) from None
        self.seen = place + len(text)

    def type(self, text: str) -> None:
        """Type, at a question that is ready for it."""
        time.sleep(0.2)  # a hidden question discards what was typed before it
        os.write(self.master, text.encode())

    def end(self) -> int:
        """Its exit code, once it has ended."""
        while True:
            try:
                if not (data := os.read(self.master, 4096)):
                    break
            except OSError:
                break
            self.output += data.decode()
        _, status = os.waitpid(self.pid, 0)
        os.close(self.master)
        return os.waitstatus_to_exitcode(status)


def test_questions_on_a_terminal() -> None:
    """A wrong answer is asked for again, and the key is not shown."""
    terminal = Terminal()
    terminal.read_until("(Enter: later)")
    terminal.type("http://kling.example.com\n")
    terminal.read_until("not shown (Enter: later)")
    terminal.type("sk-hidden\n")
    terminal.read_until("KLING_RECEIVER_URL: ")
    terminal.read_until("(Enter: later)")
    terminal.type(f"{URL}\n")
    assert terminal.end() == 0, terminal.output
    assert "sk-hidden" not in terminal.output
    assert "doctor" in terminal.output
    assert (settings()["KLING_RECEIVER_URL"], settings()["KLING_API_KEY"]) == (URL, "sk-hidden")


@pytest.mark.parametrize("typed", ["\3", "\4"], ids=["Ctrl-C", "Ctrl-D"])
@pytest.mark.parametrize("question", ["(Enter: later)", "not shown (Enter: later)"])
def test_an_interrupted_question_leaves_nothing(typed: str, question: str) -> None:
    """Neither a file nor a part of one; an existing one stays as it is."""
    ENV.write_text("OTHER=1\n")
    terminal = Terminal()
    terminal.read_until("(Enter: later)")
    if question.startswith("not"):
        terminal.type("\n")
        terminal.read_until(question)
    terminal.type(typed)
    assert terminal.end() == 130
    assert "Interrupted" in terminal.output
    assert (ENV.read_text(), only_env()) == ("OTHER=1\n", True)


def test_a_kill_leaves_nothing_half_written(tmp_path: Path) -> None:
    """Killed at any moment: the file is complete, or absent."""
    command = [sys.executable, "-m", "kling_receiver", "init", "--receiver-url", URL]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while not any(name.endswith(".part") or name == ".env" for name in os.listdir()):  # noqa: PTH208
        assert time.monotonic() < end
    process.send_signal(signal.SIGKILL)
    process.wait()
    if ENV.exists():
        assert settings().keys() == {"KLING_SIGNING_SECRETS", "KLING_RECEIVER_URL"}
