"""strace around a receiver: it writes down every call, and changes none."""

import shutil
import subprocess
from pathlib import Path


def present() -> bool:
    """Whether this machine has it, and lets us use it."""
    found = shutil.which("strace")
    tried = [found or "false", "-qq", "-e", "trace=none", "true"]
    return subprocess.run(tried, capture_output=True, check=False).returncode == 0


def command(out: Path, calls: str, *more: str) -> list[str]:
    """strace of these calls into a file; put it before a command."""
    return ["strace", "-f", "-qq", "-y", "-o", str(out), "-e", f"trace={calls}", *more]
