"""When the URL of a result expires: Kling writes the time into its query, in hexadecimal seconds."""

import re

EXPIRY_PARAMETER = re.compile(r"[?&]ksTime=([0-9a-fA-F]{8})(?:&|$)")
MAX_LIFETIME_MS = 400 * 86_400_000
"""Milliseconds between now and a plausible time of expiry: a year, with a margin."""


def expires_at(url: str, now: int) -> int | None:
    """Unix ms at which `url` expires; None without a plausible time. `now`: unix ms."""
    parameter = EXPIRY_PARAMETER.search(url)
    if not parameter:
        return None
    expiry = int(parameter[1], 16) * 1000
    return expiry if abs(expiry - now) < MAX_LIFETIME_MS else None
