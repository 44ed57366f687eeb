"""strace around a receiver: records system calls and changes none."""

import shutil
import subprocess
from pathlib import Path


def available() -> bool:
    """Whether strace is installed and may trace here."""
    program = shutil.which("strace")
    probe = [program or "false", "-qq", "-e", "trace=none", "true"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def command(out: Path, calls: str, *options: str) -> list[str]:
    """The command prefix that traces these calls into a file."""
    return ["strace", "-f", "-qq", "-y", "-o", str(out), "-e", f"trace={calls}", *options]
