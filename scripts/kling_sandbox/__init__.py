"""The sandbox gateway: a Kling stand-in on loopback for the demo and the tests, never for real work."""

from kling_sandbox.sandbox import Sandbox

__all__ = ["Sandbox"]
