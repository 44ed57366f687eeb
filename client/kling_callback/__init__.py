"""The client of Kling Callback: create Kling tasks, wait for their callbacks without polling, download their files.

`Kling` blocks, `AsyncKling` has the same methods, awaited; all errors are KlingErrors.
"""

from kling_callback.api.retry import RetryPolicy
from kling_callback.errors import (
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
from kling_callback.hooks import HookEvent, verify_hook
from kling_callback.kling import AsyncKling
from kling_callback.protocol.events import Event
from kling_callback.protocol.signing import CallbackSigner
from kling_callback.settings import ClientSettings
from kling_callback.sync import File, Kling, Result, Task
from kling_callback.tasks import AsyncFile, AsyncResult, AsyncTask

Patience = RetryPolicy
"""Deprecated name of RetryPolicy, to be removed in the next version."""

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
    "RetryPolicy",
    "SettingsError",
    "Task",
    "TaskFailed",
    "TokenError",
    "TokenExpired",
    "WaitTimeout",
    "verify_hook",
]
