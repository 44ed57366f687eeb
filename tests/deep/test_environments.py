"""The three commands in processes of their own, in surroundings that other machines have: they work, or say why not."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import click
import httpx
import pytest
from click.testing import CliRunner

from kling_callback.cli.main import kling, main
from kling_receiver.cli.main import COMMANDS
from kling_receiver.cli.main import main as kling_receiver
from kling_sandbox import Sandbox
from tests.deep.conftest import Run
from tests.support.proxies import socks_proxy
from tests.support.receiver import KEY, SECRET, Running
from tests.support.web import Visit, host
from tools.harness.process import Process

TAG = "\N{KANGAROO}"


SOCKS = "socks5://127.0.0.1:9"
FAR = "https://api.example.com"
SANDBOX = "kling-sandbox --ready-file ready & until test -s ready; do sleep 0.1; done; kill $! && wait $!"


@pytest.mark.parametrize(
    ("line", "variables"),
    [
        ("kling list", {"ALL_PROXY": SOCKS}),
        ("kling-receiver doctor", {"all_proxy": "socks://127.0.0.1:9"}),
        ("kling-receiver tasks list", {"ALL_PROXY": "nonsense"}),
        ("kling text-to-image x", {"ALL_PROXY": "nonsense://", "HTTP_PROXY": ":::"}),
        (SANDBOX, {"ALL_PROXY": SOCKS, "SSL_CERT_FILE": "/nonexistent.pem", "SSLKEYLOGFILE": "/nonexistent/x"}),
        ("kling list", {"NO_PROXY": "[::1]:x,*.,::,10.0.0.0/99,http://[", "ALL_PROXY": "nonsense://"}),
        ("kling list", {"TZ": "Nowhere/Nothing", "LANG": "nonsense", "HOME": "/nonexistent", "COLUMNS": "0"}),
        ("env -u HOME kling-receiver tasks list", {}),
        ("umask 077 && kling text-to-image x --output out", {}),
        ("mkdir gone && cd gone && rmdir ../gone && kling list", {}),
        ("mkdir .env && kling list", {}),
    ],
)
def test_what_works(run: Run, line: str, variables: dict[str, str]) -> None:
    """Loopback needs no proxy, and the rest of the surroundings does not matter."""
    ran = run(line, **variables)
    assert (ran.returncode, ran.stderr if line != SANDBOX else b"") == (0, b"")


@pytest.mark.parametrize(
    ("line", "variables", "message"),
    [
        ("kling text-to-image x", {"ALL_PROXY": "socks4://u:hidden@h", "KLING_API_BASE": FAR}, "ALL_PROXY is not"),
        ("kling-receiver doctor", {"all_proxy": "x://u:hidden@h:1", "KLING_API_BASE": FAR}, "all_proxy is not"),
        (
            "kling-receiver serve --port 0",
            {"HTTPS_PROXY": "http://u:hidden@h:x", "KLING_API_BASE": FAR},
            "HTTPS_PROXY is",
        ),
        ("kling-receiver serve", {"KLING_DATABASE_URL": "sqlite://data/x.db"}, "sqlite:///data/x.db"),
        ("kling list", {"SSL_CERT_FILE": "/nonexistent.pem"}, "SSL_CERT_FILE cannot be used: No such file"),
        ("kling-receiver token", {"SSL_CERT_FILE": "/nonexistent.pem"}, "SSL_CERT_FILE cannot be used: No such file"),
        ("kling-receiver serve", {"SSL_CERT_FILE": "/dev/null"}, "SSL_CERT_FILE cannot be used: it holds no"),
        ("kling list", {"SSL_CERT_FILE": "", "SSL_CERT_DIR": "/nonexistent"}, "SSL_CERT_DIR is not a folder"),
        *(
            (f"kling-receiver {command}", {"SSLKEYLOGFILE": "/nonexistent/x"}, "SSLKEYLOGFILE cannot be written")
            for command in ("serve", "migrate", "doctor", "token", "tasks list", "hooks list", "replay --from 1")
        ),
        ("kling listen --forward https://x.example", {"HTTPS_PROXY": "x://u:hidden@h"}, "HTTPS_PROXY is not"),
        ("mkfifo .env && kling list", {}, ".env cannot be read: it is a pipe"),
        ("mkfifo .env && kling-receiver token", {}, ".env cannot be read: it is a pipe"),
        ("printf '\\xff' > .env && kling-receiver token", {}, ".env cannot be read: it is not UTF-8"),
        *(
            (f"echo KLING_LOG_LEVEL=info | iconv -t {form} > .env && {command}", {}, ".env cannot be read: it is ")
            for form in ("UTF-16", "UTF-16LE", "UTF-16BE")
            for command in ("kling list", "kling-receiver token")
        ),
        (
            "echo '[hooks.a]' | iconv -t UTF-16 > hooks.toml && kling-receiver serve",
            {"KLING_HOOKS_FILE": "hooks.toml"},
            "hooks.toml is not valid TOML: it is not UTF-8 text. Save it as UTF-8.",
        ),
        ("mkdir gone && cd gone && rmdir ../gone && kling-receiver serve", {"KLING_DATA_DIR": "x"}, "no longer exists"),
        ("kling create x/y --body @- <&-", {}, "standard input is closed"),
        ("kling-receiver serve --host ''", {}, "--host"),
    ],
)
def test_what_is_wrong_usage(run: Run, line: str, variables: dict[str, str], message: str) -> None:
    """One message that names the variable, no secret, and exit code 2."""
    ran = run(line, **variables)
    assert (ran.returncode, ran.stdout) == (2, b"")
    assert message in ran.stderr.decode()
    assert b"hidden" not in ran.stderr


def test_a_disk_that_becomes_full(run: Run) -> None:
    """The message names the command that downloads again, and it works once there is room."""
    ran = run("ulimit -f 1; kling text-to-image x --external-task-id order-1 --output out")
    assert ran.returncode == 1
    assert b"out/order-1-0.png cannot be written: File too large" in ran.stderr
    again = ran.stderr.decode().splitlines()[-1]
    assert again == "kling wait order-1 --output out"
    assert run(again).stdout == b"out/order-1-0.png\n"


def test_serving_in_a_folder_whose_name_is_no_url(gateway: Sandbox, tmp_path: Path) -> None:
    """Database and results lie in that very folder."""
    data = tmp_path / "a%20b?c"
    with Process(data, KLING_API_BASE=gateway.url) as process:
        assert f"data in {data}: database {data}/kling.db, results {data}/results" in process.log_text()
    assert {"kling.db", "kling.db.lock", "results"} <= {path.name for path in data.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {data.name, f"{data.name}.log"}


def test_serving_prints_a_login_link(gateway: Sandbox, tmp_path: Path) -> None:
    """Another one at each start; a browser signs in with it, once."""
    links = []
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url) as process:
        for _ in range(2):
            links.append(re.findall(r"http\S+/dashboard/login\?link=\S+", process.log_text())[-1])
            headers = {"Sec-Fetch-Site": "same-origin", "Origin": process.url}
            form = {"link": links[-1].partition("link=")[2]}
            answers = [httpx.post(f"{process.url}/dashboard/login", data=form, headers=headers) for _ in range(2)]
            assert [answer.status_code for answer in answers] == [303, 401]
            process.kill()
            process.start()
    assert len(set(links)) == 2


def test_serving_on_postgres(postgresql: str, gateway: Sandbox, tmp_path: Path) -> None:
    """`postgres://` is `postgresql://`."""
    url = postgresql.replace("postgresql://", "postgres://")
    with Process(tmp_path / "data", KLING_API_BASE=gateway.url, KLING_DATABASE_URL=url) as process:
        assert "database postgresql://" in process.log_text()


def test_questions_through_a_socks_proxy(gateway: Sandbox, tmp_path: Path, run: Run) -> None:
    """`serve`, `doctor` and `kling` reach Kling, which only the proxy can."""
    with socks_proxy(gateway.url) as (proxy, names):
        far = {"KLING_API_BASE": "http://kling.test", "KLING_ALLOW_HTTP_API": "on", "ALL_PROXY": f"socks://{proxy}"}
        far |= {"NO_PROXY": "", "no_proxy": ""}
        with Process(tmp_path / "far", **far) as process:
            doctor = run("kling-receiver doctor", **far, KLING_RECEIVER_URL=process.url)
            assert (doctor.returncode, doctor.stdout.count(b"ok  ")) == (0, 6)
            far["KLING_RECEIVER_URL"] = process.url
            assert run("kling text-to-image x --no-wait --external-task-id order-1", **far).returncode == 0
            assert run("kling-receiver tasks ask order-1", **far).returncode == 0
    assert len(names) >= 3
    assert set(names) == {b"kling.test"}


def test_the_fixtures_of_pytest(run: Run, tmp_path: Path) -> None:
    """Sandbox and receiver are on loopback: no proxy concerns them."""
    (tmp_path / "test_x.py").write_text(
        "from kling_callback import Kling\n\n\ndef test_x(kling_settings):\n"
        "    with Kling(**kling_settings) as kling:\n        assert kling.text_to_image('x').wait(20).images\n"
    )
    ran = run("python -m pytest -q -p no:cacheprovider test_x.py", ALL_PROXY="socks4://x:1", HTTPS_PROXY="nonsense://")
    assert ran.returncode == 0, ran.stdout


HOSTILE = [
    *("", " ", "\ud800", "\udcff", "x" * 10_000, "9" * 30, "-1", "0", "nan", "inf", "1e400", "٣", "²", "--", "-", "\n"),
    *("@-", "@/dev/null", "@/", "@", "/", "..", "a/b", "null", "[]", "{}", '{"a":', "true", '{"prompt": "x"}', TAG),
    *(
        "\x1b[31m",
        "%00",
        "http://",
        "http://[::1",
        "http://x:99999",
        "https://u:p@x/",
        "images/generations",
        "a=b",
        "=",
    ),
    *("n=1", 'n="x"', "external_task_id=5", "options=[]", "model_name=[]", "image={}", "5,nan,1e999", ",", "whsec_"),
    *("2026-99-99", "0001-01-01T00:00", "9999-12-31T23:59:59", "command:", "nats://", "https://shop.example.com/x"),
    *("failed", "succeed", "dead", "task.done", "order-1", "latest", "1", "/text-to-video/kling-3.0-turbo"),
]


def commands(group: click.Group, *path: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command of a group that ends by itself."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)
        elif command and name not in ("serve", "listen"):
            yield (*path, name), command


def hostile_arguments(choice: random.Random, command: click.Command) -> list[str]:
    """Arguments and options, some missing or repeated, with hostile values."""
    arguments = [
        choice.choice(HOSTILE)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
        for _ in range(choice.choice([0, 1, 1, 1, 1, 1, 2]))
    ]
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    for option in choice.sample(options, min(len(options), choice.randint(0, 3))):
        for _ in range(choice.choice([1, 1, 2])):
            arguments += [choice.choice(option.opts), *([] if option.is_flag else [choice.choice(HOSTILE)])]
    return arguments


@pytest.fixture
def settings(receiver: Running, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of the receiver, in this process."""
    values = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET, "RECEIVER_URL": receiver.url}
    for name, value in {**values, "DATA_DIR": str(receiver.settings.data_dir)}.items():
        monkeypatch.setenv(f"KLING_{name}", value)


def code_of(program: str, arguments: list[str]) -> int:
    """The exit code of a command in this process. An exception is raised."""
    if program == "kling-receiver":
        return CliRunner().invoke(kling_receiver, arguments, catch_exceptions=False, prog_name=program).exit_code
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return int(exited.value.code or 0)


@pytest.mark.parametrize(("program", "group"), [("kling", kling), ("kling-receiver", kling_receiver)])
@pytest.mark.usefixtures("settings", "capfd")
def test_hostile_arguments(program: str, group: click.Group) -> None:
    """Each command ends with a message and one of its exit codes, whatever it is given."""
    choice = random.Random(20261126)
    for path, command in commands(group):
        for _ in range(12):
            arguments = [*path, *hostile_arguments(choice, command)]
            if any(parameter.name == "no_wait" for parameter in command.params):
                arguments.append("--no-wait")
            elif any(parameter.name == "timeout" for parameter in command.params) and program == "kling":
                arguments += ["--timeout", "0.1"]
            assert code_of(program, arguments) in (0, 1, 2, 3), arguments


VALUES = [None, True, 0, -1, 10**30, "", "x", "\x1b[2J", [], {}, [None], ["x"], {"a": 1}, "succeed", "done"]
NAMES = [
    *("tasks", "next", "task", "id", "status", "results", "data", "error", "code", "message", "hint", "hooks", "hook"),
    *("secret", "deliveries", "delivered", "duration_ms", "response_status", "kling", "created_at", "family", "tags"),
    *("done", "name", "state", "address", "events", "behind", "dead", "last_attempt", "create", "callback_url"),
    *("database", "attempts"),
]


def nonsense(choice: random.Random, depth: int = 0) -> object:
    """A JSON document with the receiver's names and other values."""
    kind = choice.random()
    if depth > 3 or kind < 0.3:
        return choice.choice(VALUES)
    if kind < 0.45:
        return [nonsense(choice, depth + 1) for _ in range(choice.randint(0, 3))]
    return {choice.choice(NAMES): nonsense(choice, depth + 1) for _ in range(choice.randint(1, 6))}


CALLS = [
    ("kling", "list"),
    ("kling", "show a"),
    ("kling", "wait a --timeout 0.1 --output out"),
    *(("kling-receiver", f"tasks {call}") for call in ("list", "show a", "ask a", "fetch a")),
    *(("kling-receiver", f"hooks {call} a") for call in ("show", "test", "pause", "resume", "rotate", "remove")),
    *(("kling-receiver", f"hooks {call}") for call in ("list", "add https://x.example/", "add command:/bin/true")),
    *(("kling-receiver", f"deliveries {call}") for call in ("list", "show 1/a", "retry 1/a", "retry --dead")),
    ("kling-receiver", "replay --from 1"),
]


@pytest.mark.parametrize(("program", "line"), CALLS)
@pytest.mark.usefixtures("settings", "capfd")
def test_a_server_that_is_no_receiver(monkeypatch: pytest.MonkeyPatch, program: str, line: str) -> None:
    """Whatever it answers, the command ends with a message."""
    choice = random.Random(line)
    bodies = [b"", b"\xff", b"<html>", b"null", b'{"a":', b"[" * 100_000, b"1" * 5_000]

    def respond(visit: Visit) -> None:
        body = choice.choice(bodies) if choice.random() < 0.2 else json.dumps(nonsense(choice)).encode()
        visit.answer(choice.choice([200, 200, 200, 200, 201, 204, 301, 400, 404, 409]), body)

    with host(respond) as server:
        monkeypatch.setenv("KLING_RECEIVER_URL", server.url)
        for _ in range(25):
            assert code_of(program, line.split()) in (0, 1, 2, 3)


def test_every_command_is_tried() -> None:
    """The tests above know them all."""
    assert {path[0] for path, _ in commands(kling_receiver)} == COMMANDS.keys() - {"serve"}
