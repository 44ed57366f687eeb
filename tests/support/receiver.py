"""Receivers for tests, as `kling_sandbox.receiver` starts them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kling_receiver.settings import ReceiverSettings
from kling_sandbox.receiver import API_KEY as KEY
from kling_sandbox.receiver import SIGNING_SECRET as SECRET
from kling_sandbox.receiver import RunningReceiver as Running
from kling_sandbox.receiver import sandbox_settings

Start = Callable[..., Running]

ABSENT = "absent: "
"""How the reason to skip a test begins when something optional is missing on this machine."""

__all__ = ["ABSENT", "KEY", "SECRET", "Running", "Start", "make_settings"]


def make_settings(tmp_path: Path, **settings: Any) -> ReceiverSettings:
    """Settings of a receiver whose data lie under `tmp_path`."""
    return sandbox_settings(**{"data_dir": tmp_path / "data", **settings})
