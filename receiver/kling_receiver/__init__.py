"""The receiver: takes Kling's callbacks, keeps what happened, fetches the files, tells whoever waits."""

from importlib.metadata import version

__version__ = version("kling-callback")
