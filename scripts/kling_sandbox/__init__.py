"""A stand-in for Kling on this machine, for tests and demos: it speaks Kling's protocol and generates nothing."""

from kling_sandbox.sandbox import Sandbox

__all__ = ["Sandbox"]
