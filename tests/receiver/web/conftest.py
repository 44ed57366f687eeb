"""One running receiver per module, for tests that only read, or whose requests are refused."""

from collections.abc import Iterator

import pytest

from kling_sandbox import Sandbox
from kling_sandbox.receiver import start_receiver
from tests.support.receiver import Running, Start


@pytest.fixture
def running(start: Start, gateway: Sandbox) -> Running:
    """A receiver of this test's own, which queries the sandbox."""
    return start(api_base=gateway.url)


@pytest.fixture(scope="module")
def shared_gateway() -> Iterator[Sandbox]:
    """The sandbox of the module's receiver."""
    with Sandbox() as gateway:
        yield gateway


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, shared_gateway: Sandbox) -> Iterator[Running]:
    """The module's receiver. Each test uses task ids of its own, and leaves the settings as they are."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where no `.env` file is
        running = start_receiver(folder / "data", api_base=shared_gateway.url)
    yield running
    running.stop()
