"""Tests run in an environment of their own: no variable, mask or handler of the caller's shell changes a result.

pytest imports this package before everything in it, in each of its processes.
"""

import os
import signal
import tempfile
import time

INHERITED = {"PATH", "TMPDIR", "TEST_DATABASE_URL", "LD_LIBRARY_PATH"}
"""Variables that tests have from the caller. A test that needs another one sets it."""

OF_RUNNERS = ("PYTEST_", "COV_", "COVERAGE_", "MUTANT_", "PY_IGNORE_")
"""How the variables of pytest, coverage and mutmut begin."""

_home = tempfile.TemporaryDirectory(prefix="kling-home-")  # removed at exit

for name in list(os.environ):
    if name not in INHERITED and not name.startswith(OF_RUNNERS):
        del os.environ[name]
os.environ |= {"HOME": _home.name, "LANG": "C.UTF-8", "TZ": "UTC"}
time.tzset()
os.umask(0o022)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a background job: a Ctrl-C must reach started programs
    signal.signal(signal.SIGINT, signal.default_int_handler)
