"""When a result's address ends: read from its query where Kling writes it, in hex seconds (section 7)."""

import re

EXPIRY_PARAMETER = re.compile(r"[?&]ksTime=([0-9a-fA-F]{8})(?:&|$)")
MAX_LIFETIME_MS = 400 * 86_400_000


def expires_at(url: str, now: int) -> int | None:
    """Unix ms at which `url` ends, or None when nothing believable says so. `now`: unix ms."""
    found = EXPIRY_PARAMETER.search(url)
    if not found:
        return None
    at = int(found[1], 16) * 1000
    return at if abs(at - now) < MAX_LIFETIME_MS else None
