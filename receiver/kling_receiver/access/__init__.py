"""Who may use the API: named tokens, and the audit log of administrative actions."""

LOCAL_COMMAND = "local command"
"""Who acts by a command of `kling-receiver`: it signs its own token with the signing secrets, and names itself so."""
