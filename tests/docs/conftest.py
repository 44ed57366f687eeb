"""The environment of a reader of the guides."""

import pytest

from kling_sandbox import Sandbox
from tests.support.receiver import KEY, SECRET, Start


@pytest.fixture
def settings(start: Start, gateway: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the guide's reader."""
    settings = {"API_BASE": gateway.url, "API_KEY": KEY, "SIGNING_SECRETS": SECRET}
    for name, value in {**settings, "RECEIVER_URL": start(api_base=gateway.url).url}.items():
        monkeypatch.setenv(f"KLING_{name}", value)
