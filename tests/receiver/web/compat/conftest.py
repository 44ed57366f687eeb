"""One receiver per module that serves Kling's own API, in front of a sandbox."""

from collections.abc import Iterator

import httpx
import pytest

from kling_sandbox import Sandbox
from kling_sandbox.receiver import start_receiver
from tests.support.compat import ACCESS_KEY, KEY, SECRET_KEY
from tests.support.receiver import Running


@pytest.fixture(scope="module")
def door_gateway() -> Iterator[Sandbox]:
    """The sandbox of the module's receiver."""
    with Sandbox(access_key=ACCESS_KEY, secret_key=SECRET_KEY) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory, door_gateway: Sandbox) -> Iterator[Running]:
    """The module's receiver, with an API key and an access key of the account."""
    folder = tmp_path_factory.mktemp("door")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where no `.env` file is
        running = start_receiver(
            folder / "data",
            api_base=door_gateway.url,
            api_key=KEY,
            access_key=ACCESS_KEY,
            secret_key=SECRET_KEY,
            compat_api="on",
        )
    yield running
    running.stop()


@pytest.fixture(scope="module")
def api(door: Running) -> Iterator[httpx.Client]:
    """A program that was written for Kling, and has the account's key."""
    with httpx.Client(base_url=door.url, headers={"Authorization": f"Bearer {KEY}"}, timeout=20) as client:
        yield client
