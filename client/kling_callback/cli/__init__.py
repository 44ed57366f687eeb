"""The `kling` command."""
