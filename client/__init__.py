"""Submit a Kling job once, get called back, have the files: the client's side."""

from client.blocking import File, Kling, Result, Task
from client.errors import (
    CreateUnknown,
    GatewayError,
    HookError,
    KlingError,
    NotCreated,
    ParameterError,
    ReceiverError,
    ResultFailed,
    SettingsError,
    TaskFailed,
    TokenError,
    TokenExpired,
    WaitTimeout,
)
from client.events import Event
from client.hooks import HookEvent, verify_hook
from client.kling import AsyncKling
from client.patience import Patience
from client.settings import ClientSettings
from client.signing import CallbackSigner
from client.tasks import AsyncFile, AsyncResult, AsyncTask

__all__ = [
    "AsyncFile",
    "AsyncKling",
    "AsyncResult",
    "AsyncTask",
    "CallbackSigner",
    "ClientSettings",
    "CreateUnknown",
    "Event",
    "File",
    "GatewayError",
    "HookError",
    "HookEvent",
    "Kling",
    "KlingError",
    "NotCreated",
    "ParameterError",
    "Patience",
    "ReceiverError",
    "Result",
    "ResultFailed",
    "SettingsError",
    "Task",
    "TaskFailed",
    "TokenError",
    "TokenExpired",
    "WaitTimeout",
    "verify_hook",
]
