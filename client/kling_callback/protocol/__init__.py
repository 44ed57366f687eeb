"""Kling's protocol and our own tokens, events and tables: pure functions, shared with the receiver."""
