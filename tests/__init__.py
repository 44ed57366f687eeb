"""Tests run in an environment of their own: no variable, mask or handler of the caller's shell changes a result.

pytest imports this package before everything in it, in each of its processes.
"""

import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

INHERITED = {"PATH", "TMPDIR", "TEST_DATABASE_URL", "LD_LIBRARY_PATH"}
"""Variables that tests have from the caller. A test that needs another one sets it."""

OF_RUNNERS = ("PYTEST_", "COV_", "COVERAGE_", "MUTANT_", "PY_IGNORE_")
"""How the variables of pytest, coverage and mutmut begin."""

MEMORY = Path("/dev/shm")
"""Where temporary files lie unless TMPDIR says otherwise: the tests sync files more than 50,000 times.

Which syncs the programs make is checked where they are intercepted: see tests/deep/test_power.py.
"""
MEMORY_BYTES = 4_000_000_000
"""Free bytes there that the tests ask for; they use less than half of it."""

if "TMPDIR" not in os.environ and MEMORY.is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES:
    os.environ["TMPDIR"] = str(MEMORY)
    tempfile.tempdir = None  # it was read before

_home = tempfile.TemporaryDirectory(prefix="kling-home-")  # removed at exit

for name in list(os.environ):
    if name not in INHERITED and not name.startswith(OF_RUNNERS):
        del os.environ[name]
os.environ |= {"HOME": _home.name, "LANG": "C.UTF-8", "TZ": "UTC"}
time.tzset()
os.umask(0o022)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job: a Ctrl-C must reach started programs
    signal.signal(signal.SIGINT, signal.default_int_handler)
