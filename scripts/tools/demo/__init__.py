"""The demo: three jobs through the real commands against the sandbox."""
