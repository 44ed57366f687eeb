"""Event loops: one for blocking callers, and what belongs to one loop only."""
