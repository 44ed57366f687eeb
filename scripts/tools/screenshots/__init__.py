"""The screenshots in README.md and docs/: a day of tasks against a sandbox, seen in Chromium."""
