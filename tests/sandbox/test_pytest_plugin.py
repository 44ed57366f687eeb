"""The pytest fixtures, found by their entry point; tests/deep has the sessions of users."""

import sys
from pathlib import Path

import httpx
import pytest

from kling_callback import Kling
from kling_sandbox import Sandbox
from kling_sandbox.receiver import RunningReceiver


def test_the_settings_are_those_of_a_client(kling_sandbox: Sandbox, kling_settings: dict[str, str]) -> None:
    """A client submits a job and waits for its image."""
    with Kling(**kling_settings) as kling:  # type: ignore[arg-type]
        assert kling.text_to_image("a kangaroo").wait(30).images[0].read().startswith(b"\x89PNG")
    assert len(kling_sandbox.creates) == 1


def test_settings_of_the_environment_and_of_env_files_are_not_used(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A developer's production settings lead neither the receiver nor the client of a test elsewhere."""
    foreign = {
        "API_BASE": "https://production.example",
        "API_KEY": "production-key",
        "DATABASE_URL": "postgresql://production.example/kling",
        "STORAGE_URL": "file:///production",
        "HOOK_URL": "https://production.example/hook",
        "HOOKS_FILE": "/production/hooks.toml",
    }
    for name, value in foreign.items():
        monkeypatch.setenv(f"KLING_{name}", value)
    elsewhere = ("RECEIVER_INTERNAL_URL=https://production.example", "RECEIVER_TOKEN=t", "ACCESS_KEY=a", "SECRET_KEY=s")
    Path(".env").write_text("\n".join(f"KLING_{line}" for line in elsewhere))
    sandbox, receiver = request.getfixturevalue("kling_sandbox"), request.getfixturevalue("kling_receiver")
    settings = receiver.settings
    assert settings.database == f"sqlite:///{settings.data_dir / 'kling.db'}"
    assert (settings.results, settings.hook_url, settings.hooks) == (settings.data_dir / "results", "", [])
    with Kling(**request.getfixturevalue("kling_settings")) as kling:
        assert kling.text_to_image("a kangaroo").wait(30).images[0].size
    assert len(sandbox.creates) == 1


@pytest.mark.kling_sandbox(image_seconds=7, concurrency=3)
class TestMarkers:
    """Markers of a test and of what contains it."""

    @pytest.mark.kling_sandbox(image_seconds=9)
    @pytest.mark.kling_receiver(overdue_seconds=77)
    def test_the_closest_marker_counts(self, kling_sandbox: Sandbox, kling_receiver: RunningReceiver) -> None:
        """For each argument of the sandbox, and each setting of the receiver."""
        assert (kling_sandbox.seconds["images"], kling_sandbox.concurrency) == (9, 3)
        assert kling_receiver.settings.overdue_seconds == 77
        assert httpx.get(f"{kling_receiver.url}/readyz").status_code == 200


def test_without_the_extra_the_receiver_fails_in_one_line(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says what to install."""
    monkeypatch.setitem(sys.modules, "kling_sandbox.receiver", None)
    with pytest.raises(pytest.fail.Exception, match=r"^The fixture .* Run: pip install '\.\[receiver\]' .*$"):
        request.getfixturevalue("kling_receiver")
