"""pytest fixtures: a sandbox, a receiver that is connected to it, and the settings of a client of both.

pytest finds this module by its entry point in every session, so nothing is imported before a fixture is used.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from kling_sandbox import Sandbox
    from kling_sandbox.receiver import RunningReceiver

HOOK_SECRET = "whsec_a2xpbmctc2FuZGJveC1ob29rLXNlY3JldC0wMDE="
"""Signs for the hook of KLING_HOOK_URL of `kling_receiver`; `kling_receiver.task_hook_secret` for those of tasks."""

NO_RECEIVER = "The fixture kling_receiver needs the extra `receiver`. Run: pip install '.[receiver]'"
"""The message where the receiver's packages are missing."""


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers."""
    config.addinivalue_line("markers", "kling_sandbox(**settings): arguments of the fixture's Sandbox")
    config.addinivalue_line("markers", "kling_receiver(**settings): settings of the fixture's receiver")


@pytest.fixture
def kling_sandbox(request: pytest.FixtureRequest) -> "Iterator[Sandbox]":
    """A running sandbox of this test. `@pytest.mark.kling_sandbox(misbehave=["failed"])` sets its arguments."""
    from kling_sandbox import Sandbox

    with Sandbox(**_arguments(request, "kling_sandbox")) as sandbox:
        yield sandbox


@pytest.fixture
def kling_receiver(
    request: pytest.FixtureRequest, kling_sandbox: "Sandbox", tmp_path_factory: pytest.TempPathFactory
) -> "Iterator[RunningReceiver]":
    """A running receiver whose Kling is `kling_sandbox`. `@pytest.mark.kling_receiver(...)` sets its settings."""
    try:
        from kling_sandbox.receiver import start_receiver
    except ModuleNotFoundError as error:
        pytest.fail(f"{NO_RECEIVER} ({error})", pytrace=False)
    settings = {"api_base": kling_sandbox.url, "hook_secret": HOOK_SECRET, **_arguments(request, "kling_receiver")}
    receiver = start_receiver(tmp_path_factory.mktemp("kling"), **settings)
    yield receiver
    receiver.stop()


@pytest.fixture
def kling_settings(kling_sandbox: "Sandbox", kling_receiver: "RunningReceiver") -> dict[str, str]:
    """The settings of a client: `Kling(**kling_settings)`, or `KLING_...` in the environment.

    Settings that would lead elsewhere are empty, so that none comes from the environment or a `.env` file.
    """
    return {
        "access_key": "",
        "secret_key": "",
        "receiver_token": "",
        "receiver_internal_url": "",
        "api_base": kling_sandbox.url,
        "api_key": next(iter(kling_sandbox.keys)),
        "receiver_url": kling_receiver.url,
        "signing_secrets": ",".join(kling_receiver.settings.signing_secrets),
    }


def _arguments(request: pytest.FixtureRequest, marker: str) -> dict[str, Any]:
    """The arguments of all markers of this name; the closest to the test counts."""
    arguments: dict[str, Any] = {}
    for mark in request.node.iter_markers(marker):
        arguments = {**mark.kwargs, **arguments}
    return arguments
