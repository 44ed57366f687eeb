"""A stand-in for Kling on this machine, for tests and demos: it speaks Kling's protocol and generates nothing."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kling_sandbox.sandbox import Sandbox

__all__ = ["Sandbox"]


def __getattr__(name: str) -> Any:
    # Imported when used: pytest loads the plugin in every session of a user.
    if name == "Sandbox":
        from kling_sandbox.sandbox import Sandbox

        return Sandbox
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
