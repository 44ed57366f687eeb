"""`kling listen`: handle events on this machine, from a cursor on disk."""
