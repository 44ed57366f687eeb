"""Programs for developers: measure, crash, fuzz and demonstrate the real commands."""
