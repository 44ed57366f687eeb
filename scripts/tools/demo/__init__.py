"""The demo: three jobs by the real commands, against a sandbox."""
