"""A real receiver on loopback, in a thread of the calling process. Needs the extra `receiver`."""

import threading
import time
from pathlib import Path
from socket import socket
from typing import Any
from urllib.parse import urlsplit

import httpx

from kling_callback.protocol.signing import CallbackSigner, Role, api_token, task_hook_secrets
from kling_receiver.app import Receiver
from kling_receiver.parts import PRODUCTION_DELAYS, Clock, Delays
from kling_receiver.server import bind, create_server
from kling_receiver.settings import ReceiverSettings

API_KEY = "sandbox-key"
SIGNING_SECRET = "a-signing-secret-for-tests-0123456789"
START_SECONDS = 20


class RunningReceiver:
    """A receiver that serves until `stop`. `url`, `local_url`: its address, on loopback; `receiver`: its parts."""

    def __init__(
        self,
        settings: ReceiverSettings,
        listening: socket,
        delays: Delays = PRODUCTION_DELAYS,
        clock: Clock = time.time,
    ) -> None:
        """Returns once the receiver is ready. `listening` is the socket that it serves; `clock`: its unix seconds."""
        self.settings, self.url = settings, settings.receiver_url
        self.local_url = f"http://127.0.0.1:{listening.getsockname()[1]}{urlsplit(self.url).path}"
        self.receiver = Receiver(settings, clock=clock, delays=delays)
        try:
            self.receiver.prepare()
        except BaseException:
            self.receiver.store.database.close()
            raise
        self._server = create_server(self.receiver)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]})
        self._thread.start()
        try:
            httpx.get(f"{self.local_url}/readyz", timeout=START_SECONDS, trust_env=False).raise_for_status()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut down in order; a second call does nothing."""
        self._server.stop()
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the receiver did not stop"

    def headers(self, role: Role = "client") -> dict[str, str]:
        """The headers of a request with this role."""
        return {"Authorization": f"Bearer {api_token(self.settings.signing_secrets, role, 300)}"}

    @property
    def task_hook_secret(self) -> str:
        """The secret that signs the deliveries to the hooks of single tasks."""
        return task_hook_secrets(self.settings.signing_secrets)[0]

    def callback_url(self, task_id: str, family: str = "images/generations") -> str:
        """A signed callback address of this receiver."""
        return CallbackSigner(self.settings.signing_secrets).url(self.url, task_id, family)


def start_receiver(
    data_dir: Path,
    *,
    path: str = "",
    port: int = 0,
    delays: Delays = PRODUCTION_DELAYS,
    clock: Clock = time.time,
    **settings: Any,
) -> RunningReceiver:
    """Start a receiver. `path`: serve under this prefix; `settings`: those that differ from `sandbox_settings`.

    Its public address is that on loopback, unless a proxy is in front of it, whose address is in `receiver_url`.
    """
    listening = bind("127.0.0.1", port)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}{path}"
    try:
        return RunningReceiver(
            sandbox_settings(data_dir, **{"receiver_url": url, **settings}), listening, delays, clock
        )
    except BaseException:
        listening.close()
        raise


def sandbox_settings(data_dir: Path, **settings: Any) -> ReceiverSettings:
    """Settings of a receiver for tests: its data lie in `data_dir`, and it may reach loopback.

    Every setting is given, so that none comes from the environment or a `.env` file.
    """
    defaults = {
        **{name: field.get_default() for name, field in ReceiverSettings.model_fields.items()},
        "api_key": API_KEY,
        "signing_secrets": (SIGNING_SECRET,),
        "receiver_url": "http://127.0.0.1:8000",
        "data_dir": data_dir,
        "private_result_hosts": ("127.0.0.1",),
        "private_hook_hosts": ("127.0.0.1",),
        "private_client_hook_hosts": ("127.0.0.1",),
    }
    if unknown := settings.keys() - defaults.keys():
        raise TypeError(f"The receiver has no setting {', '.join(sorted(unknown))}.")
    return ReceiverSettings.load(**{**defaults, **settings})
