"""The HTTP interface against its OpenAPI document: a long run of schemathesis, with valid tokens."""

import subprocess
import sys
import tempfile
from pathlib import Path

from kling_callback.protocol.signing import CallbackSigner, api_token
from tools.fuzz.parsers import SECRETS

COMMAND = Path(sys.executable).with_name("schemathesis")
CONFIG = """
[parameters]
"path.token" = "{token}"
"""


def run(url: str, examples: int, seed: int) -> int:
    """Test every operation of a receiver that has SECRETS. Returns the exit code of schemathesis."""
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "schemathesis.toml")
        config.write_text(CONFIG.format(token=CallbackSigner(SECRETS).token("t", "images/generations")))
        options = [
            *("--config-file", str(config), "run", f"{url}/openapi.json"),
            *("--continue-on-failure", "--no-color"),
            *("--header", f"Authorization: Bearer {api_token(SECRETS, 'admin', 86_400)}"),
            *("--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "20"),
            *("--exclude-path-regex", "/events$"),  # event streams do not end
            *("--exclude-checks", "positive_data_acceptance"),  # no schema describes a cursor
        ]
        return subprocess.run([str(COMMAND), *options], cwd=folder, check=False).returncode
